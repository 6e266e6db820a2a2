"""The bare server that Score is held against: the same message in, a ready answer out.

python -m tests.bench.echo --ready-file FILE [--cpus 0] [--turns]

With ``--turns`` calls are answered as Score's are, else by gRPC's own pool, as is usual.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import threading
from collections.abc import Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
from fraud.v1 import decision_pb2
from fraud.v1 import fraud_service_pb2 as pb

from fraudsvc.errors import ServiceError, ending_of
from fraudsvc.scorer import ITEMS_AT_ONCE
from fraudsvc.server import SERVICE, ServerSettings
from fraudsvc.turns import TurnContext, Turns


def _answer() -> pb.ScoreResponse:
    assessment = decision_pb2.Assessment(
        outcome=decision_pb2.OUTCOME_APPROVE, score=0.01, rung=decision_pb2.RUNG_FULL,
        model_version="m-0123456789abcdef", policy_version="p-0123456789abcdef",
        schema_version="s-0123456789abcdef", decision_id="00000000-0000-8000-8000-000000000000",
        trace_id="0" * 32,
    )  # fmt: skip
    for i in range(4):
        assessment.reasons.add(
            code=f"CUSTOMER_COUNT_{i}H", source=decision_pb2.REASON_SOURCE_MODEL,
            text="customer: transactions in the window", contribution=0.5, value=1.5,
        )  # fmt: skip
    return pb.ScoreResponse(assessment=assessment)


def _by_pool(server: grpc.Server, answer: pb.ScoreResponse) -> None:
    handler: Any = grpc.unary_unary_rpc_method_handler(
        lambda request, context: answer,  # noqa: ARG005
        request_deserializer=pb.ScoreRequest.FromString,
        response_serializer=lambda response: response.SerializeToString(),
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {"Score": handler}),)
    )


def _by_turns(server: grpc.Server, answer: pb.ScoreResponse, settings: ServerSettings) -> Turns:
    def one(body: bytes) -> bytes:
        pb.ScoreRequest.FromString(body)
        return answer.SerializeToString()

    def run(waiting: Sequence[tuple[bytes, TurnContext]]) -> list[bytes]:
        return [one(body) for body, _ in waiting]

    full = ending_of(ServiceError("OVERLOADED"))
    return Turns(
        server, f"/{SERVICE}/Score", run, settings.calls_max, ITEMS_AT_ONCE, full, lambda: None
    )


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ready-file", type=Path, required=True)
    parser.add_argument("--cpus", default="")
    parser.add_argument("--turns", action="store_true")
    args = parser.parse_args()
    if args.cpus:
        os.sched_setaffinity(0, {int(c) for c in args.cpus.split(",")})
    answer, settings = _answer(), ServerSettings()
    server = grpc.server(
        futures.ThreadPoolExecutor(settings.threads),
        maximum_concurrent_rpcs=settings.calls_max,
        options=[("grpc.so_reuseport", 1)],
    )
    turns = _by_turns(server, answer, settings) if args.turns else None
    if turns is None:
        _by_pool(server, answer)
    port = server.add_insecure_port("127.0.0.1:0")
    gc.freeze()
    server.start()
    if turns is not None:
        turns.start()
    args.ready_file.write_text(str(port))
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    stopping.wait()
    server.stop(1).wait()


if __name__ == "__main__":
    main()
