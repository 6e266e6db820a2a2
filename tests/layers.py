"""Owns random layers of a model, and their plain evaluation. Must not assert anything."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trainer.expert import CELLS, DISCRIMINANTS, KNOTS, Expert
from trainer.trees import Trees


def random_trees(random: np.random.Generator, width: int, count: int, scale: float = 1.0) -> Trees:
    """Return trees of depth 0 to 6 on few features, so that some are asked about twice."""
    depths = random.integers(0, 7, count)
    splits, leaves = int(depths.sum()), int((1 << depths).sum())
    weights = random.integers(0, 50, leaves).astype(np.float64)
    ends = np.cumsum(1 << depths)
    weights[ends - 1] += 1.0  # no tree without cover
    values = np.where(weights > 0.0, random.normal(size=leaves), 0.0)
    return Trees(
        n_features=width,
        depths=depths,
        split_features=random.integers(0, width, splits).astype(np.int32),
        split_borders=random.normal(size=splits).astype(np.float32),
        leaf_values=values,
        leaf_weights=weights,
        scale=scale,
        bias=float(random.normal()),
    )


def random_expert(random: np.random.Generator, width: int, features: int) -> Expert:
    """Return scorecards with repeated knots, open ends and, now and then, none in use."""
    knots = np.sort(random.normal(size=(features, KNOTS)).round(1), axis=1).astype(np.float32)
    knots[:, random.integers(1, KNOTS + 1) :] = np.inf
    used = random.random(DISCRIMINANTS) < 0.7
    return Expert(
        features=np.sort(random.choice(width, features, replace=False)).astype(np.int32),
        knots=knots,
        terms=random.normal(size=(features, CELLS, DISCRIMINANTS)),
        thresholds=np.abs(random.normal(size=DISCRIMINANTS)),
        gains=np.where(used, np.abs(random.normal(size=DISCRIMINANTS)) * 3.0, 0.0),
        boost_max=float(random.uniform(0.5, 10.0)),
    )


def random_rows(random: np.random.Generator, rows: int, width: int) -> NDArray[np.float32]:
    """Return rows with unknowns, infinities and values that are knots."""
    matrix = random.normal(size=(rows, width)).astype(np.float32)
    matrix[random.random(matrix.shape) < 0.3] = 0.0
    rounded = random.random(matrix.shape) < 0.3
    matrix[rounded] = matrix[rounded].round(1)
    matrix[random.random(matrix.shape) < 0.1] = np.nan
    matrix[random.random(matrix.shape) < 0.02] = np.inf
    matrix[random.random(matrix.shape) < 0.02] = -np.inf
    return matrix


def plain_trees(trees: Trees, row: NDArray[np.float32]) -> float:
    """Return the logit of one layer of trees, one question after the other."""
    total, split, leaf = 0.0, 0, 0
    for depth in trees.depths.tolist():
        place = 0
        for level in range(depth):
            value = row[trees.split_features[split + level]]
            place |= int(value > trees.split_borders[split + level]) << level
        total += float(trees.leaf_values[leaf + place])
        split, leaf = split + depth, leaf + (1 << depth)
    return total * trees.scale + trees.bias


def plain_boost(expert: Expert, row: NDArray[np.float32]) -> tuple[float, NDArray[np.float64]]:
    """Return the boost, and each feature's share of it (float64[n])."""
    cells = [
        CELLS - 1 if np.isnan(row[feature]) else int((knots < row[feature]).sum())
        for feature, knots in zip(expert.features, expert.knots, strict=True)
    ]
    terms = np.array([expert.terms[i, cell] for i, cell in enumerate(cells)])
    scores = np.zeros(DISCRIMINANTS)
    for term in terms:
        scores += term
    lifted = expert.gains * (scores - expert.thresholds)
    boost = min(max(0.0, float(lifted.max())), expert.boost_max)
    shares = np.zeros(len(row))
    if boost > 0.0:
        positive = np.maximum(terms[:, lifted.argmax()], 0.0)
        shares[expert.features] = boost * positive / positive.sum()
    return boost, shares
