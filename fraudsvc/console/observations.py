"""What the console counts of a log that it follows: decisions, labels, models, drift.

Owns how an event becomes a number of METRICS. Must not know where events come from.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from fraud.v1 import label_pb2, model_event_pb2
from numpy.typing import NDArray

from featurizer.kept import Column, Scanned
from featurizer.metering import BY_NAME, OUTCOMES, RUNGS, STEP_LABELS, Meters

DRIFT_ROWS = 2_000  # scores of a side of the comparison
_FLOOR = 1e-4  # of a bucket's share, as an empty one has no logarithm


def stability_index(before: NDArray[np.float64], now: NDArray[np.float64]) -> float:
    """Return the population stability index of two histograms, counts float64[n] each.

    Above 0.1 there is a shift to look at, above 0.25 a large one. Source: Siddiqi, Credit Risk
    Scorecards (2006).
    """
    shares = [np.maximum(each / max(each.sum(), 1.0), _FLOOR) for each in (before, now)]
    return float(((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum())


class Observations:
    """Counts into ``meters``."""

    def __init__(self, meters: Meters) -> None:
        self._meters = meters
        self._bounds = BY_NAME["fraud_score"].buckets
        self._first: deque[float] = deque(maxlen=DRIFT_ROWS)  # scores of the model in use
        self._last: deque[float] = deque(maxlen=DRIFT_ROWS)

    def decisions(self, found: Scanned) -> None:
        """Count the decisions of a batch."""
        rows, meters = found.rows, self._meters
        if not len(rows):
            return
        pairs, counts = np.unique(
            rows[:, [Column.OUTCOME, Column.RUNG]], axis=0, return_counts=True
        )
        for (outcome, rung), count in zip(pairs.tolist(), counts.tolist(), strict=True):
            if 1 <= outcome <= len(OUTCOMES) and 1 <= rung <= len(RUNGS):
                labels = OUTCOMES[outcome - 1], RUNGS[rung - 1]
                meters.add("fraud_decisions_total", *labels, by=count)
        used_s = (rows[:, Column.USED_NS] * 1e-9).astype(np.float64)
        meters.observe("fraud_decision_seconds", used_s)
        alone = rows[:, Column.SHARED_AT] == 0  # others count from the arrival of them all
        self._steps(rows[alone & (rows[:, Column.STEPS] == len(STEP_LABELS) - 1)])
        self._scores(found.scores[~np.isnan(found.scores)])

    def _steps(self, rows: NDArray[np.int64]) -> None:
        """Count the steps of decisions that tell them all."""
        ends = rows[:, Column.STEP : Column.STEP + len(STEP_LABELS) - 1]
        ends = np.column_stack([np.zeros(len(rows), np.int64), ends, rows[:, Column.USED_NS]])
        took_s: NDArray[np.float64] = np.maximum(np.diff(ends, axis=1), 0) * 1e-9
        for i, step in enumerate(STEP_LABELS):
            self._meters.observe("fraud_step_seconds", took_s[:, i], step)

    def _scores(self, scores: NDArray[np.float64]) -> None:
        self._meters.observe("fraud_score", scores)
        missing = DRIFT_ROWS - len(self._first)
        self._first.extend(scores[:missing].tolist())
        self._last.extend(scores[missing:].tolist() if missing > 0 else scores.tolist())
        if len(self._last) == DRIFT_ROWS:
            drift = stability_index(self._histogram(self._first), self._histogram(self._last))
            self._meters.put("fraud_score_drift", value=drift)

    def _histogram(self, scores: deque[float]) -> NDArray[np.float64]:
        places = np.searchsorted(self._bounds, np.array(scores))
        return np.bincount(places, minlength=len(self._bounds) + 1).astype(np.float64)

    def kept(self, why: str) -> None:
        """Count a decision whose trace is kept."""
        self._meters.add("fraud_traces_kept_total", why)

    def built(self, spans: int) -> None:
        """Count spans that were built from the log."""
        self._meters.add("fraud_spans_total", "built", by=spans)

    def label(self, source: int, verdict: int) -> None:
        """Count a label."""
        if source and verdict:
            names = (
                label_pb2.LabelSource.Name(source).removeprefix("LABEL_SOURCE_").lower(),
                label_pb2.Verdict.Name(verdict).removeprefix("VERDICT_").lower(),
            )
            self._meters.add("fraud_labels_total", *names)

    def model_event(self, change: int) -> None:
        """Count what happened to a model; another model begins another comparison of scores."""
        name = model_event_pb2.ModelChange.Name(change)
        self._meters.add("fraud_model_events_total", name.removeprefix("MODEL_CHANGE_").lower())
        if change == model_event_pb2.MODEL_CHANGE_LOADED:
            self._first.clear()
            self._last.clear()

    def swapped(self, waits_s: list[float]) -> None:
        """Count how long labels waited until a scorer decided by what learnt from them."""
        waited = np.array([each for each in waits_s if each >= 0.0], np.float64)
        self._meters.observe("fraud_label_to_serving_seconds", waited)
