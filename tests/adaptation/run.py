"""Owns one run: a system decides a stream, labels follow from its alerts, its figures are taken."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.adaptation.streams import GOOD, NEVER, OLD, SURGE, Stream
from tests.adaptation.systems import TOLD, System
from tests.adaptation.troubles import FIRST_ANALYST, troubles_of
from tests.adaptation.world import MINUTE_MS

TICK_MS = 5_000
AHEAD_ATTACKS = 100
AHEAD_OLD = 80
AHEAD_GOOD = 2_000
FALSE_SHARE = 0.005


@dataclass(slots=True)
class Point:
    """What the model of a moment would do with the payments that come next."""

    minute: float
    labels: int  # confirmed frauds of the attack that the system was told
    recall: float  # of the next attacks, at the threshold that serves
    recall_at: float  # the same at the threshold with FALSE_SHARE false alerts
    old: float  # recall of the old frauds that come next, at the threshold that serves
    old_static: float  # the same of the base
    false: float  # share of the good payments that come next which would be alerted
    false_static: float  # the same of the base


@dataclass(slots=True)
class Outcome:
    """A finished run: points, swaps in minutes; what was alerted, bool[m], and each score."""

    points: list[Point] = field(default_factory=list)
    swaps: list[float] = field(default_factory=list)
    alerted: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    scored: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    scores: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    labels: int = 0
    cpu_s: float = 0.0


class Run:
    """A system on a stream."""

    def __init__(
        self, stream: Stream, system: System, static: System, *, told_at_once: bool = False
    ) -> None:
        self._stream, self._system, self._at_once = stream, system, told_at_once
        self._static = static
        self._due: dict[int, list[tuple[Any, ...]]] = defaultdict(list)
        self._said = np.zeros(len(stream.rows), np.bool_)
        self._labels = self._attack_labels = 0
        self._attacks = np.flatnonzero(stream.is_attack)
        self._old = np.flatnonzero(stream.rows["kind"] == OLD)
        self._good = np.flatnonzero(np.isin(stream.rows["kind"], (GOOD, SURGE)))
        self._is_fraud, self._is_attack = stream.is_fraud, stream.is_attack
        self._troubles = troubles_of(stream)

    def go(self) -> Outcome:
        """Return what came of it."""
        began = time.process_time()
        stream, system = self._stream, self._system
        out = Outcome(alerted=np.zeros(len(stream.rows), np.bool_))
        out.scored = np.ones(len(stream.rows), np.bool_)
        out.scores = np.zeros(len(stream.rows))
        times = stream.rows["time_ms"]
        ticks = np.arange(stream.scale.stream_ms + TICK_MS, stream.scale.end_ms + 1, TICK_MS)
        stops = np.searchsorted(times, ticks)
        first = 0
        for tick, (now_ms, stop) in enumerate(zip(ticks.tolist(), stops.tolist(), strict=True)):
            scores = system.score(np.arange(first, stop))
            out.alerted[first:stop] = scores >= system.threshold
            out.scored[first:stop], out.scores[first:stop] = ~np.isnan(scores), scores
            system.serve(first, stop, scores)
            self._schedule(first, stop, out.alerted[first:stop])
            changed = system.learn(self._told(tick), now_ms)
            first = stop
            minute = (now_ms - stream.scale.onset_ms) / MINUTE_MS
            if changed:
                out.swaps.append(minute)
            if now_ms % (2 * MINUTE_MS) == 0 or changed:
                self._measure(out, stop, minute)
        out.labels = self._labels
        out.cpu_s = time.process_time() - began
        return out

    def _schedule(self, first: int, stop: int, alerted: NDArray[np.bool_]) -> None:
        """Plan who says what of some payments, and when."""
        rows = self._stream.rows[first:stop]
        heard = alerted | rows["drawn"] | (rows["reported_ms"] != NEVER)
        if self._at_once:
            heard |= self._is_fraud[first:stop]
        for offset in np.flatnonzero(heard).tolist():
            self._plan(first + offset, rows[offset], bool(alerted[offset]))
        for label in self._troubles.false_labels(first, stop):
            self._add(label[1], label)

    def _plan(self, at: int, row: np.void, alerted: bool) -> None:
        judged = alerted or bool(row["drawn"]) or self._at_once
        when = int(row["judged_ms"] if judged else row["reported_ms"])
        reporter = FIRST_ANALYST + int(row["analyst"]) if judged else int(row["customer"])
        if self._at_once:
            when = int(row["time_ms"])
        verdict = bool(self._is_fraud[at]) != (judged and self._troubles.lies(row, when))
        self._add(self._troubles.heard_ms(when), (at, when, verdict, judged, reporter))

    def _add(self, when: int, label: tuple[Any, ...]) -> None:
        tick = -(-(when - self._stream.scale.stream_ms) // TICK_MS) - 1
        self._due[max(tick, 0)].append(label)

    def _told(self, tick: int) -> NDArray[Any]:
        due = [label for at in [t for t in self._due if t <= tick] for label in self._due.pop(at)]
        told = np.array(sorted(due, key=lambda label: label[1]), TOLD)
        self._labels += len(told)
        frauds = told["row"][told["is_fraud"]]
        self._attack_labels += int(self._is_attack[frauds].sum())
        return told

    def _measure(self, out: Outcome, at: int, minute: float) -> None:
        """Put what comes next before the model that serves now."""
        if minute < 0:
            return
        system, static = self._system, self._static
        attacks = _next(self._attacks, at, AHEAD_ATTACKS)
        old, good = _next(self._old, at, AHEAD_OLD), _next(self._good, at, AHEAD_GOOD)
        if len(old) < AHEAD_OLD // 4 or (len(self._attacks) and len(attacks) < AHEAD_ATTACKS // 2):
            return
        scores, good_scores = system.score(attacks), system.score(good)
        good_scores = good_scores[~np.isnan(good_scores)]
        threshold_at = float(np.quantile(good_scores, 1.0 - FALSE_SHARE))
        out.points.append(
            Point(
                minute, self._attack_labels, _share(scores >= system.threshold),
                _share(scores > threshold_at), _share(system.score(old) >= system.threshold),
                _share(static.score(old) >= static.threshold),
                _share(good_scores >= system.threshold),
                _share(static.score(good) >= static.threshold),
            )
        )  # fmt: skip


def _next(places: NDArray[np.int64], at: int, count: int) -> NDArray[np.int64]:
    return places[np.searchsorted(places, at) :][:count]


def _share(flags: NDArray[np.bool_]) -> float:
    return float(flags.mean()) if len(flags) else float("nan")
