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
from tests.adaptation.world import MINUTE_MS

TICK_MS = 5_000
AHEAD_ATTACKS = 100
AHEAD_GOOD = 3_000
FALSE_SHARE = 0.005
_FIRST_ANALYST = 1_000


@dataclass(slots=True)
class Point:
    """What the model of a moment would do with the payments that come next."""

    minute: float
    labels: int  # confirmed frauds of the attack that the system was told
    recall: float  # of the next attacks, at the threshold that serves
    recall_at: float  # the same at the threshold with FALSE_SHARE false alerts
    threshold_at: float


@dataclass(slots=True)
class Outcome:
    """A finished run: points, swaps in minutes, and what was alerted, bool[m]."""

    points: list[Point] = field(default_factory=list)
    swaps: list[float] = field(default_factory=list)
    alerted: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    scored: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    labels: int = 0
    cpu_s: float = 0.0


class Run:
    """A system on a stream."""

    def __init__(self, stream: Stream, system: System, *, told_at_once: bool = False) -> None:
        self._stream, self._system, self._at_once = stream, system, told_at_once
        self._due: dict[int, list[tuple[Any, ...]]] = defaultdict(list)
        self._said = np.zeros(len(stream.rows), np.bool_)
        self._labels = self._attack_labels = 0
        self._attacks = np.flatnonzero(stream.is_attack)
        self._good = np.flatnonzero(np.isin(stream.rows["kind"], (GOOD, SURGE)))
        self._is_fraud, self._is_attack = stream.is_fraud, stream.is_attack

    def go(self) -> Outcome:
        """Return what came of it."""
        began = time.process_time()
        stream, system = self._stream, self._system
        out = Outcome(alerted=np.zeros(len(stream.rows), np.bool_))
        out.scored = np.ones(len(stream.rows), np.bool_)
        times = stream.rows["time_ms"]
        ticks = np.arange(stream.scale.stream_ms + TICK_MS, stream.scale.end_ms + 1, TICK_MS)
        stops = np.searchsorted(times, ticks)
        first = 0
        for tick, (now_ms, stop) in enumerate(zip(ticks.tolist(), stops.tolist(), strict=True)):
            scores = system.score(np.arange(first, stop))
            out.alerted[first:stop] = scores >= system.threshold
            out.scored[first:stop] = ~np.isnan(scores)
            system.serve(first, stop, scores)
            self._schedule(first, stop, out.alerted[first:stop])
            changed = system.learn(self._told(tick), now_ms)
            first = stop
            minute = (now_ms - stream.scale.onset_ms) / MINUTE_MS
            if changed:
                out.swaps.append(minute)
            if now_ms % MINUTE_MS == 0 or changed:
                self._measure(out, stop, minute)
        out.labels = self._labels
        out.cpu_s = time.process_time() - began
        return out

    def _schedule(self, first: int, stop: int, alerted: NDArray[np.bool_]) -> None:
        """Plan who says what of some payments, and when."""
        rows = self._stream.rows[first:stop]
        for offset in np.flatnonzero(alerted | rows["drawn"] | (rows["reported_ms"] != NEVER)):
            self._plan(first + int(offset), rows[offset], bool(alerted[offset]))

    def _plan(self, at: int, row: np.void, alerted: bool) -> None:
        judged = alerted or bool(row["drawn"])
        when = int(row["judged_ms"] if judged else row["reported_ms"])
        reporter = _FIRST_ANALYST + int(row["analyst"]) if judged else int(row["customer"])
        self._add(when, (at, when, bool(self._is_fraud[at]), judged, reporter))

    def _add(self, when: int, label: tuple[Any, ...]) -> None:
        tick = -(-(when - self._stream.scale.stream_ms) // TICK_MS) - 1
        self._due[max(tick, 0)].append(label)

    def _told(self, tick: int) -> NDArray[Any]:
        told = np.array(sorted(self._due.pop(tick, []), key=lambda label: label[1]), TOLD)
        self._labels += len(told)
        frauds = told["row"][told["is_fraud"]]
        self._attack_labels += int(self._is_attack[frauds].sum())
        return told

    def _measure(self, out: Outcome, at: int, minute: float) -> None:
        """Put what comes next before the model that serves now."""
        system = self._system
        ahead = self._attacks[np.searchsorted(self._attacks, at) :][:AHEAD_ATTACKS]
        if len(ahead) < AHEAD_ATTACKS // 2 or minute < 0:
            return
        scores = system.score(ahead)
        recall_at = threshold_at = float("nan")
        if minute == int(minute) and minute % 2 == 0:
            good = self._good[np.searchsorted(self._good, at) :][:AHEAD_GOOD]
            threshold_at = float(np.quantile(system.score(good), 1.0 - FALSE_SHARE))
            recall_at = float((scores > threshold_at).mean())
        recall = float((scores >= system.threshold).mean())
        out.points.append(Point(minute, self._attack_labels, recall, recall_at, threshold_at))
