"""Vectorised chance: keyed numbers that need no memory, and draws from tables of weights.

Owns nothing but arithmetic; must not know what is drawn.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def mix(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return uint64[n], each number scrambled by SplitMix64's finaliser (Steele et al., 2014)."""
    x = numbers + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * _FIRST
    x = (x ^ (x >> np.uint64(27))) * _SECOND
    return x ^ (x >> np.uint64(31))


def key(*parts: ArrayLike) -> NDArray[np.uint64]:
    """Return uint64[n], one number per row of the (broadcast) integer parts; never 0.

    The same parts always give the same number, so a customer's devices, favourites and trips are
    recomputed where they are needed and never stored.
    """
    out = np.zeros(1, np.uint64)
    for part in parts:
        out = mix(out ^ np.atleast_1d(np.asarray(part)).astype(np.int64).view(np.uint64))
    return np.maximum(out, np.uint64(1))


def unit(keys: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Return float64[n] in [0, 1), evenly spread over keys."""
    return (keys >> np.uint64(11)).astype(np.float64) * 2.0**-53


class Roulette:
    """Draws members of groups in proportion to their weights, many groups at once.

    ``weights`` float[m] above 0 and ``groups`` int[m], ascending, every number from 0 to the last
    present. Raises ValueError for a group without members.
    """

    def __init__(self, weights: ArrayLike, groups: ArrayLike) -> None:
        weight = np.asarray(weights, np.float64)
        group = np.asarray(groups, np.int64)
        sizes = np.bincount(group)
        if sizes.min() == 0 or np.any(np.diff(group) < 0):
            raise ValueError("groups must ascend without a gap")
        self.stops = np.cumsum(sizes)
        self.starts = self.stops - sizes
        sums = np.cumsum(weight)
        before = np.concatenate([[0.0], sums])[self.starts]
        totals = sums[self.stops - 1] - before
        # Group g owns the interval [g, g + 1), so that one binary search serves every group.
        self._edges = (sums - before[group]) / totals[group] + group

    @classmethod
    def of_rows(cls, rows: ArrayLike) -> Roulette:
        """Return a wheel with one group per row of a matrix; ``draw`` then gives flat indices."""
        matrix = np.asarray(rows, np.float64)
        return cls(matrix.ravel(), np.repeat(np.arange(len(matrix)), matrix.shape[1]))

    def draw(self, group: ArrayLike, chance: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return int64[n]: the member of ``group`` that each chance in [0, 1) falls on."""
        row = np.broadcast_to(np.asarray(group, np.int64), chance.shape)
        found = np.searchsorted(self._edges, row + chance, side="right")
        return np.minimum(found, self.stops[row] - 1)

    def column(self, group: ArrayLike, chance: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return int64[n]: as ``draw``, counted from the start of its group."""
        return self.draw(group, chance) - self.starts[np.asarray(group, np.int64)]
