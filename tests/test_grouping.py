"""Frauds of one attack are told from those of another, and from what fits no other."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.test_few_shot import SEED, SETTINGS, WIDTH, known_features, make_traffic, rare_flag
from trainer.cards import Usual, usual
from trainer.grouping import SUPPORT_MIN, best_groups, needed_share
from trainer.traffic import prepare_traffic

NONE = np.zeros((WIDTH, 0), np.uint8)


@pytest.fixture(scope="module")
def around() -> Usual:
    print(f"seed {SEED}")
    traffic = prepare_traffic(make_traffic(5_000, np.random.default_rng(SEED)))
    return usual(traffic, NONE, SETTINGS)


def grouped(
    kinds: NDArray[np.int64], rows: NDArray[np.float32], around: Usual
) -> list[dict[int, int]]:
    """Return how many of which kind each group has."""
    groups = best_groups(around.traffic.cells_of(rows), around)
    return [
        dict(zip(*(each.tolist() for each in np.unique(kinds[g], return_counts=True)), strict=True))
        for g in groups
    ]


def test_frauds_that_nothing_joins_are_left_out(around: Usual) -> None:
    """Half of the frauds are of an attack, the others any payments."""
    random = np.random.default_rng(SEED + 1)
    kinds = np.repeat([0, 1], 12)
    rows = np.concatenate([make_traffic(12, random), rare_flag(12, random)])
    order = random.permutation(24)
    (group,) = grouped(kinds[order], rows[order], around)
    assert group[1] == 12
    assert group.get(0, 0) <= 1


def test_two_attacks_among_other_frauds_are_two_groups(around: Usual) -> None:
    random = np.random.default_rng(SEED + 2)
    kinds = np.repeat([0, 1, 2], [8, 30, 15])
    rows = np.concatenate(
        [make_traffic(8, random), known_features(30, random, 2, 2.0), rare_flag(15, random)]
    )
    order = random.permutation(len(kinds))
    groups = grouped(kinds[order], rows[order], around)
    assert len(groups) == 2
    first, second = sorted(groups, key=lambda group: group.get(2, 0))
    assert second.get(2, 0) >= 14
    assert first.get(1, 0) >= 25
    assert sum(sum(group.values()) for group in groups) <= 48


def test_an_attack_of_one_kind_is_one_group(around: Usual) -> None:
    random = np.random.default_rng(SEED + 3)
    for count in (1, 2, SUPPORT_MIN, 40):
        cells = around.traffic.cells_of(known_features(count, random, 2, 1.5))
        groups = best_groups(cells, around)
        assert len(groups) == 1, f"{count} frauds"
        assert len(groups[0]) > 0.8 * count


def test_frauds_that_stand_far_out_need_little_of_the_cap(around: Usual) -> None:
    random = np.random.default_rng(SEED + 4)
    shares = []
    for up in (1.2, 3.5):
        cells = around.traffic.cells_of(known_features(120, random, 2, up))
        shares.append(needed_share([np.arange(120)], cells, around))
    assert shares[1] < shares[0] <= SETTINGS.share_max


@pytest.mark.parametrize(("frauds", "share"), [(3, 0.2), (10, 0.25), (30, 0.75)])
def test_few_frauds_may_have_a_part_of_the_cap(around: Usual, frauds: int, share: float) -> None:
    random = np.random.default_rng(SEED + 5)
    few = around.traffic.cells_of(known_features(frauds, random, 2, 3.5))
    assert needed_share([np.arange(frauds)], few, around) == share * SETTINGS.share_max


def test_frauds_that_nobody_finds_may_have_as_little_as_few(around: Usual) -> None:
    random = np.random.default_rng(SEED + 6)
    strangers = around.traffic.cells_of(make_traffic(120, random))
    assert needed_share([np.arange(120)], strangers, around) < 0.5 * SETTINGS.share_max
