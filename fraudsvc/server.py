"""The gRPC shell: decode, call the scorer, encode; health, reflection, shedding, drain.

Owns sockets and threads. Must not know what a decision is made of.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from fraud.v1 import fraud_service_pb2 as pb
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from fraudsvc.errors import ServiceError, abort, from_exception
from fraudsvc.scorer import Call, Scorer

SERVICE = pb.DESCRIPTOR.services_by_name["FraudService"].full_name
_log = logging.getLogger(__name__)
_NEVER_NS = 1 << 62
_Request = TypeVar("_Request", bound=Message)


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Bounds of the transport.

    ``calls_max`` calls are in the server at once, one more gets RESOURCE_EXHAUSTED at once; a call
    that waited ``wait_ms_max`` for a thread is shed too, with a hint when to come again.
    ``streams_max`` is a connection's: more wait in the client, so it must be well above
    ``calls_max`` for a call to be shed and not to be late. On a stop new calls are refused for
    ``linger_s``, then connections close, and calls in flight have ``drain_s`` more.
    """

    threads: int = 4
    calls_max: int = 32
    streams_max: int = 2_048
    wait_ms_max: float = 25.0
    message_bytes_max: int = 4 << 20
    score_bytes_max: int = 16 << 10
    metadata_bytes_max: int = 8 << 10
    linger_s: float = 0.25
    drain_s: float = 5.0
    reflection: bool = False


class _Arrivals(futures.ThreadPoolExecutor):
    """A thread pool that remembers when each call came, so that waiting counts as time used."""

    def __init__(self, threads: int) -> None:
        super().__init__(max_workers=threads, thread_name_prefix="score")
        self.local = threading.local()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> futures.Future[Any]:
        arrival_ns = time.perf_counter_ns()

        def run() -> Any:
            self.local.arrival_ns = arrival_ns
            return fn(*args, **kwargs)

        return super().submit(run)


def _reader(message: type[_Request], bytes_max: int) -> Callable[[bytes], _Request | ServiceError]:
    """Return a deserialiser that gives an error for bytes that are not the message.

    None, or to raise it, would have grpc itself answer INTERNAL.
    """

    def read(data: bytes) -> _Request | ServiceError:
        if len(data) > bytes_max:
            return ServiceError("MALFORMED_MESSAGE")
        try:
            return message.FromString(data)
        except DecodeError:
            return ServiceError("MALFORMED_MESSAGE")

    return read


class Servicer:
    """The methods of FraudService over a Scorer."""

    def __init__(self, scorer: Scorer, arrivals: _Arrivals, settings: ServerSettings) -> None:
        self._scorer = scorer
        self._arrivals = arrivals
        self._settings = settings
        self._drain_ns = _NEVER_NS

    def drain(self) -> None:
        """Refuse every call that arrives from now on; those that wait for a thread had arrived."""
        self._drain_ns = time.perf_counter_ns()

    def score(self, request: pb.ScoreRequest | ServiceError, context: grpc.ServicerContext) -> Any:
        """Answer Score."""
        with _errors(context):
            asked = self._given(request)
            call = self._call(context)
            assessment = self._scorer.score(
                asked.transaction, call, validate_only=asked.validate_only
            )
            return pb.ScoreResponse(assessment=assessment)

    def score_batch(
        self, request: pb.ScoreBatchRequest | ServiceError, context: grpc.ServicerContext
    ) -> Any:
        """Answer ScoreBatch."""
        with _errors(context):
            asked = self._given(request)
            call = self._call(context)
            results = self._scorer.score_batch(
                asked.transactions, call, validate_only=asked.validate_only
            )
            return pb.ScoreBatchResponse(results=results)

    def report_labels(
        self, request: pb.ReportLabelsRequest | ServiceError, context: grpc.ServicerContext
    ) -> Any:
        """Answer ReportLabels."""
        with _errors(context):
            results = self._scorer.report_labels(self._given(request).labels)
            return pb.ReportLabelsResponse(results=results)

    def get_decision(
        self, request: pb.GetDecisionRequest | ServiceError, context: grpc.ServicerContext
    ) -> Any:
        """Answer GetDecision."""
        with _errors(context):
            decision = self._scorer.get_decision(self._given(request).decision_id)
            return pb.GetDecisionResponse(decision=decision)

    def _given(self, request: _Request | ServiceError) -> _Request:
        if self._drain_ns != _NEVER_NS and self._arrival_ns() > self._drain_ns:
            raise ServiceError("DRAINING")
        if isinstance(request, ServiceError):
            raise request
        return request

    def _arrival_ns(self) -> int:
        return getattr(self._arrivals.local, "arrival_ns", time.perf_counter_ns())

    def _call(self, context: grpc.ServicerContext) -> Call:
        now_ns = time.perf_counter_ns()
        arrival_ns = self._arrival_ns()
        if now_ns - arrival_ns > self._settings.wait_ms_max * 1e6:
            raise ServiceError("OVERLOADED")
        remaining_s = context.time_remaining()
        deadline_ns = _NEVER_NS if remaining_s is None else now_ns + int(remaining_s * 1e9)
        traceparent = ""
        for name, value in context.invocation_metadata():
            if name == "traceparent":
                traceparent = str(value)[:64]
        return Call(arrival_ns, deadline_ns, traceparent)


