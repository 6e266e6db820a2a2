"""Owns learning an expert (T1) from a few frauds that the champion missed. Must not know CatBoost.

A feature is read in two ways: as the normal score of its rank in recent traffic (``traffic``),
which tells high from low, and as how much likelier its cell is among the frauds than in traffic,
which tells codes apart. The second is learnt from the frauds themselves, so each fraud is read by
what the others say. A linear discriminant (Fisher, 1936) between a group of frauds and the traffic
gives the weights: covariance from the traffic, spread of the frauds from a broad prior and what
they show, difference of means shrunk by its own noise (nearest shrunken centroids: Tibshirani et
al., 2002). The thresholds are quantiles of the traffic itself, so that no more than a stated share
of it gets a boost, whatever was learnt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.expert import (
    BOOST_MAX,
    CELLS,
    DISCRIMINANTS,
    EXPERT_FEATURES_MAX,
    Expert,
    ExpertError,
    evaluate_expert,
)
from trainer.traffic import Traffic, prepare_traffic

__all__ = ["ExpertSettings", "Traffic", "fit_expert", "prepare_traffic"]

FRAUDS_MAX = 512
GROUPED_MIN = 12  # fewer frauds are one group
_CANDIDATES = 64
_NOISE = 1.5  # standard errors that a difference of means is shrunk by
_FLOOR = 1e-3  # of a variance
_RARE = 1e-4  # share of traffic at least in a cell that nobody was seen in
_GAIN_MIN = 0.01  # a feature that adds less of the squared distance so far is left out
_ENOUGH = 25.0  # squared distance beyond which a share of it would leave out what still tells
_GROUP_ROUNDS = 5
_BETTER = 0.03  # of the frauds, a further group must catch more


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


class _Card(NamedTuple):
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


def fit_expert(
    frauds: NDArray[np.float32],
    traffic: Traffic,
    good: NDArray[np.float32] | None,
    settings: ExpertSettings,
    good_among: int | None = None,
) -> Expert | None:
    """Return an expert for frauds float32[k, n] that the champion missed, k >= 1, newest last.

    ``good`` float32[g, n] are payments known to be good, best those that an expert boosted: all
    that are known among ``good_among`` payments, or all there are where that is None. None
    where no group of the frauds stands out from the traffic beyond the cap. Of more than
    FRAUDS_MAX frauds the newest count. Raises ExpertError where the arrays do not fit.
    """
    width = traffic.rows.shape[1]
    if good is None:
        good = np.empty((0, width), np.float32)
    for name, rows in (("frauds", frauds), ("good", good)):
        if rows.ndim != 2 or rows.shape[1] != width:
            raise ExpertError(f"{name} of shape {rows.shape} beside traffic of {width} features")
    if not len(frauds):
        raise ExpertError("no frauds to learn from")
    frauds = frauds[-FRAUDS_MAX:]
    cells = traffic.cells_of(frauds)
    usual = _usual_shares(traffic, traffic.cells_of(good))
    cards = _cards(cells, _best_groups(cells, traffic, usual, settings), traffic, usual, settings)
    expert = _capped(cards, traffic, good, max(good_among or 0, len(good)), settings)
    if expert is None or not evaluate_expert(expert, frauds)[1].any():
        return None
    return expert


def _usual_shares(traffic: Traffic, good: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return what frauds are told from, float64[n, CELLS]: traffic, drawn towards ``good`` cells.

    Up to half way, as their number grows: they are the good payments that are hardest to tell.
    """
    rows = good.shape[1]
    share = 0.5 * rows / (rows + 10.0)
    own = _counts(good) / max(rows, 1)
    shares: NDArray[np.float64] = (1.0 - share) * traffic.shares + share * own
    return shares


