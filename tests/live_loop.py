"""Owns a host with its live trainer, in one process, for tests. Must not assert anything."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from fraud.v1 import dead_letter_pb2, decision_pb2, label_pb2, model_event_pb2, transaction_pb2

from featurizer.eventlog import Topic
from featurizer.features import FEATURES, SCHEMA_VERSION
from fraudsvc.models import BundleFile
from tests.conftest import Asked, Host, Payments, Trained, call_now, read_all
from trainer.bundle import BundleError
from trainer.gates import GateSettings
from trainer.learner import LearnerSettings
from trainer.live import LivePlaces, LiveSettings, LiveTrainer
from trainer.shelf import Shelf
from trainer.thresholds import Budget
from trainer.watch import WatchSettings

NO_OLD_FRAUDS = np.zeros((0, len(FEATURES)), np.float32)
APPROVE = decision_pb2.OUTCOME_APPROVE
FRAUD, GOOD = label_pb2.VERDICT_FRAUD, label_pb2.VERDICT_LEGITIMATE
STEP_MS = 10_000
LENIENT = GateSettings(cost_us_max=1e6, alert_share_max=0.1)
SETTINGS = LiveSettings(
    learner=LearnerSettings(budget=Budget(0.05, 0.0)),
    gates=LENIENT,
    # A busy machine must not decide what is taken back.
    watch=WatchSettings(alert_share_max=0.9, budget_ms=60_000.0),
)


def _fail(error: BundleError) -> None:
    raise error


class Loop:
    """A host, its trainer, and what a scorer sees of the served bundle."""

    def __init__(
        self, host: Host, trained: Trained, folder: Path, settings: LiveSettings = SETTINGS
    ) -> None:
        self.host = host
        self.link = folder / "bundle"
        if not self.link.exists():
            shutil.copytree(trained.bundle_path, self.link)
        self.shelf = Shelf(folder / "models", self.link)
        self.places = LivePlaces(self.shelf, trained.key_path, trained.public_key, SCHEMA_VERSION)
        self.settings = settings
        self.now_ms = host.now_ms
        self.start()
        self.served = BundleFile(self.link, trained.public_key, _fail)
        host.bundle = self.served.current

    def start(self) -> None:
        """Start a trainer that knows nothing but log and shelf."""
        self.trainer = LiveTrainer(
            self.host.log, self.places, NO_OLD_FRAUDS, self.settings, lambda: self.now_ms
        )

    def run(self, after_ms: int = 0) -> None:
        """Let time pass and the trainer do all that it can, and the scorer take what it serves."""
        until_ms = self.now_ms + after_ms
        while True:
            while self.trainer.step():
                pass
            if self.now_ms >= until_ms:
                break
            self.now_ms = min(self.now_ms + STEP_MS, until_ms)
        self.host.bundle = self.served.poll()
        self.host.canary = self.served.canary

    def events(self) -> list[model_event_pb2.ModelEvent]:
        """Return all events of models on the log."""
        found = [each for each in read_all(self.host.log) if each.topic == Topic.MODELS]
        return [model_event_pb2.ModelEvent.FromString(each.value) for each in found]

    def told(self) -> list[str]:
        """Return what happened, by name."""
        return [
            model_event_pb2.ModelChange.Name(each.change).removeprefix("MODEL_CHANGE_")
            for each in self.events()
        ]

    def letters(self) -> list[dead_letter_pb2.DeadLetter]:
        """Return all dead letters on the log."""
        found = [each for each in read_all(self.host.log) if each.topic == Topic.DEAD_LETTERS]
        return [dead_letter_pb2.DeadLetter.FromString(each.value) for each in found]


def attack(payments: Payments, number: int) -> transaction_pb2.Transaction:
    """Return a payment of a kind that traffic has none of: of customers whom nobody knows."""
    return payments.one(
        customer_id=f"mule-{number}", amount_minor=2_600 + number, currency_code="EUR",
        channel=1, cvv_result=1,
    )  # fmt: skip


def scored(
    scorer: Asked, many: Sequence[transaction_pb2.Transaction]
) -> list[decision_pb2.Assessment]:
    """Score payments one by one."""
    return [scorer.score(each, call_now()) for each in many]


def report(
    scorer: Asked, payments: Payments, ids: Sequence[str], verdict: int, *reporters: str
) -> None:
    """Report one verdict on each, by analysts in turn."""
    names = reporters or ("analyst-1",)
    labels = []
    for i, each in enumerate(ids):
        label = payments.label(each)
        label.verdict, label.source = verdict, label_pb2.LABEL_SOURCE_ANALYST  # type: ignore[assignment]
        label.reporter = names[i % len(names)]
        labels.append(label)
    scorer.report_labels(labels)


def approved(scorer: Asked, made: Sequence[transaction_pb2.Transaction]) -> list[str]:
    """Score payments; return the ids of those that were approved."""
    pairs = zip(made, scored(scorer, made), strict=True)
    return [each.transaction_id for each, told in pairs if told.outcome == APPROVE]


@pytest.fixture(name="payments")
def payments_fixture() -> Payments:
    """A maker of payments."""
    return Payments()


@pytest.fixture(name="scorer")
def scorer_fixture(host: Host) -> Asked:
    """A scorer of the host."""
    return host.scorer()


@pytest.fixture(name="loop")
def loop_fixture(host: Host, trained: Trained, tmp_path: Path) -> Loop:
    """The host with its trainer."""
    return Loop(host, trained, tmp_path)
