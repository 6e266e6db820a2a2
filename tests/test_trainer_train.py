"""Training: the split by time, what is refused, and that a seed gives the same model again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.trainer_world import FAST, make_vectors, take
from trainer.metrics import average_precision
from trainer.model import Model
from trainer.train import Settings, TrainingError, split_by_time, train

VECTORS = make_vectors()


def silent(_done: int, _total: int) -> None:
    """Take progress and tell nobody."""


def test_a_model_learns_and_tells_its_progress() -> None:
    seen: list[tuple[int, int]] = []
    content = train(VECTORS, FAST, lambda done, total: seen.append((done, total)))
    logits = Model(content.trees).logits(VECTORS.features)
    held_out = VECTORS.event_time_ms >= content.facts["data"]["holdout_from_ms"]
    precision = average_precision(logits[held_out], VECTORS.is_fraud[held_out])
    assert precision > 5 * VECTORS.is_fraud.mean()
    assert precision == content.facts["metrics"]["average_precision"]
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1))
    assert {total for _, total in seen} == {FAST.trees}
    assert content.facts["data"]["features_without_values"] == ["feature_4"]
    assert content.facts["settings"]["seed"] == FAST.seed
    assert np.isnan(content.check_vectors).mean() > 0.2
    assert content.facts["cost_per_row_us"] > 0.0


def test_a_seed_gives_the_same_model_again() -> None:
    first, second = (train(VECTORS, FAST, silent).trees for _ in range(2))
    other = train(VECTORS, replace(FAST, seed=2), silent).trees
    for name in ("split_features", "split_borders", "leaf_values"):
        assert getattr(first, name).tobytes() == getattr(second, name).tobytes()
    assert first.leaf_values.tobytes() != other.leaf_values.tobytes()


def test_only_named_features_get_fine_borders() -> None:
    settings = replace(FAST, borders=4, fine_borders=500, trees=60)
    trees = train(VECTORS, settings, silent).trees
    borders = {
        feature: len(set(trees.split_borders[trees.split_features == feature].tolist()))
        for feature in set(trees.split_features.tolist())
    }
    assert borders.pop(0) > 5  # called "amount"
    assert borders
    assert max(borders.values()) <= 5  # one more may part NaN from all numbers


def test_the_split_is_by_time() -> None:
    split = split_by_time(VECTORS, FAST)
    time_ms = VECTORS.event_time_ms
    assert time_ms[split - 1] < time_ms[split]
    share = (time_ms[-1] - time_ms[split]) / (time_ms[-1] - time_ms[0])
    assert share == pytest.approx(FAST.holdout_share, abs=0.01)


def test_the_held_out_part_grows_until_it_has_enough_frauds() -> None:
    late = VECTORS.event_time_ms > VECTORS.event_time_ms[-1] - 20 * 86_400_000
    frauds = np.flatnonzero(VECTORS.is_fraud & late)
    kept = np.ones(len(VECTORS), np.bool_)
    kept[frauds[5:]] = False
    vectors = take(VECTORS, kept)
    split = split_by_time(vectors, FAST)
    assert vectors.is_fraud[split:].sum() == FAST.frauds_min


def test_rows_of_one_moment_stay_together() -> None:
    coarse = replace(VECTORS, event_time_ms=VECTORS.event_time_ms // 86_400_000 * 86_400_000)
    split = split_by_time(coarse, FAST)
    assert coarse.event_time_ms[split - 1] < coarse.event_time_ms[split]


EARLY = np.arange(len(VECTORS)) < len(VECTORS) // 3
BAD: list[tuple[str, Any, str]] = [
    ("no fraud", {"is_fraud": np.zeros(len(VECTORS), np.bool_)}, "0 frauds in 6000 rows"),
    ("all fraud", {"is_fraud": np.ones(len(VECTORS), np.bool_)}, "other rows, are needed"),
    ("few frauds", {"is_fraud": np.arange(len(VECTORS)) < 15}, "15 frauds in 6000 rows"),
    ("frauds early", {"is_fraud": VECTORS.is_fraud & EARLY}, "fewer than 10 frauds"),
    ("one moment", {"event_time_ms": np.zeros(len(VECTORS), np.int64)}, "fewer than 10 frauds"),
    ("no values", {"features": np.full((len(VECTORS), 8), np.nan, np.float32)}, "is NaN"),
    ("constants", {"features": np.ones((len(VECTORS), 8), np.float32)}, "CatBoost: "),
]


@pytest.mark.parametrize(
    ("change", "reason"), [row[1:] for row in BAD], ids=[row[0] for row in BAD]
)
def test_rows_that_cannot_give_a_model_are_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(TrainingError, match=reason):
        train(replace(VECTORS, **change), FAST, silent)


@pytest.mark.parametrize(
    "figures",
    [
        {"trees": 0},
        {"depth": 9},
        {"learning_rate": float("nan")},
        {"borders": 70_000},
        {"seed": -1},
    ],
)
def test_settings_out_of_range_are_refused(figures: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(figures))} must be"):
        Settings(**figures)
