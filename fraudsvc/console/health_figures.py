"""Live figures from the metrics: rates, shares and percentiles of the last minutes, lags of now.

Owns how counts of two moments become figures. Pure: looks at the clock only by what it is told.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from featurizer.metering import BY_NAME, CONSUMERS, LAYOUT, METHODS, OUTCOMES, RUNGS

KEPT = 300  # looks, one a second
WINDOW_S = 60.0
PERCENTILES = (0.5, 0.95, 0.99)
PLOT_WIDTH, PLOT_HEIGHT = 240, 40


class Look(NamedTuple):
    """The numbers of all meters at a moment of a monotonic clock, in s."""

    now_s: float
    values: NDArray[np.float64]


class History:
    """The last looks; one thread adds, any reads."""

    def __init__(self) -> None:
        self._looks: deque[Look] = deque(maxlen=KEPT)

    def add(self, now_s: float, values: NDArray[np.float64]) -> None:
        """Keep a look."""
        self._looks.append(Look(now_s, values))

    def figures(self) -> dict[str, Any]:
        """Return what a page shows; nothing yet before two looks."""
        looks = list(self._looks)
        if len(looks) < 2:
            return {}
        last = looks[-1]
        first = next((each for each in looks if last.now_s - each.now_s <= WINDOW_S), looks[0])
        if first is last:
            first = looks[-2]
        seconds, grown = last.now_s - first.now_s, _grown(first.values, last.values)
        decided = {
            (s.labels["outcome"], s.labels["rung"]): grown[s.start]
            for s in LAYOUT["fraud_decisions_total"]
        }
        total = sum(decided.values())
        return {
            "seconds": seconds, "rate": total / seconds, "rates": _rates(looks),
            "outcomes": _shares(decided, OUTCOMES, 0, total),
            "rungs": _shares(decided, RUNGS, 1, total),
            "times": list(_times(grown, seconds)), "lags": list(_lags(last.values)),
            "refused": _refused(grown) / seconds,
            "drift": last.values[LAYOUT["fraud_score_drift"][0].start],
            "kept": last.values[LAYOUT["fraud_readmodel_rows"][0].start],
        }  # fmt: skip


def _grown(first: NDArray[np.float64], last: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return by how much each count grew; one that began anew has all that it has."""
    grown = last - first
    return np.where(grown < 0, last, grown)


def _shares(
    decided: Mapping[tuple[str, str], float], names: Sequence[str], place: int, total: float
) -> list[tuple[str, float]]:
    sums = dict.fromkeys(names, 0.0)
    for key, count in decided.items():
        sums[key[place]] += count
    return [
        (name.replace("_", " "), count / total if total else 0.0) for name, count in sums.items()
    ]


def _refused(grown: NDArray[np.float64]) -> float:
    calls = LAYOUT["fraud_calls_total"]
    return float(sum(grown[s.start] for s in calls if s.labels["code"] == "RESOURCE_EXHAUSTED"))


def _times(grown: NDArray[np.float64], seconds: float) -> Iterator[dict[str, Any]]:
    """Yield what took how long: calls by method, the decision, the append, a label's way."""
    wanted = [
        *((f"call of {m}", "fraud_call_seconds", i) for i, m in enumerate(METHODS)),
        ("decision", "fraud_decision_seconds", 0), ("append to the log", "fraud_append_seconds", 0),
        ("label to serving", "fraud_label_to_serving_seconds", 0),
    ]  # fmt: skip
    for title, name, number in wanted:
        series = LAYOUT[name][number]
        counts = grown[series.start : series.stop - 1]
        if counts.sum():
            bounds = BY_NAME[name].buckets
            told = [percentile(counts, bounds, share) for share in PERCENTILES]
            yield {"what": title, "rate": counts.sum() / seconds, "percentiles": told}


def percentile(counts: NDArray[np.float64], bounds: Sequence[float], share: float) -> float:
    """Return a percentile of a histogram, drawn evenly within its bucket.

    ``counts`` float64[n + 1] of n upper ``bounds``; what is beyond the last counts as it.
    """
    wanted, so_far, low = share * counts.sum(), 0.0, 0.0
    for bound, count in zip(bounds, counts, strict=False):
        if count and so_far + count >= wanted:
            return float(low + (bound - low) * (wanted - so_far) / count)
        so_far += count
        low = bound
    return float(bounds[-1])


def _lags(values: NDArray[np.float64]) -> Iterator[dict[str, Any]]:
    """Yield of each consumer that tells its position how far it is behind."""
    names = ("fraud_position", "fraud_backlog_bytes", "fraud_lag_seconds")
    for i, consumer in enumerate(CONSUMERS):
        position, behind, lag_s = (values[LAYOUT[name][i].start] for name in names)
        if position:
            yield {"consumer": consumer, "behind": behind, "lag_s": lag_s}


def _rates(looks: Sequence[Look]) -> list[float]:
    """Return decisions a second between looks."""
    slots = [s.start for s in LAYOUT["fraud_decisions_total"]]
    totals = np.array([look.values[slots].sum() for look in looks])
    times = np.array([look.now_s for look in looks])
    grown = np.diff(totals)
    return list(np.where(grown < 0, 0.0, grown) / np.maximum(np.diff(times), 1e-3))


def polyline(rates: Sequence[float]) -> str:
    """Return the points of a plot of PLOT_WIDTH by PLOT_HEIGHT, the newest at the right."""
    top = max(rates, default=0.0) or 1.0
    step = PLOT_WIDTH / (KEPT - 1)
    first = KEPT - len(rates)
    return " ".join(
        f"{(first + i) * step:.1f},{PLOT_HEIGHT - rate / top * (PLOT_HEIGHT - 2) - 1:.1f}"
        for i, rate in enumerate(rates)
    )
