"""Thresholds against trying every pair of cuts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.thresholds import NEVER, Costs, Thresholds, choose_thresholds

PAYMENTS = st.lists(
    st.tuples(st.integers(1, 12).map(lambda n: n / 13), st.booleans(), st.integers(0, 9_000)),
    min_size=1,
    max_size=30,
)
COSTS = st.builds(
    Costs,
    false_decline_ref=st.sampled_from([0.0, 500.0, 4_000.0]),
    missed_fraud_share=st.sampled_from([0.5, 1.0]),
    review_ref=st.sampled_from([0.0, 100.0, 600.0]),
    review_capacity_share=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
)


def cost_of(payments: list[tuple[float, bool, int]], costs: Costs, limits: Thresholds) -> float:
    """What these thresholds cost; infinite where reviews exceed their capacity."""
    total, reviews = 0.0, 0
    for probability, fraud, amount in payments:
        if probability >= limits.decline:
            total += 0.0 if fraud else costs.false_decline_ref
        elif probability >= limits.review:
            total, reviews = total + costs.review_ref, reviews + 1
        elif fraud:
            total += costs.missed_fraud_share * amount
    return total if reviews <= costs.review_capacity_share * len(payments) else math.inf


@given(PAYMENTS, COSTS)
@settings(max_examples=300)
def test_no_other_pair_costs_less(payments: list[tuple[float, bool, int]], costs: Costs) -> None:
    probabilities, fraud, amount = (np.array(column) for column in zip(*payments, strict=True))
    chosen = choose_thresholds(probabilities, fraud, amount, costs)
    cuts = sorted({*probabilities.tolist(), NEVER})
    least = min(
        cost_of(payments, costs, Thresholds(review, decline))
        for review in cuts
        for decline in cuts
        if review <= decline
    )
    assert cost_of(payments, costs, chosen) == pytest.approx(least)


def test_nothing_is_declined_where_a_false_decline_costs_most() -> None:
    costs = Costs(false_decline_ref=1e9, review_capacity_share=0.0)
    fraud = np.array([True, False, False, True])
    chosen = choose_thresholds(np.array([0.9, 0.9, 0.2, 0.1]), fraud, np.full(4, 100), costs)
    assert chosen == Thresholds(NEVER, NEVER)


@pytest.mark.parametrize(
    "figures", [{"review_ref": -1.0}, {"review_capacity_share": 1.1}, {"review_ref": math.nan}]
)
def test_costs_out_of_range_are_refused(figures: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="review"):
        Costs(**figures)


@pytest.mark.parametrize("pair", [(0.0, 0.5), (0.6, 0.5), (0.5, 1.5), (math.nan, 0.5)])
def test_thresholds_out_of_order_are_refused(pair: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="out of order"):
        Thresholds(*pair)
