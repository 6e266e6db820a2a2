"""The client for threads. One is enough for a process; threads may share it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import grpc
from fraud.v1 import decision_pb2, label_pb2, transaction_pb2
from fraud.v1 import fraud_service_pb2 as pb

from fraudsvc.client.attempts import (
    Attempts,
    ClientSettings,
    Fallback,
    NoAnswerError,
    batch_request,
    failure_of,
    score_request,
)
from fraudsvc.client.channels import (
    GET_DECISION,
    REPORT_LABELS,
    SCORE,
    SCORE_BATCH,
    Method,
    Tls,
    callable_of,
    check_token,
    metadata_of,
    open_channels,
)


class FraudClient:
    """Calls a scorer within a deadline, again where that may help.

    ``fallback`` is asked for an assessment where no answer came in time; without one NoAnswerError
    is raised. Make it after a fork, not before: gRPC has threads of its own.
    """

    def __init__(
        self,
        target: str,
        settings: ClientSettings | None = None,
        *,
        fallback: Fallback | None = None,
        tls: Tls | None = None,
        token: Callable[[], str] | None = None,
    ) -> None:
        check_token(target, tls, token)
        self._settings = settings or ClientSettings()
        self._fallback = fallback
        self._token = token
        self._turns = open_channels(target, self._settings.channels, tls, aio=False)

    def connect(self, timeout_s: float) -> bool:
        """Open all connections, so that no first call pays for it; return whether all are there."""
        end_s = time.monotonic() + timeout_s
        try:
            for channel in self._turns.channels:
                left_s = max(end_s - time.monotonic(), 0.0)
                grpc.channel_ready_future(channel).result(timeout=left_s)
        except grpc.FutureTimeoutError:
            return False
        return True

    def score(
        self,
        transaction: transaction_pb2.Transaction,
        *,
        deadline_ms: float | None = None,
        validate_only: bool = False,
        traceparent: str = "",
    ) -> decision_pb2.Assessment:
        """Return the assessment, or the fallback's. Raises RefusedError, NoAnswerError."""
        request = score_request(transaction, validate_only=validate_only)
        try:
            answer = self._call(SCORE, request, deadline_ms, traceparent)
        except NoAnswerError as error:
            if self._fallback is None:
                raise
            return self._fallback(request.transaction, error)
        found: decision_pb2.Assessment = answer.assessment
        return found

    def score_batch(
        self,
        transactions: Sequence[transaction_pb2.Transaction],
        *,
        deadline_ms: float | None = None,
    ) -> list[pb.ScoreResult]:
        """Return one result per transaction, in their order. Raises RefusedError, NoAnswerError."""
        return list(self._call(SCORE_BATCH, batch_request(transactions), deadline_ms).results)

    def report_labels(
        self, labels: Sequence[label_pb2.Label], *, deadline_ms: float | None = None
    ) -> list[pb.LabelResult]:
        """Return one result per label, in their order. Raises RefusedError, NoAnswerError."""
        request = pb.ReportLabelsRequest(labels=labels)
        return list(self._call(REPORT_LABELS, request, deadline_ms).results)

    def get_decision(
        self, decision_id: str, *, deadline_ms: float | None = None
    ) -> decision_pb2.Decision:
        """Return a decision as it stands in the log. Raises RefusedError, NoAnswerError."""
        request = pb.GetDecisionRequest(decision_id=decision_id)
        found: decision_pb2.Decision = self._call(GET_DECISION, request, deadline_ms).decision
        return found

    def close(self) -> None:
        """Close all connections; calls in flight end."""
        for channel in self._turns.channels:
            channel.close()

    def __enter__(self) -> FraudClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _call(
        self, method: Method, request: Any, deadline_ms: float | None, traceparent: str = ""
    ) -> Any:
        attempts = Attempts(self._settings, deadline_ms, time.monotonic, random.random)
        while True:
            call = callable_of(self._turns.next(), method)
            metadata = metadata_of(self._token, traceparent)
            try:
                return call(request, timeout=attempts.begin(), metadata=metadata)
            except grpc.RpcError as error:
                ended: Any = error
                trailers = ended.trailing_metadata() or ()
                failure = failure_of(ended.code().name, ended.details() or "", trailers)
                pause_s = attempts.pause_s(failure)
            time.sleep(pause_s)
