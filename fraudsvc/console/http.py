"""The console's HTTP: JSON about decisions and traces, and the metrics. Imports Starlette, uvicorn.

Owns paths, status codes and the server's thread. Must not know where answers come from.
"""

from __future__ import annotations

import base64
import json
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import uvicorn
from fraud.v1 import decision_pb2
from google.protobuf.json_format import MessageToDict
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, ExceptionHandler

from featurizer.features import NAMES
from featurizer.spans import Span
from fraudsvc.console.audit import AuditTrail
from fraudsvc.console.prometheus import Exposition
from fraudsvc.console.readmodel import ReadModel, Row

CONCURRENCY_MAX = 256  # of which some are streams of events
STOP_S = 2.0
_OUTCOMES = {"approve": 1, "review": 2, "decline": 3}


def _refusal(status: int, reason: str, message: str) -> JSONResponse:
    return JSONResponse({"error": {"reason": reason, "message": message}}, status)


def span_fields(span: Span) -> dict[str, Any]:
    """Return a span as it stands in JSON."""
    return {
        "trace_id": span.context.trace_id, "span_id": span.context.span_id, "parent": span.parent,
        "name": span.name, "kind": span.kind.name, "service": span.service,
        "start_ns": span.start_ns, "end_ns": span.end_ns, "attributes": dict(span.attributes),
        "links": [{"trace_id": each.trace_id, "span_id": each.span_id} for each in span.links],
    }  # fmt: skip


def _numbers(data: bytes) -> dict[str, float | None]:
    """Return packed float32 by the features' names; null where unknown."""
    if len(data) != 4 * len(NAMES):
        return {}
    values = np.frombuffer(data, "<f4").tolist()
    return {n: None if v != v else v for n, v in zip(NAMES, values, strict=True)}  # noqa: PLR0124


def decision_fields(row: Row, labels: list[Row]) -> dict[str, Any]:
    """Return a decision with all that is known of it, as it stands in JSON."""
    decision = decision_pb2.Decision.FromString(row["body"])
    told = MessageToDict(decision, preserving_proto_field_name=True)
    told["features"] = _numbers(decision.features)
    told["contributions"] = _numbers(decision.contributions)
    plain = {k: v for k, v in row.items() if k not in ("body", "codes")}
    return {**plain, "codes": json.loads(row["codes"]), "decision": told, "labels": labels}


def _list_fields(row: Row) -> dict[str, Any]:
    return {**row, "codes": json.loads(row["codes"])}


class Api:
    """What each path of the JSON API answers. ``health``'s "status" is ok, or what is wrong."""

    def __init__(
        self,
        model: ReadModel,
        exposition: Exposition,
        health: Callable[[], Mapping[str, Any]],
        trail: AuditTrail,
    ) -> None:
        self._trail = trail
        self._model = model
        self._exposition = exposition
        self._health = health

    def decision(self, request: Request) -> Response:
        """Answer one decision, with all that is known of it."""
        row = self._model.decision(request.path_params["id"])
        if row is None:
            return _refusal(404, "DECISION_NOT_FOUND", "it is not kept, or there is none")
        self._trail.audit(request.state.person, "read decision", row["decision_id"], new="api")
        return JSONResponse(decision_fields(row, self._model.labels(row["decision_id"])))

    def decisions(self, request: Request) -> Response:
        """Answer a page of decisions."""
        asked = request.query_params
        outcome = asked.get("outcome", "")
        if outcome and outcome not in _OUTCOMES:
            return _refusal(400, "INVALID_OUTCOME", f"one of {', '.join(_OUTCOMES)}")
        try:
            rows, after = self._model.decisions(
                outcome=_OUTCOMES.get(outcome), queue=asked.get("order") == "expected_loss",
                after=_cursor(asked.get("after", "")), limit=int(asked.get("limit", "50")),
            )  # fmt: skip
        except ValueError:
            return _refusal(400, "INVALID_PAGE", "limit is a number, after is what a page gave")
        told = json.dumps([each["decision_id"] for each in rows])
        self._trail.audit(request.state.person, "list decisions", "api", new=told)
        following = base64.urlsafe_b64encode(after.encode()).decode()
        return JSONResponse({"decisions": [*map(_list_fields, rows)], "after": following})

    def trace(self, request: Request) -> Response:
        """Answer a trace with what it led to."""
        trace_id = request.path_params["id"]
        spans = self._model.trace(trace_id)
        if not spans:
            return _refusal(404, "TRACE_NOT_FOUND", "it is not kept, or there is none")
        self._trail.audit(request.state.person, "read trace", trace_id, new="api")
        return JSONResponse({"trace_id": trace_id, "spans": [span_fields(each) for each in spans]})

    def healthz(self, _: Request) -> Response:
        """Answer whether all is well."""
        told = self._health()
        return JSONResponse(dict(told), 200 if told["status"] == "ok" else 503)

    def metrics(self, request: Request) -> Response:
        """Answer the metrics, for Prometheus."""
        text, content_type = self._exposition.render(request.headers.get("accept", ""))
        return Response(text, headers={"content-type": content_type})

    def routes(self) -> list[BaseRoute]:
        """Return the paths."""
        return [
            Route("/api/decisions", self.decisions),
            Route("/api/decisions/{id}", self.decision),
            Route("/api/traces/{id}", self.trace),
            Route("/healthz", self.healthz),
            Route("/metrics", self.metrics),
        ]


def app(
    routes: Sequence[BaseRoute],
    middleware: Sequence[Middleware] = (),
    handlers: Mapping[Any, ExceptionHandler] | None = None,
) -> Starlette:
    """Return the application; ``handlers`` answer an exception or a status."""
    return Starlette(
        routes=[*routes], middleware=[*middleware], exception_handlers=dict(handlers or {})
    )


def _cursor(text: str) -> str:
    return base64.urlsafe_b64decode(text.encode()).decode()


class HttpServer:
    """Serves an application from a thread of its own. Raises OSError where it cannot listen."""

    def __init__(self, application: ASGIApp, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_server((host, int(port)))
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(
            application, log_config=None, access_log=False, lifespan="off",
            limit_concurrency=CONCURRENCY_MAX, timeout_keep_alive=5, ws="none",
            timeout_graceful_shutdown=1,
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="http", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Refuse new requests and finish those in flight, within STOP_S."""
        self._server.should_exit = True
        self._thread.join(STOP_S)
        self._socket.close()
