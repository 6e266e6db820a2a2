"""River's running metrics against the definitions, over the same window."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer import metrics
from trainer.running_metrics import RunningMetrics

LABELS = st.lists(
    st.tuples(st.sampled_from([0.05, 0.2, 0.5, 0.8]), st.booleans(), st.booleans()),
    min_size=1,
    max_size=40,
)


@given(LABELS, st.integers(1, 25))
@settings(max_examples=60, deadline=None)
def test_the_figures_are_those_of_the_window(
    labels: list[tuple[float, bool, bool]], window: int
) -> None:
    running = RunningMetrics(window)
    for score, alerts, is_fraud in labels:
        running.update(score, alerts, is_fraud)
    found = running.figures()
    last = np.array(labels[-window:])
    scores, alerts_, fraud = last[:, 0], last[:, 1] > 0, last[:, 2] > 0
    assert (found.labels, found.frauds) == (len(last), fraud.sum())
    both = 0 < fraud.sum() < len(last)
    expected = {
        "recall": alerts_[fraud].mean() if fraud.any() else math.nan,
        "precision": fraud[alerts_].mean() if alerts_.any() else math.nan,
        "roc_auc": metrics.roc_auc(scores, fraud) if both else math.nan,
        "average_precision": metrics.average_precision(scores, fraud) if both else math.nan,
        "log_loss": -np.log(np.where(fraud, scores, 1 - scores)).mean(),
    }
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, nan_ok=True, abs=1e-9), name
    again = RunningMetrics.from_array(running.to_array(), window).figures()
    assert again == pytest.approx(found, nan_ok=True, abs=1e-9)


def test_a_ranking_without_fault_has_full_marks() -> None:
    running = RunningMetrics(10)
    for score, is_fraud in ((0.9, True), (0.1, False), (0.8, True), (0.2, False)):
        running.update(score, score > 0.5, is_fraud)
    assert running.figures()[:6] == (4, 2, 1.0, 1.0, 1.0, 1.0)


def test_without_labels_nothing_is_claimed() -> None:
    figures = RunningMetrics(5).figures()
    assert figures.labels == 0
    assert all(math.isnan(value) for value in figures[2:])


def test_windows_without_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="hold a label"):
        RunningMetrics(0)
    with pytest.raises(ValueError, match="window"):
        RunningMetrics.from_array(np.zeros((6, 3)), 5)
