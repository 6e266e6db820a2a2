"""The operations pages on a log with decisions, labels, models, alarms and dead letters."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
from fraud.v1 import dead_letter_pb2, decision_pb2, label_pb2, model_event_pb2

from featurizer.eventlog import Entry, Topic
from featurizer.features import INDEX, SCHEMA_VERSION
from featurizer.metering import LAYOUT, SLOTS
from fraudsvc.console.health_figures import History, percentile, polyline
from fraudsvc.console.label_figures import (
    analyst_rows,
    overlap_rows,
    overturned_rows,
    rule_rows,
    standing,
)
from fraudsvc.console.sheets import Column, Sheet
from fraudsvc.policy import DEFAULT_POLICY, PolicyError, load_policy
from fraudsvc.policy.editing import replace_policy, with_rule, with_threshold
from tests.conftest import START_S, Host, Payments, Trained, call_now, decisions, read_all, until
from tests.consoles import Client, Place, console
from tests.test_console_access import told
from trainer.bundle import load_bundle, load_content, read_manifest, write_bundle
from trainer.labelled import ANALYST, CHARGEBACK, FRAUD, LEGITIMATE
from trainer.shelf import Shelf

DECISIONS = 60
XSS = "<script>alert(1)</script>"


class Operated(NamedTuple):
    """A running console, its two models, and a decision with labels."""

    place: Place
    first: str
    second: str


def an_event(change: int, model: str, **more: Any) -> Entry:
    event = model_event_pb2.ModelEvent(
        change=change, model_version=model, author="trainer", **more,  # type: ignore[arg-type]
    )  # fmt: skip
    event.event_time.FromMilliseconds(1_790_000_000_000)
    return Entry(Topic.MODELS, 0, event.SerializeToString())


def shelf_of(data: Path, trained: Trained) -> tuple[str, str]:
    """Put two models on the shelf, the second served, as after learning."""
    first = read_manifest(trained.bundle_path, trained.public_key)["bundle_id"]
    shutil.copytree(trained.bundle_path, data / "models" / first)
    content = load_content(
        trained.bundle_path, schema_version=SCHEMA_VERSION, public_key=trained.public_key
    )
    lower = replace(content.thresholds, review=content.thresholds.review / 2)
    write_bundle(data / "draft", replace(content, thresholds=lower), trained.key_path)
    second = read_manifest(data / "draft", trained.public_key)["bundle_id"]
    (data / "draft").rename(data / "models" / second)
    shutil.copy(trained.key_path.with_suffix(".pub"), data / "key.pub")
    Shelf(data / "models", data / "bundle").serve(second)
    return first, second


def fill(data: Path, trained: Trained, models: tuple[str, str]) -> None:
    """Decide, label, alarm and pass over."""
    bundle = load_bundle(
        data / "models" / models[1], schema_version=SCHEMA_VERSION, public_key=trained.public_key
    )
    host = Host(data, bundle)
    payments, scorer = Payments(), host.scorer()
    for i in range(DECISIONS):
        more = {"amount_minor": 2_000_000, "currency_code": "USD"} if i % 5 == 0 else {}
        scorer.score(payments.one(**more), call_now())
    labels = []
    for i, (verdict, source, reporter) in enumerate(
        ((1, ANALYST, "ada"), (2, ANALYST, "ada"), (1, CHARGEBACK, "bank"), (1, ANALYST, XSS))
    ):
        label = payments.label(payments.made[0 if i in (0, 3) else 5].transaction_id)
        label.verdict, label.source = verdict, source  # type: ignore[assignment]
        label.reporter = reporter
        label.label_time.FromMilliseconds(host.now_ms + i)
        labels.append(label)
    scorer.report_labels(labels)
    alarm = {"code": "SCORE_SHIFTED", "subject": "score", "method": "ADWIN", "rows": 90}
    host.log.append([[an_event(1, models[1], previous_version=models[0], reason=XSS)]])
    host.log.append([[an_event(9, models[1], alarms=[alarm], reason="SCORE_SHIFTED: look")]])
    position = next(
        int(batch.positions[i])
        for batch in [host.log.read(host.log.ends()[0], 64 << 20)]
        for i in (batch.topics == Topic.LABELS).nonzero()[0].tolist()
    )
    letter = dead_letter_pb2.DeadLetter(
        topic="labels", offset=position, reason="UNKNOWN", detail=XSS
    )
    secret = dead_letter_pb2.DeadLetter(topic="payments", offset=1, reason="CARD_NUMBER_REFUSED")
    for each in (letter, secret):
        host.log.append([[Entry(Topic.DEAD_LETTERS, 0, each.SerializeToString())]])
    host.close()


@pytest.fixture(scope="module", name="operated")
def operated_fixture(
    trained: Trained, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Operated]:
    data = tmp_path_factory.mktemp("operated") / "data"
    data.mkdir()
    models = shelf_of(data, trained)
    fill(data, trained, models)
    shutil.copy(DEFAULT_POLICY, data / "policy.toml")
    with console(data, "--policy", str(data / "policy.toml")) as place:
        client = place.signed_in()
        until(lambda: "SCORE_SHIFTED" in client.get("/drift").text, "the log", START_S)
        yield Operated(place, *models)


def exported(client: Client, path: str) -> list[dict[str, str]]:
    answer = client.get(path)
    assert answer.status == 200, answer.text
    return list(csv.DictReader(io.StringIO(answer.text)))


def test_every_page_answers_and_runs_no_script_of_a_text(operated: Operated) -> None:
    client = operated.place.signed_in()
    for path in ("/health", "/health/live", "/models", "/drift", "/rules?days=365",
                 "/agreement?days=365", "/dead-letters", "/audit", "/what-if"):  # fmt: skip
        answer = client.get(path)
        assert answer.status == 200, path
        assert XSS not in answer.text, path
        assert not re.search(r"<[^>]+\son[a-z]+=|<[^>]+\sstyle=|<style", answer.text), path
        assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", answer.text)), path
    assert "&lt;script&gt;" in client.get("/models").text


def test_lists_are_taken_away_as_csv_and_parquet(operated: Operated, tmp_path: Path) -> None:
    client = operated.place.signed_in("cy", "lead")
    rows = exported(client, "/models?format=csv")
    assert {row["change"] for row in rows} == {"promoted", "alarmed"}
    rules = exported(client, "/rules?days=365&format=csv")
    high = next(row for row in rules if row["code"] == "VERY_HIGH_AMOUNT")
    assert int(high["hits"]) == DECISIONS // 5
    assert (high["labelled"], high["fraud"], high["precision"]) == ("2", "2", "1.0")
    [over] = exported(client, "/agreement?days=365&format=csv")
    assert (over["analyst"], over["said"], over["known"]) == ("ada", "legitimate", "fraud")
    assert exported(client, "/drift?format=csv")[0]["code"] == "SCORE_SHIFTED"
    assert ("cy", "export", "overturned") in told(operated.place)
    sheet = Sheet(
        "s", (Column("a", "A"), Column("t", "T", "time"), Column("n", "N", "number")),
        [{"a": "=1+1", "t": 1_000, "n": None}],
    )  # fmt: skip
    assert sheet.csv() == b"a,t,n\r\n'=1+1,1970-01-01T00:00:01Z,\r\n"
    file = tmp_path / "s.parquet"
    file.write_bytes(sheet.parquet())
    [row] = pq.read_table(file).to_pylist()
    assert (row["a"], row["t"].year, row["n"]) == ("=1+1", 1970, None)


def test_a_person_rolls_back_by_a_form_and_it_is_an_event(operated: Operated) -> None:
    place, first, second = operated
    client = place.signed_in("ola", "operator")
    assert f"<option selected>{first}" in client.get("/models").text, "what was before is chosen"
    differences = client.get(f"/models?before={first}&after={second}").text
    assert "thresholds" in differences
    for form in ({"model": first}, {"model": "../../x", "reason": "r"}, {"model": first,
                 "reason": "r", "action": "trust"}):  # fmt: skip
        assert (
            client.post("/models/change", "/models", **{"action": "rollback", **form}).status == 400
        )
    done = client.post(
        "/models/change", "/models", action="rollback", model=first, reason="it alerts"
    )
    assert done.status == 303
    shelf = Shelf(place.data / "models", place.data / "bundle")
    assert shelf.served() == first
    log = place.log()
    events = [each.value for each in read_all(log) if each.topic == Topic.MODELS]
    log.close()
    last = model_event_pb2.ModelEvent.FromString(events[-1])
    assert last.change == model_event_pb2.MODEL_CHANGE_ROLLED_BACK
    assert (last.model_version, last.previous_version) == (first, second)
    assert (last.author, last.reason) == ("ola", "it alerts")
    assert ("ola", "rollback model", first) in told(place)
    until(lambda: "it alerts" in client.get("/models").text, "the event on the page")


def test_a_dead_letter_is_sent_again_once(operated: Operated) -> None:
    place = operated.place
    client = place.signed_in("cy", "lead")
    [letter] = [r for r in exported(client, "/dead-letters?format=csv") if r["reason"] == "UNKNOWN"]
    page = client.get("/dead-letters").text
    assert page.count("Send again") == 1, "not what may hold a card number"
    number = letter["number"]
    assert client.post("/dead-letters/resend", "/dead-letters", number=number).status == 303
    log = place.log()
    found = read_all(log)
    log.close()
    labels = [each.value for each in found if each.topic == Topic.LABELS]
    assert len(labels) == 5
    assert labels[0] == labels[4]
    until(lambda: "Send again" not in client.get("/dead-letters").text, "the note")
    again = client.post("/dead-letters/resend", "/dead-letters", number=number)
    assert (again.status, "already" in again.text) == (409, True)
    for number in ("99", "x", ""):
        assert client.post("/dead-letters/resend", "/dead-letters", number=number).status == 400


def high_amounts(place: Place) -> list[decision_pb2.Assessment]:
    """Return the answers on what a rule on high amounts hits."""
    log = place.log()
    found = [
        each.assessment
        for each in decisions(log).values()
        if each.transaction.amount_minor == 2_000_000
    ]
    log.close()
    return found


def what_if(client: Client, **form: str) -> str:
    """Run one to its end; return its page's path."""
    answer = client.post("/what-if/run", "/what-if", **form)
    assert answer.status == 303, answer.text
    path = answer.headers["location"]
    until(lambda: "data-done" in client.get(f"{path}/live").text, "the backtest", START_S)
    return path


