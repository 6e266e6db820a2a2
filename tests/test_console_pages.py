"""The analysts' pages in a real browser, on a read model that was filled by hand."""

from __future__ import annotations

import contextlib
import csv
import io
import sqlite3
import time
from pathlib import Path

import numpy as np
from playwright.sync_api import Browser, BrowserContext, Page, expect

from fraudsvc.console.case_rows import case_of_row, entity_rows, row_of_decision
from fraudsvc.console.desk_command import DeskOptions
from fraudsvc.console.readmodel import LOG, Changes
from tests.browser import (  # noqa: F401 - fixtures
    PHONE,
    Console,
    axe_source,
    browser_fixture,
    console_fixture,
    serving,
    shot,
    signed_in,
)
from tests.console_world import a_decision, a_label


def losses(page: Page) -> list[float]:
    cells = page.locator("#cases tbody tr td:first-child").all_inner_texts()
    return [float(text.replace(",", "")) for text in cells]


def test_the_queue_shows_what_may_cost_most_first(browser: Browser, console: Console) -> None:
    context, page = signed_in(browser, console)
    seen = losses(page)
    assert len(seen) == 50
    assert seen == sorted(seen, reverse=True)
    page.locator("#more").click()
    expect(page.locator("#cases")).to_be_visible()
    assert losses(page)[0] <= seen[-1]
    page.goto(f"{console.url}/queue")
    shot(page, "queue-light")
    context.close()


def open_first(page: Page) -> None:
    """Open the first case by a key, and wait until the next key is heard."""
    page.keyboard.press("Enter")
    expect(page.locator("#case")).to_be_visible()
    page.wait_for_function("document.readyState === 'complete'")


def test_a_case_is_on_one_screen(browser: Browser, console: Console) -> None:
    context, page = signed_in(browser, console)
    open_first(page)
    shot(page, "case-light")
    page.keyboard.press("t")
    shot(page, "case-dark")
    context.close()


SEVERE = ("serious", "critical")


def faults(page: Page) -> list[str]:
    """Return what axe-core finds on a page that is serious or worse."""
    page.evaluate(axe_source())
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{each['id']}: {each['nodes'][0]['html'][:160]}"
        for each in found["violations"] if each["impact"] in SEVERE
    ]  # fmt: skip


def test_nothing_is_hard_to_read_in_either_theme(browser: Browser, console: Console) -> None:
    for theme in ("light", "dark"):
        context, page = signed_in(browser, console, color_scheme=theme)
        case = page.locator("#cases a").first.get_attribute("href")
        for path in ("/queue", case, "/verdicts", "/nowhere"):
            page.goto(f"{console.url}{path}")
            assert faults(page) == [], f"{theme} {path}"
        page.goto(f"{console.url}{case}")
        page.keyboard.press("f")
        assert faults(page) == [], f"{theme} verdict"
        context.close()


def test_a_phone_shows_all_without_scrolling_sideways(browser: Browser, console: Console) -> None:
    context, page = signed_in(browser, console, viewport=PHONE, is_mobile=True, has_touch=True)
    case = page.locator("#cases a").first.get_attribute("href")
    for path in ("/queue", case):
        page.goto(f"{console.url}{path}")
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= PHONE["width"], path
        shot(page, f"phone-{'queue' if path == '/queue' else 'case'}")
    context.close()


def test_a_case_needs_no_scrolling_at_1440_by_900(browser: Browser, console: Console) -> None:
    context, page = signed_in(browser, console)
    open_first(page)
    assert page.evaluate("document.documentElement.scrollHeight") <= 900
    page.keyboard.press("f")
    for part in (".case-money", ".figures", "#hits-title", "#model-title", "#graph-title",
                 "#timeline-title", "#similar-title", "#verdict [type=submit]"):  # fmt: skip
        expect(page.locator(part)).to_be_in_viewport(ratio=1)
    context.close()


