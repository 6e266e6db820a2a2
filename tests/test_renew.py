"""Renewed bundles: layers on an older base, alerts within the budget, round trips and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.layers import random_expert, random_trees
from tests.trainer_world import FAST, SCHEMA, make_features, make_vectors
from trainer.bundle import MANIFEST, Bundle, BundleError, Content, load_bundle, load_content
from trainer.bundle import write_bundle as write
from trainer.bundle_files import LAYER_FILES, digest_of, id_of, json_bytes, parse_manifest
from trainer.calibration import Calibration
from trainer.expert import Expert, evaluate_expert
from trainer.model import Model
from trainer.renew import (
    GOOD_MIN,
    SHIFT_MAX,
    UNJUDGED_MAX,
    Recent,
    fit_shift,
    good_shares,
    move_calibration,
    renew,
    unlabelled,
)
from trainer.signing import create_key, public_path, sign
from trainer.thresholds import NEVER, Budget, thresholds_within
from trainer.train import train

SEED = 23
WIDTH = 8
BUDGET = Budget(alert_share=0.02, decline_share=0.005)
PLENTY = 2.0  # a share for alerts that nothing fills


@pytest.fixture(scope="module")
def older() -> Content:
    return train(make_vectors(width=WIDTH), FAST, lambda _done, _total: None)


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "signing.pem"
    create_key(path)
    return path


def make_recent(rows: int = 5_000, labelled: int = 300) -> Recent:
    print(f"seed {SEED}")
    random = np.random.default_rng(SEED)
    features = make_features(rows, WIDTH, SEED)
    none, no = features[:0], np.zeros(0, np.bool_)
    return Recent(
        features, np.ones(rows, np.bool_), np.zeros(rows, np.bool_), none, none, no, no,
        features[:labelled].copy(), random.random(labelled) < 0.05, np.ones(labelled),
    )  # fmt: skip


def make_renewed(older: Content, recent: Recent | None = None, **facts: Any) -> Content:
    random = np.random.default_rng(SEED)
    residual = replace(random_trees(random, WIDTH, 6, scale=0.3), bias=0.0)
    expert = random_expert(random, WIDTH, 5)
    return renew(older, residual, expert, recent or make_recent(), BUDGET, facts)


@pytest.fixture
def renewed(older: Content) -> Content:
    return make_renewed(older)


@pytest.fixture
def written(renewed: Content, key: Path, tmp_path: Path) -> Path:
    write(tmp_path / "bundle", renewed, key)
    return tmp_path / "bundle"


def load(path: Path, key: Path) -> Bundle:
    return load_bundle(
        path, schema_version=SCHEMA, public_key=public_path(key).read_bytes()
    )  # fmt: skip


def test_what_was_renewed_is_loaded(renewed: Content, written: Path, key: Path) -> None:
    bundle = load(written, key)
    rows = make_features(500, WIDTH, SEED + 1)
    assert bundle.model.logits(rows).tobytes() == renewed.model().logits(rows).tobytes()
    assert [layer["name"] for layer in bundle.manifest["layers"]] == ["base", "residual", "expert"]
    assert bundle.manifest["layers"][2]["features"][0] in renewed.feature_names
    assert bundle.manifest["fitted"]["alert_share"] <= BUDGET.alert_share
    again = load_content(written, schema_version=SCHEMA, public_key=public_path(key).read_bytes())
    assert again.base_cbm == renewed.base_cbm
    assert again.facts == json.loads(json_bytes(renewed.facts))  # a tuple comes back as a list
    assert write(written, again, key, replace=True) == bundle.model_version


@pytest.mark.parametrize("layers", [(), ("residual",), ("expert",), ("residual", "expert")])
def test_each_layer_is_optional(
    layers: tuple[str, ...], renewed: Content, key: Path, tmp_path: Path
) -> None:
    left_out: dict[str, Any] = {name: None for name in ("residual", "expert") if name not in layers}
    content = replace(renewed, **left_out)
    write(tmp_path / "b", content, key)
    bundle = load(tmp_path / "b", key)
    rows = make_features(200, WIDTH, SEED + 1)
    assert bundle.model.logits(rows).tobytes() == content.model().logits(rows).tobytes()
    assert [layer["name"] for layer in bundle.manifest["layers"]] == ["base", *layers]


LAYER_NAMES = [name for files in LAYER_FILES.values() for name in files]


@pytest.mark.parametrize("name", LAYER_NAMES)
def test_a_damaged_or_missing_layer_is_refused(name: str, written: Path, key: Path) -> None:
    data = bytearray((written / name).read_bytes())
    data[-1] ^= 1
    (written / name).write_bytes(data)
    with pytest.raises(BundleError, match="digest"):
        load(written, key)
    (written / name).unlink()
    with pytest.raises(BundleError, match="cannot read"):
        load(written, key)


def resign(path: Path, key: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest as its own signer would, digests and id included."""
    manifest = parse_manifest((path / MANIFEST).read_bytes())
    change(manifest)
    for name in manifest["files"]:
        data = (path / name).read_bytes()
        manifest["files"][name] = {"sha256": digest_of(data), "bytes": len(data)}
    data = json_bytes({**manifest, "bundle_id": id_of(manifest)})
    (path / MANIFEST).write_bytes(data)
    (path / "manifest.sig").write_bytes(sign(key, data))


