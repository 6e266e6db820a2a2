"""From the queue to a changed model in a real browser, every role a process of its own."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fraud.v1 import decision_pb2, label_pb2
from fraud.v1 import fraud_service_pb2 as pb
from playwright.sync_api import Browser, Page, expect

from featurizer.eventlog import Topic
from featurizer.eventlog_file import FileEventLog
from fraudsvc.policy import DEFAULT_POLICY
from tests.browser import WIDE, browser_fixture  # noqa: F401 - as browser
from tests.conftest import (
    START_S,
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
BEFORE_MS = 60 * 86_400_000  # payments are of then on: of older ones no verdict is learnt
WATCHED = f"""
[[overrides]]
code = "WATCHED_DEVICES"
field = "device_id"
value = "{RING}"
until = 2099-01-01T00:00:00Z
action = "review"
"""


@pytest.fixture
def system(tmp_path: Path, trained: Trained) -> Iterator[System]:
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
    payments = Payments(start_ms=time.time_ns() // 1_000_000 - BEFORE_MS)
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
    page.keyboard.press("Enter")  # three keys from the queue to a verdict
    expect(page.locator("#holder")).to_have_text("me")
    has_status(page, "open")
    page.keyboard.press("f")
    page.keyboard.press("Enter")
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
    assert said[0].note == "stolen card"


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
