"""Owns the map from a logit to a probability. Must not know models, costs or files.

Isotonic regression by pool-adjacent-violators (Barlow et al., 1972), then linear between the
edges of its blocks, with a small slope inside them, so that a higher logit is always a higher
probability. Only comparisons and plain arithmetic: the bits depend on no mathematical library.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

PROBABILITY_MIN = 1e-6
PROBABILITY_MAX = 1.0 - 1e-6
KNOTS_MAX = 65_536
# Beyond the outermost blocks the map goes on to its bounds over this many log-odds.
_TAIL_LOGITS = 10.0
# From the middle to the edge of a block the map takes this share of the way to its neighbour.
_SLOPE_SHARE = 0.05


class CalibrationError(Exception):
    """The knots are no increasing map into the open interval of probabilities."""


@njit(cache=True, nogil=True)
def probability_of(knots, logit):  # type: ignore[no-untyped-def]
    """Return the probability (float64) of ``logit`` under ``knots`` float64[2, k]."""
    low, high = 0, knots.shape[1]  # the first knot beyond the logit lies in low..high
    while low < high:
        middle = (low + high) // 2
        if logit < knots[0, middle]:
            high = middle
        else:
            low = middle + 1
    after = min(max(low, 1), knots.shape[1] - 1)
    bottom, top = knots[1, after - 1], knots[1, after]
    share = (logit - knots[0, after - 1]) / (knots[0, after] - knots[0, after - 1])
    return min(max(bottom + share * (top - bottom), bottom), top)


class Calibration:
    """A piecewise-linear, increasing map, constant beyond its ends.

    ``knots`` float64[2, k]: logits, then probabilities, both strictly increasing. Raises
    CalibrationError for anything else.
    """

    __slots__ = ("knots",)

    def __init__(self, knots: NDArray[np.float64]) -> None:
        if knots.dtype != np.float64 or knots.ndim != 2 or knots.shape[0] != 2:
            raise CalibrationError(f"knots must be float64[2, k], not {knots.dtype}{knots.shape}")
        if not 2 <= knots.shape[1] <= KNOTS_MAX:
            raise CalibrationError(f"{knots.shape[1]} knots; 2 to {KNOTS_MAX} are supported")
        if not np.isfinite(knots).all() or not (np.diff(knots) > 0.0).all():
            raise CalibrationError("knots must be finite and strictly increasing")
        if knots[1, 0] < PROBABILITY_MIN or knots[1, -1] > PROBABILITY_MAX:
            raise CalibrationError(f"probabilities must be {PROBABILITY_MIN} to {PROBABILITY_MAX}")
        self.knots = knots.copy()
        self.knots.flags.writeable = False

    def probability(self, logit: float) -> float:
        """Return the probability of one logit."""
        value: float = probability_of(self.knots, logit)
        return value

    def probabilities(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the probabilities of float64[m], each with the bits of ``probability``."""
        x, y = self.knots
        after = np.clip(np.searchsorted(x, logits, side="right"), 1, len(x) - 1)
        low, high = y[after - 1], y[after]
        share = (logits - x[after - 1]) / (x[after] - x[after - 1])
        out: NDArray[np.float64] = np.minimum(np.maximum(low + share * (high - low), low), high)
        return out


def fit_calibration(logits: NDArray[np.float64], is_fraud: NDArray[np.bool_]) -> Calibration:
    """Return the calibration of finite logits float64[m] against outcomes bool[m], m >= 1."""
    values, group = np.unique(logits, return_inverse=True)
    counts, frauds = np.bincount(group), np.bincount(group, weights=is_fraud)
    block = pool(frauds, counts)
    rows = np.bincount(block, weights=counts)
    # Half a fraud and half a good one more (Krichevsky and Trofimov, 1981): a block of one payment
    # is no certainty. That may break the order of the rates, so the blocks are pooled once more.
    smoothed = rows * (np.bincount(block, weights=frauds) + 0.5) / (rows + 1.0)
    pooled = pool(smoothed, rows)
    rates = np.bincount(pooled, weights=smoothed) / np.bincount(pooled, weights=rows)
    first = np.flatnonzero(np.diff(pooled[block], prepend=-1))
    last = np.r_[first[1:], len(values)] - 1
    return _through(values[first], values[last], rates)


@njit(cache=True, nogil=True)
def pool(sums, weights):  # type: ignore[no-untyped-def]
    """Return int64[m]: the block of each item, so that sum / weight increases between blocks."""
    items = len(sums)
    block_sum, block_weight = np.empty(items), np.empty(items)
    start = np.empty(items + 1, np.int64)
    blocks = 0
    for item in range(items):
        total, weight, first = sums[item], weights[item], item
        while blocks and block_sum[blocks - 1] * weight >= total * block_weight[blocks - 1]:
            blocks -= 1
            total += block_sum[blocks]
            weight += block_weight[blocks]
            first = start[blocks]
        block_sum[blocks], block_weight[blocks], start[blocks] = total, weight, first
        blocks += 1
    start[blocks] = items
    block = np.empty(items, np.int64)
    for number in range(blocks):
        block[start[number] : start[number + 1]] = number
    return block


def _through(
    first: NDArray[np.float64], last: NDArray[np.float64], rates: NDArray[np.float64]
) -> Calibration:
    """Return the map through blocks from logit ``first`` to ``last``, all float64[b]."""
    inner = (rates > PROBABILITY_MIN) & (rates < PROBABILITY_MAX)
    if not inner.any():
        raise CalibrationError("every block lies outside the bounds of a probability")
    first, last, rates = first[inner], last[inner], rates[inner]
    gaps = np.diff(rates, prepend=PROBABILITY_MIN, append=PROBABILITY_MAX)
    edges = np.array([rates - _SLOPE_SHARE * gaps[:-1], rates + _SLOPE_SHARE * gaps[1:]])
    x = np.r_[first[0] - _TAIL_LOGITS, np.array([first, last]).T.ravel(), last[-1] + _TAIL_LOGITS]
    y = np.r_[PROBABILITY_MIN, edges.T.ravel(), PROBABILITY_MAX]
    # A block of one logit has one edge.
    increasing = np.r_[True, (np.diff(x) > 0.0) & (np.diff(y) > 0.0)]
    return Calibration(np.array([x[increasing], y[increasing]]))