@pytest.mark.parametrize("name", LAYER_NAMES)
def test_a_signed_but_unlisted_file_of_a_layer_is_refused(
    name: str, written: Path, key: Path
) -> None:
    resign(written, key, lambda manifest: manifest["files"].pop(name))
    with pytest.raises(BundleError, match=r"format: .* lists other files"):
        load(written, key)


def test_format_1_has_no_layers(older: Content, written: Path, key: Path, tmp_path: Path) -> None:
    write(tmp_path / "old", older, key)
    resign(tmp_path / "old", key, lambda manifest: manifest.update(format=1))
    assert load(tmp_path / "old", key).manifest["format"] == 1
    resign(written, key, lambda manifest: manifest.update(format=1))
    with pytest.raises(BundleError, match="lists other files"):
        load(written, key)


def other_first(array: Any) -> Any:
    array.flat[0] = np.nextafter(array.flat[0], np.inf)
    return array


SIGNED: list[tuple[str, Callable[[Any], Any], str]] = [
    ("check_whole_logits.npy", other_first, "equality: 1 of .* differ from the stored"),
    ("check_logits.npy", other_first, "equality: 1 of .* differ from CatBoost's"),
    ("expert_terms.npy", lambda a: a * 1.5, "equality: .* differ from the stored"),
    ("expert_gains.npy", lambda a: -a - 1.0, "model: the expert: gains"),
    ("expert_boost_max.npy", lambda a: np.array([a, a]), "boost_max must be one float64"),
    ("expert_features.npy", lambda a: a + 1_000, "model: the expert: features must ascend"),
    ("residual_split_features.npy", lambda a: a + 1_000, "model: a split on a feature outside"),
    ("residual_leaf_values.npy", lambda a: a * 1.01, "equality: .* differ from the stored"),
    ("residual_scale_and_bias.npy", lambda a: a[:1], "model: residual_scale_and_bias"),
]


@pytest.mark.parametrize(("name", "change", "reason"), SIGNED)
def test_a_signed_but_unfit_layer_is_refused(
    name: str, change: Callable[[Any], Any], reason: str, written: Path, key: Path
) -> None:
    np.save(written / name, change(np.load(written / name)))
    resign(written, key, lambda _: None)
    with pytest.raises(BundleError, match=reason):
        load(written, key)


