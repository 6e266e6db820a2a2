"""Owns learning an expert (T1) from a few frauds that the base missed. Must not know CatBoost.

Each attack among the frauds (``grouping``) has a scorecard (``cards``). The thresholds are
quantiles of the traffic itself, so that no more than a stated share of it gets a boost, whatever
was learnt, and less where the frauds are found with less.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from trainer.cards import Card, ExpertSettings, limit_of, make_card, usual
from trainer.expert import CELLS, DISCRIMINANTS, Expert, ExpertError, evaluate_expert
from trainer.grouping import best_groups, needed_share
from trainer.traffic import Traffic, prepare_traffic

__all__ = ["ExpertSettings", "Traffic", "fit_expert", "prepare_traffic"]

FRAUDS_MAX = 512


def fit_expert(
    frauds: NDArray[np.float32],
    traffic: Traffic,
    good: NDArray[np.float32] | None,
    settings: ExpertSettings,
    good_among: int | None = None,
) -> Expert | None:
    """Return an expert for frauds float32[k, n] that the base missed, k >= 1, newest last.

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
    around = usual(traffic, traffic.cells_of(good), settings)
    groups = best_groups(cells, around)
    cards = [make_card(cells[:, g], around, settings.features_max // len(groups)) for g in groups]
    capped = replace(settings, share_max=needed_share(groups, cells, around))
    expert = _capped(cards, traffic, good, max(good_among or 0, len(good)), capped)
    if expert is None or not evaluate_expert(expert, frauds)[1].any():
        return None
    return expert


def _capped(
    cards: list[Card],
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
                limit_of(traffic_scores[:, g], share),
                # Payments are judged because they were boosted, so among those known to be good
                # most are its own errors. How many are too many, all traffic says.
                limit_of(good_scores[:, g], share * good_among / max(len(good), 1)),
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
        thresholds[g] = cards[g].threshold(limits[g])
        gains[g] = settings.boost_max / (0.5 * (cards[g].usual - thresholds[g]))
    return Expert(
        bare.features, bare.knots, bare.terms, thresholds, gains, boost_max=settings.boost_max
    )


def _without_threshold(cards: list[Card], traffic: Traffic, boost_max: float) -> Expert:
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
