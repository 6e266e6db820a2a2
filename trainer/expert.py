"""Owns the few-shot expert as arrays, and its evaluation. Must not know how it was learnt.

An expert is up to DISCRIMINANTS scorecards over at most EXPERT_FEATURES_MAX features. A feature's
value falls into a cell between its knots, or into the last one where it is unknown; each cell has
a term for each scorecard, and their sum s, beyond a threshold, is a boost of the logit:

    boost = min(max over scorecards of gain * (s - threshold), boost_max), or 0

The packed form, words of 8 bytes: features f, float64 boost_max, the thresholds and the gains
(float64[DISCRIMINANTS] each), then f feature numbers, f times KNOTS float32, f times CELLS times
DISCRIMINANTS float64 terms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

EXPERT_FEATURES_MAX = 24
DISCRIMINANTS = 4
# One less than a power of two, so that a search is five steps without a branch.
KNOTS = 31
CELLS = KNOTS + 2
UNKNOWN = CELLS - 1  # the cell of NaN
BOOST_MAX = 20.0
_HEAD_WORDS = 2 + 2 * DISCRIMINANTS
_HALVES = np.uint64(2)


class ExpertError(Exception):
    """The arrays are no expert, or the rows cannot give one."""


@dataclass(frozen=True, slots=True)
class Expert:
    """Scorecards as arrays.

    ``features`` int32[f], ascending; ``knots`` float32[f, KNOTS], not descending, filled with
    infinity; ``terms`` float64[f, CELLS, DISCRIMINANTS] in units of the score; ``thresholds``
    and ``gains`` float64[DISCRIMINANTS], a gain of 0 for one that is not used; ``boost_max`` in
    log-odds.
    """

    features: NDArray[np.int32]
    knots: NDArray[np.float32]
    terms: NDArray[np.float64]
    thresholds: NDArray[np.float64]
    gains: NDArray[np.float64]
    boost_max: float


def check_expert(expert: Expert, n_features: int) -> None:
    """Raise ExpertError where an array contradicts another or a limit.

    The kernels check no index, so nothing gets to them but what passed here.
    """
    found = len(expert.features)
    if not 0 < found <= EXPERT_FEATURES_MAX:
        raise ExpertError(f"{found} features; 1 to {EXPERT_FEATURES_MAX} are supported")
    wanted: dict[str, tuple[NDArray[Any], type, tuple[int, ...]]] = {
        "features": (expert.features, np.int32, (found,)),
        "knots": (expert.knots, np.float32, (found, KNOTS)),
        "terms": (expert.terms, np.float64, (found, CELLS, DISCRIMINANTS)),
        "thresholds": (expert.thresholds, np.float64, (DISCRIMINANTS,)),
        "gains": (expert.gains, np.float64, (DISCRIMINANTS,)),
    }
    for name, (array, kind, shape) in wanted.items():
        if array.dtype != kind or array.shape != shape:
            raise ExpertError(f"{name} is {array.dtype}{array.shape}, not {kind.__name__}{shape}")
    _check_values(expert, n_features)


def _check_values(expert: Expert, n_features: int) -> None:
    features = expert.features
    if features[0] < 0 or features[-1] >= n_features or (np.diff(features) <= 0).any():
        raise ExpertError(f"features must ascend within the {n_features} of the schema")
    if np.isnan(expert.knots).any() or (expert.knots[:, 1:] < expert.knots[:, :-1]).any():
        raise ExpertError("knots must not descend, and be no NaN")
    for name in ("terms", "thresholds", "gains"):
        if not np.isfinite(getattr(expert, name)).all():
            raise ExpertError(f"{name} must be finite")
    if (expert.gains < 0.0).any() or (expert.thresholds < 0.0).any():
        # From a threshold of 0 on a boost has terms above 0 that it can be shared out by.
        raise ExpertError("gains and thresholds must not be negative")
    if not 0.0 < expert.boost_max <= BOOST_MAX:
        raise ExpertError(f"boost_max must be above 0 and at most {BOOST_MAX}")


def pack_expert(expert: Expert, n_features: int) -> NDArray[np.int64]:
    """Return the expert as the words that the kernels read. Raises ExpertError."""
    check_expert(expert, n_features)
    reals = np.r_[expert.boost_max, expert.thresholds, expert.gains]
    knots = expert.knots.ravel()
    filler = np.zeros(len(knots) % 2, np.float32)
    return np.concatenate(
        [
            np.array([len(expert.features)], np.int64),
            reals.view(np.int64),
            expert.features.astype(np.int64),
            np.r_[knots, filler].view(np.int64),
            np.ascontiguousarray(expert.terms).ravel().view(np.int64),
        ]
    )


@njit(cache=True, nogil=True, inline="always")
def _cell_of(singles, first, value):  # type: ignore[no-untyped-def]
    """Return how many of the KNOTS from ``first`` on lie below ``value``, or UNKNOWN (uint64)."""
    if value != value:  # noqa: PLR0124 - true for NaN
        return np.uint64(UNKNOWN)
    cell = np.uint64(0)
    for exponent in range(4, -1, -1):
        step = np.uint64(1 << exponent)
        cell += step * np.uint64(value > singles[first + cell + step - np.uint64(1)])
    return cell


@njit(cache=True, nogil=True, inline="always")
def _places(words, at):  # type: ignore[no-untyped-def]
    """Return how many features there are, and where they, the knots (halves) and terms begin."""
    features = np.uint64(words[at])
    feature_at = at + np.uint64(_HEAD_WORDS)
    terms_at = feature_at + features + (features * np.uint64(KNOTS) + np.uint64(1)) // _HALVES
    return features, feature_at, _HALVES * (feature_at + features), terms_at


@njit(cache=True, nogil=True, inline="always")
def _term_at(words, singles, places, i, vector):  # type: ignore[no-untyped-def]
    """Return where the terms of feature ``i`` of the expert are for ``vector``."""
    _, feature_at, knots_at, terms_at = places
    value = vector[np.uint64(words[feature_at + i])]
    cell = _cell_of(singles, knots_at + i * np.uint64(KNOTS), value)
    return terms_at + (i * np.uint64(CELLS) + cell) * np.uint64(DISCRIMINANTS)


@njit(cache=True, nogil=True, inline="always")
def _scores(words, at, vector):  # type: ignore[no-untyped-def]
    """Return the score of each scorecard, summed in the order of the features."""
    doubles = words.view(np.float64)
    singles = words.view(np.float32)
    places = _places(words, at)
    s0, s1, s2, s3 = 0.0, 0.0, 0.0, 0.0
    for i in range(places[0]):
        term = _term_at(words, singles, places, np.uint64(i), vector)
        s0 += doubles[term]
        s1 += doubles[term + np.uint64(1)]
        s2 += doubles[term + np.uint64(2)]
        s3 += doubles[term + np.uint64(3)]
    return s0, s1, s2, s3


@njit(cache=True, nogil=True)
def boost_of(words, at, vector):  # type: ignore[no-untyped-def]
    """Return the boost (float64) of ``vector`` float32[n] and the scorecard that gave it.

    The expert stands in ``words`` int64[w] from ``at`` (uint64) on. No index is checked.
    """
    doubles = words.view(np.float64)
    boost, winner = 0.0, 0
    for i, score in enumerate(_scores(words, at, vector)):
        place = at + np.uint64(2 + i)
        lifted = doubles[place + np.uint64(DISCRIMINANTS)] * (score - doubles[place])
        if lifted > boost:
            boost, winner = lifted, i
    return min(boost, doubles[at + np.uint64(1)]), winner


@njit(cache=True, nogil=True)
def share_boost(words, at, vector, boost, winner, shares):  # type: ignore[no-untyped-def]
    """Set ``shares`` float64[n] to each feature's part of a ``boost`` above 0.

    By the terms above 0 of the scorecard ``winner``; features that speak against have no part.
    """
    doubles = words.view(np.float64)
    singles = words.view(np.float32)
    places = _places(words, at)
    shares[:] = 0.0
    total = 0.0
    for i in range(places[0]):
        term = _term_at(words, singles, places, np.uint64(i), vector)
        total += max(doubles[term + np.uint64(winner)], 0.0)
    for i in range(places[0]):
        term = _term_at(words, singles, places, np.uint64(i), vector)
        feature = np.uint64(words[places[1] + np.uint64(i)])
        shares[feature] = boost * (max(doubles[term + np.uint64(winner)], 0.0) / total)


@njit(cache=True, nogil=True)
def _evaluate(words, matrix, scores, boosts):  # type: ignore[no-untyped-def]
    start = np.uint64(0)
    for row in range(matrix.shape[0]):
        scores[row, 0], scores[row, 1], scores[row, 2], scores[row, 3] = _scores(
            words, start, matrix[row]
        )
        boosts[row] = boost_of(words, start, matrix[row])[0]


def evaluate_expert(
    expert: Expert, matrix: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the scores float64[m, DISCRIMINANTS] and boosts float64[m] of float32[m, n].

    Bits equal what the kernels of a bundle compute. Raises ExpertError.
    """
    scores, boosts = np.empty((len(matrix), DISCRIMINANTS)), np.empty(len(matrix))
    words = pack_expert(expert, matrix.shape[1])
    _evaluate(words, np.ascontiguousarray(matrix, np.float32), scores, boosts)
    return scores, boosts