def test_a_change_goes_live_by_a_second_person(operated: Operated) -> None:
    place = operated.place
    policy = place.data / "policy.toml"
    before = policy.read_text()
    ada, bo, cy = (place.signed_in(name, role) for name, role in
                   (("ada", "lead"), ("bo", "lead"), ("an", "analyst")))  # fmt: skip
    rule = {"code": "BIG_ONES", "when": "amount_reference > 1000000", "action": "decline"}
    path = what_if(ada, **rule)
    identity = path.rsplit("/", 1)[1]
    page = ada.get(path).text
    changed = sum(each.outcome != decision_pb2.OUTCOME_DECLINE for each in high_amounts(place))
    assert 0 < changed <= DECISIONS // 5
    assert re.search(rf"<strong>{changed}</strong> of {DECISIONS} decisions change", page)
    assert "+code = &#34;BIG_ONES&#34;" in page
    assert policy.read_text() == before, "nothing is live yet"
    live, form = "/what-if/proposals/live", {"id": identity, "reason": "we agreed"}
    assert ada.post(live, path, **form).status == 409, "not proposed"
    assert ada.post("/what-if/propose", path, **form).status == 303
    alone = ada.post(live, path, **form)
    assert (alone.status, "another person" in alone.text) == (409, True)
    assert cy.post(live, path, **form).status == 403
    assert policy.read_text() == before
    assert bo.post(live, path, **form).status == 303
    assert load_policy(policy, INDEX).version != load_policy(DEFAULT_POLICY, INDEX).version
    assert "BIG_ONES" in policy.read_text()
    assert bo.post(live, path, **form).status == 409, "once"
    assert ("bo", "put policy live", identity) in told(place)
    assert "live, proposed by ada, decided by bo" in re.sub(r"<[^>]+>", "", ada.get(path).text)