def test_two_analysts_never_hold_one_case(browser: Browser, console: Console) -> None:
    one, first = signed_in(browser, console, "ada")
    two, second = signed_in(browser, console, "grace")
    case = first.locator("#cases td:first-child a").nth(5).get_attribute("href")
    first.goto(f"{console.url}{case}")
    expect(first.locator("#holder")).to_have_text("me")
    second.goto(f"{console.url}{case}")
    expect(second.locator("#holder")).to_have_text("ada")
    assert second.locator("[data-verdict]").count() == 0
    first.keyboard.press("r")
    expect(first.locator("#cases")).to_be_visible()
    second.reload()
    expect(second.locator("#holder")).to_have_text("me")
    # Next never gives both the same.
    for page in (first, second):
        page.goto(f"{console.url}/queue")
        page.keyboard.press("n")
        expect(page.locator("#case")).to_be_visible()
    assert first.url != second.url
    one.close()
    two.close()


def test_filters_are_links_and_what_makes_no_sense_is_said(
    browser: Browser, console: Console
) -> None:
    context, page = signed_in(browser, console)
    page.goto(f"{console.url}/queue?code=MANY_SMALL_PAYMENTS&from=100")
    reasons = page.locator("#cases tbody tr td.codes").all_inner_texts()
    assert reasons
    assert all("many small payments" in each for each in reasons)
    page.goto(f"{console.url}/queue?from=cheap")
    expect(page.get_by_role("alert")).to_contain_text("is no number")
    page.goto(f"{console.url}/queue?merchant=nobody")
    expect(page.locator(".empty")).to_contain_text("No open case is like this")
    page.keyboard.press("x")
    expect(page.locator("#cases")).to_be_visible()
    for path in ("/queue?after=%%%", "/cases/none", "/nowhere"):
        page.goto(f"{console.url}{path}")
        expect(page.locator(".message h1")).to_be_visible()
    context.close()


def test_a_verdict_that_cannot_be_sent_is_not_lost(browser: Browser, console: Console) -> None:
    context, page = signed_in(browser, console)
    open_first(page)
    page.keyboard.press("f")
    page.keyboard.press("2")
    page.locator("#verdict textarea").fill("called, and it was not her")
    page.locator("#verdict [type=submit]").click()
    expect(page.locator("#verdict-error")).to_contain_text("The scorer does not answer")
    expect(page.locator("#verdict textarea")).to_have_value("called, and it was not her")
    expect(page.locator("#status")).to_have_text("open")
    context.close()


def test_what_is_typed_outlives_the_session(browser: Browser, console: Console) -> None:
    context, page = signed_in(browser, console)
    open_first(page)
    case = page.url
    page.keyboard.press("f")
    page.locator("#verdict textarea").fill("called, and it was not her")
    context.clear_cookies()
    page.locator("#verdict [type=submit]").click()
    expect(page.locator("#verdict-error")).to_contain_text("Your session ran out")
    page.get_by_role("button", name="Sign in").click()
    expect(page.locator("pre")).to_contain_text(f"--next {case.removeprefix(console.url)}")
    page.goto(console.link("ada"))
    page.goto(case)
    expect(page.locator(".toast")).to_contain_text("is in its form again")
    page.keyboard.press("f")
    expect(page.locator("#verdict textarea")).to_have_value("called, and it was not her")
    page.goto(console.link("grace"))
    page.goto(case)
    expect(page.locator("#verdict textarea")).to_have_value("")
    context.close()


def test_queue_and_verdicts_are_taken_away(browser: Browser, console: Console) -> None:
    context, page = signed_in(browser, console)
    query = "code=MANY_SMALL_PAYMENTS&from=100"
    page.goto(f"{console.url}/queue?{query}")
    count = page.locator("#cases tbody tr").count()
    assert count
    assert (
        page.get_by_role("link", name="CSV").get_attribute("href") == f"/queue?{query}&format=csv"
    )
    rows = taken(context, f"{console.url}/queue?{query}&format=csv")
    assert len(rows) == count
    assert all("MANY_SMALL_PAYMENTS" in row["codes"] for row in rows)
    losses = [float(row["expected_loss"]) for row in rows]
    assert losses == sorted(losses, reverse=True)
    said = taken(context, f"{console.url}/verdicts?format=csv")
    assert {row["reporter"] for row in said} == {"grace"}
    assert {row["verdict"] for row in said} == {"fraud", "legitimate"}
    context.close()


def taken(context: BrowserContext, url: str) -> list[dict[str, str]]:
    answer = context.request.get(url)
    assert "attachment" in answer.headers["content-disposition"]
    return list(csv.DictReader(io.StringIO(answer.text())))