def test_renewing_again_and_again_keeps_the_base(older: Content) -> None:
    once = make_renewed(older)
    many = once
    for _ in range(20):
        many = make_renewed(many)
    assert many.facts["fitted"] == pytest.approx(once.facts["fitted"])
    assert len(many.check_vectors) == len(once.check_vectors)
    assert many.thresholds.review == pytest.approx(once.thresholds.review)
    plain = renew(many, None, None, unlabelled(make_recent().features), BUDGET, {"x": 1})
    logits = np.linspace(-6.0, 6.0, 200)
    np.testing.assert_allclose(
        plain.calibration.probabilities(logits), older.calibration.probabilities(logits), atol=1e-6
    )
    assert plain.facts["x"] == 1


def test_what_the_layers_lift_is_checked_at_every_load(older: Content, renewed: Content) -> None:
    added = renewed.check_vectors[len(older.check_vectors) :]
    lift = renewed.model().logits(added) - renewed.model().base_logits(added)
    assert len(added) == 64
    assert lift.min() > 0.0
    assert Model(renewed.trees, None, renewed.expert).logits(added).tobytes() != (
        renewed.model().base_logits(added).tobytes()
    )


@given(
    logits=st.lists(st.floats(-8.0, 8.0), min_size=1, max_size=400),
    alert_share=st.floats(0.0, 0.2),
    ties=st.booleans(),
)
@settings(max_examples=200)
def test_alerts_stay_within_the_budget(logits: list[float], alert_share: float, ties: bool) -> None:
    probabilities = 1.0 / (1.0 + np.exp(-np.round(logits, 0 if ties else 6)))
    budget = Budget(alert_share, alert_share / 2)
    found = thresholds_within(probabilities, 0.3, budget)
    # Rows count by shares whose sum is rounded, so a billionth of a row is none.
    assert (probabilities >= found.review).mean() <= alert_share + 1e-9
    assert (probabilities >= found.decline).mean() <= alert_share / 2 + 1e-9
    assert found.decline >= 0.3
    # And no more is left unused than one step of probability.
    lower = probabilities[probabilities < found.review]
    if len(lower) and found.review < NEVER:
        assert (probabilities >= lower.max()).mean() > alert_share - 1e-12


def test_calibration_follows_labels_as_far_as_there_are_some(older: Content) -> None:
    random = np.random.default_rng(SEED)
    logits = random.normal(-3.0, 1.5, 50_000)
    true = older.calibration.probabilities(logits - 1.0)
    is_fraud = random.random(len(logits)) < true
    ones = np.ones(len(logits))
    assert fit_shift(older.calibration, logits, is_fraud, ones) == pytest.approx(1.0, abs=0.15)
    few = np.arange(5)
    assert abs(fit_shift(older.calibration, logits[few], is_fraud[few], ones[few])) < 1.0
    none = np.empty(0)
    assert fit_shift(older.calibration, none, none.astype(bool), none) == 0.0
    no_fraud = fit_shift(older.calibration, logits, np.zeros(len(logits), bool), ones)
    assert no_fraud == 0.0  # no fraud in the labels is no news of how much there is
    assert -SHIFT_MAX <= no_fraud <= SHIFT_MAX


def test_a_moved_calibration_still_ranks_what_is_lifted(older: Content) -> None:
    moved = move_calibration(older.calibration, 0.4, 40.0)
    logits = np.linspace(-3.0, 40.0, 500)
    assert (np.diff(moved.probabilities(logits)) > 0.0).sum() > 480
    back = move_calibration(moved, -0.4)
    np.testing.assert_allclose(back.knots[0, :-1], older.calibration.knots[0, :-1])
    tight = Calibration(np.array([[0.0, np.nextafter(0.0, 1.0), 1.0], [0.1, 0.2, 0.9]]))
    assert move_calibration(tight, 1_000.0).knots.shape == (2, 2)


def test_without_traffic_there_are_no_thresholds(older: Content) -> None:
    with pytest.raises(ValueError, match="no recent traffic"):
        renew(older, None, None, unlabelled(np.empty((0, WIDTH), np.float32)), BUDGET, {})


def test_payments_that_are_likely_fraud_take_less_of_the_budget() -> None:
    probabilities = np.repeat([0.9, 0.5, 0.1], [10, 10, 980])
    budget = Budget(0.012, 0.0)
    assert thresholds_within(probabilities, 1.0, budget).review == 0.9
    hidden = np.repeat([0.1, 1.0, 1.0], [10, 10, 980])
    assert thresholds_within(probabilities, 1.0, budget, counts=hidden).review == 0.5


