"""Sends verdicts to the scorer, which puts them on the log. One of the importers of gRPC.

Owns the channel and its deadline. Must not know what a verdict means.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
from fraud.v1 import fraud_service_pb2, fraud_service_pb2_grpc, label_pb2

DEADLINE_S = 5.0


class ScorerGoneError(Exception):
    """The scorer did not take the labels; whether some were taken is not known after a timeout."""


class ScorerClient:
    """A channel to one address. Any thread may ask; it connects when it is first asked."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._channel = grpc.insecure_channel(address)
        self._stub: Any = fraud_service_pb2_grpc.FraudServiceStub(self._channel)  # type: ignore[no-untyped-call]

    def report(self, labels: Sequence[label_pb2.Label]) -> list[fraud_service_pb2.LabelResult]:
        """Report labels; return what came of each. Raises ScorerGoneError."""
        request = fraud_service_pb2.ReportLabelsRequest(labels=labels)
        try:
            answer = self._stub.ReportLabels(request, timeout=DEADLINE_S)
        except grpc.RpcError as error:
            details = getattr(error, "details", None)
            cause = details() if details is not None else str(error)
            raise ScorerGoneError(f"the scorer at {self._address}: {cause}") from error
        return list(answer.results)

    def close(self) -> None:
        """Let go of the connection."""
        self._channel.close()
