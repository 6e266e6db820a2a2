"""Owns the running metrics of a model over the newest confirmed labels: River's, but for the ranks.

River's rolling areas count two equal scores as the wrong order, and calibrated scores are often
equal: so those are our own, over the same window.

A score is judged when its label comes, by what was served then; how late labels come, and how few
payments have one, is counted where they are joined. Labels are no sample of traffic (alerts are
judged, of the rest the missed frauds are heard of): the figures compare models and times, and say
nothing of traffic as a whole. Must not know where scores come from.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from river import metrics, utils

from trainer.metrics import average_precision, roc_auc

WINDOW = 1_000


class Figures(NamedTuple):
    """Over the newest labels: how many, of them frauds, and the metrics; NaN where undefined."""

    labels: int
    frauds: int
    recall: float
    precision: float
    roc_auc: float
    average_precision: float
    log_loss: float


class RunningMetrics:
    """The metrics of one model at the threshold that it serves, over ``window`` labels.

    Raises ValueError for a window without labels.
    """

    def __init__(self, window: int = WINDOW) -> None:
        if window < 1:
            raise ValueError("the window must hold a label")
        self._seen: deque[tuple[float, bool, bool]] = deque(maxlen=window)
        self._recall = utils.Rolling(metrics.Recall, window_size=window)
        self._precision = utils.Rolling(metrics.Precision, window_size=window)
        self._log_loss = utils.Rolling(metrics.LogLoss, window_size=window)

    def update(self, score: float, alerts: bool, is_fraud: bool) -> None:
        """Take a confirmed label of a payment with the probability ``score``, 0 to 1."""
        self._seen.append((score, alerts, is_fraud))
        self._recall.update(is_fraud, alerts)
        self._precision.update(is_fraud, alerts)
        self._log_loss.update(is_fraud, score)

    def figures(self) -> Figures:
        """Return the metrics now."""
        window = self.to_array()
        scores, is_fraud = window[:, 0], window[:, 2] > 0.0
        labels, frauds, alerts = len(window), int(is_fraud.sum()), int(window[:, 1].sum())
        ranked = 0 < frauds < labels
        nan = float("nan")
        return Figures(
            labels=labels,
            frauds=frauds,
            recall=float(self._recall.get()) if frauds else nan,
            precision=float(self._precision.get()) if alerts else nan,
            roc_auc=roc_auc(scores, is_fraud) if ranked else nan,
            average_precision=average_precision(scores, is_fraud) if ranked else nan,
            log_loss=float(self._log_loss.get()) if labels else nan,
        )

    def to_array(self) -> NDArray[np.float64]:
        """Return the window as float64[c, 3]: score, whether it alerted, whether it was fraud."""
        return np.array(self._seen, np.float64).reshape(-1, 3)

    @classmethod
    def from_array(cls, state: NDArray[np.float64], window: int = WINDOW) -> RunningMetrics:
        """Return the metrics of a window. Raises ValueError for another shape."""
        if state.ndim != 2 or state.shape[1] != 3 or len(state) > window:
            raise ValueError(f"the window is {state.shape}, not float64[up to {window}, 3]")
        running = cls(window)
        for score, alerts, is_fraud in state.tolist():
            running.update(score, bool(alerts), bool(is_fraud))
        return running
