"""Owns the figures of a finished run, as plain values. Must not know how it came about."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.adaptation.run import FALSE_SHARE, Outcome, Point
from tests.adaptation.streams import OLD, Stream
from tests.adaptation.world import MINUTE_MS

LEVELS = (0.5, 0.8)
HELD_MINUTES = 5.0
BIN_MINUTES = 5
HARM_RECALL = 0.05
HARM_FALSE = 0.005  # of good payments: as much again as is aimed at


def figures(stream: Stream, outcome: Outcome, static: Outcome | None) -> dict[str, Any]:
    """Return what a run shows; ``static`` is the run of the base on the same stream."""
    rows = stream.rows
    after = rows["time_ms"] >= stream.scale.onset_ms
    good, old = ~stream.is_fraud & outcome.scored, rows["kind"] == OLD
    alerted = outcome.alerted
    minute = (rows["time_ms"] - stream.scale.onset_ms) // MINUTE_MS
    before = static if static is not None else outcome
    return {
        "reached": {
            f"{name}_{round(100 * level)}": reached(outcome.points, name, level)
            for name in ("recall", "recall_at")
            for level in LEVELS
        },
        "false_share": _share(alerted[after & good]),
        "alert_share": _alert_share(alerted, outcome.scored, after, stream),
        "old_recall": _share(alerted[after & old]),
        "old_recall_static": _share(before.alerted[after & old]),
        "old_recall_static_within": _within(before.scores, after & good, after & old),
        "attack_recall": _share(alerted[after & stream.is_attack]),
        "labels": outcome.labels,
        "attack_labels": outcome.points[-1].labels if outcome.points else 0,
        "swaps": outcome.swaps,
        "cpu_s": round(outcome.cpu_s, 2),
        "points": [
            [round(p.minute, 3), p.labels, round(p.recall, 4), _number(p.recall_at)]
            for p in outcome.points
        ],
        "harmful_seconds": harmful_seconds(outcome.points),
        "bins": _bins(minute, alerted, good, old),
    }


def reached(points: list[Point], name: str, level: float) -> list[float] | None:
    """Return minute and labels from which on a recall held the level for a while; None: never."""
    known = [p for p in points if not np.isnan(getattr(p, name))]
    for at, point in enumerate(known):
        held = [p for p in known[at:] if p.minute <= point.minute + HELD_MINUTES]
        if all(getattr(p, name) >= level for p in held):
            return [round(point.minute, 2), point.labels]
    return None


def harmful_seconds(points: list[Point]) -> list[float]:
    """Return how long each spell lasted in which what served did harm, in seconds.

    Harm: of the old frauds that come next it misses more than HARM_RECALL beyond what the base
    does, or of the good payments that come next it alerts more than HARM_FALSE beyond that.
    """
    spells: list[float] = []
    since: float | None = None
    for point in points:
        harms = (
            point.old < point.old_static - HARM_RECALL
            or point.false > point.false_static + HARM_FALSE
        )
        if harms and since is None:
            since = point.minute
        if not harms and since is not None:
            spells.append(round(60 * (point.minute - since), 1))
            since = None
    if since is not None:
        spells.append(round(60 * (points[-1].minute - since), 1))
    return spells


def _alert_share(
    alerted: NDArray[np.bool_], scored: NDArray[np.bool_], after: NDArray[np.bool_], stream: Stream
) -> float:
    """Return the share of payments alerted; of a sample each good one stands for several."""
    good = ~stream.is_fraud
    share_good = _share(alerted[after & good & scored])
    frauds = int((alerted & after & stream.is_fraud).sum())
    return (share_good * int((after & good).sum()) + frauds) / max(int(after.sum()), 1)


def _bins(
    minute: NDArray[np.int64],
    alerted: NDArray[np.bool_],
    good: NDArray[np.bool_],
    old: NDArray[np.bool_],
) -> list[list[float]]:
    """Return per BIN_MINUTES: its first minute, share of false alerts, recall of old fraud."""
    out = []
    for first in range(int(minute.min()), int(minute.max()) + 1, BIN_MINUTES):
        here = (minute >= first) & (minute < first + BIN_MINUTES)
        out.append([first, _share(alerted[here & good]), _share(alerted[here & old])])
    return out


def _share(flags: NDArray[np.bool_]) -> float:
    return round(float(flags.mean()), 5) if len(flags) else 0.0


def _within(scores: NDArray[np.float64], good: NDArray[np.bool_], old: NDArray[np.bool_]) -> float:
    """Return the recall of old fraud where FALSE_SHARE of good ones are alerted, in hindsight."""
    return _share(scores[old] > np.quantile(scores[good], 1.0 - FALSE_SHARE))


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(value, 4)


def is_within(false_share: float) -> bool:
    """Return whether false alerts are as few as is aimed at."""
    return false_share <= FALSE_SHARE
