"""Owns a model as arrays and its evaluation for one row. Must not know CatBoost, files or labels.

A model is a sum of oblivious trees: every node of a level asks the same question, so that the
answers are the bits of the leaf's number. All of it lies in one array, because every array
argument costs a call 0.1 to 0.2 µs. Words of 8 bytes, little-endian:

    header     FORMAT, trees, features, float64 scale, bias, expected logit, first word of leaves
    questions  per tree: int32 depth d, int32 players p,
               d times int32 feature, float32 border; answer d sets bit d of the leaf,
               p times int32 feature, one per player, and a filler where p is odd
    leaves     per tree: 2**d times float64 value and p contributions, already scaled

The questions of all trees lie together so that they stay in the first-level cache; with the
leaves between them a row takes twice as long.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from trainer.contributions import tree_contributions

FORMAT = 1
HEADER_WORDS = 7
USUAL_DEPTH = 6
ONE = np.uint64(1)
TWO = np.uint64(2)
DEPTH_MAX = 8
TREES_MAX = 20_000


class ModelError(Exception):
    """The model is not one that the evaluator supports."""


@dataclass(frozen=True, slots=True)
class Trees:
    """Oblivious trees, one after the other.

    ``depths`` int64[t]; ``split_features`` int32[s] and ``split_borders`` float32[s], s the sum
    of the depths; ``leaf_values`` and ``leaf_weights`` float64[l], l the sum of 2**depth; the
    logit is ``scale * sum + bias``.
    """

    n_features: int
    depths: NDArray[np.int64]
    split_features: NDArray[np.int32]
    split_borders: NDArray[np.float32]
    leaf_values: NDArray[np.float64]
    leaf_weights: NDArray[np.float64]
    scale: float
    bias: float


def check_trees(trees: Trees) -> None:
    """Raise ModelError where an array contradicts another or a limit.

    The kernels check no index, so nothing gets to them but what passed here.
    """
    _check_shapes(trees)
    features = trees.split_features
    if len(features) and not (features.min() >= 0 and features.max() < trees.n_features):
        raise ModelError(f"a split on a feature outside the {trees.n_features} of the schema")
    if np.isnan(trees.split_borders).any():
        raise ModelError("a border is NaN")
    if not np.isfinite([*trees.leaf_values, trees.scale, trees.bias]).all():
        raise ModelError("a leaf value, the scale or the bias is not finite")
    if not np.isfinite(trees.leaf_weights).all() or trees.leaf_weights.min() < 0:
        raise ModelError("a leaf weight is negative or not finite")
    if (trees.leaf_values[trees.leaf_weights == 0.0] != 0.0).any():
        # CatBoost then takes its covers from the rows that are asked about, which we do not have.
        raise ModelError("a leaf that no training row reached has a value")


def _check_shapes(trees: Trees) -> None:
    depths = trees.depths
    if depths.dtype != np.int64 or depths.ndim != 1:
        raise ModelError(f"depths is {depths.dtype}{depths.shape}, not int64[trees]")
    if not 0 < len(depths) <= TREES_MAX:
        raise ModelError(f"{len(depths)} trees; 1 to {TREES_MAX} are supported")
    if depths.min() < 0 or depths.max() > DEPTH_MAX:
        raise ModelError(
            f"trees of depth {depths.min()} to {depths.max()}; 0 to {DEPTH_MAX} are supported"
        )
    splits, leaves = int(depths.sum()), int((1 << depths).sum())
    sizes: dict[str, tuple[NDArray[Any], type, int]] = {
        "split_features": (trees.split_features, np.int32, splits),
        "split_borders": (trees.split_borders, np.float32, splits),
        "leaf_values": (trees.leaf_values, np.float64, leaves),
        "leaf_weights": (trees.leaf_weights, np.float64, leaves),
    }
    for name, (array, kind, size) in sizes.items():
        if array.dtype != kind or array.shape != (size,):
            raise ModelError(f"{name} is {array.dtype}{array.shape}, not {kind.__name__}({size},)")


@njit(cache=True, nogil=True, inline="always")
def _leaf_of(halves, singles, at, depth, vector):  # type: ignore[no-untyped-def]
    """Return the leaf (uint64) of ``vector`` in the tree whose questions start at half ``at``.

    Inlined by numba: as a call it would take as long again.
    """
    leaf = np.uint64(0)
    if depth == np.uint64(USUAL_DEPTH):
        # The same loop with a constant bound: unrolled it is a fifth faster.
        for level in range(USUAL_DEPTH):
            half = at + np.uint64(2 * level)
            leaf |= np.uint64(vector[halves[half]] > singles[half + ONE]) << np.uint64(level)
        return leaf
    for level in range(depth):
        half = at + TWO * np.uint64(level)
        leaf |= np.uint64(vector[halves[half]] > singles[half + ONE]) << np.uint64(level)
    return leaf


@njit(cache=True, nogil=True)
def logit_of(model, vector):  # type: ignore[no-untyped-def]
    """Return the logit (float64) of ``vector`` float32[n] under the packed ``model`` int64[w].

    Bits equal CatBoost's: the sum runs in tree order in double precision. NaN is below every
    border. No index is checked: ``vector`` must have the model's number of features.
    """
    doubles = model.view(np.float64)
    singles = model.view(np.float32)
    halves = model.view(np.uint32)
    total = 0.0
    # Unsigned throughout: numba tests signed indices for being negative.
    at = TWO * np.uint64(HEADER_WORDS)
    row = np.uint64(model[6])
    for _ in range(model[1]):
        depth = np.uint64(halves[at])
        width = np.uint64(halves[at + ONE]) + ONE
        at += TWO
        leaf = _leaf_of(halves, singles, at, depth, vector)
        total += doubles[row + leaf * width]
        at += TWO * depth + (width & ~ONE)
        row += width << depth
    return total * doubles[3] + doubles[4]


@njit(cache=True, nogil=True)
def score(model, vector, contributions):  # type: ignore[no-untyped-def]
    """Return the logit and set ``contributions`` float64[n] to each feature's part of it.

    As ``logit_of``. The contributions and the expected logit add up to the logit.
    """
    doubles = model.view(np.float64)
    singles = model.view(np.float32)
    halves = model.view(np.uint32)
    contributions[:] = 0.0
    total = 0.0
    at = TWO * np.uint64(HEADER_WORDS)
    row = np.uint64(model[6])
    for _ in range(model[1]):
        depth = np.uint64(halves[at])
        players = np.uint64(halves[at + ONE])
        width = players + ONE
        at += TWO
        leaf = _leaf_of(halves, singles, at, depth, vector)
        at += TWO * depth
        place = row + leaf * width
        total += doubles[place]
        for player in range(players):
            contributions[halves[at + player]] += doubles[place + ONE + player]
        at += width & ~ONE
        row += width << depth
    return total * doubles[3] + doubles[4]


@njit(cache=True, nogil=True)
def logits_of(model, matrix, out):  # type: ignore[no-untyped-def]
    """Set ``out`` float64[m] to the logits of ``matrix`` float32[m, n], as ``logit_of`` does."""
    for row in range(matrix.shape[0]):
        out[row] = logit_of(model, matrix[row])


def pack(trees: Trees) -> NDArray[np.int64]:
    """Return the trees and their contributions as the one array that the kernels read.

    Raises ModelError where the trees are not supported.
    """
    check_trees(trees)
    questions: list[NDArray[np.int64]] = []
    leaves: list[NDArray[np.float64]] = []
    expected = 0.0
    for features, borders, values, weights in _each(trees):
        if not weights.sum() > 0.0:
            raise ModelError("a tree without leaf weights: contributions would have no base")
        players, table, mean = tree_contributions(features, values, weights)
        expected += mean
        questions.append(_questions(features, borders, players))
        leaves.append(np.column_stack([values, table * trees.scale]).ravel())
    reals = np.array([trees.scale, trees.bias, expected * trees.scale + trees.bias])
    first_leaf = HEADER_WORDS + sum(map(len, questions))
    model = np.concatenate(
        [
            np.array([FORMAT, len(trees.depths), trees.n_features], np.int64),
            reals.view(np.int64),
            np.array([first_leaf], np.int64),
            *questions,
            *(part.view(np.int64) for part in leaves),
        ]
    )
    model.flags.writeable = False
    return model


def _each(trees: Trees) -> Iterator[tuple[NDArray[Any], ...]]:
    """Yield the features, borders, leaf values and leaf weights of each tree."""
    split = leaf = 0
    for depth in trees.depths.tolist():
        splits, leaves = slice(split, split + depth), slice(leaf, leaf + (1 << depth))
        yield (
            trees.split_features[splits],
            trees.split_borders[splits],
            trees.leaf_values[leaves],
            trees.leaf_weights[leaves],
        )
        split, leaf = splits.stop, leaves.stop


def _questions(
    features: NDArray[np.int32], borders: NDArray[np.float32], players: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the words of one tree in the section of questions."""
    pairs = np.column_stack([features, borders.view(np.int32)]).ravel()
    filler = [0] * (len(players) % 2)
    halves = np.concatenate([[len(features), len(players)], pairs, players, filler])
    return halves.astype(np.int32).view(np.int64)


