"""A residual beside the base: what the base finds is found still, within the same budget."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.layers import random_trees
from trainer.model import Model
from trainer.restraint import LOSS_MAX, STRENGTHS, Measure, restrained
from trainer.trees import Trees

SEED, WIDTH, SHARE = 31, 12, 0.02


@pytest.fixture(scope="module")
def base() -> Trees:
    print(f"seed {SEED}")
    return random_trees(np.random.default_rng(SEED), WIDTH, 40)


def rows(count: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, WIDTH)).astype(np.float32)


@pytest.fixture(scope="module")
def measure(base: Trees) -> Measure:
    """Traffic, and frauds of which the base finds most."""
    many = rows(20_000, SEED + 2)
    frauds = many[np.argsort(-Model(base).logits(many), kind="stable")[:300]]
    return Measure(rows(10_000, SEED + 1), np.ones(10_000), frauds, SHARE)


def noise(scale: float) -> Trees:
    trees = random_trees(np.random.default_rng(SEED + 3), WIDTH, 40, scale=scale)
    return replace(trees, bias=0.7)


def kept(base: Trees, residual: Trees, measure: Measure) -> float:
    """Return how many of the frauds that the base finds all layers find."""
    found = []
    for model in (Model(base), Model(base, residual)):
        limit = np.quantile(model.logits(measure.traffic), 1.0 - measure.alert_share)
        found.append(model.logits(measure.frauds) >= limit)
    return float(found[1][found[0]].mean())


def test_what_the_base_finds_is_found_still(base: Trees, measure: Measure) -> None:
    loud = noise(0.5)
    assert kept(base, loud, measure) < 1.0 - 2.0 * LOSS_MAX, "nothing is lost anyway"
    found = restrained(base, loud, None, measure)
    strength = found.scale / loud.scale
    assert strength in STRENGTHS[1:]
    assert kept(base, found, measure) >= 1.0 - LOSS_MAX - 0.01
    assert kept(base, found, measure) > kept(base, loud, measure)
    logits = Model(found).logits(measure.traffic)
    np.testing.assert_allclose(logits, strength * Model(loud).logits(measure.traffic))


def test_a_residual_that_loses_little_is_left_as_it_is(base: Trees, measure: Measure) -> None:
    quiet = noise(1e-3)
    assert restrained(base, quiet, None, measure).scale == quiet.scale
    unheard = replace(measure, frauds=measure.frauds[:0])
    assert restrained(base, noise(0.5), None, unheard).scale == noise(0.5).scale


def test_an_attack_that_nobody_judged_yet_takes_no_budget(base: Trees, measure: Measure) -> None:
    border = np.float32(1.8)  # more of the traffic is beyond it than the budget allows
    lift = Trees(
        WIDTH, np.array([1]), np.zeros(1, np.int32), np.array([border]), np.array([0.0, 50.0]),
        np.ones(2), 1.0, 0.0,
    )  # fmt: skip
    is_attack = measure.traffic[:, 0] > border
    assert is_attack.mean() > SHARE
    assert restrained(base, lift, None, measure).scale == STRENGTHS[-1]
    judged = replace(measure, counts=np.where(is_attack, 0.01, 1.0))
    assert restrained(base, lift, None, judged).scale == 1.0
