"""Owns the choice of the two thresholds from costs. Must not know models, files or policies.

A payment with probability p is declined where p >= decline, else reviewed where p >= review.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

# Above every calibrated probability: nothing is declined.
NEVER = 1.0


@dataclass(frozen=True, slots=True)
class Costs:
    """What each outcome costs; money in cents of the reference currency.

    A reviewed payment is taken to be judged rightly. Raises ValueError where a figure is out of
    its range.
    """

    false_decline_ref: float = 2_000.0
    missed_fraud_share: float = 1.0  # of the payment's amount
    review_ref: float = 300.0
    review_capacity_share: float = 0.005  # of traffic

    def __post_init__(self) -> None:
        """Refuse figures that no choice could follow."""
        for name in ("false_decline_ref", "missed_fraud_share", "review_ref"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0.0):
                raise ValueError(f"{name} must be a finite number, not negative; it is {value}")
        if not 0.0 <= self.review_capacity_share <= 1.0:
            raise ValueError("review_capacity_share must be 0 to 1")


@dataclass(frozen=True, slots=True)
class Budget:
    """How much of traffic may be alerted: declined or reviewed; and how much declined.

    Of the newest decisions, of which nobody has told yet which are fraud, ``surge`` times as much
    may be. Raises ValueError where a figure is out of its range.
    """

    alert_share: float = 0.01
    decline_share: float = 0.005
    surge: float = 3.0

    def __post_init__(self) -> None:
        """Refuse shares that no choice could follow."""
        if not 0.0 <= self.decline_share <= self.alert_share <= 1.0:
            raise ValueError("0 <= decline_share <= alert_share <= 1 must hold")
        if not self.surge >= 1.0:
            raise ValueError(f"surge must be 1 or more, not {self.surge}")


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Probabilities from which on a payment is reviewed or declined, 0 < review <= decline <= 1.

    Raises ValueError for any others.
    """

    review: float
    decline: float

    def __post_init__(self) -> None:
        """Refuse what would decline everything or compare with NaN."""
        if not 0.0 < self.review <= self.decline <= 1.0:
            raise ValueError(f"thresholds {self.review} and {self.decline} are out of order")


def choose_thresholds(
    probabilities: NDArray[np.float64],
    is_fraud: NDArray[np.bool_],
    amount_ref: NDArray[np.int64],
    costs: Costs,
) -> Thresholds:
    """Return the thresholds that would have cost least on these payments.

    ``probabilities`` float64[m] in (0, 1), ``is_fraud`` bool[m], ``amount_ref`` int64[m] (cents);
    of equal costs the one that declines and reviews fewer.
    """
    order = np.argsort(-probabilities, kind="stable")
    ranked = probabilities[order]
    fraud, amount = is_fraud[order], amount_ref[order].astype(np.float64)
    # A cut after row c - 1 takes c rows; only a change of probability can be cut.
    cuts = np.r_[0, np.flatnonzero(np.diff(ranked)) + 1, len(ranked)]
    good = np.r_[0, np.cumsum(~fraud)][cuts]
    caught = np.r_[0.0, np.cumsum(np.where(fraud, amount, 0.0))][cuts]
    # Declining the first i and reviewing up to j costs ahead(i) + behind(j).
    ahead = costs.false_decline_ref * good - costs.review_ref * cuts
    behind = costs.review_ref * cuts - costs.missed_fraud_share * caught
    capacity = int(costs.review_capacity_share * len(ranked))
    declined, reviewed = best_cuts(cuts, ahead, behind, capacity)
    decline, review = (float(ranked[c - 1]) if c else NEVER for c in (declined, reviewed))
    return Thresholds(review=review, decline=decline)


def thresholds_within(
    probabilities: NDArray[np.float64],
    decline_from: float,
    budget: Budget,
    newest: NDArray[np.float64] | None = None,
    counts: NDArray[np.float64] | None = None,
    newest_counts: NDArray[np.float64] | None = None,
) -> Thresholds:
    """Return the lowest thresholds that keep traffic of ``probabilities`` float64[m] in budget.

    Each row takes ``counts`` float64[m] of it, 0 to 1 and 1 where nothing is said: how likely it
    is no fraud. Those of the ``newest`` decisions, float64[k], which take ``newest_counts``
    float64[k], are to be within ``surge`` times the budget, too. Declined is from
    ``decline_from`` on, which is what costs decided, or later where the budget asks for it. Of
    equal probabilities all are taken or none.
    """
    review = _lowest_within(probabilities, budget.alert_share, counts)
    decline = _lowest_within(probabilities, budget.decline_share, counts)
    if newest is not None and len(newest):
        share = min(1.0, budget.surge * budget.alert_share)
        review = max(review, _lowest_within(newest, share, newest_counts))
    decline = max(decline, decline_from, review)
    return Thresholds(review=review, decline=decline)


def _lowest_within(
    probabilities: NDArray[np.float64], share: float, counts: NDArray[np.float64] | None = None
) -> float:
    order = np.argsort(-probabilities, kind="stable")
    ranked = probabilities[order]
    taken = np.cumsum(np.ones(len(ranked)) if counts is None else counts[order])
    most = int(np.searchsorted(taken, share * len(ranked) + 1e-9, side="right"))
    if not most:
        return NEVER
    if most < len(ranked) and ranked[most] == ranked[most - 1]:
        above = ranked[ranked > ranked[most]]
        return float(above[-1]) if len(above) else NEVER
    return float(ranked[most - 1])


@njit(cache=True, nogil=True)
def best_cuts(cuts, ahead, behind, capacity):  # type: ignore[no-untyped-def]
    """Return the cuts i <= j with the least ahead + behind where j - i <= ``capacity`` rows.

    ``cuts`` int64[c] increasing, ``ahead`` and ``behind`` float64[c]. One pass: a queue keeps the
    candidates for i that no later one beats.
    """
    queue = np.empty(len(cuts), np.int64)
    first = last = 0
    least, best_i, best_j = np.inf, 0, 0
    for j in range(len(cuts)):
        while last > first and ahead[queue[last - 1]] > ahead[j]:
            last -= 1
        queue[last] = j
        last += 1
        while cuts[j] - cuts[queue[first]] > capacity:
            first += 1
        cost = ahead[queue[first]] + behind[j]
        if cost < least:
            least, best_i, best_j = cost, cuts[queue[first]], cuts[j]
    return best_i, best_j
