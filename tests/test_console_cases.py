"""Cases without a browser: claims, filters, what a label opens and closes, and policy entries."""

from __future__ import annotations

import os
import subprocess
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurizer.features import FEATURES, INDEX
from fraudsvc.console import case_facts, drawings
from fraudsvc.console.case_rows import standing
from fraudsvc.console.policy_entries import Entry, add_entry
from fraudsvc.console.priority import NICENESS, yield_process, yield_thread
from fraudsvc.console.readmodel import LOG, Changes, ReadModel
from fraudsvc.console.readmodel_case import CaseFiles
from fraudsvc.console.readmodel_queue import CaseQueue, Filter
from fraudsvc.policy import DEFAULT_POLICY, PolicyError, load_policy
from tests.console_world import a_decision, codes_of, fill
from tests.test_readmodel import postgres

NOW_MS = 1_800_000_000_000
CLAIM_MS = 60_000


@pytest.fixture(params=["sqlite", "postgres"], scope="module")
def filled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ReadModel, list[dict[str, Any]]]]:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "postgres":
        with postgres(folder) as url:
            yield from _filled(url)
    else:
        yield from _filled(f"sqlite:///{folder}/readmodel.sqlite")


def _filled(url: str) -> Iterator[tuple[ReadModel, list[dict[str, Any]]]]:
    model = ReadModel(url)
    model.migrate()
    model.forget()
    yield model, fill(model, NOW_MS)
    model.close()


Filled = tuple[ReadModel, list[dict[str, Any]]]


