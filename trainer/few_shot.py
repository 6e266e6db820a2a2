"""Owns learning an expert (T1) from a few frauds that the champion missed. Must not know CatBoost.

Features are replaced by the normal scores of their ranks in recent traffic, so that one scale and
one covariance serve them all. A linear discriminant (Fisher, 1936) between a group of frauds and
the traffic gives the weights: covariance from the traffic, shrunk (Ledoit and Wolf, 2004), spread
of the frauds from a broad prior and what they show, difference of means shrunk by its own noise
(nearest shrunken centroids: Tibshirani et al., 2002). The thresholds are quantiles of the traffic
itself, so that no more than a stated share of it gets a boost, whatever was learnt.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np
from numba import njit
from numpy.typing import NDArray

from trainer.expert import (
    BOOST_MAX,
    CELLS,
    DISCRIMINANTS,
    EXPERT_FEATURES_MAX,
    KNOTS,
    UNKNOWN,
    Expert,
    ExpertError,
    evaluate_expert,
)

FRAUDS_MAX = 512
_KNOT_SCORE_MAX = 3.0  # the outermost knots, in standard deviations
_CANDIDATES = 64
_GAIN_MIN = 0.01  # a feature that adds less of the squared distance so far is left out
_GROUP_SHARE_MIN = 0.25  # of the largest group's frauds
_GROUP_ROUNDS = 3


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
    rows_min: int = 200  # of traffic

    def __post_init__(self) -> None:
        """Refuse figures that the evaluator or the cap would not take."""
        limits = {
            "share_max": (0.0, 1.0),
            "boost_max": (1e-6, BOOST_MAX),
            "features_max": (DISCRIMINANTS, EXPERT_FEATURES_MAX),
            "spread_rows": (1e-6, 1e6),
            "rows_min": (1, 1_000_000),
        }
        for name, (least, most) in limits.items():
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name} must be {least} to {most}, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Traffic:
    """Recent traffic, made ready once for many experts.

    ``rows`` float32[m, n]; ``knots`` float32[n, KNOTS]; ``scores`` float64[n, CELLS], the normal
    score of each cell; ``mean`` and ``variance`` float64[n] of them over the rows.
    """

    rows: NDArray[np.float32]
    knots: NDArray[np.float32]
    scores: NDArray[np.float64]
    mean: NDArray[np.float64]
    variance: NDArray[np.float64]

    def score(self, rows: NDArray[np.float32], features: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the normal scores float64[k, f] of some features of float32[k, n]."""
        out = np.empty((len(rows), len(features)))
        _score(np.ascontiguousarray(rows), features, self.knots, self.scores, out)
        return out


def prepare_traffic(rows: NDArray[np.float32], settings: ExpertSettings) -> Traffic:
    """Return recent unlabelled traffic float32[m, n] ready for ``fit_expert``.

    Takes tens of milliseconds for 5,000 rows; a fit then takes a few. Raises ExpertError where
    there are too few rows.
    """
    if rows.ndim != 2 or len(rows) < settings.rows_min or not rows.shape[1]:
        raise ExpertError(f"traffic of shape {rows.shape}; {settings.rows_min} rows are needed")
    rows = np.ascontiguousarray(rows, np.float32)
    columns = np.sort(rows.T, axis=1)  # NaN comes last
    knots = np.empty((rows.shape[1], KNOTS), np.float32)
    counts = np.zeros((rows.shape[1], CELLS), np.int64)
    _count(columns, _knot_shares(), knots, counts)
    # NaN is below every number, as it is for the trees.
    ordered = np.roll(counts, 1, axis=1)
    middle = (np.cumsum(ordered, axis=1) - ordered / 2.0) / len(rows)
    scores = np.roll(_normal_scores(middle, len(rows)), -1, axis=1)
    mean = (counts * scores).sum(axis=1) / len(rows)
    variance = (counts * (scores - mean[:, None]) ** 2).sum(axis=1) / len(rows)
    return Traffic(rows, knots, scores, mean, variance)


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
        knots[feature, :] = np.inf
        row = 0
        for knot in range(len(shares)):
            if known > 0:
                knots[feature, knot] = column[min(np.int64(shares[knot] * known), known - 1)]
            while row < known and column[row] <= knots[feature, knot]:
                row += 1
                counts[feature, knot] += 1
        counts[feature, len(shares)] = known - row


