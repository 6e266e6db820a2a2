"""What came of each call of a drill, and the figures and windows that follow from it.

Owns the definitions: in time, failed, recovered. Must not know how calls are made, nor what is
asked of the figures.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NamedTuple

import grpc
import numpy as np
from fraud.v1 import decision_pb2
from numpy.typing import NDArray

from loadgen.columns import short_names
from loadgen.tally import BUDGET_US

WINDOW_S: Final = 0.5
# So many windows in a row, each with this share of its accepted calls in time, is recovered.
GOOD_WINDOWS: Final = 4
GOOD_SHARE: Final = 0.95
# Calls in flight when a fault begins, and a client's way back after it, are part of the fault.
BEFORE_S: Final = 1.0
AFTER_S: Final = 5.0
TIMED_OUT: Final = "DEADLINE_EXCEEDED"
_RUNGS = {number: name for name, number in short_names(decision_pb2.Rung).items()}


class Call(NamedTuple):
    """One call: due at, s after the start; latency from then on; what came of it."""

    due_s: float
    latency_us: int
    status: str
    rung: str = ""
    decision_id: str = ""
    model: str = ""

    @property
    def shed(self) -> bool:
        """Whether the service refused it for want of room."""
        return self.status == "RESOURCE_EXHAUSTED"

    @property
    def failed(self) -> bool:
        """Whether it failed by more than being late: a call that timed out is only late."""
        return self.status not in ("OK", TIMED_OUT) and not self.shed

    @property
    def in_time(self) -> bool:
        """Whether it was answered within the budget."""
        return self.status == "OK" and self.latency_us <= BUDGET_US


class Fault(NamedTuple):
    """When a fault began and ended, s after the start."""

    began_s: float
    ended_s: float


@dataclass(frozen=True, slots=True)
class Window:
    """The calls that were due within WINDOW_S: counts, and latency points in ms."""

    start_s: float
    sent: int
    ok: int
    shed: int
    failed: int
    in_time: int
    p50_ms: float
    p99_ms: float
    rungs: dict[str, int]

    @property
    def good(self) -> bool:
        """Whether the accepted calls were answered in time; a window without calls is not."""
        accepted = self.sent - self.shed
        return accepted > 0 and self.in_time >= GOOD_SHARE * accepted


def call_of(
    due_s: float,
    latency_us: int,
    status: grpc.StatusCode,
    assessment: decision_pb2.Assessment | None,
) -> Call:
    """Return what is kept of a call."""
    if assessment is None:
        return Call(due_s, latency_us, status.name)
    rung = _RUNGS.get(assessment.rung, "UNSPECIFIED")
    return Call(
        due_s, latency_us, status.name, rung, assessment.decision_id, assessment.model_version
    )


def windows(calls: Iterable[Call]) -> list[Window]:
    """Return the windows from the start to the last call, empty ones too."""
    slots: dict[int, list[Call]] = {}
    for call in calls:
        slots.setdefault(int(call.due_s / WINDOW_S), []).append(call)
    return [_window(i, slots.get(i, [])) for i in range(max(slots, default=-1) + 1)]


def _window(number: int, calls: Sequence[Call]) -> Window:
    latency = np.array([call.latency_us for call in calls if not call.shed], np.int64)
    rungs: dict[str, int] = {}
    for call in calls:
        if call.rung:
            rungs[call.rung] = rungs.get(call.rung, 0) + 1
    ok, shed = sum(c.status == "OK" for c in calls), sum(c.shed for c in calls)
    return Window(
        start_s=number * WINDOW_S, sent=len(calls), ok=ok, shed=shed,
        failed=len(calls) - ok - shed, in_time=sum(c.in_time for c in calls),
        p50_ms=_point_ms(latency, 50), p99_ms=_point_ms(latency, 99), rungs=rungs,
    )  # fmt: skip


def _point_ms(latency_us: NDArray[np.int64], point: float) -> float:
    return float(np.percentile(latency_us, point)) / 1000 if len(latency_us) else 0.0


def recovery_s(calls: Sequence[Call], fault: Fault) -> float:
    """Return how long after the fault's end the first GOOD_WINDOWS good windows in a row began.

    Infinite where they never did.
    """
    after = [c._replace(due_s=c.due_s - fault.ended_s) for c in calls if c.due_s >= fault.ended_s]
    found = windows(after)
    for first in range(len(found) - GOOD_WINDOWS + 1):
        if all(window.good for window in found[first : first + GOOD_WINDOWS]):
            return found[first].start_s
    return math.inf


def knee(calls: Sequence[Call], steps: Sequence[tuple[float, float, float]]) -> float:
    """Return the highest load up to which at least 0.99 of all calls were in time, 0 for none.

    ``steps`` are (from s, until s, load), in ascending load.
    """
    highest = 0.0
    for start_s, end_s, load in steps:
        step = [call for call in calls if start_s <= call.due_s < end_s]
        if not step or sum(call.in_time for call in step) < 0.99 * len(step):
            break
        highest = load
    return highest


def figures(calls: Sequence[Call], fault: Fault | None) -> dict[str, float]:
    """Return a run's figures by name; shares are of 1, and 1 where nothing was asked."""
    ok = [call for call in calls if call.status == "OK"]
    shed = [call for call in calls if call.shed]
    accepted = len(calls) - len(shed)
    timed_out = sum(call.status == TIMED_OUT for call in calls)
    outside = [
        call for call in calls
        if fault is None or not fault.began_s - BEFORE_S <= call.due_s < fault.ended_s + AFTER_S
    ]  # fmt: skip
    latency = np.array([call.latency_us for call in ok], np.int64)
    refusals = np.array([call.latency_us for call in shed], np.int64)
    found = {
        "calls": float(len(calls)),
        "answered": float(len(ok)),
        "shed": float(len(shed)),
        "failed": float(accepted - len(ok) - timed_out),
        "unavailable": float(sum(call.status == "UNAVAILABLE" for call in calls)),
        "failed_outside": float(sum(call.failed for call in outside)),
        "timed_out_share": timed_out / len(calls) if calls else 0.0,
        "in_time_accepted": _share([c for c in calls if not c.shed]),
        "in_time_answered": _share(ok),
        "in_time_all": _share(calls),
        "accepted_share": accepted / len(calls) if calls else 1.0,
        "full_share": sum(c.rung == "FULL" for c in ok) / len(ok) if ok else 1.0,
        "degraded": float(sum(c.rung != "FULL" for c in ok)),
        "models": float(len({c.model for c in ok if c.model})),  # none answered by rules alone
        "model_changes": float(_changes([c.model for c in ok if c.model])),
        "shed_p99_ms": _point_ms(refusals, 99),
    }
    for name, point in (("p50_ms", 50.0), ("p99_ms", 99.0), ("p999_ms", 99.9), ("max_ms", 100.0)):
        found[name] = _point_ms(latency, point)
    if fault is not None:
        found["fault_s"] = fault.ended_s - fault.began_s
        found["recovery_s"] = recovery_s(calls, fault)
    return found


def _changes(models: Sequence[str]) -> int:
    return sum(a != b for a, b in pairwise(models))


def statuses(calls: Iterable[Call]) -> dict[str, int]:
    """Return how many calls ended with each status."""
    return dict(Counter(call.status for call in calls))


def _share(calls: Sequence[Call]) -> float:
    return sum(call.in_time for call in calls) / len(calls) if calls else 1.0
