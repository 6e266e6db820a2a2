"""What is counted of a run: latency, lateness, answers, fraud caught and missed.

Owns the figures and their definitions. Must not know how calls are made.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, Final, NamedTuple

import grpc
from fraud.v1 import decision_pb2
from hdrh.histogram import HdrHistogram

from loadgen.columns import short_names

BUDGET_US: Final = 50_000
LATE_US: Final = 1_000
_LATENCY_US_MAX: Final = 600_000_000
_DIGITS: Final = 3
_POINTS: Final = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9, "max": 100.0}
_OUTCOMES = {number: name for name, number in short_names(decision_pb2.Outcome).items()}
_RUNGS = {number: name for name, number in short_names(decision_pb2.Rung).items()}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The figures so far.

    ``latency_us`` covers every call but those that were shed (RESOURCE_EXHAUSTED), which have
    ``shed_latency_us``: a refusal is quick and must not make the answers look fast. It starts when
    a call was due. ``rate_per_s`` is of answers since the snapshot before. ``within_budget`` is
    the share of all calls that were answered with OK inside BUDGET_US, ``within_budget_accepted``
    of those not shed; both are 1.0 without calls. A fraud is caught when its outcome is REVIEW or
    DECLINE; a false alarm is the same of an honest payment, a false decline DECLINE alone. The
    minor units of frauds are summed by currency, where the caller gave them.
    """

    elapsed_s: float
    sent: int
    answered: int
    in_flight: int
    rate_per_s: float
    latency_us: dict[str, int]
    shed_latency_us: dict[str, int]
    statuses: dict[str, int]
    outcomes: dict[str, int]
    rungs: dict[str, int]
    late: int
    late_us: dict[str, int]
    within_budget: float
    within_budget_accepted: float
    fraud_caught: int
    fraud_missed: int
    false_alarms: int
    false_declines: int
    honest_approved: int
    fraud_caught_minor: dict[str, int]
    fraud_missed_minor: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """Return the figures as a dictionary of plain values."""
        return asdict(self)


class Money(NamedTuple):
    """An amount in minor units of a currency (ISO 4217 code)."""

    currency: str
    minor: int


def _histogram() -> HdrHistogram:
    return HdrHistogram(1, _LATENCY_US_MAX, _DIGITS)


def percentiles(histogram: HdrHistogram) -> dict[str, int]:
    """Return the usual points of a histogram, all 0 where it is empty."""
    if histogram.get_total_count() == 0:
        return dict.fromkeys(_POINTS, 0)
    values = histogram.get_percentile_to_value_dict(list(_POINTS.values()))
    return {name: int(values[point]) for name, point in _POINTS.items()}


class Tally:
    """Counts, safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._latency = _histogram()
        self._shed = _histogram()
        self._lateness = _histogram()
        self._statuses: Counter[grpc.StatusCode] = Counter()
        self._outcomes: Counter[int] = Counter()
        self._rungs: Counter[int] = Counter()
        # (is fraud, was stopped) -> count.
        self._verdicts: Counter[tuple[bool, bool]] = Counter()
        # was stopped -> currency -> minor units of fraud.
        self._fraud_minor: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
        self._sent = self._answered = self._late = self._in_budget = self._false_declines = 0
        self._last = (0.0, 0)

    def sent(self, lateness_us: int) -> None:
        """Count a call that was sent so long after it was due."""
        with self._lock:
            self._sent += 1
            self._lateness.record_value(min(max(lateness_us, 1), _LATENCY_US_MAX))
            self._late += lateness_us > LATE_US

    def failed(self, latency_us: int, status: grpc.StatusCode) -> None:
        """Count a call that ended without an answer."""
        shed = status is grpc.StatusCode.RESOURCE_EXHAUSTED
        with self._lock:
            self._count(latency_us, status, self._shed if shed else self._latency)

    def scored(
        self,
        latency_us: int,
        assessment: decision_pb2.Assessment,
        is_fraud: bool | None,
        money: Money | None = None,
    ) -> None:
        """Count an answer; ``is_fraud`` is the truth, None where it is unknown."""
        with self._lock:
            self._count(latency_us, grpc.StatusCode.OK, self._latency)
            self._in_budget += latency_us <= BUDGET_US
            self._outcomes[assessment.outcome] += 1
            self._rungs[assessment.rung] += 1
            if is_fraud is not None:
                stopped = assessment.outcome != decision_pb2.OUTCOME_APPROVE
                self._verdicts[is_fraud, stopped] += 1
                declined = assessment.outcome == decision_pb2.OUTCOME_DECLINE
                self._false_declines += declined and not is_fraud
                if is_fraud and money is not None:
                    self._fraud_minor[stopped][money.currency] += money.minor

    def _count(self, latency_us: int, status: grpc.StatusCode, histogram: HdrHistogram) -> None:
        self._answered += 1
        self._statuses[status] += 1
        histogram.record_value(min(max(latency_us, 1), _LATENCY_US_MAX))

    def snapshot(self, elapsed_s: float) -> Snapshot:
        """Return the figures after so many seconds."""
        with self._lock:
            since, before = self._last
            self._last = (elapsed_s, self._answered)
            shed = self._statuses[grpc.StatusCode.RESOURCE_EXHAUSTED]
            accepted = self._answered - shed
            return Snapshot(
                elapsed_s=elapsed_s,
                sent=self._sent,
                answered=self._answered,
                in_flight=self._sent - self._answered,
                rate_per_s=(self._answered - before) / max(elapsed_s - since, 1e-9),
                latency_us=percentiles(self._latency),
                shed_latency_us=percentiles(self._shed),
                statuses={code.name: count for code, count in self._statuses.items() if count},
                outcomes={_OUTCOMES.get(n, "UNSPECIFIED"): c for n, c in self._outcomes.items()},
                rungs={_RUNGS.get(n, "UNSPECIFIED"): c for n, c in self._rungs.items()},
                late=self._late,
                late_us=percentiles(self._lateness),
                within_budget=self._in_budget / self._answered if self._answered else 1.0,
                within_budget_accepted=self._in_budget / accepted if accepted else 1.0,
                fraud_caught=self._verdicts[True, True],
                fraud_missed=self._verdicts[True, False],
                false_alarms=self._verdicts[False, True],
                false_declines=self._false_declines,
                honest_approved=self._verdicts[False, False],
                fraud_caught_minor=dict(self._fraud_minor[True]),
                fraud_missed_minor=dict(self._fraud_minor[False]),
            )
