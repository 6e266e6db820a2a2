"""The metrics against their definitions, written out naively."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from trainer import metrics

DAY_MS = metrics.DAY_MS

# Few distinct scores: ties are the hard part.
SCORED = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.9, -1.0]), st.booleans()),
    min_size=2,
    max_size=60,
)


def columns(scored: list[tuple[float, bool]]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    fraud = np.array([label for _, label in scored])
    assume(fraud.any() and not fraud.all())
    return np.array([score for score, _ in scored]), fraud


@given(SCORED)
@settings(max_examples=200)
def test_auc_counts_pairs(scored: list[tuple[float, bool]]) -> None:
    scores, fraud = columns(scored)
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[fraud] for b in scores[~fraud]]
    assert metrics.roc_auc(scores, fraud) == pytest.approx(np.mean(pairs))


@given(SCORED)
@settings(max_examples=200)
def test_average_precision_sums_steps(scored: list[tuple[float, bool]]) -> None:
    scores, fraud = columns(scored)
    total, recall_before = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        taken = scores >= threshold
        recall = fraud[taken].sum() / fraud.sum()
        total += (recall - recall_before) * fraud[taken].mean()
        recall_before = recall
    assert metrics.average_precision(scores, fraud) == pytest.approx(total)


@given(SCORED, st.sampled_from([0.0, 0.05, 0.3, 1.0]))
@settings(max_examples=200)
def test_recall_is_that_of_the_best_threshold(
    scored: list[tuple[float, bool]], rate: float
) -> None:
    scores, fraud = columns(scored)
    recalls = [0.0]
    for threshold in set(scores.tolist()):
        taken = scores >= threshold
        if taken[~fraud].mean() <= rate:
            recalls.append(taken[fraud].mean())
    assert metrics.recall_at(scores, fraud, rate) == pytest.approx(max(recalls))


def naive_card_precision(
    scores: NDArray[np.float64],
    fraud: NDArray[np.bool_],
    customer: NDArray[np.int64],
    time_ms: NDArray[np.int64],
    top: int,
) -> float:
    gone: set[int] = set()
    shares = []
    for day in sorted({int(t) // DAY_MS for t in time_ms}):
        best: dict[int, float] = {}
        bad: dict[int, bool] = {}
        for s, f, c, t in zip(scores, fraud, customer.tolist(), time_ms, strict=True):
            if t // DAY_MS == day and c not in gone:
                best[c] = max(best.get(c, -np.inf), s)
                bad[c] = bad.get(c, False) or bool(f)
        ranked = sorted(best, key=lambda c: (-best[c], c))[:top]
        found = {c for c in ranked if bad[c]}
        gone |= found
        shares.append(len(found) / top)
    return float(np.mean(shares))


@pytest.mark.parametrize("seed", range(8))
def test_card_precision_is_the_handbooks(seed: int) -> None:
    print(f"seed {seed}")
    random = np.random.default_rng(seed)
    scores = random.integers(0, 20, 800) / 20.0
    fraud = random.random(800) < 0.1 + 0.3 * scores
    customer = random.integers(0, 60, 800)
    time_ms = random.integers(-3 * DAY_MS, 5 * DAY_MS, 800)
    for top in (1, 7, 100):
        found = metrics.card_precision(scores, fraud, customer, time_ms, top)
        assert found == pytest.approx(naive_card_precision(scores, fraud, customer, time_ms, top))
        assert found <= metrics.card_precision_ceiling(fraud, customer, time_ms, 100) * 100 / top


def test_ceiling_of_known_days() -> None:
    # Two compromised on day 0; of three on day 1 one is gone already; nobody on day 2.
    customer = np.array([1, 2, 3, 2, 4, 5, 6])
    fraud = np.array([True, True, False, True, True, True, False])
    time_ms = np.array([0, 1, 2, DAY_MS, DAY_MS, DAY_MS, 2 * DAY_MS])
    ceiling = metrics.card_precision_ceiling(fraud, customer, time_ms)
    assert ceiling == pytest.approx((2 + 2 + 0) / 300)


def test_reliability_bins_hold_every_row_once() -> None:
    probabilities = np.array([0.001, 0.0011, 0.003, 0.5, 0.95, 0.95])
    fraud = np.array([False, False, True, True, True, False])
    table = metrics.reliability(probabilities, fraud)
    assert [(row.until, row.rows) for row in table] == [(0.001, 1), (0.003, 2), (0.6, 1), (1.0, 2)]
    assert table[1].observed == 0.5
    assert table[3].forecast == pytest.approx(0.95)
    error = (0.001 + 2 * (0.5 - 0.00205) + 0.5 + 2 * 0.45) / 6
    assert metrics.calibration_error(table) == pytest.approx(error)
