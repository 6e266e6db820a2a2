"""The pure parts of the live trainer: the watch, the canary's choice, scorecards, challengers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fraudsvc.models import BundleFile
from tests.conftest import Trained
from tests.trainer_world import FAST, make_vectors
from trainer.bundle import BundleError
from trainer.canary import CanarySettings, slice_of
from trainer.labelled import ANALYST, FRAUD, JOINED, LEGITIMATE, Joined
from trainer.linear import Inputs, Linear
from trainer.model import Model
from trainer.reading import SERVED
from trainer.rivals import Rivals, RivalSettings
from trainer.scorecard import scorecard_of
from trainer.shelf import canary_path
from trainer.thresholds import Budget
from trainer.train import train
from trainer.watch import ALERTS, DEGRADED, LABELS, LATE, BundleWatch, ShareTest, WatchSettings

SEED = 20261126
ALPHA = 0.01


def test_a_share_within_its_limit_is_seldom_found_above_it_however_often_one_looks() -> None:
    print(f"seed {SEED}")
    random, wrong = np.random.default_rng(SEED), 0
    for _ in range(300):
        test = ShareTest(0.03)
        found = False
        for ones in random.binomial(10, 0.03, 200).tolist():
            test.see(ones, 10)
            found |= test.exceeds(ALPHA)
        wrong += found
    assert wrong <= 300 * ALPHA + 4 * (300 * ALPHA) ** 0.5


def test_a_share_far_above_its_limit_is_found_within_a_few_decisions() -> None:
    test = ShareTest(0.03)
    while not test.exceeds(0.001):
        test.see(1, 2)
    assert test.count <= 12
    assert not ShareTest(1.0).exceeds(0.001)


def served(count: int, **values: object) -> NDArray[Any]:
    rows = np.zeros(count, SERVED)
    rows["model"], rows["rung"] = b"m-1", 1
    for name, value in values.items():
        rows[name] = value
    return rows


@pytest.mark.parametrize(
    ("values", "failed"),
    [
        ({}, []),
        ({"score": 0.9}, [ALERTS]),
        ({"used_ms": 80.0}, [LATE]),
        ({"model": b"", "rung": 3, "score": np.nan}, [DEGRADED]),
    ],
)
def test_each_figure_speaks_against_a_bundle(values: dict[str, object], failed: list[str]) -> None:
    watch = BundleWatch(WatchSettings(), 0)
    watch.see(served(60, **values), 0.5)
    assert watch.failed(0) == failed


def test_labels_speak_against_a_bundle_even_when_it_is_proven() -> None:
    watch = BundleWatch(WatchSettings(), 0)
    watch.see(served(200), 0.5)
    assert watch.is_proven(60_000)
    yes, no = np.ones(20, np.bool_), np.zeros(20, np.bool_)
    watch.see(served(50, score=0.9), 0.5)
    assert watch.failed(60_000) == []
    watch.see_labels(no, yes, yes)
    assert watch.failed(60_000) == [LABELS]


def test_a_canary_has_its_share_of_customers_and_another_bundle_others() -> None:
    customers = np.random.default_rng(SEED).integers(-(2**63), 2**63, 20_000)
    one, two = slice_of("m-1", 0.1), slice_of("m-2", 0.1)
    held = one.holds_each(customers)
    assert held.tolist() == [one.holds(each) for each in customers.tolist()]
    assert 0.09 < held.mean() < 0.11
    assert (held & two.holds_each(customers)).mean() < 0.1
    assert slice_of("m-1", 1.0).holds_each(customers).all()
    with pytest.raises(ValueError, match="share"):
        slice_of("m-1", 0.0)


def test_a_canary_ends_after_enough_decisions_and_time_or_after_long() -> None:
    settings = CanarySettings(decisions_min=10, time_min_ms=100, time_max_ms=1_000)
    assert not settings.is_over(10, 99)
    assert not settings.is_over(9, 100)
    assert settings.is_over(10, 100)
    assert settings.is_over(0, 1_000)


def test_a_scorer_refuses_a_canary_that_is_not_what_it_says(
    tmp_path: Path, trained: Trained
) -> None:
    link, errors = tmp_path / "bundle", list[BundleError]()
    link.symlink_to(trained.bundle_path)
    file = BundleFile(link, trained.public_key, errors.append)
    assert (file.canary, errors) == (None, [])
    place = canary_path(link)
    version = trained.bundle.model_version
    for text in (
        "{",
        '{"bundle": "m-other", "path": "' + str(trained.bundle_path) + '", "share": 0.1}',
        '{"bundle": "m-1", "path": "/nowhere", "share": 0.1}',
        '{"bundle": "m-1", "path": "/nowhere", "share": 2}',
    ):
        place.write_text(text)
        current = file.poll()
        assert current is not None
        assert file.canary is None
    assert len(errors) == 4
    place.write_text(f'{{"bundle": "{version}", "path": "{trained.bundle_path}", "share": 0.25}}')
    file.poll()
    assert file.canary is not None
    assert file.canary.bundle.model_version == version
    place.unlink()
    file.poll()
    assert file.canary is None


def test_a_scorecard_adds_what_the_linear_model_does() -> None:
    random = np.random.default_rng(SEED)
    rows = random.normal(size=(3_000, 9)).astype(np.float32)
    rows[random.random(rows.shape) < 0.1] = np.nan
    rows[:, 3], rows[:, 4], rows[:, 5] = 1.0, np.nan, random.integers(0, 3, 3_000)
    rows[:, 6] = np.exp(2 * rows[:, 6])
    logits = random.normal(size=3_000)
    inputs = Inputs.fit(rows, logits, np.array([1, 3, 4, 5, 6], np.int64))
    weights = np.r_[inputs.spread[0], random.normal(size=5), inputs.mean[0] + 0.3]
    linear = Linear(inputs, weights)
    wanted = np.array(
        [linear.logit(row, logit) - logit for row, logit in zip(rows, logits, strict=True)]
    )
    found = Model(scorecard_of(linear, rows)).logits(rows)
    assert np.corrcoef(wanted, found)[0, 1] > 0.95
    assert np.abs(wanted - found).mean() < 0.2 * wanted.std()
    unknown = np.full((1, 9), np.nan, np.float32)
    assert Model(scorecard_of(linear, rows)).logits(unknown)[0] == pytest.approx(0.3)
    with pytest.raises(ValueError, match="base"):
        scorecard_of(Linear(inputs, weights * 2.0), rows)


def test_a_challenger_that_is_right_more_often_wins() -> None:
    noisy = make_vectors()
    signal = np.nan_to_num(noisy.features[:, 0]) + 0.8 * noisy.features[:, 2]
    vectors = replace(noisy, is_fraud=signal > np.quantile(signal, 0.96))
    base = train(vectors, FAST, lambda *_: None)
    traffic = vectors.features[:1_000]
    rivals = Rivals(base, traffic, RivalSettings(features=4, traffic_min=500))
    budget = Budget(0.01, 0.0)
    random, labels = np.random.default_rng(SEED), 0
    while rivals.winner() is None and labels < 3_000:
        some = random.integers(1_000, 6_000, 50)
        rows = np.zeros(50, JOINED)
        told = vectors.is_fraud[some]
        rows["source"], rows["verdict"] = ANALYST, np.where(told, FRAUD, LEGITIMATE)
        rows["transaction"] = some
        rivals.look(traffic, budget)
        rivals.see(Joined(rows, vectors.features[some]), np.zeros(50, np.bool_))
        labels += 50
    winner = rivals.winner()
    assert winner is not None, "against a champion that sleeps"
    assert rivals.gate().passed
    assert rivals.evidence()["forest"].wins > 0
    trees = scorecard_of(winner, traffic)
    above = Model(base.trees, trees).logits(vectors.features)
    assert above[vectors.is_fraud].mean() > above[~vectors.is_fraud].mean()
    rivals.start_trials()
    assert rivals.winner() is None
