"""What a scorer is given from outside, its bounds, clocks and calls; and what a call gets."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from fraud.v1 import fraud_service_pb2

from fraudsvc.answers import field, origin_of
from fraudsvc.errors import ServiceError, item_error
from fraudsvc.payment import Payment
from fraudsvc.trace_ids import trace_id_of

MS = 1_000_000
Steps = tuple[int, int, int]  # when a call arrived, was accepted and had its states, monotonic ns


@dataclass(frozen=True, slots=True)
class ScorerSettings:
    """Bounds of a decision, in ms, and who decides.

    ``budget_ms`` is the time from arrival within which an answer is due; with less than
    ``full_ms`` of it left, rules alone answer. ``name`` stands in every decision.
    """

    budget_ms: float = 50.0
    full_ms: float = 5.0
    pending_max: int = 4_096
    states_bytes_max: int = 512 << 20
    items_max: int = 1_024
    name: str = ""


class Call(NamedTuple):
    """What the transport knows of a call: clock readings in ns (monotonic) and its trace.

    Where it is one of many, ``steps_ns`` is what its steps are counted from, and ``trace_id`` what
    all have that bring none.
    """

    arrival_ns: int
    deadline_ns: int
    traceparent: str = ""
    steps_ns: int = 0
    trace_id: bytes = b""

    def due_ns(self, budget_ns: int) -> int:
        """Return when its answer is due, by the caller's deadline and by a budget."""
        return min(self.deadline_ns, self.arrival_ns + budget_ns)


def caller_of(call: Call, scorer: str) -> tuple[bytes, bytes]:
    """Return a call's trace id, b"" for a new one, and what a Decision says of who asked whom."""
    trace_id = trace_id_of(call.traceparent) if call.traceparent else b""
    if not trace_id:  # what is no traceparent is not kept either, whatever it says
        return call.trace_id, origin_of("", scorer)
    return trace_id, origin_of(call.traceparent, scorer)


class Clocks(NamedTuple):
    """The time of day in ms since 1970, and a monotonic clock in ns."""

    now_ms: Callable[[], int] = lambda: time.time_ns() // MS
    monotonic_ns: Callable[[], int] = time.perf_counter_ns


@dataclass(slots=True)
class Kept:
    """A decision that is going to the log, with its answer, or why there is none after all."""

    payment: Payment
    call: Call
    answer: bytes | ServiceError


def result_of(answer: bytes | ServiceError) -> bytes:
    """Return a ScoreResult's bytes."""
    if isinstance(answer, ServiceError):
        return fraud_service_pb2.ScoreResult(error=item_error(answer)).SerializeToString()
    return field(b"\x0a", answer)