def test_what_cannot_be_is_refused_with_its_cause(operated: Operated) -> None:
    place = operated.place
    client, policy = place.signed_in("ada", "lead"), place.data / "policy.toml"
    before = policy.read_text()
    for form, cause in (
        ({"code": "X", "when": "nonsense > 3", "action": "review"}, "nonsense"),
        ({"code": "lower", "when": "score > 0.1", "action": "review"}, "UPPER_SNAKE_CASE"),
        ({"review": "0.9", "decline": "0.1"}, "above decline"),
        ({"review": "much"}, "is a number"),
        ({"review": "0.4", "first": "yesterday"}, "neither a position nor a time"),
        ({}, "nothing is changed"),
    ):
        answer = client.post("/what-if/run", "/what-if", **form)
        assert (answer.status, cause in answer.text) == (400, True), (cause, answer.text)
    path = what_if(client, review="0.4", decline="0.9", first="2099-01-01T00:00:00Z")
    assert "the range has no decisions" in client.get(path).text
    path = what_if(client, review="0.4", decline="0.9")
    policy.write_text(before + "# another hand\n")
    identity = {"id": path.rsplit("/", 1)[1], "reason": "r"}
    assert client.post("/what-if/propose", path, **identity).status == 303
    late = place.signed_in("bo", "lead").post("/what-if/proposals/live", path, **identity)
    assert (late.status, "has changed since" in late.text) == (409, True)
    assert policy.read_text() == before + "# another hand\n"
    policy.write_text(before)
    assert (
        place.signed_in("bo", "lead").post("/what-if/proposals/live", path, **identity).status
        == 303
    )
    policy.write_text(before)


