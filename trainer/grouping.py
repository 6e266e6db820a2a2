"""Owns which frauds are one attack: those that the others of them would have found.

Frauds that a model missed are a mixture: of one attack or several, and of what was always hard to
find. A scorecard learnt from all of them at once finds none of them well. So a fraud belongs to a
group only if the scorecard of the others lifts it; where none are left, the frauds are cut in two
and each part is asked again. How many groups there are to be is asked of frauds that were held
out, as needless ones share the cap and the features and so catch less. Must not know bundles.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trainer.cards import CANDIDATES, Usual, limit_of, make_card
from trainer.expert import DISCRIMINANTS
from trainer.traffic import Traffic

SUPPORT_MIN = 3  # frauds that find each other
_FOLDS = 12
_ROUNDS = 4
_CUTS_MAX = 3  # of a part of a part of a part
_BETTER = 0.01  # of the frauds, others than the groups so far must catch more
_BELONGS = 0.5  # of the way to where frauds are lifted: those that are hardest to find, too
_KEPT = 0.98  # of what the whole cap catches, so much is enough
_SHARES = (0.1, 0.2, 0.4, 0.6, 1.0)  # of the cap
_FOUND_MIN = 40  # fewer frauds that were found say nothing of how much of the cap is needed
_FEW_SHARE = 0.2  # of the cap, for the first: some find each other by chance
_GROUP_ROUNDS = 5

Members = NDArray[np.int64]


def best_groups(cells: NDArray[np.uint8], around: Usual) -> list[Members]:
    """Return the members int64[k] of each group of frauds uint8[n, m], largest first.

    All frauds are one group where no part of them catches more.
    """
    every = np.arange(cells.shape[1])
    groups = sorted(_supported(every, cells, around, _CUTS_MAX), key=len, reverse=True)
    tried = [groups[:count] for count in range(1, min(len(groups), DISCRIMINANTS) + 1)]
    if parts := _cut(every, cells, around.traffic):
        tried.append(parts)
    best, most = [every], int(_found([every], cells, around, (1.0,)).sum())
    for each in tried:
        caught = int(_found(each, cells, around, (1.0,)).sum())
        if caught > most + _BETTER * len(every):
            best, most = each, caught
    return best


def needed_share(groups: Sequence[Members], cells: NDArray[np.uint8], around: Usual) -> float:
    """Return how much of the cap on the share of traffic lifted the groups need, or may have.

    What they would lift beyond it, other frauds would have to be left for. Few frauds may have as
    much of it as they are of those that would say how much is needed.
    """
    share_max, frauds = around.settings.share_max, int(cells.shape[1])
    if frauds >= _FOUND_MIN:
        caught = _found(groups, cells, around, _SHARES).sum(axis=1)
        if caught[-1] >= _FOUND_MIN:
            enough = int(np.argmax(caught >= _KEPT * caught[-1]))
            return _SHARES[enough] * share_max
        frauds = int(caught[-1])
    return max(_FEW_SHARE, frauds / _FOUND_MIN) * share_max


def _supported(
    members: Members, cells: NDArray[np.uint8], around: Usual, cuts: int
) -> list[Members]:
    """Return the groups among some frauds, each of SUPPORT_MIN or more that find each other."""
    if len(members) < SUPPORT_MIN or cuts < 0:
        return []
    group = _that_find_each_other(members, cells, around)
    if not len(group):
        parts = _cut(members, cells, around.traffic)
        return [found for part in parts for found in _supported(part, cells, around, cuts - 1)]
    card = make_card(cells[:, group], around, around.settings.features_max)
    limit = limit_of(card.score(around.traffic.cells), around.settings.share_max)
    threshold = _BELONGS * card.threshold(limit)
    group = np.union1d(group, members[card.score(cells[:, members]) > threshold])
    rest = np.setdiff1d(members, group)
    return [group, *_supported(rest, cells, around, cuts - 1)]


def _that_find_each_other(members: Members, cells: NDArray[np.uint8], around: Usual) -> Members:
    """Return the members that are left when those are dropped whom the others would not find."""
    for _ in range(_ROUNDS):
        if len(members) < SUPPORT_MIN:
            break
        among = cells[:, members]
        found = _found([np.arange(len(members))], among, around, (1.0,))[0]
        if found.all():
            break
        members = members[found]
    return members if len(members) >= SUPPORT_MIN else members[:0]


def _found(
    groups: Sequence[Members],
    cells: NDArray[np.uint8],
    around: Usual,
    shares: Sequence[float],
) -> NDArray[np.bool_]:
    """Return which frauds the groups would find without them, bool[s, m].

    For each share of the cap, which the groups have in equal parts. Each fold is looked at by
    scorecards learnt from the others.
    """
    count = cells.shape[1]
    found = np.zeros((len(shares), count), np.bool_)
    folds = np.arange(count) % min(count, _FOLDS)
    features = around.settings.features_max // len(groups)
    for fold in range(int(folds.max()) + 1):
        own = folds == fold
        for group in groups:
            others = group[folds[group] != fold]
            if not len(others):
                continue
            card = make_card(cells[:, others], around, features)
            usually, scores = card.score(around.traffic.cells), card.score(cells[:, own])
            for place, share in enumerate(shares):
                most = share * around.settings.share_max / len(groups)
                found[place, own] |= scores > card.threshold(limit_of(usually, most))
    return found


def _cut(members: Members, cells: NDArray[np.uint8], traffic: Traffic) -> list[Members]:
    """Return two parts of some frauds, or none where they cannot be told apart.

    By the features in which they stand out: cut across their first principal direction, and
    k-means (Lloyd, 1982) settles who belongs where.
    """
    if len(members) < 2 * SUPPORT_MIN:
        return []
    mean = (traffic.shares * traffic.scores).sum(axis=1)
    moved = np.take_along_axis(traffic.scores, cells[:, members], axis=1).T - mean
    apart = np.abs(moved.mean(axis=0)) / np.sqrt(moved.var(axis=0) + 1e-3)
    points = moved[:, np.argsort(-apart, kind="stable")[:CANDIDATES]]
    centred = points - points.mean(axis=0)
    is_second = centred @ np.linalg.svd(centred, full_matrices=False)[2][0] > 0.0
    for _ in range(_GROUP_ROUNDS):
        if min(is_second.sum(), (~is_second).sum()) < 2:
            return []
        first, second = points[~is_second].mean(axis=0), points[is_second].mean(axis=0)
        is_second = ((points - second) ** 2).sum(axis=1) < ((points - first) ** 2).sum(axis=1)
    return [members[~is_second], members[is_second]]
