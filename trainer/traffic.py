"""Owns recent traffic as the measure of what is usual. Must not know frauds or models.

A feature's value falls into one of CELLS: a cell for each value where there are few, as codes
have, else cells between quantiles. Cells have the normal scores of their ranks (van der Waerden,
1952), so that one scale serves all features.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from trainer.expert import CELLS, KNOTS, UNKNOWN, ExpertError

ROWS_MIN = 200
_MOVED_MAX = 0.25  # standard deviations
_KNOT_SCORE_MAX = 3.0  # the outermost knots, in standard deviations


class Sample(NamedTuple):
    """Recent decisions, float32[m, n] each and oldest first, by what they are for.

    ``learnt`` is what layers are told fraud from, and ``held`` other rows, which thresholds and
    gates are fitted to: a layer finds its own rows less suspicious than it will find the next.
    Nobody called any of these fraud; ``held_is_good`` bool[m] says which were called good, and
    ``held_is_alerted`` which were not approved.
    ``newest`` are the newest, whatever they are.
    """

    learnt: NDArray[np.float32]
    held: NDArray[np.float32]
    held_is_good: NDArray[np.bool_]
    held_is_alerted: NDArray[np.bool_]
    newest: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Traffic:
    """Recent traffic, made ready once for many experts.

    ``rows`` float32[m, n]; ``knots`` float32[n, KNOTS]; ``cells`` uint8[n, m], the cell of each
    value; ``shares`` float64[n, CELLS] of traffic in each cell; ``scores`` float64[n, CELLS], the
    normal score of each cell; ``steady`` bool[n], false for a feature that moved for all traffic
    between the older half of the rows and the newer, as the hour does: what was unusual a while
    ago is not now.
    """

    rows: NDArray[np.float32]
    knots: NDArray[np.float32]
    cells: NDArray[np.uint8]
    shares: NDArray[np.float64]
    scores: NDArray[np.float64]
    steady: NDArray[np.bool_]

    def cells_of(self, rows: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Return the cells uint8[n, k] of float32[k, n]."""
        return _cells_of(np.ascontiguousarray(rows), self.knots)


def prepare_traffic(rows: NDArray[np.float32]) -> Traffic:
    """Return recent traffic float32[m, n], oldest first, ready for ``fit_expert``.

    Takes far longer than a fit, and is needed once in a while only. Raises ExpertError where
    there are too few rows.
    """
    if rows.ndim != 2 or len(rows) < ROWS_MIN or not rows.shape[1]:
        raise ExpertError(f"traffic of shape {rows.shape}; {ROWS_MIN} rows are needed")
    rows = np.ascontiguousarray(rows, np.float32)
    columns = np.sort(rows.T, axis=1)  # NaN comes last
    knots = np.empty((rows.shape[1], KNOTS), np.float32)
    counts = np.zeros((rows.shape[1], CELLS), np.int64)
    _count(columns, _knot_shares(), knots, counts)
    # NaN is below every number, as it is for the trees.
    ordered = np.roll(counts, 1, axis=1)
    middle = (np.cumsum(ordered, axis=1) - ordered / 2.0) / len(rows)
    scores = np.roll(_normal_scores(middle, len(rows)), -1, axis=1)
    cells = _cells_of(rows, knots)
    return Traffic(rows, knots, cells, counts / len(rows), scores, _steady(cells, scores))


def _steady(cells: NDArray[np.uint8], scores: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which features bool[n] kept their mean score, within chance and _MOVED_MAX."""
    read = np.take_along_axis(scores, cells, axis=1)
    half = read.shape[1] // 2
    moved = np.abs(read[:, :half].mean(axis=1) - read[:, half:].mean(axis=1))
    chance = 3.0 * 2.0 / np.sqrt(read.shape[1])
    steady: NDArray[np.bool_] = moved <= _MOVED_MAX + chance
    return steady


@cache
def _knot_shares() -> NDArray[np.float64]:
    """Return the shares of traffic below each knot: equal steps of the normal score."""
    steps = np.linspace(-_KNOT_SCORE_MAX, _KNOT_SCORE_MAX, KNOTS)
    return np.array([NormalDist().cdf(step) for step in steps])


@cache
def _normal_table() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return scores and the shares below them, to be read the other way round."""
    steps = np.linspace(-5.0, 5.0, 2_001)
    return np.array([NormalDist().cdf(step) for step in steps]), steps


def _normal_scores(shares: NDArray[np.float64], rows: int) -> NDArray[np.float64]:
    """Return the normal scores of shares; one beyond all rows counts as half a row beyond."""
    half = 0.5 / rows
    scores: NDArray[np.float64] = np.interp(np.clip(shares, half, 1.0 - half), *_normal_table())
    return scores


@njit(cache=True, nogil=True)
def _count(columns, shares, knots, counts):  # type: ignore[no-untyped-def]
    """Fill ``knots`` and ``counts`` (rows in each cell) from sorted ``columns`` float32[n, m]."""
    for feature in range(columns.shape[0]):
        column = columns[feature]
        known = len(column)
        while known > 0 and np.isnan(column[known - 1]):
            known -= 1
        counts[feature, UNKNOWN] = len(column) - known
        distinct = 0
        for row in range(known):
            if row == 0 or column[row] != column[row - 1]:
                if distinct < len(shares):
                    knots[feature, distinct] = column[row]
                distinct += 1
        if distinct <= len(shares):
            knots[feature, distinct:] = np.inf
        else:
            for knot in range(len(shares)):
                knots[feature, knot] = column[min(np.int64(shares[knot] * known), known - 1)]
        row = 0
        for knot in range(len(shares)):
            while row < known and column[row] <= knots[feature, knot]:
                row += 1
                counts[feature, knot] += 1
        counts[feature, len(shares)] = known - row


@njit(cache=True, nogil=True)
def _cells(rows, knots, out):  # type: ignore[no-untyped-def]
    for feature in range(rows.shape[1]):
        for row in range(rows.shape[0]):
            value = rows[row, feature]
            cell = UNKNOWN
            if not np.isnan(value):
                cell = np.searchsorted(knots[feature], value)
            out[feature, row] = cell


def _cells_of(rows: NDArray[np.float32], knots: NDArray[np.float32]) -> NDArray[np.uint8]:
    out = np.empty((rows.shape[1], len(rows)), np.uint8)
    _cells(rows, knots, out)
    return out
