"""The live trainer when things go wrong: bad labels, bad bundles, a restart; each an event."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from fraud.v1 import model_event_pb2

from fraudsvc.models_command import ModelsOptions, run_models, state_of
from tests.conftest import Asked, Host, Payments, Trained
from tests.live_loop import (  # noqa: F401 - fixtures among them
    FRAUD,
    GOOD,
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
from trainer.bundle import read_manifest
from trainer.guards import GuardSettings
from trainer.thresholds import Budget

TRAFFIC, FRAUDS = 500, 48


class Day:
    """Good payments and an attack, as far as they were approved."""

    def __init__(self, scorer: Asked, payments: Payments, frauds: int = FRAUDS) -> None:
        made = [payments.one() for _ in range(TRAFFIC)]
        attacks = [attack(payments, number) for number in range(frauds)]
        self.good = approved(scorer, made)
        self.frauds = approved(scorer, attacks)


def reasons(loop: Loop, change: str) -> list[str]:
    return [e.reason for e, name in zip(loop.events(), loop.told(), strict=True) if name == change]


def test_labels_of_one_analyst_stop_learning_until_others_speak(
    loop: Loop, scorer: Asked, payments: Payments
) -> None:
    day = Day(scorer, payments)
    report(scorer, payments, day.good[:24], GOOD, "analyst-1")
    report(scorer, payments, day.frauds[:10], FRAUD, "analyst-1")
    loop.run()
    assert loop.told() == ["LEARNING_STOPPED"]
    assert "ONE_REPORTER: 100%" in reasons(loop, "LEARNING_STOPPED")[0]
    assert "analyst-1" in reasons(loop, "LEARNING_STOPPED")[0]
    assert "learning stopped" in state_of(loop.events())[0]
    figures = {each.name: each.value for each in loop.events()[0].figures}
    assert figures["reporter_share"] == 1.0
    loop.run(after_ms=60_000)
    report(scorer, payments, day.good[24:60], GOOD, "analyst-2", "analyst-3")
    loop.run()
    assert loop.told() == ["LEARNING_STOPPED", "LEARNING_RESUMED", "PROMOTED"]
    assert state_of(loop.events()) == []


@pytest.mark.parametrize(
    ("guards", "good", "frauds", "wait_ms", "stop"),
    [
        (GuardSettings(quiet_ms=(60_000, 30_000)), 0, 2, 90_000, "DRIED_UP"),
        (GuardSettings(burst_labels_min=20), 12, 12, 0, "BURST"),
        (GuardSettings(share_labels_min=10), 0, 12, 0, "POSITIVE_SHARE"),
    ],
)
def test_each_guard_says_why_learning_stops(
    host: Host, trained: Trained, tmp_path: Path, scorer: Asked, payments: Payments,
    guards: GuardSettings, good: int, frauds: int, wait_ms: int, stop: str,
) -> None:  # fmt: skip
    observers = replace(SETTINGS.observers, guards=guards)
    loop = Loop(host, trained, tmp_path, replace(SETTINGS, observers=observers))
    day = Day(scorer, payments)
    loop.run()
    report(scorer, payments, day.good[:good], GOOD, "analyst-1", "analyst-2")
    report(scorer, payments, day.frauds[:frauds], FRAUD, "analyst-1", "analyst-2")
    loop.run(after_ms=wait_ms)
    assert [each.split(":")[0] for each in reasons(loop, "LEARNING_STOPPED")] == [stop]
    served = loop.shelf.served()
    loop.run(after_ms=20_000)
    assert loop.shelf.served() == served, "what serves stays"


def test_a_poisoner_is_found_forgotten_and_heard_no_more(
    host: Host, trained: Trained, tmp_path: Path, scorer: Asked, payments: Payments
) -> None:
    never = replace(SETTINGS.learner, residual_every_ms=1 << 40)
    loop = Loop(host, trained, tmp_path, replace(SETTINGS, learner=never))
    honest = ("analyst-1", "analyst-2", "analyst-3", "analyst-4")
    day = Day(scorer, payments)
    for i in range(12):  # as they come: an analyst who has all of the fraud is no peer's like
        report(scorer, payments, day.good[3 * i : 3 * i + 3], GOOD, *honest[i % 4 :], *honest)
        report(scorer, payments, [day.frauds[i]], FRAUD, honest[i % 4])
    loop.run(after_ms=60_000)
    assert loop.told() == ["PROMOTED"]
    clean = loop.shelf.served()
    poisoned = day.good[40:70]
    for start in range(0, 30, 3):
        report(scorer, payments, poisoned[start : start + 3], FRAUD, "poisoner")
        loop.run(after_ms=60_000)
    told = loop.told()
    back = told.index("ROLLED_BACK")
    assert "PROMOTED" in told[1:back], "it did harm before"
    assert told[back : back + 3] == ["ROLLED_BACK", "REPORTER_DISTRUSTED", "PROMOTED"]
    assert loop.events()[back].model_version == clean
    for event in loop.events()[back : back + 2]:
        [alarm] = event.alarms
        assert (alarm.subject, alarm.code) == ("poisoner", "LABELS_POISONED")
        assert alarm.statistic >= alarm.limit > 1.0
        assert alarm.after > alarm.before
    served = str(loop.shelf.served())
    learnt = read_manifest(loop.shelf.path(served), trained.public_key)["learnt"]
    assert (learnt["missed_frauds"], learnt["lessons"]) == (12, 48)

    loop.start()
    report(scorer, payments, day.good[72:74], FRAUD, "poisoner")
    loop.run()
    assert loop.shelf.served() == served, "a restart does not bring it back"
    unheard = [each for each in loop.letters() if each.reason == "DISTRUSTED"]
    assert len(unheard) >= 2
    options = ModelsOptions(
        loop.link, loop.shelf.folder, trained.public_key, "lead-1", "it was a wrong form"
    )
    run_models("trust", ["poisoner"], options, loop.host.log)
    report(scorer, payments, day.good[74:76], FRAUD, "poisoner")
    loop.run()
    assert len([each for each in loop.letters() if each.reason == "DISTRUSTED"]) == len(unheard)


def bad(host: Host, trained: Trained, folder: Path) -> Loop:
    """Return a loop whose gates and budget let a bundle pass that alerts on almost everything."""
    learner = replace(SETTINGS.learner, budget=Budget(0.9, 0.0))
    gates = replace(LENIENT, alert_share_max=1.0)
    watch = replace(SETTINGS.watch, alert_share_max=0.3)
    settings = replace(SETTINGS, learner=learner, gates=gates, watch=watch)
    return Loop(host, trained, folder, settings)


def test_a_bad_bundle_is_taken_back_by_what_it_does(
    host: Host, trained: Trained, tmp_path: Path, scorer: Asked, payments: Payments
) -> None:
    loop = bad(host, trained, tmp_path)
    first = loop.shelf.served()
    day = Day(scorer, payments)
    report(scorer, payments, day.frauds[:12], FRAUD, "analyst-1", "analyst-2")
    loop.run()
    assert loop.told() == ["PROMOTED"]
    needed = 0
    while loop.told() == ["PROMOTED"] and needed < 50:
        scored(scorer, [payments.one()])
        needed += 1
        loop.run()
    print(f"taken back after {needed} decisions")
    event = loop.events()[-1]
    assert (event.change, event.model_version) == (
        model_event_pb2.MODEL_CHANGE_ROLLED_BACK, first)  # fmt: skip
    assert loop.shelf.served() == first
    [gate] = [each for each in event.gates if not each.passed]
    assert gate.name == "share of decisions alerted"
    assert gate.value > gate.limit
    report(scorer, payments, [attack(payments, 90).transaction_id], FRAUD, "analyst-1")
    loop.run()
    assert loop.shelf.served() == first, "nothing new for a while"


def test_a_pinned_bundle_stays_whatever_it_does(
    host: Host, trained: Trained, tmp_path: Path, scorer: Asked, payments: Payments
) -> None:
    loop = bad(host, trained, tmp_path)
    day = Day(scorer, payments)
    report(scorer, payments, day.frauds[:12], FRAUD, "analyst-1", "analyst-2")
    loop.run()
    served = loop.shelf.served()
    loop.shelf.pin(pinned=True)
    scored(scorer, [payments.one() for _ in range(50)])
    loop.run()
    assert loop.told() == ["PROMOTED", "ALARMED"]
    assert "pinned" in loop.events()[-1].reason
    assert loop.shelf.served() == served


def test_a_restart_tells_nothing_twice_and_learns_the_same_next(
    host: Host, trained: Trained, tmp_path: Path, scorer: Asked, payments: Payments
) -> None:
    (tmp_path / "one").mkdir()
    loop = Loop(host, trained, tmp_path / "one")
    day = Day(scorer, payments)
    report(scorer, payments, [*day.frauds[:6], "never-seen"], FRAUD, "analyst-1", "analyst-2")
    report(scorer, payments, [day.frauds[0]], FRAUD, "analyst-1")  # REPEATED
    loop.run(after_ms=90_000)
    before = loop.told(), [each.reason for each in loop.letters()]
    assert before == (["PROMOTED"], ["REPEATED", "UNKNOWN_TRANSACTION"])

    loop.start()
    loop.run(after_ms=90_000)
    assert (loop.told(), [each.reason for each in loop.letters()]) == before

    shutil.copytree(tmp_path / "one" / "models", tmp_path / "two" / "models")
    served = str(loop.shelf.served())
    (tmp_path / "two" / "bundle").symlink_to(tmp_path / "two" / "models" / served)
    shutil.copytree(host.folder / "log", tmp_path / "host" / "log")
    other = Host(tmp_path / "host", loop.served.current, now_ms=loop.now_ms)
    again = Loop(other, trained, tmp_path / "two")
    for each, its in ((loop, scorer), (again, other.scorer())):
        report(its, payments, day.frauds[6:], FRAUD, "analyst-1", "analyst-2")
        each.run()
        assert each.told() == ["PROMOTED", "PROMOTED"]
    assert again.shelf.served() == loop.shelf.served() != served
    other.close()
