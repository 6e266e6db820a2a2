"""Base, residual and expert in one call: the bits of a plain evaluation, and exact parts."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.layers import plain_boost, plain_trees, random_expert, random_rows, random_trees
from trainer.expert import EXPERT_FEATURES_MAX, ExpertError, check_expert, evaluate_expert
from trainer.model import Model
from trainer.trees import ModelError

WIDTH = 30


@given(
    seed=st.integers(0, 2**32 - 1),
    with_residual=st.booleans(),
    features=st.integers(0, EXPERT_FEATURES_MAX),
)
@settings(max_examples=150)
def test_bits_equal_a_plain_evaluation(seed: int, with_residual: bool, features: int) -> None:
    random = np.random.default_rng(seed)
    base = random_trees(random, WIDTH, 12, scale=1.25)
    residual = random_trees(random, WIDTH, 5) if with_residual else None
    expert = random_expert(random, WIDTH, features) if features else None
    model = Model(base, residual, expert)
    rows = random_rows(random, 40, WIDTH)
    parts = np.full((len(rows), model.n_parts), 7.0)
    logits = np.array([model.score(r, p) for r, p in zip(rows, parts, strict=True)])

    wanted_base = np.array([plain_trees(base, row) for row in rows])
    wanted = wanted_base.copy()
    if residual is not None:
        wanted += [plain_trees(residual, row) for row in rows]
    boosts, shares = np.zeros(len(rows)), np.zeros((len(rows), WIDTH))
    if expert is not None:
        for i, row in enumerate(rows):
            boosts[i], shares[i] = plain_boost(expert, row)
        assert evaluate_expert(expert, rows)[1].tobytes() == boosts.tobytes()
    assert model.base_logits(rows).tobytes() == wanted_base.tobytes()
    assert logits.tobytes() == (wanted + boosts).tobytes()
    assert model.logits(rows).tobytes() == model.scores(rows).tobytes() == logits.tobytes()
    assert [model.logit(row) for row in rows] == logits.tolist()

    contributions = parts[:, :WIDTH].sum(axis=1)
    np.testing.assert_allclose(contributions + model.expected_logit, wanted, atol=1e-9)
    assert parts[:, WIDTH].tobytes() == boosts.tobytes()
    lifted = boosts > 0.0
    np.testing.assert_allclose(parts[lifted, WIDTH + 1 :], shares[lifted], atol=1e-12)
    np.testing.assert_allclose(parts[lifted, WIDTH + 1 :].sum(axis=1), boosts[lifted])
    assert (parts[~lifted, WIDTH + 1 :] == 7.0).all()  # the plain path does not touch them


def test_the_rows_compared_are_boosted_and_not_boosted() -> None:
    random = np.random.default_rng(3)
    expert = random_expert(random, WIDTH, 24)
    boosts = evaluate_expert(expert, random_rows(random, 400, WIDTH))[1]
    assert 40 < (boosts > 0.0).sum() < 360
    assert (boosts == expert.boost_max).any()


def test_contributions_of_layers_add_up_to_those_of_each() -> None:
    random = np.random.default_rng(4)
    base, residual = random_trees(random, WIDTH, 20), random_trees(random, WIDTH, 8)
    both, first, second = Model(base, residual), Model(base), Model(residual)
    parts = np.zeros((3, both.n_parts))
    for row in random_rows(random, 50, WIDTH):
        for model, out in zip((both, first, second), parts, strict=True):
            model.score(row, out)
        np.testing.assert_allclose(parts[0, :WIDTH], (parts[1] + parts[2])[:WIDTH], atol=1e-12)
    assert math.isclose(both.expected_logit, first.expected_logit + second.expected_logit)


def test_a_residual_of_another_schema_is_refused() -> None:
    random = np.random.default_rng(5)
    with pytest.raises(ModelError, match="29 features on 30"):
        Model(random_trees(random, WIDTH, 3), random_trees(random, WIDTH - 1, 3))


def item(name: str, place: Any, value: float) -> Any:
    def change(expert: Any) -> Any:
        array = getattr(expert, name).copy()
        array[place] = value
        return replace(expert, **{name: array})

    return change


BROKEN: list[tuple[Any, str]] = [
    (item("features", 0, -1), "ascend within the 30"),
    (item("features", -1, WIDTH), "ascend within the 30"),
    (lambda e: replace(e, features=e.features[::-1].copy()), "ascend within"),
    (lambda e: replace(e, features=e.features.astype(np.int64)), "features is int64"),
    (lambda e: replace(e, features=e.features[:0]), "0 features"),
    (lambda e: replace(e, features=np.arange(25, dtype=np.int32)), "25 features"),
    (item("knots", (0, 3), np.nan), "knots must not descend"),
    (item("knots", (0, 0), 1e9), "knots must not descend"),
    (lambda e: replace(e, knots=e.knots[:, 1:]), "knots is float32"),
    (item("terms", (0, 0, 0), np.inf), "terms must be finite"),
    (lambda e: replace(e, terms=e.terms[:, :, :3]), "terms is float64"),
    (item("thresholds", 0, -1.0), "not be negative"),
    (item("gains", 0, -1.0), "not be negative"),
    (item("gains", 0, np.nan), "gains must be finite"),
    (lambda e: replace(e, boost_max=0.0), "boost_max"),
    (lambda e: replace(e, boost_max=math.nan), "boost_max"),
]


@pytest.mark.parametrize(("damage", "reason"), BROKEN, ids=[reason for _, reason in BROKEN])
def test_broken_experts_never_reach_the_kernels(damage: Any, reason: str) -> None:
    random = np.random.default_rng(6)
    expert = random_expert(random, WIDTH, 6)
    check_expert(expert, WIDTH)
    with pytest.raises(ExpertError, match=reason):
        check_expert(damage(expert), WIDTH)
    with pytest.raises(ModelError, match="the expert: "):
        Model(random_trees(random, WIDTH, 3), None, damage(expert))