def boosting() -> tuple[Expert, NDArray[np.float32], NDArray[np.bool_]]:
    """Return an expert, rows, and which of them it boosts."""
    expert = random_expert(np.random.default_rng(SEED), WIDTH, 5)
    rows = make_features(4_000, WIDTH, SEED)
    boosted = evaluate_expert(expert, rows)[1] > 0.0
    assert 0.0 < boosted.mean() < 1.0
    return expert, rows, boosted


def test_what_the_expert_finds_among_the_newest_counts_as_it_was_judged() -> None:
    expert, rows, boosted = boosting()
    lifted, no = rows[boosted], np.zeros(int(boosted.sum()), np.bool_)
    recent = replace(make_recent(), newest=rows, asked=lifted, asked_is_alerted=no)
    surely_good = np.zeros(len(recent.features)), np.zeros(len(rows))
    for is_fraud, least in ((no, 1.0), (~no, GOOD_MIN)):
        asked = replace(recent, asked_is_fraud=is_fraud)
        counts, newest = good_shares(expert, asked, *surely_good, PLENTY)
        np.testing.assert_array_equal(newest, np.where(boosted, least, 1.0))
        assert (counts == 1.0).all()  # those were judged good
    _, newest = good_shares(None, replace(recent, asked_is_fraud=no), *surely_good, PLENTY)
    assert (newest == 1.0).all()


@pytest.mark.parametrize("judged", [0, 40])
def test_what_an_expert_boosts_takes_half_of_the_budget_until_it_is_judged(judged: int) -> None:
    expert, rows, boosted = boosting()
    budget = 0.5 * float(boosted.mean())
    no = np.zeros(len(rows), np.bool_)
    asked = rows[boosted][:judged]
    recent = replace(
        make_recent(), features=rows, is_good=no, is_alerted=no, asked=asked,
        asked_is_fraud=no[:judged], asked_is_alerted=no[:judged],
    )  # fmt: skip
    counts, _ = good_shares(expert, recent, np.zeros(len(rows)), np.zeros(0), budget)
    taken = counts[boosted].sum() / len(rows)
    if judged:  # all of them are good
        assert taken > 1.5 * budget
    else:
        np.testing.assert_allclose(taken, UNJUDGED_MAX * budget)
    wide, _ = good_shares(expert, recent, np.zeros(len(rows)), np.zeros(0), PLENTY)
    assert (wide == 1.0).all(), "what is boosted is little beside the budget"


def test_what_nobody_judged_counts_by_what_the_bundle_takes_it_for() -> None:
    recent = make_recent()
    judged = np.arange(len(recent.features)) % 2 == 0
    recent = replace(recent, is_good=judged, newest=recent.features[:3])
    found = np.full(len(recent.features), 0.9)
    counts, newest = good_shares(None, recent, found, np.array([0.0, 0.3, 0.9]), PLENTY)
    np.testing.assert_array_equal(counts, np.where(judged, 1.0, GOOD_MIN))
    np.testing.assert_allclose(newest, [1.0, 0.7, GOOD_MIN])


def test_the_newest_decisions_are_within_a_multiple_of_the_budget() -> None:
    probabilities = np.repeat([0.9, 0.1], [5, 995])
    newest = np.repeat([0.95, 0.9, 0.1], [20, 200, 780])
    budget = Budget(0.01, 0.0, surge=3.0)
    assert thresholds_within(probabilities, 1.0, budget).review == 0.9
    found = thresholds_within(probabilities, 1.0, budget, newest).review
    assert found == 0.95
    assert (newest >= found).mean() <= 0.03
    likely_fraud = np.where(newest > 0.5, 0.1, 1.0)
    found = thresholds_within(probabilities, 1.0, budget, newest, None, likely_fraud).review
    assert found == 0.9