@contextlib.contextmanager
def _errors(context: grpc.ServicerContext) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever it is, the client gets a status
        known = from_exception(error)
        if known is not error:
            _log.exception("a call failed")
        abort(context, known)


def _handlers(servicer: Servicer, settings: ServerSettings) -> grpc.GenericRpcHandler:
    large = settings.message_bytes_max
    rows: dict[str, tuple[Callable[..., Any], type[Message], int]] = {
        "Score": (servicer.score, pb.ScoreRequest, settings.score_bytes_max),
        "ScoreBatch": (servicer.score_batch, pb.ScoreBatchRequest, large),
        "ReportLabels": (servicer.report_labels, pb.ReportLabelsRequest, large),
        "GetDecision": (servicer.get_decision, pb.GetDecisionRequest, settings.score_bytes_max),
    }
    handlers: dict[str, Any] = {
        name: grpc.unary_unary_rpc_method_handler(
            method,
            request_deserializer=_reader(message, bytes_max),
            response_serializer=lambda response: response.SerializeToString(),
        )
        for name, (method, message, bytes_max) in rows.items()
    }
    return grpc.method_handlers_generic_handler(SERVICE, handlers)


class Server:
    """A gRPC server around a scorer; not serving until ``start``."""

    def __init__(self, scorer: Scorer, address: str, settings: ServerSettings) -> None:
        self._settings = settings
        arrivals = _Arrivals(settings.threads)
        options = [
            ("grpc.so_reuseport", 1),
            ("grpc.max_receive_message_length", settings.message_bytes_max),
            ("grpc.max_metadata_size", settings.metadata_bytes_max),
            ("grpc.max_concurrent_streams", settings.streams_max),
        ]
        self._server = grpc.server(
            arrivals, options=options, maximum_concurrent_rpcs=settings.calls_max
        )
        servicer = self._servicer = Servicer(scorer, arrivals, settings)
        self._server.add_generic_rpc_handlers((_handlers(servicer, settings),))
        self._health = health.HealthServicer(experimental_non_blocking=True)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        if settings.reflection:
            names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)
        self.port: int = self._server.add_insecure_port(address)

    def start(self) -> None:
        """Open the port and say so in health."""
        self._server.start()
        self._set_health(health_pb2.HealthCheckResponse.SERVING)

    def stop(self) -> None:
        """Refuse new calls, finish those in flight within the drain time, and close."""
        self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        self._servicer.drain()
        # grpc cancels what arrives just as it closes, so let clients hear it from us first.
        time.sleep(self._settings.linger_s)
        self._server.stop(self._settings.drain_s).wait()

    def _set_health(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for name in ("", SERVICE):
            self._health.set(name, status)
