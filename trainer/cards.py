"""Owns making a scorecard that tells a group of frauds from traffic. Must not know who is grouped.

A feature is read in two ways: as the normal score of its rank in recent traffic (``traffic``),
which tells high from low, and as how much likelier its cell is among the frauds than in traffic,
which tells codes apart. The second is learnt from the frauds themselves, so each fraud is read by
what the others say. A linear discriminant (Fisher, 1936) between a group of frauds and the traffic
gives the weights: covariance from the traffic, spread of the frauds from a broad prior and what
they show, difference of means shrunk by its own noise (nearest shrunken centroids: Tibshirani et
al., 2002).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.expert import BOOST_MAX, CELLS, DISCRIMINANTS, EXPERT_FEATURES_MAX
from trainer.traffic import Traffic

CANDIDATES = 64
_NOISE = 1.5  # standard errors that a difference of means is shrunk by
_FLOOR = 1e-3  # of a variance
_RARE = 1e-4  # share of traffic at least in a cell that nobody was seen in
_GAIN_MIN = 0.01  # a feature that adds less of the squared distance so far is left out
_ENOUGH = 25.0  # squared distance beyond which a share of it would leave out what still tells


@dataclass(frozen=True, slots=True)
class ExpertSettings:
    """How to learn an expert. Raises ValueError where a figure is out of its range.

    ``share_max`` of the traffic, and of the good payments, gets a boost at most; ``boost_max`` in
    log-odds; ``spread_rows``: as many frauds' worth of doubt about how far frauds spread.
    """

    share_max: float = 0.005
    boost_max: float = 8.0
    features_max: int = EXPERT_FEATURES_MAX
    spread_rows: float = 4.0

    def __post_init__(self) -> None:
        """Refuse figures that the evaluator or the cap would not take."""
        limits = {
            "share_max": (0.0, 1.0),
            "boost_max": (1e-6, BOOST_MAX),
            "features_max": (DISCRIMINANTS, EXPERT_FEATURES_MAX),
            "spread_rows": (1e-6, 1e6),
        }
        for name, (least, most) in limits.items():
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name} must be {least} to {most}, not {getattr(self, name)}")


class Usual(NamedTuple):
    """What frauds are told from: traffic, and float64[n, CELLS] of it drawn towards good cells."""

    traffic: Traffic
    shares: NDArray[np.float64]
    settings: ExpertSettings


class Card(NamedTuple):
    """A scorecard being made, of one group of frauds.

    ``features`` int64[f]; ``terms`` float64[f, CELLS]; ``usual`` is the median
    score of its frauds, each by what was learnt from the others.
    """

    features: NDArray[np.int64]
    terms: NDArray[np.float64]
    usual: float

    def score(self, cells: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return the scores float64[k] of cells uint8[n, k]."""
        pairs = zip(self.features.tolist(), self.terms, strict=True)
        total: NDArray[np.float64] = sum(
            (terms[cells[feature]] for feature, terms in pairs), np.zeros(cells.shape[1])
        )
        return total

    def threshold(self, limit: float) -> float:
        """Return from where on frauds are lifted: half way to them, or at ``limit`` if later."""
        return max(limit, 0.5 * self.usual)


def usual(traffic: Traffic, good: NDArray[np.uint8], settings: ExpertSettings) -> Usual:
    """Return traffic, drawn towards the cells uint8[n, g] of payments that are known to be good.

    Up to half way, as their number grows: they are the good payments that are hardest to tell.
    """
    rows = good.shape[1]
    share = 0.5 * rows / (rows + 10.0)
    own = _counts(good) / max(rows, 1)
    return Usual(traffic, (1.0 - share) * traffic.shares + share * own, settings)


def limit_of(scores: NDArray[np.float64], share: float) -> float:
    """Return the lowest threshold from 0 on with no more than a share of scores above it."""
    above = int(share * len(scores))
    if above >= len(scores):
        return 0.0
    place = len(scores) - 1 - above
    return max(float(np.partition(scores, place)[place]), 0.0)


