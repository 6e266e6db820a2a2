"""The evaluator and the contributions against CatBoost and against the definition."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from catboost import Pool
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit
from numpy.typing import NDArray

from tests.trainer_world import fit, make_features, trees_of
from trainer.contributions import tree_contributions
from trainer.export import trees_from_json
from trainer.model import Model, score
from trainer.trees import DEPTH_MAX, ModelError, Trees

SEED = 11
WIDTH = 7


def labelled(rows: int = 3_000) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    print(f"seed {SEED}")
    features = make_features(rows, WIDTH, SEED)
    noise = np.random.default_rng(SEED).normal(size=rows)
    signal = np.nan_to_num(features[:, 0]) * np.nan_to_num(features[:, 1]) + features[:, 2] + noise
    return features, (signal > 3.0).astype(np.int8)


def awkward_rows(trees: Trees) -> NDArray[np.float32]:
    """Rows on the borders, one step beside them, unknown, infinite and of either zero."""
    random = np.random.default_rng(SEED)
    rows = make_features(400, WIDTH, SEED + 1)
    borders = random.choice(trees.split_borders, rows.shape)
    rows[:100] = borders[:100]
    rows[100:200] = np.nextafter(borders[100:200], np.float32(np.inf))
    with np.errstate(over="ignore"):  # below the lowest border lies only minus infinity
        rows[200:300] = np.nextafter(borders[200:300], np.float32(-np.inf))
    special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 3.4e38, 1e-45], np.float32)
    rows[300:350] = random.choice(special, (50, WIDTH))
    return rows


@pytest.mark.parametrize("depth", range(1, DEPTH_MAX + 1))
def test_logits_and_contributions_are_catboosts(depth: int, tmp_path: Path) -> None:
    fitted = fit(*labelled(), depth=depth, border_count=1_000)
    trees = trees_of(fitted, tmp_path, WIDTH)
    model, rows = Model(trees), awkward_rows(trees)

    contributions = np.empty((len(rows), model.n_parts))
    logits = np.array([model.score(r, c) for r, c in zip(rows, contributions, strict=True)])

    wanted = fitted.predict(rows, prediction_type="RawFormulaVal")
    one_by_one = [fitted.predict(row, prediction_type="RawFormulaVal") for row in rows]
    shap = fitted.get_feature_importance(Pool(rows), type="ShapValues")
    assert logits.tobytes() == wanted.tobytes() == np.array(one_by_one).tobytes()
    assert model.logits(rows).tobytes() == logits.tobytes()
    assert np.array([model.logit(row) for row in rows]).tobytes() == logits.tobytes()
    assert np.abs(contributions[:, :WIDTH] - shap[:, :-1]).max() <= 1e-12
    assert not contributions[:, WIDTH].any()
    assert abs(model.expected_logit - shap[0, -1]) <= 1e-12


def test_the_models_compared_are_the_awkward_ones(tmp_path: Path) -> None:
    # Not all of this need occur by itself: without it the comparison above would prove less.
    trees = trees_of(fit(*labelled(), depth=6, border_count=1_000), tmp_path, WIDTH)
    splits = trees.split_features.reshape(-1, 6)
    assert any(len(set(tree)) < 6 for tree in splits.tolist())
    assert (trees.leaf_weights == 0.0).any()


def test_scale_and_bias_are_in_the_bits(tmp_path: Path) -> None:
    fitted = fit(*labelled())
    rows = make_features(300, WIDTH, SEED)
    fitted.set_scale_and_bias(1.7, -0.3)
    model = Model(trees_of(fitted, tmp_path, WIDTH))
    wanted = fitted.predict(rows, prediction_type="RawFormulaVal")
    assert model.logits(rows).tobytes() == wanted.tobytes()
    # CatBoost gives no SHAP values of a scaled model, so the sum has to do.
    parts = np.empty(model.n_parts)
    logit = model.score(rows[0], parts)
    assert parts[:WIDTH].sum() + model.expected_logit == pytest.approx(logit, abs=1e-12)


def naive_contributions(
    features: list[int], values: list[float], weights: list[float], leaf: int
) -> dict[int, float]:
    """The definition: Shapley values of the expectation given the coalition's answers."""

    def expectation(level: int, prefix: int, coalition: frozenset[int]) -> float:
        if level < 0:
            return values[prefix]
        span = 1 << level
        covers = [
            sum(weights[(2 * prefix + b) * span : (2 * prefix + b + 1) * span]) for b in (0, 1)
        ]
        if features[level] in coalition:
            bit = leaf >> level & 1
            return expectation(level - 1, 2 * prefix + bit, coalition)
        parts = [
            covers[b] / sum(covers) * expectation(level - 1, 2 * prefix + b, coalition)
            for b in (0, 1)
            if covers[b]
        ]
        return sum(parts)

    players = sorted(set(features))
    worth = {
        frozenset(c): expectation(len(features) - 1, 0, frozenset(c))
        for size in range(len(players) + 1)
        for c in itertools.combinations(players, size)
    }
    n = len(players)
    return {
        player: sum(
            math.factorial(len(c))
            * math.factorial(n - 1 - len(c))
            / math.factorial(n)
            * (worth[c | {player}] - worth[c])
            for c in worth
            if player not in c
        )
        for player in players
    }


