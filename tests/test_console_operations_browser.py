"""Access and operations in a real browser: sign-in, rollback, resend, what-if, every page."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.browser import axe_source, browser_fixture, shot  # noqa: F401 - fixtures
from tests.test_console_operations import Operated, operated_fixture  # noqa: F401 - fixtures
from trainer.shelf import Shelf

PAGES = ("/health", "/models", "/drift", "/rules?days=365", "/agreement?days=365", "/dead-letters",
         "/audit", "/what-if")  # fmt: skip
SEVERE = ("serious", "critical")
TIMEOUT_MS = 30_000


def arrived(
    browser: Browser, operated: Operated, name: str, role: str, theme: str = "light"
) -> tuple[BrowserContext, Page, list[str]]:
    """Sign somebody in by a link; return also what the browser complains of."""
    context = browser.new_context(color_scheme=theme, locale="en-GB")  # type: ignore[arg-type]
    context.set_default_timeout(TIMEOUT_MS)
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda each: said.append(each.text) if each.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: dialog.accept())
    page.goto(operated.place.link(name, role))
    return context, page, said


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_page_can_be_read_by_everyone(
    browser: Browser, operated: Operated, theme: str
) -> None:
    context, page, said = arrived(browser, operated, "ola", "operator", theme)
    for path in PAGES:
        page.goto(f"http://127.0.0.1:{operated.place.port}{path}")
        expect(page.locator("h1")).to_be_visible()
        assert said == [], f"{path}: blocked by our own policy, or broken"
        page.evaluate(axe_source())
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
        severe = [f"{each['id']}: {each['nodes'][0]['html'][:200]}" for each in found
                  if each["impact"] in SEVERE]  # fmt: skip
        assert severe == [], path
        shot(page, f"operations-{path.strip('/').partition('?')[0]}-{theme}")
    context.close()


def test_health_is_renewed_in_place(browser: Browser, operated: Operated) -> None:
    context, page, _ = arrived(browser, operated, "vi", "viewer")
    page.goto(f"http://127.0.0.1:{operated.place.port}/health")
    page.wait_for_selector(".tile-value", timeout=TIMEOUT_MS)
    page.evaluate("document.querySelector('.tile-value').id = 'old'")
    page.wait_for_selector("#old", state="detached", timeout=TIMEOUT_MS)
    assert page.locator(".tile-value").count() > 0
    context.close()


def test_a_model_is_rolled_back_and_a_letter_sent_again_by_buttons(
    browser: Browser, operated: Operated
) -> None:
    place, first, _ = operated
    context, page, said = arrived(browser, operated, "ola", "operator")
    page.goto(f"http://127.0.0.1:{place.port}/models")
    page.get_by_label("Reason").fill("it alerts on a good shop")
    context.clear_cookies()
    page.get_by_role("button", name="Roll back").click()
    expect(page.get_by_role("link", name="Sign in")).to_have_attribute(
        "href", "/sign-in?next=/models"
    )
    page.goto(place.link("ola", "operator"))
    page.goto(f"http://127.0.0.1:{place.port}/models")
    expect(page.get_by_label("Reason")).to_have_value("it alerts on a good shop")
    said.clear()  # of the request that was refused
    page.get_by_role("button", name="Roll back").click()
    expect(page.locator(".lead")).to_contain_text(first)
    expect(page.get_by_label("Reason")).to_have_value("")
    shelf = Shelf(place.data / "models", place.data / "bundle")
    assert shelf.served() == first
    page.goto(f"http://127.0.0.1:{place.port}/dead-letters")
    page.get_by_role("button", name="again").click()
    page.wait_for_load_state()
    page.wait_for_function(
        "async () => (await (await fetch('/dead-letters')).text()).includes('>sent<')"
    )
    page.get_by_role("button", name="Sign out").click()
    expect(page.locator("h1")).to_have_text("Sign in")
    page.goto(f"http://127.0.0.1:{place.port}/models")
    expect(page.locator("h1")).to_have_text("Sign in")
    assert said == []
    context.close()


def test_a_what_if_is_run_proposed_and_taken_live(browser: Browser, operated: Operated) -> None:
    policy = operated.place.data / "policy.toml"
    ada, page, said = arrived(browser, operated, "ada", "analyst")
    page.goto(f"http://127.0.0.1:{operated.place.port}/what-if")
    page.get_by_label("Review from").fill("0.4")
    page.get_by_label("Decline from").fill("0.9")
    page.get_by_role("button", name="See what would have been").click()
    page.wait_for_selector("[data-done]", timeout=240_000)
    expect(page.locator("text=Reviews a day: over capacity")).to_be_visible()
    shot(page, "what-if")
    page.get_by_label("Reason").fill("fewer reviews")
    page.get_by_role("button", name="Propose it").click()
    expect(page.locator(".state")).to_contain_text("proposed by ada")
    assert page.get_by_role("button", name="Take it live").count() == 0
    address = page.url
    bo, other, _ = arrived(browser, operated, "bo", "lead")
    other.goto(address)
    other.get_by_label("Reason").fill("agreed")
    other.get_by_role("button", name="Take it live").click()
    expect(other.locator(".state")).to_contain_text("decided by bo")
    assert "review = 0.4" in Path(policy).read_text()
    assert said == []
    ada.close()
    bo.close()