def test_a_policy_is_edited_and_its_words_are_kept(tmp_path: Path) -> None:
    text = DEFAULT_POLICY.read_text()
    moved = with_threshold(with_threshold(text, "review", "0.25"), "decline", "from_model")
    assert moved == text.replace('review = "from_model"', "review = 0.25")
    rule = {"code": "VERY_HIGH_AMOUNT", "when": "amount_reference > 5", "action": "flag",
            "text": 'a "word" ü'}  # fmt: skip
    edited = with_rule(text, rule)
    assert edited.count("[[rules]]") == text.count("[[rules]]")
    assert "# The default policy." in edited
    load_policy(edited.encode(), INDEX)
    odd = text.replace("[thresholds]", "[ thresholds ]")
    with pytest.raises(PolicyError, match="by hand"):
        with_threshold(odd, "review", "0.5")
    with pytest.raises(PolicyError, match="came with the program"):
        replace_policy(DEFAULT_POLICY, str, INDEX)
    file = tmp_path / "policy.toml"
    file.write_text(text)
    file.chmod(0o640)
    with pytest.raises(PolicyError):
        replace_policy(file, lambda _: "nonsense", INDEX)
    assert file.read_text() == text
    old, new = replace_policy(file, lambda _: moved, INDEX)
    assert (old != new, file.read_text(), file.stat().st_mode & 0o777) == (True, moved, 0o640)
    assert sorted(each.name for each in tmp_path.iterdir()) == [".policy.toml.lock", "policy.toml"]


def a_label(transaction: str, verdict: int, source: int, reporter: str, ms: int) -> dict[str, Any]:
    return {
        "transaction_id": transaction, "decision_id": f"d-{transaction}", "verdict": verdict,
        "source": source, "reporter": reporter, "label_time_ms": ms, "amount_minor": 100,
        "currency_code": "EUR", "outcome": 1,
    }  # fmt: skip


def test_the_stronger_and_the_newer_word_stands() -> None:
    retracted = int(label_pb2.Verdict.Value("VERDICT_RETRACTED"))
    labels = [
        a_label("t", FRAUD, ANALYST, "ada", 1), a_label("t", LEGITIMATE, CHARGEBACK, "b", 2),
        a_label("t", FRAUD, ANALYST, "bo", 3), a_label("u", FRAUD, ANALYST, "ada", 1),
        a_label("u", retracted, ANALYST, "ada", 2), a_label("w", FRAUD, ANALYST, "ada", 1),
        a_label("w", FRAUD, CHARGEBACK, "b", 9),
    ]  # fmt: skip
    known = standing(labels)
    assert {t: s.verdict for t, s in known.items()} == {"t": LEGITIMATE, "w": FRAUD}
    ada, bo = analyst_rows(labels)
    assert (ada["verdicts"], ada["confirmed"], ada["overturned"], ada["agreement"]) == (
        2,
        1,
        1,
        0.5,
    )
    assert (bo["overturned"], bo["with_others"]) == (1, 1.0)
    assert [row["analyst"] for row in overturned_rows(labels)] == ["ada", "bo"]
    decisions = [
        {"transaction_id": t, "codes": json.dumps(c), "outcome": decision_pb2.OUTCOME_REVIEW}
        for t, c in (("t", ["A", "B"]), ("w", ["A"]), ("x", ["A", "OTHER"]))
    ]
    rules = [{"code": c, "action": "review", "when": "w"} for c in ("A", "B", "C")]
    a, b, c = rule_rows(rules, decisions, known)
    assert (a["hits"], a["labelled"], a["precision"]) == (3, 2, 0.5)
    assert (b["precision"], c["hits"], c["precision"]) == (0.0, 0, None)
    [pair] = overlap_rows(["A", "B", "C"], decisions)
    assert (pair["both"], pair["of_one"], pair["of_other"]) == (1, 1 / 3, 1.0)


def test_live_figures_are_of_the_last_minute() -> None:
    history, values = History(), np.zeros(SLOTS)
    assert history.figures() == {}
    counter = LAYOUT["fraud_decisions_total"][0]
    for second in range(120):
        history.add(float(second), values.copy())
        values[counter.start] += 5
    told_now = history.figures()
    assert told_now["rate"] == pytest.approx(5.0)
    assert told_now["seconds"] == pytest.approx(60.0)
    assert dict(told_now["outcomes"])["approve"] == 1.0
    history.add(121.0, np.zeros(SLOTS))  # a process that began anew
    assert history.figures()["rate"] >= 0.0
    counts = np.array([0.0, 10.0, 0.0])
    assert percentile(counts, (1.0, 2.0), 0.5) == pytest.approx(1.5)
    assert percentile(np.array([0.0, 0.0, 4.0]), (1.0, 2.0), 0.99) == 2.0
    points = polyline([1.0, 2.0]).split()
    assert points[-1] == "240.0,1.0"
