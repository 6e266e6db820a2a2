"""Owns a linear model as trees: what a challenger adds to the base, in steps that bundles can hold.

Each feature gets two trees that ask about it alone: whether it is known, and how many of 11
quantiles of recent traffic it is above. Between two quantiles the linear term is taken at its mean
in traffic. So it is evaluated, explained and bounded in cost as any residual is. Pure.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trainer.linear import Linear
from trainer.trees import Trees

_DEPTH = 6
_TREES = 2
_BORDERS = _TREES * _DEPTH
_LEAVES = 1 << _DEPTH
# Of recent traffic below each border: closer together where there is little, as terms are greatest
# there.
_SHARES = (0.01, 0.03, 0.1, 0.25, 0.5, 0.75, 0.9, 0.97, 0.99, 0.997, 0.999)
_PASSED = (1 << np.arange(_DEPTH + 1)) - 1  # the leaf of a value that passed so many borders


def scorecard_of(linear: Linear, traffic: NDArray[np.float32]) -> Trees:
    """Return trees that add to the base's logit what ``linear`` does, for weight 1 on the base.

    ``traffic`` float32[m, n] is recent. Raises ValueError where the base has another weight, or
    there is no traffic.
    """
    inputs, weights = linear.inputs, linear.weights
    if not np.isclose(weights[0], inputs.spread[0]) or not len(traffic):
        raise ValueError("a scorecard keeps the base as it is, and is cut by recent traffic")
    terms = inputs.scale(traffic, np.zeros(len(traffic)))[:, 1:] * weights[1:-1]
    trees = [
        tree
        for column, feature in enumerate(inputs.features.tolist())
        for tree in _steps(traffic[:, feature], terms[:, column])
    ]
    borders, values, counts = (np.concatenate(each) for each in zip(*trees, strict=True))
    return Trees(
        n_features=traffic.shape[1],
        depths=np.full(len(trees), _DEPTH, np.int64),
        split_features=np.repeat(inputs.features.astype(np.int32), _BORDERS),
        split_borders=borders.astype(np.float32), leaf_values=values, leaf_weights=counts,
        scale=1.0, bias=float(weights[-1] - inputs.mean[0]),
    )  # fmt: skip


def _steps(
    values: NDArray[np.float32], terms: NDArray[np.float64]
) -> list[tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float64]]]:
    """Return borders, leaf values and leaf weights of each tree of a feature.

    What is unknown passes no border, and adds nothing, as in the linear model.
    """
    known = ~np.isnan(values)
    borders = np.full(_BORDERS, np.inf, np.float32)
    borders[0] = -np.inf
    if known.any():
        cuts = np.unique(np.quantile(values[known], _SHARES, method="lower"))
        cuts = cuts[cuts < values[known].max()]
        borders[1 : 1 + len(cuts)] = cuts
    passed = (values[:, None] > borders).sum(axis=1)
    passed[~known] = 0
    counts = np.bincount(passed, minlength=_BORDERS + 1)
    sums = np.bincount(passed, weights=np.where(known, terms, 0.0), minlength=_BORDERS + 1)
    heights = np.diff(np.where(counts > 0, sums / np.maximum(counts, 1), 0.0))
    heights[counts[1:] == 0] = 0.0  # beyond the last border nothing is
    return [
        _tree(borders[at : at + _DEPTH], heights[at : at + _DEPTH], values) for at in (0, _DEPTH)
    ]


def _tree(
    borders: NDArray[np.float32], heights: NDArray[np.float64], values: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float64]]:
    leaves, weights = np.zeros(_LEAVES), np.zeros(_LEAVES)
    leaves[_PASSED[1:]] = np.cumsum(heights)
    np.add.at(weights, _PASSED[(values[:, None] > borders).sum(axis=1)], 1.0)
    leaves[weights == 0.0] = 0.0
    return borders, leaves, weights
