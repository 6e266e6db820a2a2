"""Owns the exact SHAP values of one oblivious tree. Must not know models, files or rows.

Path-dependent values (Lundberg et al., 2020) of an oblivious tree depend only on the leaf that a
row falls into, so a table over leaves holds them all. Splits on the same feature are one player.
A tree of depth d asks d questions; each is answered by the row or, where the feature is not in
the coalition, averaged by cover. That makes 3**d expectations, built from the leaves upwards, of
which every coalition of every leaf is one: far fewer steps than a walk per leaf.
"""

from __future__ import annotations

from math import factorial

import numpy as np
from numba import njit
from numpy.typing import NDArray

_AVERAGED = 2


@njit(cache=True, nogil=True)
def _expectations(values, weights, depth):  # type: ignore[no-untyped-def]
    """Return float64[3**depth]: digit d (base 3) answers question d with 0, 1 or the average."""
    nodes = len(values)
    cover = weights.copy()
    expected = values.copy().reshape(nodes, 1)
    for _ in range(depth):
        nodes //= 2
        states = expected.shape[1]
        merged = np.zeros((nodes, 3 * states))
        for node in range(nodes):
            low, high = cover[2 * node], cover[2 * node + 1]
            both = low + high
            for state in range(states):
                below, above = expected[2 * node, state], expected[2 * node + 1, state]
                merged[node, state] = below
                merged[node, states + state] = above
                if both > 0.0:  # no row came here: no leaf below has a value either
                    mean = (low * below + high * above) / both
                    merged[node, _AVERAGED * states + state] = mean
            cover[node] = both
        expected = merged
    return expected[0]


@njit(cache=True, nogil=True)
def _shapley(expected, player_of, players, depth, shares):  # type: ignore[no-untyped-def]
    """Return float64[2**depth, players] from the expectations; ``shares`` by coalition size."""
    coalitions = 1 << players
    table = np.zeros((1 << depth, players))
    worth = np.empty(coalitions)
    size = np.zeros(coalitions, np.int64)
    for coalition in range(1, coalitions):
        size[coalition] = size[coalition >> 1] + (coalition & 1)
    for leaf in range(1 << depth):
        for coalition in range(coalitions):
            state = 0
            for level in range(depth - 1, -1, -1):
                member = (coalition >> player_of[level]) & 1
                state = 3 * state + ((leaf >> level) & 1 if member else _AVERAGED)
            worth[coalition] = expected[state]
        for player in range(players):
            for coalition in range(coalitions):
                if not (coalition >> player) & 1:
                    gain = worth[coalition | (1 << player)] - worth[coalition]
                    table[leaf, player] += shares[size[coalition]] * gain
    return table


def tree_contributions(
    features: NDArray[np.int32], values: NDArray[np.float64], weights: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64], float]:
    """Return the players int64[p], the table float64[2**d, p] and the tree's mean.

    ``features`` int32[d] (question d is bit d of the leaf, the highest bit is the root),
    ``values`` and ``weights`` float64[2**d]; a leaf without weight must have the value 0. A row
    of the table and the mean add up to the leaf's value.
    """
    depth = len(features)
    players, player_of = np.unique(features, return_inverse=True)
    expected = _expectations(values, weights, depth)
    p = len(players)
    shares = np.array([factorial(s) * factorial(p - 1 - s) / factorial(p) for s in range(p)])
    table = _shapley(expected, player_of.astype(np.int64), p, depth, shares)
    return players.astype(np.int64), table, float(expected[-1])