@njit(cache=True, nogil=True)
def _score(rows, features, knots, scores, out):  # type: ignore[no-untyped-def]
    for row in range(rows.shape[0]):
        for i in range(len(features)):
            feature = features[i]
            value = rows[row, feature]
            cell = UNKNOWN
            if not np.isnan(value):
                cell = np.searchsorted(knots[feature], value)
            out[row, i] = scores[feature, cell]


@dataclass(frozen=True, slots=True)
class _Card:
    """A scorecard being made: its features int64[f] and their weights float64[f]."""

    features: NDArray[np.int64]
    weights: NDArray[np.float64]


def fit_expert(
    frauds: NDArray[np.float32],
    traffic: Traffic,
    good: NDArray[np.float32] | None,
    settings: ExpertSettings,
) -> Expert | None:
    """Return an expert for frauds float32[k, n] that the champion missed, k >= 1, newest last.

    ``good`` float32[g, n] are payments known to be good, best those that an expert boosted. None
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
    everything = np.arange(width)
    scored = traffic.score(frauds[-FRAUDS_MAX:], everything)
    center = _center(traffic, traffic.score(good, everything))
    groups = _groups(scored, traffic)
    members = [scored[groups == group] for group in range(groups.max() + 1)]
    each = settings.features_max // len(members)
    cards = [_discriminant(rows, traffic, center, each, settings) for rows in members]
    return _capped(cards, frauds[-FRAUDS_MAX:], groups, traffic, good, settings)


def _center(traffic: Traffic, good: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what frauds are told from: the traffic's mean, drawn towards known good payments.

    Up to half way, as their number grows: they are the good payments that are hardest to tell.
    """
    if not len(good):
        return traffic.mean
    share = 0.5 * len(good) / (len(good) + 10.0)
    center: NDArray[np.float64] = (1.0 - share) * traffic.mean + share * good.mean(axis=0)
    return center


def _groups(scored: NDArray[np.float64], traffic: Traffic) -> NDArray[np.int64]:
    """Return the group int64[k] of each fraud, -1 for none: attacks that look different.

    One after the other joins the nearest group, or founds one where it is as far from all as
    payments are from each other; the largest stay, and take in what is near them.
    """
    distance = np.abs(scored - traffic.mean).mean(axis=0) / np.sqrt(traffic.variance + 1.0)
    strong = np.argsort(-distance, kind="stable")[:_CANDIDATES]
    points = scored[:, strong]
    usual = float(traffic.variance[strong].sum())
    centers, sizes = [points[0]], [1]
    for point in points[1:]:
        far = ((point - np.array(centers)) ** 2).sum(axis=1) / (1.0 + 1.0 / np.array(sizes))
        nearest = int(far.argmin())
        if far[nearest] > usual:
            centers.append(point)
            sizes.append(1)
        else:
            sizes[nearest] += 1
            centers[nearest] = centers[nearest] + (point - centers[nearest]) / sizes[nearest]
    for _ in range(_GROUP_ROUNDS):
        centers, group = _largest(points, np.array(centers), usual)
    return group


def _largest(
    points: NDArray[np.float64], centers: NDArray[np.float64], usual: float
) -> tuple[list[NDArray[np.float64]], NDArray[np.int64]]:
    """Return the centers of the largest groups, and the one of each point, -1 for none."""
    far = ((points[:, None, :] - centers[None, :, :]) ** 2).sum(axis=2)
    nearest = far.argmin(axis=1)
    sizes = np.bincount(nearest, minlength=len(centers))
    kept = np.argsort(-sizes, kind="stable")[:DISCRIMINANTS]
    kept = kept[sizes[kept] >= max(1.0, _GROUP_SHARE_MIN * sizes.max())]
    group = far[:, kept].argmin(axis=1)
    group[far[:, kept].min(axis=1) > 2.0 * usual] = -1
    present = np.unique(group[group >= 0])
    if not len(present):  # all are outliers: they are one group
        return [points.mean(axis=0)], np.zeros(len(points), np.int64)
    group = np.where(group >= 0, np.searchsorted(present, group), -1)
    return [points[group == place].mean(axis=0) for place in range(len(present))], group


