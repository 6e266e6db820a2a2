"""The client for asyncio, with the same promises as the one for threads."""

from __future__ import annotations

import asyncio
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


class AsyncFraudClient:
    """As FraudClient, for one event loop, in which it is to be made.

    ``fallback`` is a plain function: at the deadline there is no time left to wait for another.
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
        self._turns = open_channels(target, self._settings.channels, tls, aio=True)

    async def connect(self, timeout_s: float) -> bool:
        """Open all connections, so that no first call pays for it; return whether all are there."""
        ready = (channel.channel_ready() for channel in self._turns.channels)
        try:
            await asyncio.wait_for(asyncio.gather(*ready), timeout_s)
        except TimeoutError:
            return False
        return True

    async def score(
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
            answer = await self._call(SCORE, request, deadline_ms, traceparent)
        except NoAnswerError as error:
            if self._fallback is None:
                raise
            return self._fallback(request.transaction, error)
        found: decision_pb2.Assessment = answer.assessment
        return found

    async def score_batch(
        self,
        transactions: Sequence[transaction_pb2.Transaction],
        *,
        deadline_ms: float | None = None,
    ) -> list[pb.ScoreResult]:
        """Return one result per transaction, in their order. Raises RefusedError, NoAnswerError."""
        answer = await self._call(SCORE_BATCH, batch_request(transactions), deadline_ms)
        return list(answer.results)

    async def report_labels(
        self, labels: Sequence[label_pb2.Label], *, deadline_ms: float | None = None
    ) -> list[pb.LabelResult]:
        """Return one result per label, in their order. Raises RefusedError, NoAnswerError."""
        request = pb.ReportLabelsRequest(labels=labels)
        return list((await self._call(REPORT_LABELS, request, deadline_ms)).results)

    async def get_decision(
        self, decision_id: str, *, deadline_ms: float | None = None
    ) -> decision_pb2.Decision:
        """Return a decision as it stands in the log. Raises RefusedError, NoAnswerError."""
        request = pb.GetDecisionRequest(decision_id=decision_id)
        answer = await self._call(GET_DECISION, request, deadline_ms)
        found: decision_pb2.Decision = answer.decision
        return found

    async def close(self) -> None:
        """Close all connections; calls in flight end."""
        await asyncio.gather(*(channel.close() for channel in self._turns.channels))

    async def __aenter__(self) -> AsyncFraudClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def _call(
        self, method: Method, request: Any, deadline_ms: float | None, traceparent: str = ""
    ) -> Any:
        attempts = Attempts(self._settings, deadline_ms, time.monotonic, random.random)
        while True:
            call = callable_of(self._turns.next(), method)
            metadata = metadata_of(self._token, traceparent)
            try:
                return await call(request, timeout=attempts.begin(), metadata=metadata)
            except grpc.aio.AioRpcError as error:
                trailers: Any = error.trailing_metadata() or ()
                failure = failure_of(error.code().name, error.details() or "", trailers)
                pause_s = attempts.pause_s(failure)
            await asyncio.sleep(pause_s)
