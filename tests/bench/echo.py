"""The bare server that Score is held against: the same message in, a ready answer out.

python -m tests.bench.echo --ready-file FILE [--cpus 0]
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import threading
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
from fraud.v1 import decision_pb2
from fraud.v1 import fraud_service_pb2 as pb

from fraudsvc.server import SERVICE, ServerSettings


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


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ready-file", type=Path, required=True)
    parser.add_argument("--cpus", default="")
    args = parser.parse_args()
    if args.cpus:
        os.sched_setaffinity(0, {int(c) for c in args.cpus.split(",")})
    answer, settings = _answer(), ServerSettings()
    handler: Any = grpc.unary_unary_rpc_method_handler(
        lambda request, context: answer,  # noqa: ARG005
        request_deserializer=pb.ScoreRequest.FromString,
        response_serializer=lambda response: response.SerializeToString(),
    )
    server = grpc.server(
        futures.ThreadPoolExecutor(settings.threads),
        maximum_concurrent_rpcs=settings.calls_max,
        options=[("grpc.so_reuseport", 1)],
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {"Score": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    gc.freeze()
    server.start()
    args.ready_file.write_text(str(port))
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    stopping.wait()
    server.stop(1).wait()


if __name__ == "__main__":
    main()
