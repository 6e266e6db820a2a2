"""Calibration: order, bounds, equal bits of both calls, and pooling against a naive version."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.calibration import (
    PROBABILITY_MAX,
    PROBABILITY_MIN,
    Calibration,
    CalibrationError,
    fit_calibration,
    pool,
)

OUTCOMES = st.lists(st.tuples(st.floats(-20.0, 20.0), st.booleans()), min_size=1, max_size=200)


@given(OUTCOMES)
@settings(max_examples=200)
def test_any_outcomes_give_an_increasing_map(outcomes: list[tuple[float, bool]]) -> None:
    logits = np.array([logit for logit, _ in outcomes])
    calibration = fit_calibration(logits, np.array([label for _, label in outcomes]))
    x, y = calibration.knots
    assert (np.diff(x) > 0.0).all()
    assert (np.diff(y) > 0.0).all()
    assert y[0] == PROBABILITY_MIN
    assert y[-1] == PROBABILITY_MAX
    asked = np.sort(np.r_[logits, x, x - 1e-9, -1e300, 1e300])
    told = calibration.probabilities(asked)
    assert (np.diff(told) >= 0.0).all()
    assert told.tobytes() == np.array([calibration.probability(a) for a in asked]).tobytes()
    assert told[0] == PROBABILITY_MIN
    assert told[-1] == PROBABILITY_MAX


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5)), min_size=1, max_size=40))
@settings(max_examples=200)
def test_pooling_equals_merging_violators_one_at_a_time(items: list[tuple[int, int]]) -> None:
    blocks = [[index] for index in range(len(items))]

    def rate(block: list[int]) -> float:
        return sum(items[i][0] for i in block) / sum(items[i][1] for i in block)

    while True:
        pairs = [n for n in range(len(blocks) - 1) if rate(blocks[n]) >= rate(blocks[n + 1])]
        if not pairs:
            break
        n = pairs[0]
        blocks[n : n + 2] = [blocks[n] + blocks[n + 1]]
    wanted = [number for number, block in enumerate(blocks) for _ in block]
    sums, weights = np.array(items, np.float64).T.copy()
    assert pool(sums, weights).tolist() == wanted


def test_calibrated_probabilities_come_true() -> None:
    print("seed 4")
    random = np.random.default_rng(4)
    logits = random.normal(-3.0, 2.0, 60_000)
    truth = 1.0 / (1.0 + np.exp(-0.7 * logits - 0.5))
    calibration = fit_calibration(logits[::2], random.random(30_000) < truth[::2])
    told = calibration.probabilities(logits[1::2])
    assert np.abs(told - truth[1::2]).mean() < 0.01


def test_one_fraud_at_the_top_is_no_certainty() -> None:
    logits = np.linspace(-5.0, 5.0, 101)
    calibration = fit_calibration(logits, logits == 5.0)
    assert calibration.probability(5.0) < 0.9
    assert calibration.probability(-5.0) < 0.02


@pytest.mark.parametrize(
    "knots",
    [
        np.array([[0.0, 0.0], [0.1, 0.2]]),
        np.array([[0.0, 1.0], [0.2, 0.2]]),
        np.array([[0.0, np.inf], [0.1, 0.2]]),
        np.array([[0.0, np.nan], [0.1, 0.2]]),
        np.array([[0.0, 1.0], [0.0, 0.2]]),
        np.array([[0.0, 1.0], [0.1, 1.0]]),
        np.array([[0.0], [0.1]]),
        np.array([0.0, 1.0]),
        np.array([[0.0, 1.0], [0.1, 0.2]], np.float32),
    ],
)
def test_other_knots_are_refused(knots: np.ndarray) -> None:
    with pytest.raises(CalibrationError):
        Calibration(knots)