SCRIPT = "<script>window.ran=1</script><img src=x onerror=window.ran=1>\"'><b>{{7*7}}"


def test_text_of_a_payment_is_never_run(browser: Browser, console: Console) -> None:
    now_ms = time.time_ns() // 1_000_000
    texts = ("customer_id", "transaction_id", "device_id", "ip_address", "terminal_id")
    logged = a_decision(
        5_000, now_ms, np.random.default_rng(1), **dict.fromkeys(texts, SCRIPT)
    )  # fmt: skip
    payment = logged.decision.transaction
    payment.merchant.merchant_id = payment.card.token = payment.email.domain = SCRIPT
    payment.amount_minor = 99_000_000
    for reason in logged.decision.assessment.reasons:
        reason.code = reason.text = SCRIPT
    row = {**row_of_decision(logged, SCRIPT[:16]), "expected_loss": 1e9, "model_version": SCRIPT}
    label = a_label(row, 9_999, now_ms, 1, reporter=SCRIPT, note=SCRIPT)
    changes = Changes(
        decisions=[row], cases=[case_of_row(row, logged)], entities=entity_rows(logged.decision),
        labels=[label],
    )  # fmt: skip
    console.model.write(changes, LOG)
    context, page = signed_in(browser, console)
    for path in ("/queue", f"/cases/{row['decision_id']}", "/verdicts"):
        page.goto(f"{console.url}{path}")
        expect(page.locator("main")).to_contain_text("<script>window.ran=1</script>")
        assert page.evaluate("window.ran") is None, path
        assert page.locator("main b").count() == 0
    console.model.write(Changes(opened={row["decision_id"]: False}), LOG)
    context.close()


def test_what_is_new_is_said_and_moves_nothing(browser: Browser, console: Console) -> None:
    context, page = signed_in(browser, console)
    seen = losses(page)
    now_ms = time.time_ns() // 1_000_000
    logged = a_decision(6_000, now_ms + 500, np.random.default_rng(2))
    row = {**row_of_decision(logged, "outcome"), "expected_loss": 5e6}
    console.model.write(Changes(decisions=[row], cases=[case_of_row(row, logged)]), LOG)
    expect(page.locator("#live")).to_contain_text("1 new cases")
    assert losses(page) == seen
    page.keyboard.press(".")
    expect(page.locator("#cases tbody tr").first).to_contain_text("5,000,000.00")
    context.close()


def test_a_database_that_is_gone_is_said(browser: Browser, tmp_path: Path) -> None:
    with serving(tmp_path, DeskOptions(scorer="127.0.0.1:1"), count=40) as made:
        context, page = signed_in(browser, made)
        case = page.locator("#cases a").first.get_attribute("href")
        made.model.close()
        for each in tmp_path.glob("readmodel.sqlite*"):
            each.unlink()
        (tmp_path / "readmodel.sqlite").write_bytes(b"no database" * 1000)
        for path in ("/queue", case, "/verdicts"):
            page.goto(f"{made.url}{path}")
            expect(page.locator(".message")).to_contain_text("Nothing was changed")
        context.close()


def test_a_locked_database_is_said_and_nothing_is_lost(browser: Browser, console: Console) -> None:
    context, page = signed_in(browser, console)
    case = page.locator("#cases a").nth(12).get_attribute("href")
    with contextlib.closing(sqlite3.connect(console.folder / "readmodel.sqlite")) as other:
        other.execute("BEGIN EXCLUSIVE")
        page.goto(f"{console.url}{case}")  # which would claim it
        expect(page.locator(".message")).to_contain_text("database is locked")
        expect(page.locator(".message")).to_contain_text("Nothing was changed")
        page.goto(f"{console.url}/queue")
        expect(page.locator("#cases")).to_be_visible()
    page.goto(f"{console.url}{case}")
    expect(page.locator("#holder")).to_have_text("me")
    context.close()


def test_a_log_that_is_ahead_is_said(browser: Browser, tmp_path: Path) -> None:
    behind = {"status": "ok", "behind_seconds": 130.0}
    with serving(tmp_path, DeskOptions(scorer="127.0.0.1:1"), health=behind) as made:
        context, page = signed_in(browser, made)
        expect(page.get_by_role("status").first).to_contain_text("2 min ahead of what is shown")
        context.close()
