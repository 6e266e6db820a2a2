"""The analysts' pages in a real browser, on a read model that was filled by hand."""

from __future__ import annotations

from playwright.sync_api import Browser, Page, expect

from tests.browser import (  # noqa: F401 - fixtures
    PHONE,
    Console,
    axe_source,
    browser_fixture,
    console_fixture,
    shot,
    signed_in,
)


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


def test_a_case_is_on_one_screen(browser: Browser, console: Console) -> None:
    context, page = signed_in(browser, console)
    page.keyboard.press("Enter")
    expect(page.locator("#case")).to_be_visible()
    shot(page, "case-light")
    page.keyboard.press("t")
    shot(page, "case-dark")
    context.close()