def make_card(cells: NDArray[np.uint8], around: Usual, features_max: int) -> Card:
    """Return the features and weights that tell frauds, uint8[n, k], from what is usual."""
    traffic, settings = around.traffic, around.settings
    width, rows = cells.shape
    likelihoods, own = _likelihoods(cells, around.shares, settings.spread_rows)
    tables = np.concatenate([traffic.scores, likelihoods])
    read = np.concatenate([np.take_along_axis(traffic.scores, cells, axis=1), own])
    mean = read.mean(axis=1)
    # A single fraud tells nothing of how far its kind spreads: then it is as far as traffic.
    seen = ((read - mean[:, None]) ** 2).sum(axis=1)
    spread = (seen + settings.spread_rows) / (rows + settings.spread_rows)
    difference = mean - (np.tile(around.shares, (2, 1)) * tables).sum(axis=1)
    noise = _NOISE * np.sqrt(spread / rows)
    difference = np.sign(difference) * np.maximum(np.abs(difference) - noise, 0.0)
    difference[width:] = np.maximum(difference[width:], 0.0)  # below: it was chance
    shares = np.tile(traffic.shares, (2, 1))
    middle = (shares * tables).sum(axis=1)
    variance = (shares * (tables - middle[:, None]) ** 2).sum(axis=1)
    strength = np.abs(difference) / np.sqrt(variance + spread)
    strength[~np.tile(traffic.steady, 2)] = 0.0
    difference[strength == 0.0] = 0.0
    # Of a feature the reading that says more.
    better = np.argmax(strength.reshape(2, width), axis=0) * width + np.arange(width)
    strong = better[np.argsort(-strength[better], kind="stable")[:CANDIDATES]]
    tables = tables[strong] - middle[strong, None]
    usually = np.take_along_axis(tables, traffic.cells[strong % width], axis=1)
    both = 0.5 * (usually @ usually.T / len(traffic.rows) + np.diag(spread[strong] + _FLOOR))
    chosen = _choose(both, difference[strong], features_max)
    weights = np.linalg.solve(both[np.ix_(chosen, chosen)], difference[strong[chosen]])
    scores = (read[strong[chosen]] - middle[strong[chosen], None]).T @ weights
    return Card(strong[chosen] % width, tables[chosen] * weights[:, None], float(np.median(scores)))


def _counts(cells: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return how many of cells uint8[n, k] are which, int64[n, CELLS]."""
    width = len(cells)
    flat = np.arange(width)[:, None] * CELLS + cells
    return np.bincount(flat.ravel(), minlength=width * CELLS).reshape(width, CELLS)


def _likelihoods(
    cells: NDArray[np.uint8], usually: NDArray[np.float64], doubt: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the log of how much likelier each cell is among frauds than usual.

    float64[n, CELLS], and float64[n, k] of each fraud by what the others say. ``doubt`` frauds are
    as usual (an m-estimate: Cestnik, 1990).
    """
    rows = cells.shape[1]
    prior = (usually + _RARE) / (1.0 + CELLS * _RARE)
    counts = _counts(cells)
    all_of = np.log((counts + doubt * prior) / ((rows + doubt) * prior))
    fewer = np.maximum(counts - 1, 0)
    others = np.log((fewer + doubt * prior) / ((rows - 1 + doubt) * prior))
    return all_of, np.take_along_axis(others, cells, axis=1)


def _choose(
    covariance: NDArray[np.float64], difference: NDArray[np.float64], most: int
) -> NDArray[np.int64]:
    """Return the places of features, each adding the most distance to those before it.

    A window of an hour says little beside one of a minute, so each choice is taken out of what
    the others still have to say (a sweep of the covariance).
    """
    left, still = covariance.copy(), difference.copy()
    chosen: list[int] = []
    total = 0.0
    while len(chosen) < min(most, len(difference)):
        gains = still**2 / np.maximum(np.diag(left), 1e-9)
        gains[chosen] = -1.0
        best = int(gains.argmax())
        if chosen and gains[best] <= _GAIN_MIN * min(total, _ENOUGH):
            break
        total += float(gains[best])
        chosen.append(best)
        column = left[:, best] / left[best, best]
        still = still - column * still[best]
        left = left - np.outer(column, left[best])
    return np.array(chosen, np.int64)
