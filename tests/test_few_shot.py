"""The few-shot expert: it catches planted attacks from few frauds, and never exceeds its cap."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from trainer.expert import CELLS, DISCRIMINANTS, ExpertError, check_expert, evaluate_expert
from trainer.few_shot import ExpertSettings, fit_expert
from trainer.traffic import ROWS_MIN, Traffic, prepare_traffic

SEED = 31
WIDTH = 120
SETTINGS = ExpertSettings()
BLOCK = 8  # so many features in a row say much the same
Matrix = NDArray[np.float32]


def make_traffic(rows: int, random: np.random.Generator) -> Matrix:
    """Return payments with related, unknown, rare and coarse features."""
    shape = (rows, WIDTH // BLOCK, 1)
    related = random.normal(size=shape) + 0.6 * random.normal(size=(*shape[:2], BLOCK))
    features = np.exp(related.reshape(rows, WIDTH)).astype(np.float32)
    features[random.random(features.shape) < 0.1] = np.nan
    features[:, 5] = random.random(rows) < 0.001
    features[:, 6] = np.floor(features[:, 6])
    features[:, 7] = np.nan
    features[:, 15] = 1.0
    return features


def known_features(rows: int, random: np.random.Generator, first: int, up: float) -> Matrix:
    """Return frauds with an unusual combination of usual values in four blocks of features."""
    frauds = make_traffic(rows, random)
    for block in range(first, first + 4):
        place = BLOCK * block
        frauds[:, place : place + 4] = np.exp(up + 0.5 * random.normal(size=(rows, 4)))
    return frauds


def rare_flag(rows: int, random: np.random.Generator) -> Matrix:
    frauds = make_traffic(rows, random)
    frauds[:, 5] = 1.0
    return frauds


def gone_missing(rows: int, random: np.random.Generator) -> Matrix:
    """Return frauds that lack what payments usually have."""
    frauds = make_traffic(rows, random)
    frauds[:, 16:28] = np.nan
    return frauds


@pytest.fixture(scope="module")
def traffic() -> Traffic:
    print(f"seed {SEED}")
    return prepare_traffic(make_traffic(5_000, np.random.default_rng(SEED)))


def boosted(expert: Any, rows: Matrix) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = evaluate_expert(expert, rows)[1] > 0.0
    return found


PLANTED: list[tuple[Any, int, float]] = [
    (lambda k, r: known_features(k, r, 2, 1.5), 10, 0.7),
    (lambda k, r: known_features(k, r, 8, -1.8), 20, 0.7),
    (rare_flag, 5, 0.9),
    (gone_missing, 10, 0.9),
]


@pytest.mark.parametrize(("attack", "frauds", "recall"), PLANTED)
def test_a_planted_attack_is_caught(
    attack: Any, frauds: int, recall: float, traffic: Traffic
) -> None:
    random = np.random.default_rng(SEED + 1)
    expert = fit_expert(attack(frauds, random), traffic, None, SETTINGS)
    assert expert is not None
    check_expert(expert, WIDTH)
    assert boosted(expert, attack(1_000, random)).mean() > recall
    assert boosted(expert, traffic.rows).mean() <= SETTINGS.share_max
    assert boosted(expert, make_traffic(20_000, random)).mean() < 2.0 * SETTINGS.share_max


def test_two_attacks_at_once_have_a_scorecard_each(traffic: Traffic) -> None:
    random = np.random.default_rng(SEED + 2)

    def first(rows: int) -> Matrix:
        return known_features(rows, random, 2, 1.5)

    def second(rows: int) -> Matrix:
        return known_features(rows, random, 8, -1.8)

    frauds = np.concatenate([first(20), second(20)])[random.permutation(40)]
    expert = fit_expert(frauds, traffic, None, SETTINGS)
    assert expert is not None
    assert (expert.gains > 0.0).sum() == 2
    assert boosted(expert, first(1_000)).mean() > 0.6
    assert boosted(expert, second(1_000)).mean() > 0.6
    assert boosted(expert, traffic.rows).mean() <= SETTINGS.share_max


def test_known_good_payments_are_let_be(traffic: Traffic) -> None:
    random = np.random.default_rng(SEED + 3)
    frauds, good = rare_flag(10, random), known_features(50, random, 2, 1.5)
    # The frauds look like the good payments, but for the flag.
    frauds[:, 16:48] = good[:10, 16:48]
    expert = fit_expert(frauds, traffic, good, SETTINGS)
    assert expert is not None
    assert not boosted(expert, good).any()
    more = known_features(1_000, random, 2, 1.5)
    assert boosted(expert, more).mean() < 0.05
    more[:, 5] = 1.0
    assert boosted(expert, more).mean() > 0.9


def test_codes_are_told_apart_where_high_and_low_say_nothing(traffic: Traffic) -> None:
    """A code in the middle: its rank is that of a usual payment."""
    random = np.random.default_rng(SEED + 6)

    def coded(rows: int) -> Matrix:
        drawn = make_traffic(rows, random)
        drawn[:, 30] = random.choice(5, rows, p=[0.455, 0.02, 0.02, 0.05, 0.455])
        drawn[:, 70] = random.choice(5, rows, p=[0.455, 0.02, 0.02, 0.05, 0.455])
        return drawn

    usual, frauds, later = coded(5_000), coded(12), coded(1_000)
    for rows in (frauds, later):
        rows[:, [30, 70]] = 2.0
    expert = fit_expert(frauds, prepare_traffic(usual), None, SETTINGS)
    assert expert is not None
    assert boosted(expert, later).mean() > 0.9
    assert boosted(expert, usual).mean() <= SETTINGS.share_max


def test_what_moves_for_all_traffic_is_not_learnt(traffic: Traffic) -> None:
    """Frauds are newer than most traffic: by an hour's number all that comes is like them."""
    random = np.random.default_rng(SEED + 8)
    usual, frauds, later = (make_traffic(n, random) for n in (5_000, 12, 1_000))
    usual[:, 30] = np.repeat([10.0, 11.0], 2_500)
    frauds[:, 30], later[:, 30] = 12.0, 12.0
    frauds[:, 31] = 50.0
    expert = fit_expert(frauds, prepare_traffic(usual), None, SETTINGS)
    assert expert is not None
    assert 30 not in expert.features
    assert boosted(expert, later).mean() < 0.05