def test_one_of_many_that_ask_at_once_holds_a_case(filled: Filled) -> None:
    queue, case = CaseQueue(filled[0]), filled[1][-1]["decision_id"]
    won: list[str] = []
    start = threading.Barrier(8)

    def ask(name: str) -> None:
        start.wait(30)
        if queue.claim(case, name, NOW_MS, CLAIM_MS):
            won.append(name)

    threads = [threading.Thread(target=ask, args=(f"a{n}",)) for n in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    assert len(won) == 1
    later_ms = NOW_MS + CLAIM_MS
    assert queue.claim(case, won[0], NOW_MS + 1, CLAIM_MS), "its holder holds it for longer"
    assert not queue.claim(case, "other", later_ms, CLAIM_MS)
    assert not queue.release(case, "other")
    assert queue.claim(case, "other", later_ms + 1, CLAIM_MS), "a claim ends by itself"
    assert queue.held_by([case], later_ms + 1) == {case: "other"}
    queue.assign(case, "third", later_ms + 1, CLAIM_MS)
    assert queue.release(case, "third")
    assert queue.held_by([case], later_ms + 1) == {}


def test_the_next_case_is_the_dearest_that_nobody_holds(filled: Filled) -> None:
    queue = CaseQueue(filled[0])
    rows = queue.page(Filter(), NOW_MS).rows
    assert queue.claim(rows[0]["decision_id"], "ada", NOW_MS, CLAIM_MS)
    assert queue.claim_next(Filter(), "grace", NOW_MS, CLAIM_MS) == rows[1]["decision_id"]
    assert queue.counts("grace", NOW_MS, 0).mine == 1
    held = queue.page(Filter(holder="*"), NOW_MS).rows
    assert {row["holder"] for row in held} == {"ada", "grace"}
    for row, name in zip(rows, ("ada", "grace"), strict=False):
        queue.release(row["decision_id"], name)


def test_filters_choose_what_a_loop_would(filled: Filled) -> None:
    queue = CaseQueue(filled[0])
    everything = {row["decision_id"]: row for row in queue.page(Filter(), NOW_MS, limit=500).rows}
    assert len(everything) == 90
    code = "MANY_SMALL_PAYMENTS"
    for wanted, is_like in (
        (Filter(code=code), lambda row: code in codes_of(row)),
        (Filter(code="MANY_SMALL"), lambda _: False),
        (Filter(channel=2), lambda row: row["channel"] == 2),
        (Filter(merchant="merchant-3"), lambda row: row["merchant_id"] == "merchant-3"),
        (Filter(amount_from=200, amount_until=400), lambda r: 20_000 <= r["amount_ref"] <= 40_000),
        (Filter(since_ms=NOW_MS - 3_600_000), lambda r: r["receive_time_ms"] >= NOW_MS - 3_600_000),
        (Filter(model="m-none"), lambda _: False),
    ):
        page = queue.page(wanted, NOW_MS, limit=500)
        expected = {key for key, row in everything.items() if is_like(row)}
        assert {row["decision_id"] for row in page.rows} == expected
        assert queue.matching(wanted, NOW_MS) == len(expected)


def test_pages_of_the_queue_follow_one_another(filled: Filled) -> None:
    queue, seen, after = CaseQueue(filled[0]), [], ""
    while True:
        page = queue.page(Filter(), NOW_MS, after, limit=7)
        seen += [row["decision_id"] for row in page.rows]
        if not (after := page.after):
            break
    assert len(seen) == len(set(seen)) == 90


def test_what_is_shared_is_found_up_to_a_moment(filled: Filled) -> None:
    files, rows = CaseFiles(filled[0]), filled[1]
    ring = rows[63]
    things = [(4, "dev-9a41c7ee02")]
    found = files.sharing(ring["decision_id"], things, ring["receive_time_ms"])
    assert {row["decision_id"] for row in found} == {
        rows[n]["decision_id"] for n in range(0, 63, 9)
    }
    alike = files.alike(ring["decision_id"], codes_of(ring)[:3])
    assert alike
    labelled = {row["decision_id"] for row in rows[:30]}
    assert {row["decision_id"] for row in alike} <= labelled


def test_a_retracted_label_opens_the_case_again(filled: Filled) -> None:
    model, rows = filled
    case = rows[0]["decision_id"]
    queue = CaseQueue(model)
    found = queue.case(case, NOW_MS)
    assert found is not None
    assert not found["is_open"]
    model.write(Changes(opened={case: True}), LOG)
    assert [row["is_open"] for row in [queue.case(case, NOW_MS)] if row] == [True]
    model.write(Changes(opened={case: False}), LOG)


def said(position: int, verdict: int, reporter: str) -> dict[str, Any]:
    return {"position": position, "verdict": verdict, "reporter": reporter}


def test_what_stands_of_labels() -> None:
    fraud, good, taken_back = 1, 2, 4
    labels = [said(3, taken_back, "a"), said(1, fraud, "a"), said(2, good, "b")]
    assert [each["reporter"] for each in standing(labels)] == ["b"]
    assert standing([said(1, fraud, "a"), said(2, taken_back, "a")]) == []
    again = [said(1, fraud, "a"), said(2, taken_back, "a"), said(3, good, "a")]
    assert [each["verdict"] for each in standing(again)] == [good]


def test_velocities_are_what_windows_have_beside_the_shorter_ones() -> None:
    rng = np.random.default_rng(1)
    decision = a_decision(9, NOW_MS, rng).decision
    vector = np.full(len(FEATURES), np.nan, np.float32)
    for window, count in {"1m": 2, "10m": 2, "1h": 5, "1d": 9, "7d": 9, "30d": 39}.items():
        vector[INDEX[f"card_count_{window}"]] = count
    decision.features = vector.tobytes()
    (card,) = [each for each in case_facts.velocities(decision) if each.entity == "card"]
    assert [(name, count) for name, count, _ in card.bars] == [
        ("30d", 30), ("7d", 0), ("1d", 4), ("1h", 3), ("10m", 0), ("1m", 2)
    ]  # fmt: skip
    assert all(0 <= bar.height <= drawings.HEIGHT_PX for bar in drawings.bars(card))
    hour = FEATURES[INDEX["card_count_1h"]]
    usual = case_facts.usual_of(hour, vector)
    assert usual == pytest.approx(39 / (30 * 24))
    assert case_facts.norm_of(hour, vector).text == "92 × the usual"


def entry(**fields: Any) -> Entry:
    end_ms = NOW_MS + 3_600_000
    made = Entry("override", "decline", "device_id", 'a"b\\c\n\x7f', end_ms, "ada", "ring")
    return made._replace(**fields)


def test_an_entry_is_added_to_the_policy_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_bytes(DEFAULT_POLICY.read_bytes())
    version = add_entry(path, entry(), NOW_MS)
    assert version == load_policy(path, INDEX).version
    text = path.read_bytes()
    assert text.startswith(DEFAULT_POLICY.read_bytes().rstrip(b"\n"))
    (made,) = tomllib.loads(text.decode())["overrides"]
    assert (made["value"], made["text"]) == (entry().value, "ada: ring")
    assert int(made["until"].timestamp() * 1000) == entry().end_ms
    add_entry(path, entry(kind="list", action="deny"), NOW_MS)
    (listed,) = tomllib.loads(path.read_text())["lists"]
    assert listed["values"] == [entry().value]
    assert len(list(tmp_path.iterdir())) == 1, "no draft is left"


@pytest.mark.parametrize("wrong", [{"action": "burn"}, {"field": "shoe_size"}, {"value": ""}])
def test_an_entry_that_no_scorer_would_take_changes_nothing(
    tmp_path: Path, wrong: dict[str, str]
) -> None:
    path = tmp_path / "policy.toml"
    path.write_bytes(DEFAULT_POLICY.read_bytes())
    with pytest.raises(PolicyError):
        add_entry(path, entry(**wrong), NOW_MS)
    assert path.read_bytes() == DEFAULT_POLICY.read_bytes()
    with pytest.raises(PolicyError, match="came with the package"):
        add_entry(DEFAULT_POLICY, entry(), NOW_MS)


def test_a_thread_that_yields_leaves_others_as_they_are() -> None:
    def priority() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before, found = priority(), []

    def work() -> None:
        yield_thread()
        found.append(priority())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [min(before + NICENESS, 19)]
    assert priority() == before
    with subprocess.Popen(["sleep", "60"]) as child:
        yield_process(child.pid)
        assert os.getpriority(os.PRIO_PROCESS, child.pid) == NICENESS
        child.kill()
