"""Owns a model as arrays and its evaluation for one row. Must not know CatBoost, files or labels.

A model is a sum of layers: the base's oblivious trees, and beside it, where they were learnt, a
residual's trees and an expert's boost. Every node of a level of a tree asks the same question, so
that the answers are the bits of the leaf's number. All of it lies in one array, because every
array argument costs a call 0.1 to 0.2 µs. Words of 8 bytes, little-endian:

    header     FORMAT, features, layers of trees, float64 expected logit, first word of leaves,
               first word of the expert (0 for none), then per layer (room for LAYERS_MAX)
               trees, float64 scale, bias
    questions  per tree: int32 depth d, int32 players p,
               d times int32 feature, float32 border; answer d sets bit d of the leaf,
               p times int32 feature, one per player, and a filler where p is odd
    leaves     per tree: 2**d times float64 value and p contributions, already scaled
    expert     as ``trainer.expert`` packs it

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

from featurizer.memory import prefetch
from trainer.contributions import tree_contributions
from trainer.expert import Expert, ExpertError, boost_of, pack_expert, share_boost
from trainer.trees import ModelError, Trees, check_trees

FORMAT = 2
LAYERS_MAX = 2
LAYER_WORDS = 3
FIRST_LAYER = 6
HEADER_WORDS = FIRST_LAYER + LAYERS_MAX * LAYER_WORDS
USUAL_DEPTH = 6
ONE = np.uint64(1)
TWO = np.uint64(2)


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
def _leaves_of(model, vector):  # type: ignore[no-untyped-def]
    """Return uint64[trees]: at which word the leaf of ``vector`` in each tree begins.

    Each is asked for as soon as it is known. The leaves are a megabyte: read one by one as they
    were found, those that are in no cache took up to twice as long (docs/performance.md).
    """
    doubles = model.view(np.float64)
    singles = model.view(np.float32)
    halves = model.view(np.uint32)
    trees = 0
    for layer in range(model[2]):
        trees += model[FIRST_LAYER + LAYER_WORDS * layer]
    places = np.empty(trees, np.uint64)
    # Unsigned throughout: numba tests signed indices for being negative.
    at = TWO * np.uint64(HEADER_WORDS)
    row = np.uint64(model[4])
    for tree in range(trees):
        depth = np.uint64(halves[at])
        width = np.uint64(halves[at + ONE]) + ONE
        at += TWO
        place = row + _leaf_of(halves, singles, at, depth, vector) * width
        prefetch(doubles, place)
        prefetch(doubles, place + width - ONE)
        places[tree] = place
        at += TWO * depth + (width & ~ONE)
        row += width << depth
    return places


@njit(cache=True, nogil=True)
def logit_of(model, vector):  # type: ignore[no-untyped-def]
    """Return the logit (float64) of ``vector`` float32[n] under the packed ``model`` int64[w].

    Each layer's bits equal CatBoost's: the sum runs in tree order in double precision; then the
    layers are added in their order, the boost last. NaN is below every border. No index is
    checked: ``vector`` must have the model's number of features.
    """
    doubles = model.view(np.float64)
    places = _leaves_of(model, vector)
    logit = 0.0
    tree = 0
    for layer in range(model[2]):
        head = np.uint64(FIRST_LAYER + LAYER_WORDS * layer)
        total = 0.0
        for _ in range(model[head]):
            total += doubles[places[tree]]
            tree += 1
        logit += total * doubles[head + ONE] + doubles[head + TWO]
    if model[5] > 0:
        logit += boost_of(model, np.uint64(model[5]), vector)[0]
    return logit


@njit(cache=True, nogil=True)
def score(model, vector, parts):  # type: ignore[no-untyped-def]
    """Return the logit and set ``parts`` float64[2 * n + 1] to what it is made of.

    As ``logit_of``. The first n are the contributions of each feature to the layers of trees; they
    and the expected logit add up to the logit without the boost. parts[n] is the expert's boost,
    0.0 where it gives none; only where it gives one the last n are set, to each feature's share
    of it.
    """
    doubles = model.view(np.float64)
    halves = model.view(np.uint32)
    features = np.uint64(model[1])
    places = _leaves_of(model, vector)
    parts[: features + ONE] = 0.0
    logit = 0.0
    at = TWO * np.uint64(HEADER_WORDS)
    tree = 0
    for layer in range(model[2]):
        head = np.uint64(FIRST_LAYER + LAYER_WORDS * layer)
        total = 0.0
        for _ in range(model[head]):
            players = np.uint64(halves[at + ONE])
            at += TWO + TWO * np.uint64(halves[at])
            place = places[tree]
            tree += 1
            total += doubles[place]
            for player in range(players):
                parts[halves[at + player]] += doubles[place + ONE + player]
            at += (players + ONE) & ~ONE
        logit += total * doubles[head + ONE] + doubles[head + TWO]
    if model[5] > 0:
        expert = np.uint64(model[5])
        boost, winner = boost_of(model, expert, vector)
        if boost > 0.0:
            parts[features] = boost
            share_boost(model, expert, vector, boost, winner, parts[features + ONE :])
            logit += boost
    return logit


@njit(cache=True, nogil=True)
def logits_of(model, matrix, out):  # type: ignore[no-untyped-def]
    """Set ``out`` float64[m] to the logits of ``matrix`` float32[m, n], as ``logit_of`` does."""
    for row in range(matrix.shape[0]):
        out[row] = logit_of(model, matrix[row])


@njit(cache=True, nogil=True)
def _scores_of(model, matrix, parts, out):  # type: ignore[no-untyped-def]
    for row in range(matrix.shape[0]):
        out[row] = score(model, matrix[row], parts)


@dataclass(frozen=True, slots=True)
class PackedTrees:
    """One layer of trees as it stands in a packed model: most of the work of making one.

    ``questions`` and ``leaves`` int64[words] are its parts of those sections.
    """

    n_features: int
    count: int
    scale: float
    bias: float
    expected_logit: float
    questions: NDArray[np.int64]
    leaves: NDArray[np.int64]


def pack_trees(trees: Trees) -> PackedTrees:
    """Return the words of one layer. Raises ModelError where the trees are not supported."""
    check_trees(trees)
    questions: list[NDArray[np.int64]] = []
    leaves: list[NDArray[np.int64]] = []
    expected = 0.0
    for features, borders, values, weights in _each(trees):
        if not weights.sum() > 0.0:
            raise ModelError("a tree without leaf weights: contributions would have no base")
        players, table, mean = tree_contributions(features, values, weights)
        expected += mean
        questions.append(_questions(features, borders, players))
        leaves.append(np.column_stack([values, table * trees.scale]).ravel().view(np.int64))
    return PackedTrees(
        n_features=trees.n_features,
        count=len(trees.depths),
        scale=trees.scale,
        bias=trees.bias,
        expected_logit=expected * trees.scale + trees.bias,
        questions=np.concatenate(questions),
        leaves=np.concatenate(leaves),
    )


def pack(
    trees: PackedTrees, residual: PackedTrees | None, expert: Expert | None
) -> NDArray[np.int64]:
    """Return the layers as the one array that the kernels read.

    Raises ModelError where one is not supported, or is of other features than the base.
    """
    layers = [trees] if residual is None else [trees, residual]
    heads = np.zeros((LAYERS_MAX, LAYER_WORDS), np.int64)
    for head, layer in zip(heads, layers, strict=False):
        if layer.n_features != trees.n_features:
            raise ModelError(f"a residual of {layer.n_features} features on {trees.n_features}")
        head[0] = layer.count
        head[1:] = np.array([layer.scale, layer.bias]).view(np.int64)
    try:
        tail = np.empty(0, np.int64) if expert is None else pack_expert(expert, trees.n_features)
    except ExpertError as error:
        raise ModelError(f"the expert: {error}") from error
    first_leaf = HEADER_WORDS + sum(len(layer.questions) for layer in layers)
    first_tail = 0 if expert is None else first_leaf + sum(len(layer.leaves) for layer in layers)
    expected = sum(layer.expected_logit for layer in layers)
    model = np.concatenate(
        [
            np.array([FORMAT, trees.n_features, len(layers)], np.int64),
            np.array([expected]).view(np.int64),
            np.array([first_leaf, first_tail], np.int64),
            heads.ravel(),
            *(layer.questions for layer in layers),
            *(layer.leaves for layer in layers),
            tail,
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

    ``array`` is what the kernels take, read-only; ``n_parts`` how many parts ``score`` sets.
    Vectors must be writable C-contiguous float32: numba would compile anew for another kind.
    ``base`` may be given to the next model on the same base, which then is made in no time.
    Raises ModelError where a layer is not supported.
    """

    __slots__ = ("array", "base", "expected_logit", "n_features", "n_parts")

    def __init__(
        self,
        trees: Trees | PackedTrees,
        residual: Trees | None = None,
        expert: Expert | None = None,
    ) -> None:
        self.base = trees if isinstance(trees, PackedTrees) else pack_trees(trees)
        self.array = pack(self.base, None if residual is None else pack_trees(residual), expert)
        self.n_features = trees.n_features
        self.n_parts = 2 * trees.n_features + 1
        self.expected_logit = float(self.array[3:4].view(np.float64)[0])

    def logit(self, vector: NDArray[np.float32]) -> float:
        """Return the logit of float32[n]. Raises ValueError for another length."""
        if len(vector) != self.n_features:
            raise ValueError(f"a vector of {len(vector)} for a model of {self.n_features} features")
        value: float = logit_of(self.array, vector)
        return value

    def score(self, vector: NDArray[np.float32], parts: NDArray[np.float64]) -> float:
        """Return the logit of float32[n] and fill ``parts`` float64[n_parts], in log-odds.

        As the kernel ``score`` does. Raises ValueError for other lengths.
        """
        if len(vector) != self.n_features or len(parts) != self.n_parts:
            raise ValueError(f"{self.n_features} values and {self.n_parts} parts are needed")
        value: float = score(self.array, vector, parts)
        return value

    def logits(self, matrix: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the logits float64[m] of float32[m, n]. Raises ValueError for another width."""
        return self._logits(self.array, matrix)

    def base_logits(self, matrix: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the logits float64[m] of the base alone, as ``logits`` does."""
        base = self.array.copy()
        base[2], base[5] = 1, 0  # one layer and no expert
        base.flags.writeable = False  # the kernels are compiled for such arrays
        return self._logits(base, matrix)

    def scores(self, matrix: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the logits that ``score`` gives. Raises ValueError for another width.

        The same bits as ``logits``, by the kernel that decisions use: for checks, and to have
        every page of the model in memory.
        """
        rows = self._checked(matrix)
        out = np.empty(len(rows), np.float64)
        _scores_of(self.array, rows, np.empty(self.n_parts), out)
        return out

    def _logits(self, array: NDArray[np.int64], matrix: NDArray[np.float32]) -> NDArray[np.float64]:
        rows = self._checked(matrix)
        out = np.empty(len(rows), np.float64)
        logits_of(array, rows, out)
        return out

    def _checked(self, matrix: NDArray[np.float32]) -> NDArray[np.float32]:
        if matrix.ndim != 2 or matrix.shape[1] != self.n_features:
            raise ValueError(f"a matrix {matrix.shape} for a model of {self.n_features} features")
        return np.ascontiguousarray(matrix, np.float32)