class Model:
    """A packed model with the calls that Python code makes.

    ``array`` is what the kernels take, read-only. Vectors must be writable C-contiguous float32:
    numba would compile anew for another kind. Raises ModelError where the trees are not supported.
    """

    __slots__ = ("array", "expected_logit", "n_features")

    def __init__(self, trees: Trees) -> None:
        self.array = pack(trees)
        self.n_features = trees.n_features
        self.expected_logit = float(self.array[5:6].view(np.float64)[0])

    def logit(self, vector: NDArray[np.float32]) -> float:
        """Return the logit of float32[n]. Raises ValueError for another length."""
        if len(vector) != self.n_features:
            raise ValueError(f"a vector of {len(vector)} for a model of {self.n_features} features")
        value: float = logit_of(self.array, vector)
        return value

    def score(self, vector: NDArray[np.float32], contributions: NDArray[np.float64]) -> float:
        """Return the logit of float32[n] and fill ``contributions`` float64[n], in log-odds.

        Raises ValueError for another length.
        """
        if not len(vector) == len(contributions) == self.n_features:
            raise ValueError(f"vector and contributions must have {self.n_features} values")
        value: float = score(self.array, vector, contributions)
        return value

    def logits(self, matrix: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the logits float64[m] of float32[m, n]. Raises ValueError for another width."""
        if matrix.ndim != 2 or matrix.shape[1] != self.n_features:
            raise ValueError(f"a matrix {matrix.shape} for a model of {self.n_features} features")
        out = np.empty(len(matrix), np.float64)
        logits_of(self.array, np.ascontiguousarray(matrix, np.float32), out)
        return out