def _discriminant(
    scored: NDArray[np.float64],
    traffic: Traffic,
    center: NDArray[np.float64],
    features_max: int,
    settings: ExpertSettings,
) -> _Card:
    """Return the features and weights that tell a group of frauds from the traffic."""
    rows = len(scored)
    mean = scored.mean(axis=0)
    # A single fraud tells nothing of how far its kind spreads: then it is as far as traffic.
    seen = ((scored - mean) ** 2).sum(axis=0)
    spread = (seen + settings.spread_rows) / (rows + settings.spread_rows)
    difference = mean - center
    noise = np.sqrt(spread / rows)
    difference = np.sign(difference) * np.maximum(np.abs(difference) - noise, 0.0)
    strength = np.abs(difference) / np.sqrt(traffic.variance + spread)
    strong = np.argsort(-strength, kind="stable")[:_CANDIDATES]
    covariance = _shrunk_covariance(traffic.score(traffic.rows, strong))
    both = 0.5 * (covariance + np.diag(spread[strong]))
    chosen = _choose(both, difference[strong], features_max)
    weights = np.linalg.solve(both[np.ix_(chosen, chosen)], difference[strong[chosen]])
    return _Card(strong[chosen], weights)


def _shrunk_covariance(scored: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the covariance of float64[m, p], shrunk towards equal variances."""
    rows, width = scored.shape
    centred = scored - scored.mean(axis=0)
    sample = centred.T @ centred / rows
    target = np.trace(sample) / width
    away = float(((sample - target * np.eye(width)) ** 2).sum())
    fourth = float((np.einsum("ij,ij->i", centred, centred) ** 2).sum())
    error = max(fourth / rows - float((sample**2).sum()), 0.0) / rows
    share = min(error / away, 1.0) if away > 0.0 else 1.0
    # A floor, so that what never varied has a variance all the same.
    floor = share * target + 1e-3
    shrunk: NDArray[np.float64] = (1.0 - share) * sample + floor * np.eye(width)
    return shrunk


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
        if chosen and gains[best] <= _GAIN_MIN * total:
            break
        total += float(gains[best])
        chosen.append(best)
        column = left[:, best] / left[best, best]
        still = still - column * still[best]
        left = left - np.outer(column, left[best])
    return np.array(chosen, np.int64)


def _capped(
    cards: list[_Card],
    frauds: NDArray[np.float32],
    groups: NDArray[np.int64],
    traffic: Traffic,
    good: NDArray[np.float32],
    settings: ExpertSettings,
) -> Expert | None:
    """Return the expert with thresholds that keep its effect within the cap, None for none."""
    bare = _without_threshold(cards, traffic, settings.boost_max)
    fraud_scores, _ = evaluate_expert(bare, frauds)
    traffic_scores, _ = evaluate_expert(bare, traffic.rows)
    good_scores, _ = evaluate_expert(bare, good)
    usual = [float(np.median(fraud_scores[groups == g, g])) for g in range(len(cards))]
    active = list(range(len(cards)))
    while active:
        share = settings.share_max / len(active)
        limits = {
            g: max(_limit(traffic_scores[:, g], share), _limit(good_scores[:, g], share))
            for g in active
        }
        # One that does not lift its own frauds leaves its share to the others.
        lifting = [g for g in active if usual[g] > limits[g]]
        if lifting == active:
            break
        active = lifting
    if not active:
        return None
    thresholds, gains = np.zeros(DISCRIMINANTS), np.zeros(DISCRIMINANTS)
    for g in active:
        # Half way to the frauds, or later where the cap asks for it; whole half way from there.
        thresholds[g] = max(limits[g], 0.5 * usual[g])
        gains[g] = settings.boost_max / (0.5 * (usual[g] - thresholds[g]))
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
    scores = traffic.scores[features] - traffic.mean[features, None]
    weights = np.zeros((len(features), DISCRIMINANTS))
    for place, card in enumerate(cards):
        weights[np.searchsorted(features, card.features), place] = card.weights
    return Expert(
        features=features.astype(np.int32),
        knots=traffic.knots[features],
        terms=scores[:, :, None] * weights[:, None, :],
        thresholds=np.zeros(DISCRIMINANTS),
        gains=np.zeros(DISCRIMINANTS),
        boost_max=boost_max,
    )