def _counts(cells: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return how many of cells uint8[n, k] are which, int64[n, CELLS]."""
    width = len(cells)
    flat = np.arange(width)[:, None] * CELLS + cells
    return np.bincount(flat.ravel(), minlength=width * CELLS).reshape(width, CELLS)


def _best_groups(
    cells: NDArray[np.uint8],
    traffic: Traffic,
    usual: NDArray[np.float64],
    settings: ExpertSettings,
) -> NDArray[np.int64]:
    """Return the group int64[k] of each fraud: attacks that do not look alike.

    As long as one group more catches clearly more: learnt on half of the frauds, judged on the
    other. Groups share the cap and the features, so needless ones catch less.
    """
    count = cells.shape[1]
    best = np.zeros(count, np.int64)
    if count < GROUPED_MIN:
        return best
    caught_most = _caught_of(1, cells, traffic, usual, settings)
    for made in range(2, DISCRIMINANTS + 1):
        groups = _groups(cells, traffic, made)
        caught = _caught_of(made, cells, traffic, usual, settings)
        if groups.max() + 1 < made or caught <= caught_most + _BETTER * count:
            break
        best, caught_most = groups, caught
    return best


def _caught_of(
    count: int,
    cells: NDArray[np.uint8],
    traffic: Traffic,
    usual: NDArray[np.float64],
    settings: ExpertSettings,
) -> int:
    """Return how many frauds are caught by what ``count`` groups of the other half say."""
    caught = 0
    for part in (0, 1):
        learnt = cells[:, part::2]
        cards = _cards(learnt, _groups(learnt, traffic, count), traffic, usual, settings)
        caught += _caught(cards, cells[:, 1 - part :: 2], traffic, settings)
    return caught


def _caught(
    cards: list[_Card], cells: NDArray[np.uint8], traffic: Traffic, settings: ExpertSettings
) -> int:
    """Return how many frauds the cards would boost within the cap."""
    lifted = np.zeros(cells.shape[1], np.bool_)
    for card in cards:
        limit = _limit(card.score(traffic.cells), settings.share_max / len(cards))
        lifted |= card.score(cells) > max(limit, 0.5 * card.usual)
    return int(lifted.sum())


def _groups(cells: NDArray[np.uint8], traffic: Traffic, count: int) -> NDArray[np.int64]:
    """Return the group int64[k] of each fraud when there are ``count``, or as many as there can be.

    By the features in which frauds stand out: the widest group is cut across its first principal
    direction, and k-means (Lloyd, 1982) settles who belongs where.
    """
    rows = cells.shape[1]
    groups = np.zeros(rows, np.int64)
    if count == 1:
        return groups
    mean = (traffic.shares * traffic.scores).sum(axis=1)
    moved = np.take_along_axis(traffic.scores, cells, axis=1).T - mean
    apart = np.abs(moved.mean(axis=0)) / np.sqrt(moved.var(axis=0) + 1e-3)
    points = moved[:, np.argsort(-apart, kind="stable")[:_CANDIDATES]]
    for made in range(1, count):
        spreads = [
            float(((points[groups == g] - points[groups == g].mean(axis=0)) ** 2).sum())
            for g in range(made)
        ]
        widest = points[groups == int(np.argmax(spreads))]
        centred = widest - widest.mean(axis=0)
        direction = np.linalg.svd(centred, full_matrices=False)[2][0]
        cut = groups == int(np.argmax(spreads))
        groups[cut] = np.where(centred @ direction > 0.0, made, groups[cut])
        for _ in range(_GROUP_ROUNDS):
            if np.bincount(groups, minlength=made + 1).min() < 2:
                return np.zeros(rows, np.int64)
            centers = np.array([points[groups == g].mean(axis=0) for g in range(made + 1)])
            groups = ((points[:, None, :] - centers) ** 2).sum(axis=2).argmin(axis=1)
    return groups if np.bincount(groups, minlength=count).min() else np.zeros(rows, np.int64)


def _cards(
    cells: NDArray[np.uint8],
    groups: NDArray[np.int64],
    traffic: Traffic,
    usual: NDArray[np.float64],
    settings: ExpertSettings,
) -> list[_Card]:
    """Return a scorecard for each group; together they have at most ``features_max``."""
    count = int(groups.max()) + 1
    each = settings.features_max // count
    return [_card(cells[:, groups == g], traffic, usual, each, settings) for g in range(count)]


def _card(
    cells: NDArray[np.uint8],
    traffic: Traffic,
    usual: NDArray[np.float64],
    features_max: int,
    settings: ExpertSettings,
) -> _Card:
    """Return the features and weights that tell a group of frauds from the traffic."""
    width, rows = cells.shape
    likelihoods, own = _likelihoods(cells, usual, settings.spread_rows)
    tables = np.concatenate([traffic.scores, likelihoods])
    read = np.concatenate([np.take_along_axis(traffic.scores, cells, axis=1), own])
    mean = read.mean(axis=1)
    # A single fraud tells nothing of how far its kind spreads: then it is as far as traffic.
    seen = ((read - mean[:, None]) ** 2).sum(axis=1)
    spread = (seen + settings.spread_rows) / (rows + settings.spread_rows)
    difference = mean - (np.tile(usual, (2, 1)) * tables).sum(axis=1)
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
    strong = better[np.argsort(-strength[better], kind="stable")[:_CANDIDATES]]
    tables = tables[strong] - middle[strong, None]
    usually = np.take_along_axis(tables, traffic.cells[strong % width], axis=1)
    both = 0.5 * (usually @ usually.T / len(traffic.rows) + np.diag(spread[strong] + _FLOOR))
    chosen = _choose(both, difference[strong], features_max)
    weights = np.linalg.solve(both[np.ix_(chosen, chosen)], difference[strong[chosen]])
    scores = (read[strong[chosen]] - middle[strong[chosen], None]).T @ weights
    return _Card(
        strong[chosen] % width, tables[chosen] * weights[:, None], float(np.median(scores))
    )


def _likelihoods(
    cells: NDArray[np.uint8], usual: NDArray[np.float64], doubt: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the log of how much likelier each cell is among frauds than usual.

    float64[n, CELLS], and float64[n, k] of each fraud by what the others say. ``doubt`` frauds are
    as usual (an m-estimate: Cestnik, 1990).
    """
    rows = cells.shape[1]
    prior = (usual + _RARE) / (1.0 + CELLS * _RARE)
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


def _capped(
    cards: list[_Card],
    traffic: Traffic,
    good: NDArray[np.float32],
    good_among: int,
    settings: ExpertSettings,
) -> Expert | None:
    """Return the expert with thresholds that keep its effect within the cap, None for none."""
    bare = _without_threshold(cards, traffic, settings.boost_max)
    traffic_scores, _ = evaluate_expert(bare, traffic.rows)
    good_scores, _ = evaluate_expert(bare, good)
    active = list(range(len(cards)))
    while active:
        share = settings.share_max / len(active)
        limits = {
            g: max(
                _limit(traffic_scores[:, g], share),
                # Payments are judged because they were boosted, so among those known to be good
                # most are its own errors. How many are too many, all traffic says.
                _limit(good_scores[:, g], share * good_among / max(len(good), 1)),
            )
            for g in active
        }
        # One that does not lift its own frauds leaves its share to the others; which then may.
        worst = min(active, key=lambda g: cards[g].usual - limits[g])
        if cards[worst].usual > limits[worst]:
            break
        active.remove(worst)
    if not active:
        return None
    thresholds, gains = np.zeros(DISCRIMINANTS), np.zeros(DISCRIMINANTS)
    for g in active:
        # Half way to the frauds, or later where the cap asks for it; whole half way from there.
        thresholds[g] = max(limits[g], 0.5 * cards[g].usual)
        gains[g] = settings.boost_max / (0.5 * (cards[g].usual - thresholds[g]))
    return Expert(
        bare.features, bare.knots, bare.terms, thresholds, gains, boost_max=settings.boost_max
    )


def _limit(scores: NDArray[np.float64], share: float) -> float:
    """Return the lowest threshold from 0 on with no more than a share of scores above it."""
    above = int(share * len(scores))
    if above >= len(scores):
        return 0.0
    place = len(scores) - 1 - above
    return max(float(np.partition(scores, place)[place]), 0.0)


def _without_threshold(cards: list[_Card], traffic: Traffic, boost_max: float) -> Expert:
    """Return the scorecards as an expert that boosts nothing yet."""
    features = np.unique(np.concatenate([card.features for card in cards]))
    terms = np.zeros((len(features), CELLS, DISCRIMINANTS))
    for place, card in enumerate(cards):
        terms[np.searchsorted(features, card.features), :, place] = card.terms
    return Expert(
        features=features.astype(np.int32),
        knots=traffic.knots[features],
        terms=terms,
        thresholds=np.zeros(DISCRIMINANTS),
        gains=np.zeros(DISCRIMINANTS),
        boost_max=boost_max,
    )
