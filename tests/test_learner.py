"""What is learnt when: from frauds that the base misses, whoever found them since."""

from __future__ import annotations

import numpy as np
import pytest
from fraud.v1 import decision_pb2
from numpy.typing import NDArray

from tests.trainer_world import FAST, START_MS, make_features, make_vectors
from trainer.bundle import Content
from trainer.decision_ring import APPROVED, DECISION
from trainer.expert import evaluate_expert
from trainer.labelled import ANALYST, FRAUD, LABEL
from trainer.learner import Learner, LearnerSettings
from trainer.model import Model
from trainer.reading import Read
from trainer.residual import ResidualSettings
from trainer.thresholds import Budget
from trainer.train import train

SEED = 61
WIDTH = 8
REVIEW = int(decision_pb2.OUTCOME_REVIEW)
TRAFFIC = 3_000
FRAUDS = 15
SECOND_MS = 1_000
SETTINGS = LearnerSettings(
    residual_every_ms=10 * SECOND_MS, budget=Budget(0.02, 0.01), judged_within_ms=SECOND_MS,
    residual=ResidualSettings(threads=2),
)  # fmt: skip


@pytest.fixture(scope="module")
def champion() -> Content:
    return train(make_vectors(width=WIDTH), FAST, lambda _done, _total: None)


def attack(count: int, base: Model) -> NDArray[np.float32]:
    """Return payments of an unusual kind by what the base does not ask, which it finds harmless."""
    rows = make_features(40 * count, WIDTH, SEED + 1)
    rows[:, 5:] = 4.0 + 0.1 * np.random.default_rng(SEED).normal(size=(len(rows), 3))
    logits = base.logits(rows)
    return rows[np.argsort(logits, kind="stable")[:count]]


def told(champion: Content, outcome: int) -> tuple[Learner, NDArray[np.float32]]:
    """Return a learner that knows traffic, and frauds that were decided as ``outcome``."""
    print(f"seed {SEED}")
    base = Model(champion.trees)
    later = attack(2 * FRAUDS, base)
    frauds, usual = later[:FRAUDS], make_features(TRAFFIC, WIDTH, SEED)
    decisions = np.zeros(TRAFFIC + FRAUDS, DECISION)
    decisions["transaction"] = 1 + np.arange(len(decisions))
    decisions["customer"] = 1 + np.arange(len(decisions)) % 700
    decisions["event_time_ms"] = START_MS + 100 * np.arange(len(decisions))
    decisions["outcome"] = APPROVED
    decisions["outcome"][TRAFFIC:] = outcome
    labels = np.zeros(FRAUDS, LABEL)
    labels["transaction"] = decisions["transaction"][TRAFFIC:]
    labels["label_time_ms"] = decisions["event_time_ms"][-1] + SECOND_MS
    labels["reporter"], labels["source"], labels["verdict"] = 9, ANALYST, FRAUD
    learner = Learner(champion, usual[:0], SETTINGS)
    now_ms = int(labels["label_time_ms"][0])
    refused = learner.take(Read(decisions, np.concatenate([usual, frauds]), labels), now_ms)
    assert not refused
    return learner, later[FRAUDS:]


def lifts(content: Content, rows: NDArray[np.float32]) -> float:
    assert content.expert is not None
    return float((evaluate_expert(content.expert, rows)[1] > 0.0).mean())


def test_an_approved_fraud_gives_an_expert_at_once(champion: Content) -> None:
    learner, later = told(champion, APPROVED)
    content = learner.propose(learner.traffic(), START_MS)
    assert content is not None
    assert content.facts["learnt"]["layers"] == ["expert"]
    assert lifts(content, later) > 0.9
    assert learner.propose(learner.traffic(), START_MS) is None, "nothing is new"


def test_a_fraud_that_was_found_is_learnt_from_with_the_next_residual(champion: Content) -> None:
    learner, later = told(champion, REVIEW)
    assert learner.propose(learner.traffic(), START_MS) is None
    content = learner.propose(learner.traffic(), START_MS + SETTINGS.residual_every_ms)
    assert content is not None
    assert content.facts["learnt"]["layers"] == ["expert", "residual"]
    assert lifts(content, later) > 0.9


def test_an_expert_does_not_learn_what_the_base_finds(champion: Content) -> None:
    """Frauds that the base suspects most of all traffic."""
    learner, _ = told(champion, REVIEW)
    base = Model(champion.trees)
    rows = make_features(4_000, WIDTH, SEED + 2)
    found = rows[np.argsort(-base.logits(rows), kind="stable")[:FRAUDS]]
    learner.lessons.forget(reporter=9)
    decisions, labels = np.zeros(FRAUDS, DECISION), np.zeros(FRAUDS, LABEL)
    decisions["transaction"] = labels["transaction"] = 100_000 + np.arange(FRAUDS)
    decisions["outcome"] = APPROVED
    decisions["event_time_ms"] = labels["label_time_ms"] = START_MS + 400_000
    labels["reporter"], labels["source"], labels["verdict"] = 8, ANALYST, FRAUD
    learner.take(Read(decisions, found, labels), START_MS + 400_000)
    content = learner.propose(learner.traffic(), START_MS)
    assert content is not None
    assert content.expert is None
