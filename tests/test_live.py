"""The live trainer: labels in, better bundles out, on a real log, judged before they are served."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fraud.v1 import label_pb2, model_event_pb2

from featurizer.eventlog import Topic
from featurizer.hashing import IdHasher
from featurizer.records import Entity
from fraudsvc.dead_letters_local import LocalDeadLetters
from fraudsvc.dead_letters_report import print_letters
from fraudsvc.models_command import ModelsOptions, run_models
from tests.conftest import Asked, Host, Payments, Trained, call_now
from tests.live_loop import (  # noqa: F401 - fixtures among them
    APPROVE,
    LENIENT,
    SETTINGS,
    Loop,
    approved,
    attack,
    loop_fixture,
    payments_fixture,
    report,
    scored,
    scorer_fixture,
)
from trainer.bundle import BundleError

TRAFFIC, FRAUDS, LATER = 600, 12, 12


def test_an_attack_is_caught_after_its_first_labels(
    loop: Loop, scorer: Asked, payments: Payments
) -> None:
    first = loop.shelf.served()
    scored(scorer, [payments.one() for _ in range(TRAFFIC)])
    attacks = [attack(payments, number) for number in range(FRAUDS)]
    missed = approved(scorer, attacks)
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
    settings = replace(SETTINGS, gates=replace(LENIENT, alert_share_max=-1.0))
    loop = Loop(host, trained, tmp_path, settings)
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
    letters = LocalDeadLetters(loop.host.log)
    [found] = letters.all()
    assert label_pb2.Label.FromString(letters.record(found).value).transaction_id == "never-seen"
    again = letters.resend(found, "lead-1")
    print_letters(letters.all())
    assert letters.one(found.number).resent == (again,)
    loop.run(after_ms=90_000)
    assert [each.content.offset for each in letters.all()] == [found.content.offset, again]


def test_a_residual_is_learnt_when_its_time_has_come_and_tried_by_some_customers(
    loop: Loop, scorer: Asked, payments: Payments
) -> None:
    attacks = [attack(payments, number) for number in range(FRAUDS)]
    scored(scorer, [*(payments.one() for _ in range(TRAFFIC)), *attacks])
    report(scorer, payments, [each.transaction_id for each in attacks], label_pb2.VERDICT_FRAUD)
    loop.run()
    assert loop.told() == ["PROMOTED"]
    loop.run(after_ms=200_000)
    assert loop.told() == ["PROMOTED", "CANARY"]
    champion, canary = loop.shelf.served(), loop.events()[-1].model_version
    assert loop.host.canary is not None

    many = [payments.one(customer_id=f"customer-{number}") for number in range(400)]
    answers = scored(scorer, many[:200])
    answers += [each.assessment for each in scorer.score_batch(many[200:], call_now())]
    hasher = IdHasher()
    expected = [
        canary if loop.host.canary.customers.holds(
            hasher.one(Entity.CUSTOMER, each.customer_id)) else champion
        for each in many
    ]  # fmt: skip
    assert [each.model_version for each in answers] == expected
    assert 10 < expected.count(canary) < 100

    loop.run()
    assert loop.told()[2:] == [], "not yet: too few decisions, or too little time"
    scored(scorer, [payments.one(customer_id=f"other-{number}") for number in range(1_200)])
    loop.run(after_ms=20_000)
    assert loop.told()[2:] == ["PROMOTED"]
    assert loop.shelf.served() == canary
    assert loop.served.canary is None
    loop.run(after_ms=200_000)
    assert len(loop.events()) == 3, "nothing new was told"
