"""The test by betting against simulations in which the truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.eprocess import EProcess, Trial, discordant

ALPHA = 0.05
SEED = 5


def ever_decided(share: float, runs: int, pairs: int, seed: int) -> tuple[float, float]:
    """Return the share of runs that decide at any of the looks, and the median pairs they took."""
    random = np.random.default_rng(seed)
    taken = []
    for wins in random.random((runs, pairs)) < share:
        process = EProcess(ALPHA)
        for number, win in enumerate(wins.tolist(), 1):
            if process.update(win):
                taken.append(number)
                break
    return len(taken) / runs, float(np.median(taken)) if taken else math.inf


def z_test_ever_decides(runs: int, pairs: int, seed: int) -> float:
    """Return how often a one-sided z-test at 5 % decides when looked at after each pair."""
    random = np.random.default_rng(seed)
    wins = np.cumsum(random.random((runs, pairs)) < 0.5, axis=1)
    n = np.arange(1, pairs + 1)
    z = (wins - n / 2) / np.sqrt(n / 4)
    return float((z[:, 9:] > 1.6449).any(axis=1).mean())


def test_peeking_promotes_no_more_wrongly_than_alpha() -> None:
    rate, _ = ever_decided(0.5, runs=1_000, pairs=300, seed=SEED)
    peeked = z_test_ever_decides(runs=1_000, pairs=300, seed=SEED)
    print(f"seed {SEED}: e-process {rate:.3f}, z-test peeked at {peeked:.3f}")
    # Three standard errors of 1,000 runs.
    assert rate <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / 1_000)
    assert peeked > 2 * ALPHA


def test_a_better_candidate_is_found_soon() -> None:
    rate, median = ever_decided(0.8, runs=400, pairs=100, seed=SEED)
    print(f"seed {SEED}: power {rate:.3f} in 100 pairs, median {median} pairs")
    assert rate > 0.95
    assert median <= 30


def test_weights_keep_the_rate_where_bad_news_is_seldom_reported() -> None:
    """Of true losses one in ten is reported, of wins all: weights undo that the labels lie."""
    random = np.random.default_rng(SEED)
    wrong = {True: 0, False: 0}
    runs = 300
    for _ in range(runs):
        wins = random.random(600) < 0.5
        reported = wins | (random.random(600) < 0.1)
        for weighted in wrong:
            process = EProcess(ALPHA)
            for win in wins[reported].tolist():
                process.update(win, 0.1 if weighted and win else 1.0)
            wrong[weighted] += process.decided
    print(f"seed {SEED}: wrong of {runs} with weights {wrong[True]}, without {wrong[False]}")
    assert wrong[True] <= runs * ALPHA + 3 * math.sqrt(runs * ALPHA)
    assert wrong[False] > runs / 2


@given(st.lists(st.booleans(), max_size=40))
@settings(max_examples=100)
def test_wealth_is_the_mean_of_the_products(wins: list[bool]) -> None:
    process = EProcess(ALPHA)
    for win in wins:
        process.update(win)
    shares = (np.arange(20) + 0.5) / 20
    won, lost = sum(wins), len(wins) - sum(wins)
    naive = float(((1 + shares) ** won * (1 - shares) ** lost).mean())
    assert process.e_value == pytest.approx(naive, rel=1e-9)
    assert (process.wins, process.losses) == (won, lost)


@given(st.lists(st.tuples(st.booleans(), st.floats(0.01, 1.0)), max_size=30))
@settings(max_examples=100)
def test_no_bet_has_a_positive_mean_under_the_null(pairs: list[tuple[bool, float]]) -> None:
    """The property that all the rest rests on: a fair next pair leaves the wealth as it is."""
    before = EProcess(ALPHA)
    for win, weight in pairs:
        before.update(win, weight)
    after = []
    for win in (True, False):
        process = EProcess.from_array(ALPHA, before.to_array())
        process.update(win)
        after.append(process.e_value)
    assert sum(after) / 2 == pytest.approx(before.e_value, rel=1e-9)


def test_state_goes_through_an_array_and_comes_back() -> None:
    trial = Trial.start(ALPHA, 0.01)
    random = np.random.default_rng(SEED)
    for champion, candidate, fraud in (random.random((60, 3)) < 0.5).tolist():
        trial.update(champion, candidate, fraud)
    again = Trial.from_array(trial.to_array(), ALPHA, 0.01)
    for one in (trial, again):
        one.update(False, True, True)
    assert again.evidence() == trial.evidence()
    assert again.to_array().tobytes() == trial.to_array().tobytes()
    with pytest.raises(ValueError, match="shape"):
        Trial.from_array(np.zeros((2, 3)), ALPHA)
    with pytest.raises(ValueError, match="float64"):
        EProcess.from_array(ALPHA, np.zeros(3))


def test_the_mirror_takes_back_what_was_promoted_wrongly() -> None:
    trial = Trial.start(ALPHA)
    for _ in range(10):
        trial.update(champion_alerts=False, candidate_alerts=True, is_fraud=False)
        trial.update(champion_alerts=True, candidate_alerts=True, is_fraud=True)
    assert trial.worse.decided
    assert not trial.better.decided
    assert trial.evidence().losses == 10


def test_once_decided_it_stays_decided() -> None:
    process = EProcess(ALPHA)
    for _ in range(10):
        process.update(True)
    assert process.decided
    for _ in range(50):
        process.update(False)
    assert process.decided
    assert process.e_value < 1.0


def test_what_counts_as_a_pair() -> None:
    assert discordant(True, False, is_fraud=False) is True
    assert discordant(True, False, is_fraud=True) is False
    assert discordant(False, True, is_fraud=True) is True
    assert discordant(True, True, is_fraud=True) is None


@pytest.mark.parametrize("alpha", [0.0, 1.0, math.nan])
def test_an_alpha_that_means_nothing_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        EProcess(alpha)


@pytest.mark.parametrize("weight", [0.0, 1.1, math.nan])
def test_a_weight_that_means_nothing_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="weight"):
        EProcess(ALPHA).update(True, weight)
