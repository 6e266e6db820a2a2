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
    page.keyboard.press("Enter")
    expect(page.locator("#case")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollHeight") <= 900
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
    page.keyboard.press("Enter")
    expect(page.locator("#case")).to_be_visible()
    page.keyboard.press("f")
    page.keyboard.press("2")
    page.locator("#verdict textarea").fill("called, and it was not her")
    page.locator("#verdict [type=submit]").click()
    expect(page.locator("#verdict-error")).to_contain_text("The scorer does not answer")
    expect(page.locator("#verdict textarea")).to_have_value("called, and it was not her")
    expect(page.locator("#status")).to_have_text("open")
    context.close()
