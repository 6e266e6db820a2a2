"""From the queue to a changed model in a real browser, every role a process of its own."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fraud.v1 import decision_pb2, label_pb2, transaction_pb2
from fraud.v1 import fraud_service_pb2 as pb
from playwright.sync_api import Browser, Locator, Page, expect

from featurizer.eventlog import Topic
from featurizer.eventlog_file import FileEventLog
from fraudsvc.policy import DEFAULT_POLICY
from tests.browser import WIDE, browser_fixture  # noqa: F401 - as browser
from tests.conftest import (
    START_S,
    WAIT_S,
    Connected,
    Payments,
    Trained,
    connected,
    free_port,
    process,
    read_all,
    score_patiently,
    until,
)
from tests.consoles import Place, System, data_of

ATTACKS = 12
RING = "dev-ring"
WEEK_MS = 7 * 86_400_000
TRAFFIC, STRANGERS, MISSED, BATCH = 1_000, 10, 3, 250
GANG: dict[str, Any] = {
    "device_id": "gang", "ip_address": "10.9.9.9", "terminal_id": "", "channel": 1,
    "cvv_result": 1, "amount_minor": 2_600, "currency_code": "EUR",
}  # fmt: skip
LEARNT_S = 60.0
KEYS = ("Enter", "f", "2", "Enter")  # from the queue to a verdict with its reason
WATCHED = f"""
[[overrides]]
code = "WATCHED_DEVICES"
field = "device_id"
value = "{RING}"
until = 2099-01-01T00:00:00Z
action = "review"
"""


@pytest.fixture
def system(tmp_path: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch) -> Iterator[System]:
    monkeypatch.setenv("FRAUD_TRACE_SHARE", "1")  # every decision is kept, approvals too
    data = data_of(tmp_path, trained)
    (data / "policy.toml").write_text(DEFAULT_POLICY.read_text() + WATCHED)
    address = f"127.0.0.1:{free_port()}"  # which the console is told
    with process(
        tmp_path / "output", "fraudsvc", "up", "--data", str(data), "--address", address,
        "--console", "127.0.0.1:0", "--max-age-days", "0", "--budget-ms", "60000",
        "--policy", str(data / "policy.toml"),
    ) as up:  # fmt: skip
        for name in ("serve-0", "console"):
            up.wait_for(data / f"{name}.ready")
        until((data / "trainer.ready").exists, "the trainer", START_S)
        ports = [int((data / f"{name}.ready").read_text()) for name in ("serve-0", "console")]
        yield System(data, ports[0], Place(data, ports[1]))
        up.stop()


def payments_of_late() -> Payments:
    """Return payments from two months ago on, as of older ones no verdict is learnt.

    They begin with a week, so that the time of day at which this is run changes nothing.
    """
    return Payments(start_ms=(time.time_ns() // 1_000_000 // WEEK_MS - 8) * WEEK_MS)


def score(client: Connected, payments: Payments, **fields: Any) -> decision_pb2.Assessment:
    payment = payments.one(**fields)
    return score_patiently(client, pb.ScoreRequest(transaction=payment), ())


def mule(client: Connected, payments: Payments, number: int) -> decision_pb2.Assessment:
    return score(
        client, payments, customer_id=f"mule-{number}", amount_minor=2_600 + number,
        currency_code="EUR", channel=1, cvv_result=1, device_id=RING,
    )  # fmt: skip


def labels(system: System) -> list[label_pb2.Label]:
    with contextlib.closing(FileEventLog(system.data / "log", read_only=True)) as log:
        found = [each.value for each in read_all(log) if each.topic == Topic.LABELS]
    return [label_pb2.Label.FromString(each) for each in found]


@pytest.fixture
def page(browser: Browser, system: System) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": WIDE["width"], "height": WIDE["height"]})
    context.set_default_timeout(30_000)
    made = context.new_page()
    made.goto(system.console.link("ada", "operator"))
    yield made
    context.close()


def test_a_verdict_is_sent_undone_and_sent_on_all_that_is_linked(
    system: System, page: Page, browser: Browser
) -> None:
    payments = payments_of_late()
    with connected(system.port) as client:
        told = [mule(client, payments, number) for number in range(ATTACKS)]
        assert {each.outcome for each in told} == {decision_pb2.OUTCOME_REVIEW}
        page.goto(f"http://127.0.0.1:{system.console.port}/queue?code=WATCHED_DEVICES")
        until(lambda: are_shown(page), "the cases", START_S)  # its kernels compile
        decide_and_undo(system, page)
        decide_all(system, page)
        page.keyboard.press("p")
        expect(page.locator("#replayed")).to_have_text(
            "reproduced, 0 bytes differ", timeout=120_000
        )
        override(system, page)
        declined = decision_pb2.OUTCOME_DECLINE
        until(lambda: mule(client, payments, 100).outcome == declined, "the override", 20.0)


def are_shown(page: Page) -> bool:
    page.reload()
    return f"{ATTACKS} cases" in page.locator("main").inner_text()


def has_status(page: Page, status: str) -> None:
    """Wait until it is shown, and keys are heard."""
    expect(page.locator("#status")).to_have_text(status)
    page.wait_for_function("document.readyState === 'complete'")


def decide_and_undo(system: System, page: Page) -> None:
    for key, shown in zip(KEYS, ("#case", "#verdict", "#verdict", "#undo"), strict=True):
        page.keyboard.press(key)
        expect(page.locator(shown)).to_be_visible()
        page.wait_for_function("document.readyState === 'complete'")
    has_status(page, "fraud")
    page.keyboard.press("z")
    has_status(page, "open")
    said = labels(system)
    assert [each.verdict for each in said] == [
        label_pb2.VERDICT_FRAUD, label_pb2.VERDICT_RETRACTED
    ]  # fmt: skip
    assert {(each.reporter, each.source) for each in said} == {
        ("ada", label_pb2.LABEL_SOURCE_ANALYST)
    }
    assert said[0].note == "account takeover"


def decide_all(system: System, page: Page) -> None:
    page.keyboard.press("f")
    page.keyboard.press("b")
    boxes = page.locator("#linked-list tr").filter(has_text="mule-").locator("input")
    expect(boxes).to_have_count(ATTACKS - 1)
    for number in range(ATTACKS - 1):
        boxes.nth(number).check()
    page.locator("#verdict textarea").fill("one device, many customers")
    page.locator("#verdict [type=submit]").click()
    has_status(page, "fraud")
    said = labels(system)[2:]
    assert len({each.transaction_id for each in said}) == ATTACKS
    assert {each.note for each in said} == {"stolen card — one device, many customers"}


def override(system: System, page: Page) -> None:
    page.keyboard.press("o")
    page.locator("#override-dialog input[value=device_id]").check()
    page.locator("#override-dialog select[name=action]").select_option("list deny")
    page.locator("#override-dialog input[name=why]").fill("ring of mules")
    page.locator("#override-dialog [type=submit]").click()
    expect(page.locator(".toast").filter(has_text="In the policy as")).to_be_visible()
    text = (system.data / "policy.toml").read_text()
    assert 'text = "ada: ring of mules"' in text
    assert text.startswith(DEFAULT_POLICY.read_text()), "comments stay"


def test_a_verdict_on_a_missed_fraud_is_learnt_and_changes_the_score_of_its_like(
    system: System, page: Page
) -> None:
    payments = payments_of_late()
    with connected(system.port) as client:
        for _ in range(TRAFFIC // BATCH):
            made = [payments.one() for _ in range(BATCH)]
            client.stub.ScoreBatch(pb.ScoreBatchRequest(transactions=made), timeout=WAIT_S)
        first = payments.one(**GANG)
        told = (score_like(client, payments, first, number) for number in range(STRANGERS))
        approved = (each for each in told if each.outcome == decision_pb2.OUTCOME_APPROVE)
        missed = list(itertools.islice(approved, MISSED))
        assert len(missed) == MISSED, "the base catches all of it: no attack"
        for each in missed:  # as a customer who complains names the payment
            until(lambda: is_kept(system, page, each.decision_id), "the decision", START_S)  # noqa: B023
            page.keyboard.press("f")
            page.keyboard.press("Enter")
            has_status(page, "fraud")
        learnt = page.locator(".learnt").filter(has_text="Learnt by T1")
        until(lambda: is_shown(page, learnt), "what was learnt", LEARNT_S)
        expect(learnt).to_contain_text("promoted")
        served = page.locator(".learnt").filter(has_text="Served by")
        until(lambda: is_shown(page, served), "the new model in service", LEARNT_S)
        after = score_like(client, payments, first, STRANGERS)
    assert after.model_version != missed[-1].model_version
    assert after.model_version in learnt.inner_text()
    assert after.score > max(each.score for each in missed)
    assert after.outcome != decision_pb2.OUTCOME_APPROVE
    until(lambda: is_kept(system, page, after.decision_id), "the new decision", START_S)
    expect(page.locator(".contributions")).to_contain_text("few-shot expert")
    expect(page.locator(".versions")).to_contain_text(after.model_version)


def score_like(
    client: Connected, payments: Payments, first: transaction_pb2.Transaction, number: int
) -> decision_pb2.Assessment:
    """Score a payment like another, but of a customer whom nobody knows."""
    payment = payments.one()
    fresh = {name: getattr(payment, name) for name in ("request_id", "transaction_id")}
    time_ms = payment.event_time.ToMilliseconds()
    payment.CopyFrom(first)
    payment.event_time.FromMilliseconds(time_ms)
    for name, value in {**fresh, "customer_id": f"stranger-{number}"}.items():
        setattr(payment, name, value)
    return score_patiently(client, pb.ScoreRequest(transaction=payment), ())


def is_kept(system: System, page: Page, decision_id: str) -> bool:
    page.goto(f"http://127.0.0.1:{system.console.port}/cases/{decision_id}")
    return page.locator("#case").count() == 1


def is_shown(page: Page, line: Locator) -> bool:
    page.reload()
    return line.count() > 0