def test_its_own_errors_do_not_end_an_expert(traffic: Traffic) -> None:
    """Payments are judged because they were boosted: those known to be good are no sample."""
    random = np.random.default_rng(SEED + 7)
    frauds = known_features(20, random, 2, 1.5)
    expert = fit_expert(frauds, traffic, None, SETTINGS)
    assert expert is not None
    honest = make_traffic(60_000, random)
    errors = honest[boosted(expert, honest)]
    assert 20 < len(errors) <= 600
    again = fit_expert(frauds, traffic, errors, SETTINGS, good_among=len(honest))
    assert again is not None
    assert boosted(again, known_features(1_000, random, 2, 1.5)).mean() > 0.5
    assert boosted(again, errors).sum() <= SETTINGS.share_max * len(honest)


@given(
    seed=st.integers(0, 2**32 - 1),
    frauds=st.integers(1, 40),
    good=st.integers(0, 400),
    share_max=st.sampled_from([0.0, 0.001, 0.005, 0.05, 1.0]),
    kind=st.sampled_from(["normal", "coarse", "unknown", "one value", "huge"]),
)
@settings(max_examples=80)
def test_the_cap_holds_whatever_was_learnt(
    seed: int, frauds: int, good: int, share_max: float, kind: str
) -> None:
    random = np.random.default_rng(seed)
    width = int(random.integers(1, 40))

    def draw(rows: int) -> Matrix:
        drawn = random.normal(size=(rows, width)).astype(np.float32)
        if kind == "coarse":
            drawn = np.round(drawn)
        if kind == "unknown":
            drawn[random.random(drawn.shape) < 0.9] = np.nan
        if kind == "one value":
            drawn[:] = 3.0
        if kind == "huge":
            drawn = np.where(random.random(drawn.shape) < 0.2, np.inf, drawn * 1e30)
        return drawn.astype(np.float32)

    traffic = prepare_traffic(draw(int(random.integers(ROWS_MIN, 1_500))))
    wanted = draw(frauds) + np.float32(random.choice([0.0, 3.0]))
    known = draw(good)
    expert = fit_expert(wanted, traffic, known, replace(SETTINGS, share_max=share_max))
    if expert is None:
        return
    check_expert(expert, width)
    for rows in (traffic.rows, known):
        boosts = evaluate_expert(expert, rows)[1]
        assert (boosts > 0.0).sum() <= share_max * len(rows)
        assert (boosts <= SETTINGS.boost_max).all()
    assert boosted(expert, wanted).any()  # one that lifts none of its own is not handed out


