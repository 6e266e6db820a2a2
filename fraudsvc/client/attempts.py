"""Decides whether and when a call is made again (AIP-194), and what it ends with.

Owns the deadline over all attempts of a call, the pauses between them, and the errors that a
caller sees. Must not know sockets, threads or an event loop: clock and chance come in.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from fraud.v1 import decision_pb2, transaction_pb2
from fraud.v1 import fraud_service_pb2 as pb
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

STATUS_KEY = "grpc-status-details-bin"
CHANNELS_MAX = 64
# Another attempt with the same content would end the same way, so these are the caller's to mend.
REFUSALS = frozenset(
    {"ALREADY_EXISTS", "FAILED_PRECONDITION", "INVALID_ARGUMENT", "NOT_FOUND", "OUT_OF_RANGE"}
    | {"PERMISSION_DENIED", "UNAUTHENTICATED", "UNIMPLEMENTED"}
)
# By the second gRPC's server ends what it has not begun when it closes.
REPEATED = frozenset({"UNAVAILABLE", "CANCELLED"})
HINT_SPREAD = 0.25  # of a hint, added by chance: not all who were shed come back at one moment

Fallback = Callable[[transaction_pb2.Transaction, "NoAnswerError"], decision_pb2.Assessment]


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """Bounds of a call, in ms.

    ``deadline_ms`` is for all attempts of a call together, pauses included. A pause is by chance
    between 0 and a bound that doubles from ``backoff_first_ms`` to ``backoff_max_ms``; where a
    server says how long to wait, it is that. No attempt begins with less than ``attempt_ms_min``
    left. ``channels`` are connections, taken in turn. Raises ValueError for what cannot be.
    """

    deadline_ms: float = 50.0
    attempts_max: int = 4
    backoff_first_ms: float = 5.0
    backoff_max_ms: float = 100.0
    attempt_ms_min: float = 2.0
    channels: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.channels <= CHANNELS_MAX:
            raise ValueError(f"channels must be 1 to {CHANNELS_MAX}, not {self.channels}")
        if self.attempts_max < 1:
            raise ValueError(f"attempts_max must be at least 1, not {self.attempts_max}")
        bounds = (self.deadline_ms, self.backoff_first_ms, self.backoff_max_ms, self.attempt_ms_min)
        if min(bounds) <= 0:
            raise ValueError("deadline, back-off and shortest attempt must be above 0 ms")


class Failure(NamedTuple):
    """How one attempt ended: the code's name, ErrorInfo's reason, RetryInfo's delay, fields."""

    code: str
    reason: str = ""
    message: str = ""
    retry_after_s: float | None = None
    fields: tuple[tuple[str, str], ...] = ()


class ClientError(Exception):
    """A call that got no answer; ``failure`` says why, ``attempts`` how often it was tried."""

    def __init__(self, failure: Failure, attempts: int) -> None:
        super().__init__(f"{failure.reason or failure.code}: {failure.message}")
        self.failure = failure
        self.attempts = attempts


class NoAnswerError(ClientError):
    """No answer came in time. The same request may be sent again."""


class RefusedError(ClientError):
    """The service refuses the request as it is; sending it again changes nothing."""


def failure_of(code: str, message: str, trailers: Iterable[tuple[str, Any]]) -> Failure:
    """Return how an attempt ended, with what the status tells in its details."""
    reason, delay_s = "", None
    fields: tuple[tuple[str, str], ...] = ()
    for packed in _details(trailers):
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        bad = error_details_pb2.BadRequest()
        if packed.Unpack(info):
            reason = info.reason
        elif packed.Unpack(retry):
            delay_s = retry.retry_delay.ToMilliseconds() / 1000
        elif packed.Unpack(bad):
            fields = tuple((each.field, each.description) for each in bad.field_violations)
    return Failure(code, reason, message, delay_s, fields)


def _details(trailers: Iterable[tuple[str, Any]]) -> list[Any]:
    for name, value in trailers:
        if name == STATUS_KEY:
            try:
                return list(status_pb2.Status.FromString(value).details)
            except DecodeError:  # a proxy's, not the service's
                return []
    return []


class Attempts:
    """The attempts of one call, from its first on."""

    def __init__(
        self,
        settings: ClientSettings,
        deadline_ms: float | None,
        clock_s: Callable[[], float],
        chance: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._clock_s = clock_s
        self._chance = chance
        self._end_s = clock_s() + (deadline_ms or settings.deadline_ms) / 1000
        self.made = 0

    def begin(self) -> float:
        """Begin an attempt; return how many seconds it has, above 0."""
        self.made += 1
        return max(self._end_s - self._clock_s(), 1e-3)

    def pause_s(self, failure: Failure) -> float:
        """Return how long to wait before the next attempt.

        Raises RefusedError or NoAnswerError where there is to be none.
        """
        pause_s = self._wanted_s(failure)
        left_s = self._end_s - self._clock_s() - self._settings.attempt_ms_min / 1000
        if pause_s is None or self.made >= self._settings.attempts_max or pause_s > left_s:
            kind = RefusedError if failure.code in REFUSALS else NoAnswerError
            raise kind(failure, self.made)
        return pause_s

    def _wanted_s(self, failure: Failure) -> float | None:
        settings = self._settings
        if failure.code in REPEATED:
            bound_ms = settings.backoff_first_ms * 2.0 ** (self.made - 1)
            return self._chance() * min(bound_ms, settings.backoff_max_ms) / 1000
        if failure.code == "RESOURCE_EXHAUSTED" and failure.retry_after_s is not None:
            return failure.retry_after_s * (1 + HINT_SPREAD * self._chance())
        return None


def score_request(
    transaction: transaction_pb2.Transaction, *, validate_only: bool
) -> pb.ScoreRequest:
    """Return the request of all attempts; one without a request_id gets one, in a copy."""
    request = pb.ScoreRequest(transaction=transaction, validate_only=validate_only)
    if not request.transaction.request_id:
        request.transaction.request_id = str(uuid.uuid4())
    return request


def batch_request(transactions: Iterable[transaction_pb2.Transaction]) -> pb.ScoreBatchRequest:
    """Return the request of a batch, as ``score_request`` does."""
    request = pb.ScoreBatchRequest(transactions=transactions)
    for each in request.transactions:
        each.request_id = each.request_id or str(uuid.uuid4())
    return request
