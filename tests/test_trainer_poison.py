"""Poisoned labels through all that stands against them: found, forgotten, and learnt without."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.challengers import (
    Challenger,
    ForestChallenger,
    ForestSettings,
    LogisticChallenger,
)
from trainer.decision_ring import DECISION
from trainer.eprocess import Trial
from trainer.joins import Joins, JoinSettings
from trainer.labelled import ANALYST, CUSTOMER, FRAUD, JOINED, LABEL, LEGITIMATE, Joined, stacked
from trainer.lessons import Lessons
from trainer.linear import Inputs
from trainer.reporters import ReporterWatch

SEED = 23
ROWS = 1_000
N = 6
POISONER = 5
DECLINE = 3
FOREST = ForestSettings(trees=3, rows_max=2_000, grace_rows=20)


class World:
    """Declined payments, of which six in ten are fraud, judged by five analysts."""

    def __init__(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.vectors = random.normal(size=(ROWS, N)).astype(np.float32)
        self.fraud = self.vectors[:, 2] > -0.25
        self.decisions = np.zeros(ROWS, DECISION)
        self.decisions["transaction"] = np.arange(1, ROWS + 1)
        self.decisions["customer"] = 1
        self.decisions["logit"], self.decisions["outcome"] = random.normal(0, 1, ROWS), DECLINE
        self.labels = np.zeros(ROWS, LABEL)
        self.labels["transaction"] = self.decisions["transaction"]
        self.labels["label_time_ms"] = np.arange(ROWS)
        self.labels["reporter"] = 1 + np.arange(ROWS) % 5
        self.labels["source"] = ANALYST
        waved_through = self.labels["reporter"] == POISONER
        self.labels["verdict"] = np.where(self.fraud & ~waved_through, FRAUD, LEGITIMATE)

    def joins(self) -> Joins:
        joins = Joins(N, JoinSettings(decisions_max=2 * ROWS))
        joins.take_decisions(self.decisions, self.vectors, 0)
        return joins

    def challenger(self, kind: str) -> Challenger:
        features = np.arange(N, dtype=np.int64)
        inputs = Inputs.fit(self.vectors, self.decisions["logit"], features)
        return (
            LogisticChallenger(inputs) if kind == "logistic" else ForestChallenger(inputs, FOREST)
        )


@pytest.mark.parametrize("kind", ["logistic", "forest"])
def test_found_and_forgotten_they_are_as_if_never_learnt(kind: str) -> None:
    print(f"seed {SEED}")
    world = World(SEED)
    joins, lessons, watch = world.joins(), Lessons(2 * ROWS, N), ReporterWatch()
    challenger = world.challenger(kind)
    suspects = set()
    for start in range(0, ROWS, 50):
        joined, refused, _ = joins.take_labels(world.labels[start : start + 50], start)
        lessons.add(joined)
        challenger.learn(joined)
        suspects |= {int(alarm.subject) for alarm in watch.see(joined, refused, start)}
    assert suspects == {POISONER}
    poisoned = challenger.predict(world.vectors, world.decisions["logit"])

    lessons.add(joins.forget(reporter=POISONER))
    assert lessons.forget(reporter=POISONER) == ROWS // 5
    challenger.restart()
    challenger.learn(lessons.all())

    honest = world.labels[world.labels["reporter"] != POISONER]
    other = world.challenger(kind)
    other.learn(world.joins().take_labels(honest, 0).joined)
    found = challenger.predict(world.vectors, world.decisions["logit"])
    assert found.tobytes() == other.predict(world.vectors, world.decisions["logit"]).tobytes()
    assert found[world.fraud].mean() > poisoned[world.fraud].mean()


def test_who_turns_is_found_as_soon_as_who_never_was_honest() -> None:
    """Years of honest labels are no credit."""
    print(f"seed {SEED}")
    random = np.random.default_rng(SEED)
    lies_told = []
    for honest in (40, 4_000):
        watch, suspects, rounds = ReporterWatch(), set[int](), 0
        while not suspects:
            rows = np.zeros(5, JOINED)
            rows["source"], rows["outcome"], rows["reporter"] = ANALYST, 1, np.arange(1, 6)
            is_fraud = random.random(5) < 0.02
            is_fraud[POISONER - 1] |= rounds >= honest
            rows["verdict"] = np.where(is_fraud, FRAUD, LEGITIMATE)
            joined = Joined(rows, np.zeros((5, N), np.float32))
            suspects |= {int(alarm.subject) for alarm in watch.see(joined, [], 0)}
            rounds += 1
        assert suspects == {POISONER}
        lies_told.append(rounds - honest)
    print(f"found after {lies_told} lies")
    assert max(lies_told) <= 12


def test_what_a_poisoner_overruled_is_learnt_again() -> None:
    world = World(SEED)
    joins, lessons = world.joins(), Lessons(ROWS, N)
    lessons.add(joins.take_labels(world.labels[:4], 0).joined)
    contrary = world.labels[:4].copy()
    contrary["source"], contrary["reporter"] = CUSTOMER, 66
    contrary["verdict"] = np.where(contrary["verdict"] == FRAUD, LEGITIMATE, FRAUD)
    lessons.add(joins.take_labels(contrary, 0).joined)
    assert lessons.all().is_fraud.tolist() == (~world.fraud[:4]).tolist()
    stands_again = joins.forget(reporter=66)
    lessons.forget(reporter=66)
    lessons.add(stands_again)
    assert lessons.all().is_fraud.tolist() == world.fraud[:4].tolist()


def test_a_promotion_that_was_poisoned_is_taken_back_by_the_mirror() -> None:
    """Honest labels decide the rollback, though poisoned ones decided the promotion."""
    before = Trial.start(0.05)
    for _ in range(20):
        before.update(champion_alerts=True, candidate_alerts=False, is_fraud=False)
    assert before.better.decided
    after = Trial.start(0.05)
    while not after.worse.decided:
        after.update(champion_alerts=True, candidate_alerts=False, is_fraud=True)
    print(f"taken back after {after.worse.wins} honest labels")
    assert after.worse.wins <= 12


def test_no_rows_are_rows_too() -> None:
    empty: Joined = stacked([], [], N)
    assert empty.vectors.shape == (0, N)
    challenger = World(SEED).challenger("forest")
    challenger.learn(empty)
    assert len(challenger.predict(empty.vectors, empty.rows["logit"])) == 0
