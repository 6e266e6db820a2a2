"""The live trainer: labels in, better bundles out, on a real log, judged before they are served."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from fraud.v1 import decision_pb2, label_pb2, model_event_pb2, transaction_pb2

from featurizer.eventlog import Topic
from featurizer.features import FEATURES, SCHEMA_VERSION
from fraudsvc.models import BundleFile
from fraudsvc.models_command import ModelsOptions, run_models
from tests.conftest import Asked, Host, Payments, Trained, call_now
from trainer.bundle import BundleError
from trainer.gates import GateSettings
from trainer.learner import LearnerSettings
from trainer.live import LivePlaces, LiveSettings, LiveTrainer
from trainer.shelf import Shelf
from trainer.thresholds import Budget

APPROVE = decision_pb2.OUTCOME_APPROVE
TRAFFIC, FRAUDS, LATER = 600, 12, 12
NO_OLD_FRAUDS = np.zeros((0, len(FEATURES)), np.float32)


def attack(payments: Payments, number: int) -> transaction_pb2.Transaction:
    """Return a payment of a kind that traffic has none of: of customers whom nobody knows."""
    return payments.one(
        customer_id=f"mule-{number}", amount_minor=2_600 + number, currency_code="EUR",
        channel=1, cvv_result=1,
    )  # fmt: skip


class Loop:
    """A host, its trainer, and what a scorer sees of the served bundle."""

    def __init__(self, host: Host, trained: Trained, folder: Path, **gates: float) -> None:
        self.host = host
        link = folder / "bundle"
        shutil.copytree(trained.bundle_path, link)
        self.shelf = Shelf(folder / "models", link)
        places = LivePlaces(self.shelf, trained.key_path, trained.public_key, SCHEMA_VERSION)
        settings = LiveSettings(
            learner=LearnerSettings(budget=Budget(0.05, 0.0)),
            gates=GateSettings(**{"cost_us_max": 1e6, "alert_share_max": 0.06, **gates}),
        )
        self.now_ms = host.now_ms
        self.trainer = LiveTrainer(host.log, places, NO_OLD_FRAUDS, settings, lambda: self.now_ms)
        self.served = BundleFile(link, trained.public_key, _fail)
        host.bundle = self.served.current

    def run(self) -> None:
        """Let the trainer do all that it can, and the scorer take what it serves."""
        while self.trainer.step():
            pass
        self.host.bundle = self.served.poll()

    def events(self) -> list[model_event_pb2.ModelEvent]:
        batch = self.host.log.read(self.host.log.ends()[0], 1 << 30)
        of_models = np.flatnonzero(batch.topics == Topic.MODELS).tolist()
        return [model_event_pb2.ModelEvent.FromString(batch.value(i)) for i in of_models]


def _fail(error: BundleError) -> None:
    raise error


@pytest.fixture
def payments() -> Payments:
    return Payments()


@pytest.fixture
def scorer(host: Host) -> Asked:
    return host.scorer()


@pytest.fixture
def loop(host: Host, trained: Trained, tmp_path: Path) -> Loop:
    return Loop(host, trained, tmp_path)


def report(scorer: Asked, payments: Payments, ids: list[str], verdict: int) -> None:
    labels = []
    for each in ids:
        label = payments.label(each)
        label.verdict, label.source = verdict, label_pb2.LABEL_SOURCE_ANALYST  # type: ignore[assignment]
        label.reporter = "analyst-1"
        labels.append(label)
    scorer.report_labels(labels)


def scored(scorer: Asked, many: list[transaction_pb2.Transaction]) -> list[decision_pb2.Assessment]:
    return [scorer.score(each, call_now()) for each in many]


def test_an_attack_is_caught_after_its_first_labels(
    loop: Loop, scorer: Asked, payments: Payments
) -> None:
    first = loop.shelf.served()
    scored(scorer, [payments.one() for _ in range(TRAFFIC)])
    attacks = [attack(payments, number) for number in range(FRAUDS)]
    missed = [
        each.transaction_id
        for each, answer in zip(attacks, scored(scorer, attacks), strict=True)
        if answer.outcome == APPROVE
    ]
    assert missed, "the base catches all of it: no attack"
    loop.run()
    assert loop.shelf.served() == first, "nothing is learnt without labels"

    report(scorer, payments, missed, label_pb2.VERDICT_FRAUD)
    loop.run()

    [event] = loop.events()
    assert event.change == model_event_pb2.MODEL_CHANGE_PROMOTED
    assert (event.previous_version, event.model_version) == (first, loop.shelf.served())
    assert all(gate.passed for gate in event.gates)
    later = scored(scorer, [attack(payments, FRAUDS + number) for number in range(LATER)])
    assert {each.model_version for each in later} == {loop.shelf.served()}
    assert sum(each.outcome != APPROVE for each in later) >= 0.8 * LATER
    good = scored(scorer, [payments.one() for _ in range(200)])
    assert sum(each.outcome != APPROVE for each in good) <= 0.15 * len(good)


def test_a_bundle_that_fails_a_gate_is_not_served(
    host: Host, trained: Trained, tmp_path: Path, scorer: Asked, payments: Payments
) -> None:
    loop = Loop(host, trained, tmp_path, alert_share_max=-1.0)
    first = loop.shelf.served()
    scored(scorer, [payments.one() for _ in range(TRAFFIC)])
    attacks = [attack(payments, number) for number in range(FRAUDS)]
    scored(scorer, attacks)
    report(scorer, payments, [each.transaction_id for each in attacks], label_pb2.VERDICT_FRAUD)
    loop.run()
    [event] = loop.events()
    assert event.change == model_event_pb2.MODEL_CHANGE_REFUSED
    assert event.gates[-1].name == "share of recent traffic alerted"
    assert loop.shelf.served() == first


def test_nothing_replaces_a_pinned_bundle(loop: Loop, scorer: Asked, payments: Payments) -> None:
    first = loop.shelf.served()
    loop.shelf.pin(pinned=True)
    attacks = [attack(payments, number) for number in range(FRAUDS)]
    scored(scorer, [*(payments.one() for _ in range(TRAFFIC)), *attacks])
    ids = [each.transaction_id for each in attacks]
    report(scorer, payments, ids, label_pb2.VERDICT_FRAUD)
    loop.run()
    assert (loop.shelf.served(), loop.events()) == (first, [])
    loop.shelf.pin(pinned=False)
    loop.run()
    assert loop.shelf.served() != first
    loop.shelf.serve(str(first))
    loop.run()
    assert loop.shelf.served() == first, "a rollback stays until something new is learnt"


def test_a_bundle_put_in_the_place_of_the_link_is_gone_on_from(
    loop: Loop, scorer: Asked, payments: Payments, trained: Trained
) -> None:
    first = loop.shelf.served()
    loop.shelf.link.unlink()
    shutil.copytree(trained.bundle_path, loop.shelf.link)  # as `train --replace` would
    scored(scorer, [payments.one()])
    loop.run()
    assert loop.shelf.link.is_symlink()
    assert loop.shelf.served() == first


def test_models_are_served_and_taken_back_by_hand(
    loop: Loop,
    scorer: Asked,
    payments: Payments,
    trained: Trained,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = str(loop.shelf.served())
    attacks = [attack(payments, number) for number in range(FRAUDS)]
    scored(scorer, [*(payments.one() for _ in range(TRAFFIC)), *attacks])
    report(scorer, payments, [each.transaction_id for each in attacks], label_pb2.VERDICT_FRAUD)
    loop.run()
    learnt = str(loop.shelf.served())

    def models(action: str, *names: str, reason: str = "") -> None:
        shelf = loop.shelf
        options = ModelsOptions(shelf.link, shelf.folder, trained.public_key, "lead-1", reason)
        run_models(action, names, options, loop.host.log)

    models("list")
    models("diff", first, learnt)
    said = capsys.readouterr().out
    assert first in said
    assert "expert" in said
    with pytest.raises(ValueError, match="reason"):
        models("rollback")
    assert loop.shelf.served() == learnt
    models("rollback", reason="it alerts on a good shop")
    assert loop.shelf.served() == first
    models("pin", reason="until we know why")
    report(scorer, payments, [payments.made[0].transaction_id], label_pb2.VERDICT_FRAUD)
    loop.run()
    assert loop.shelf.served() == first
    event = loop.events()[-2]
    assert (event.change, event.author) == (model_event_pb2.MODEL_CHANGE_ROLLED_BACK, "lead-1")
    assert (event.previous_version, event.model_version) == (learnt, first)
    with pytest.raises(BundleError):
        models("promote", "m-nowhere", reason="a wrong name")


def test_a_label_of_no_payment_becomes_a_dead_letter(
    loop: Loop, scorer: Asked, payments: Payments
) -> None:
    report(scorer, payments, ["never-seen"], label_pb2.VERDICT_FRAUD)
    loop.run()
    for _ in range(20):  # it waits for its decision, a bounded while
        loop.now_ms += 10_000
        scored(scorer, [payments.one()])
        loop.run()
    batch = loop.host.log.read(loop.host.log.ends()[0], 1 << 30)
    [letter] = [batch.value(i) for i in np.flatnonzero(batch.topics == Topic.DEAD_LETTERS).tolist()]
    assert b"UNKNOWN_TRANSACTION" in letter


def test_a_residual_is_learnt_when_its_time_has_come(
    loop: Loop, scorer: Asked, payments: Payments
) -> None:
    attacks = [attack(payments, number) for number in range(FRAUDS)]
    scored(scorer, [*(payments.one() for _ in range(TRAFFIC)), *attacks])
    report(scorer, payments, [each.transaction_id for each in attacks], label_pb2.VERDICT_FRAUD)
    loop.run()
    assert ["residual" in each.reason for each in loop.events()] == [False]
    loop.now_ms += 200_000
    loop.run()
    assert ["residual" in each.reason for each in loop.events()] == [False, True]
    loop.now_ms += 200_000
    loop.run()
    assert len(loop.events()) == 2, "nothing new was told"
