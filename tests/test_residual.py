"""The residual booster: it learns what the base misses, and sampling moves no logit."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.trainer_world import make_features
from trainer.drawing import hardness, shares_drawn
from trainer.model import Model
from trainer.residual import ResidualRows, ResidualSettings, fit_residual
from trainer.train import TrainingError

SEED = 17
WIDTH = 8
SETTINGS = ResidualSettings(frauds_min=5, threads=2)


def make_rows(count: int = 20_000, share: float = 0.02) -> ResidualRows:
    """Return traffic whose base logits are right: there is nothing left to learn."""
    print(f"seed {SEED}")
    random = np.random.default_rng(SEED)
    logits = random.normal(math.log(share), 1.0, count)
    return ResidualRows(
        features=make_features(count, WIDTH, SEED),
        is_fraud=random.random(count) < 1.0 / (1.0 + np.exp(-logits)),
        base_logits=logits,
        weights=np.ones(count),
        good_share=np.ones(count),
    )


def sampled(rows: ResidualRows, good_share: float) -> ResidualRows:
    """Return all frauds and a share of the good rows."""
    random = np.random.default_rng(SEED + 1)
    kept = rows.is_fraud | (random.random(len(rows.is_fraud)) < good_share)
    return ResidualRows(
        rows.features[kept], rows.is_fraud[kept], rows.base_logits[kept], rows.weights[kept],
        np.full(int(kept.sum()), good_share),
    )  # fmt: skip


def mean_logit(rows: ResidualRows, asked: ResidualRows) -> float:
    return float(Model(fit_residual(rows, SETTINGS)).logits(asked.features).mean())


def test_sampling_good_payments_moves_no_logit() -> None:
    rows = make_rows()
    few = sampled(rows, 0.05)
    assert abs(mean_logit(rows, rows)) < 0.15
    assert abs(mean_logit(few, rows)) < 0.25
    # Without the offset all of log(20) would be learnt as if it were the payments' own.
    assert mean_logit(replace(few, good_share=np.ones(len(few.weights))), rows) > 2.0


def test_drawing_what_the_base_suspects_moves_no_logit() -> None:
    rows = make_rows()
    hard = hardness(rows.base_logits)
    shares = shares_drawn(rows.base_logits, hard)
    kept = rows.is_fraud | (np.random.default_rng(SEED + 2).random(len(shares)) < shares)
    assert kept.mean() < 0.2
    assert kept[rows.base_logits >= hard].all()
    few = ResidualRows(
        rows.features[kept], rows.is_fraud[kept], rows.base_logits[kept], rows.weights[kept],
        shares[kept],
    )  # fmt: skip
    suspected = replace(rows, features=rows.features[rows.base_logits > hard - 1.0])
    for asked in (rows, suspected):
        assert abs(mean_logit(few, asked)) < 0.25
    evenly = replace(few, good_share=np.full(len(few.weights), float(shares.mean())))
    assert mean_logit(evenly, suspected) < -0.25, "the share must be each row's own"


def test_a_planted_attack_is_learnt_and_the_rest_is_left() -> None:
    rows = make_rows()
    attack = (rows.features[:, 0] > 1.0) & (rows.features[:, 1] < -1.0)
    learnt = sampled(replace(rows, is_fraud=rows.is_fraud | attack), 0.2)
    logits = Model(fit_residual(learnt, SETTINGS)).logits(rows.features)
    assert 100 < attack.sum() < 1_000
    assert logits[attack].mean() > 3.0
    assert abs(logits[~attack].mean()) < 0.5


def test_heavier_rows_count_for_more() -> None:
    rows = make_rows(4_000)
    there = rows.features[:, 2] > 2.0
    frauds = np.where(there, rows.is_fraud, False)
    heavy = replace(rows, is_fraud=frauds, weights=np.where(frauds, 20.0, 1.0))
    light = replace(heavy, weights=np.ones(len(frauds)))
    assert mean_logit(heavy, rows) > mean_logit(light, rows)


def test_the_same_rows_give_the_same_trees() -> None:
    first, again = (fit_residual(make_rows(3_000), SETTINGS) for _ in range(2))
    assert first.leaf_values.tobytes() == again.leaf_values.tobytes()
    assert len(first.depths) <= 40


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"is_fraud": np.zeros(3_000, np.bool_)}, "0 frauds in 3000 rows"),
    ({"is_fraud": np.ones(3_000, np.bool_)}, "3000 frauds in 3000 rows"),
    ({"base_logits": np.zeros(5)}, "base_logits does not fit"),
    ({"base_logits": np.full(3_000, np.inf)}, "not finite"),
    ({"weights": np.zeros(3_000)}, "weight not above 0"),
    ({"good_share": np.zeros(3_000)}, "good_share"),
    ({"good_share": np.ones(5)}, "good_share does not fit"),
    ({"features": np.full((3_000, WIDTH), np.nan, np.float32)}, "every feature is NaN"),
]


@pytest.mark.parametrize(("change", "reason"), REFUSED, ids=[reason for _, reason in REFUSED])
def test_rows_that_give_nothing_are_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(TrainingError, match=reason):
        fit_residual(replace(make_rows(3_000), **change), SETTINGS)


@pytest.mark.parametrize("change", [{"trees": 41}, {"depth": 7}, {"learning_rate": 0.0}])
def test_settings_that_cost_too_much_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        ResidualSettings(**change)