def test_what_does_not_stand_out_gives_no_expert(traffic: Traffic) -> None:
    usual = make_traffic(300, np.random.default_rng(SEED + 4))
    expert = fit_expert(usual, traffic, None, SETTINGS)
    assert expert is None or boosted(expert, usual).mean() < 0.2
    constant = prepare_traffic(np.ones((500, 4), np.float32))
    assert fit_expert(np.ones((5, 4), np.float32), constant, None, SETTINGS) is None


def test_the_same_rows_give_the_same_expert(traffic: Traffic) -> None:
    frauds = known_features(30, np.random.default_rng(SEED), 2, 1.5)
    first, again = (fit_expert(frauds, traffic, None, SETTINGS) for _ in range(2))
    assert first is not None
    assert again is not None
    assert first.terms.tobytes() == again.terms.tobytes()
    assert first.thresholds.tobytes() == again.thresholds.tobytes()


def test_normal_scores_follow_the_ranks(traffic: Traffic) -> None:
    rows = make_traffic(2_000, np.random.default_rng(SEED + 5))
    scored = np.take_along_axis(traffic.scores, traffic.cells_of(rows), axis=1).T
    for feature in (0, 6, 40):
        column, known = rows[:, feature], ~np.isnan(rows[:, feature])
        order = np.argsort(column[known], kind="stable")
        assert (np.diff(scored[known, feature][order]) >= 0.0).all()
        assert scored[~known, feature].max() < scored[known, feature].min()  # unknown is lowest
    own = np.take_along_axis(traffic.scores, traffic.cells, axis=1)[[0, 40]].T
    np.testing.assert_allclose(own.mean(axis=0), 0.0, atol=0.02)
    np.testing.assert_allclose(own.std(axis=0), 1.0, atol=0.1)
    assert traffic.scores.shape == (WIDTH, CELLS)
    np.testing.assert_allclose(traffic.shares.sum(axis=1), 1.0)


def test_what_does_not_fit_is_refused(traffic: Traffic) -> None:
    with pytest.raises(ExpertError, match="200 rows are needed"):
        prepare_traffic(np.zeros((ROWS_MIN - 1, 4), np.float32))
    with pytest.raises(ExpertError, match="frauds of shape"):
        fit_expert(np.zeros((1, 4), np.float32), traffic, None, SETTINGS)
    with pytest.raises(ExpertError, match="good of shape"):
        fit_expert(traffic.rows[:1], traffic, np.zeros((1, 4), np.float32), SETTINGS)
    with pytest.raises(ExpertError, match="no frauds"):
        fit_expert(traffic.rows[:0], traffic, None, SETTINGS)
    for change in ({"share_max": 1.1}, {"boost_max": 0.0}, {"features_max": DISCRIMINANTS - 1}):
        with pytest.raises(ValueError, match=next(iter(change))):
            ExpertSettings(**change)