@st.composite
def one_tree(draw: st.DrawFn) -> tuple[list[int], list[float], list[float]]:
    depth = draw(st.integers(0, 4))
    features = draw(st.lists(st.integers(0, 3), min_size=depth, max_size=depth))
    leaf = st.tuples(st.floats(-5.0, 5.0), st.sampled_from([0.0, 1.0, 3.0, 0.25, 1_000.0]))
    leaves = draw(st.lists(leaf, min_size=1 << depth, max_size=1 << depth))
    # One leaf has cover for sure; those without have no value.
    leaves[draw(st.integers(0, len(leaves) - 1))] = (1.5, 2.0)
    values = [value if weight else 0.0 for value, weight in leaves]
    weights = [weight for _, weight in leaves]
    return features, values, weights


@given(one_tree())
@settings(max_examples=300)
def test_contributions_follow_the_definition(
    tree: tuple[list[int], list[float], list[float]],
) -> None:
    features, values, weights = tree
    players, table, mean = tree_contributions(
        np.array(features, np.int32), np.array(values), np.array(weights)
    )
    assert mean == pytest.approx(np.average(values, weights=weights), abs=1e-12)
    for leaf in range(len(values)):
        wanted = naive_contributions(features, values, weights, leaf)
        assert players.tolist() == sorted(wanted)
        np.testing.assert_allclose(table[leaf], [wanted[p] for p in sorted(wanted)], atol=1e-12)


def test_score_is_called_from_other_kernels(tmp_path: Path) -> None:
    @njit
    def twice(model, vector, contributions):  # type: ignore[no-untyped-def]
        return 2.0 * score(model, vector, contributions)

    model = Model(trees_of(fit(*labelled()), tmp_path, WIDTH))
    row, contributions = make_features(1, WIDTH, SEED)[0], np.empty(model.n_parts)
    assert twice(model.array, row, contributions) == 2.0 * model.logit(row)


def test_wrong_lengths_are_refused(tmp_path: Path) -> None:
    model = Model(trees_of(fit(*labelled()), tmp_path, WIDTH))
    short = np.zeros(WIDTH - 1, np.float32)
    with pytest.raises(ValueError, match="7 features"):
        model.logit(short)
    with pytest.raises(ValueError, match="7 values"):
        model.score(np.zeros(WIDTH, np.float32), np.zeros(WIDTH))
    with pytest.raises(ValueError, match="matrix"):
        model.logits(short[None])


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("several outputs", {"loss_function": "MultiClass"}, "outputs"),
    ("trees not symmetric", {"grow_policy": "Depthwise"}, "not symmetric"),
    ("NaN above", {"nan_mode": "Max"}, "nan_mode Max"),
]


@pytest.mark.parametrize(("_name", "options", "reason"), REFUSED, ids=[r[0] for r in REFUSED])
def test_unsupported_models_are_refused(
    _name: str, options: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    features, labels = labelled()
    if "MultiClass" in options.values():
        labels = labels + (features[:, 2] > 1.0)
    with pytest.raises(ModelError, match=reason):
        trees_of(fit(features, labels, **options), tmp_path, WIDTH)


def test_categorical_features_are_refused(tmp_path: Path) -> None:
    features, labels = labelled()
    mixed = np.nan_to_num(features).astype(object)
    mixed[:, 2] = [str(value) for value in mixed[:, 2]]
    with pytest.raises(ModelError, match=r"categorical_features|ctrs"):
        trees_of(fit(mixed, labels, cat_features=[2]), tmp_path, WIDTH)


def change(name: str, update: Callable[[Any], Any]) -> Callable[[Trees], Trees]:
    return lambda trees: replace(trees, **{name: update(copy.copy(getattr(trees, name)))})


def with_item(value: float) -> Callable[[NDArray[Any]], NDArray[Any]]:
    def update(array: NDArray[Any]) -> NDArray[Any]:
        array[0] = value
        return array

    return update


BROKEN: list[tuple[Callable[[Trees], Trees], str]] = [
    (change("depths", lambda a: a[:0]), "0 trees"),
    (change("depths", with_item(DEPTH_MAX + 1)), "depth 2 to 9"),
    (change("depths", with_item(2)), "split_features"),
    (change("split_features", with_item(WIDTH)), "outside"),
    (change("split_features", with_item(-1)), "outside"),
    (change("split_features", lambda a: a.astype(np.int64)), "int64"),
    (change("split_borders", with_item(np.nan)), "border"),
    (change("leaf_values", with_item(np.inf)), "finite"),
    (change("leaf_weights", with_item(-1.0)), "negative"),
    (change("leaf_weights", np.zeros_like), "no training row"),
    (change("bias", lambda _: math.nan), "finite"),
]


@pytest.mark.parametrize(("damage", "reason"), BROKEN, ids=[reason for _, reason in BROKEN])
def test_broken_arrays_never_reach_the_kernels(
    damage: Callable[[Trees], Trees], reason: str, tmp_path: Path
) -> None:
    trees = trees_of(fit(*labelled()), tmp_path, WIDTH)
    with pytest.raises(ModelError, match=reason):
        Model(damage(trees))


@pytest.mark.parametrize("document", [{}, {"features_info": {"float_features": [{}]}}])
def test_other_json_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="JSON export"):
        trees_from_json(document, WIDTH)
