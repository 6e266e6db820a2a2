"""Sign-in at a real OpenID provider: npm's oidc-provider, a console, and what goes between."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from playwright.sync_api import Browser, expect

from deploy.testing.oidc_provider import CLIENT, SECRET, OidcProvider, provider_missing
from fraudsvc.console.oidc import SKEW_S, Attempt, Oidc, OidcError, OidcSettings, roles_of
from tests.browser import browser_fixture  # noqa: F401 - fixture
from tests.conftest import free_port
from tests.consoles import Client, Place, console, path_of
from tests.servers import need
from tests.test_console_access import told

ACCOUNTS: dict[str, dict[str, Any]] = {
    "ada": {"roles": ["fraud-leads", "staff"]},
    "bo": {"roles": "analyst"},
    "eve": {"roles": ["staff"]},
}


class Both(NamedTuple):
    """A provider and a console that trusts it."""

    provider: OidcProvider
    place: Place


@pytest.fixture(scope="module", name="both")
def both_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    need(provider_missing())
    folder, port = tmp_path_factory.mktemp("oidc"), free_port()
    secret = folder / "secret"
    secret.write_text(SECRET + "\n")
    url = f"http://127.0.0.1:{port}"
    with (
        OidcProvider(folder, f"{url}/sign-in/callback", ACCOUNTS) as provider,
        console(
            folder / "data", "--http", f"127.0.0.1:{port}", "--public-url", url,
            "--oidc-issuer", provider.issuer, "--oidc-client", CLIENT,
            "--oidc-secret-file", str(secret), "--oidc-roles", "lead=fraud-leads",
            "--tries-a-minute", "1000",
        ) as place,
    ):  # fmt: skip
        yield Both(provider, place)


def approve(url: str, login: str) -> str:
    """Sign in at the provider as a person would; return where it sends the browser."""
    with httpx.Client(timeout=30.0) as browser:
        answer = browser.get(url)
        for _ in range(12):
            there: str = answer.headers.get("location", "")
            if "/sign-in/callback" in there:
                return there
            if there:
                answer = browser.get(str(answer.url.join(there)))
                continue
            action = re.search(r'action="([^"]+)"', answer.text)
            prompt = re.search(r'name="prompt" value="(\w+)"', answer.text)
            assert action is not None, answer.text
            assert prompt is not None
            form = {"prompt": prompt[1], "login": login, "password": "x"}
            answer = browser.post(action[1], data=form)
    raise AssertionError("the provider sends nobody back")


def sign_in(client: Client, login: str, there: str = "/audit") -> Any:
    sent = client.get(f"/sign-in/oidc?next={there}")
    assert sent.status == 303
    return client.get(path_of(approve(sent.headers["location"], login)))


def test_a_person_signs_in_and_is_back_where_they_were(both: Both) -> None:
    client = Client(both.place.port)
    page = client.get("/sign-in?next=/audit").text
    assert "/sign-in/oidc?next=/audit" in page
    assert "console-link" not in page
    answer = sign_in(client, "ada")
    assert (answer.status, answer.headers["location"]) == (303, "/audit")
    assert client.get("/audit").status != 403, "a lead, by the provider's own word for it"
    assert client.post("/models/promote", "/nowhere").status == 403, "but no operator"
    assert ("ada", "sign in", "session") in told(both.place)
    output = "".join(p.read_text() for p in both.place.data.parent.glob("console-*"))
    assert SECRET not in output
    assert "sign-in/link" not in output, "no link where a provider lets people in"


def test_a_browser_is_led_there_and_back(browser: Browser, both: Both) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"http://127.0.0.1:{both.place.port}/drift")
    page.locator("#provider").click()
    page.locator("input[name=login]").fill("ada")
    page.locator("input[name=password]").fill("x")
    page.locator("button[type=submit]").click()
    page.locator("button[type=submit]").click()  # what the console may know
    expect(page.locator("h1")).to_have_text("Drift")
    expect(page.locator(".person")).to_have_text("ada")
    assert context.cookies()[0]["httpOnly"]
    page.locator("#sign-out").click()
    expect(page.locator("#provider")).to_be_visible()
    context.close()


def test_roles_come_from_the_claim(both: Both) -> None:
    client = Client(both.place.port)
    sign_in(client, "bo")
    assert client.get("/audit").status == 403
    stranger = sign_in(Client(both.place.port), "eve")
    assert (stranger.status, "eve has no role here" in stranger.text) == (403, True)
    assert "fraud_session=" not in stranger.headers.get("set-cookie", "")


def test_the_answer_to_another_sign_in_is_refused(both: Both) -> None:
    mine, hers = Client(both.place.port), Client(both.place.port)
    first = mine.get("/sign-in/oidc").headers["location"]
    hers.get("/sign-in/oidc")
    back = path_of(approve(first, "ada"))
    for client in (hers, Client(both.place.port)):  # another browser, and one that began nothing
        answer = client.get(back)
        assert answer.status in (400, 403)
        assert "Nobody was signed in" in answer.text
    asked = parse_qs(urlsplit(first).query)
    assert asked["code_challenge_method"] == ["S256"]
    assert len(asked["nonce"][0]) >= 43
    assert mine.get(back).status == 303
    assert mine.get(back).status in (400, 403), "a code counts once"


def oidc_of(both: Both, late_s: float = 0.0) -> Oidc:
    callback = f"http://127.0.0.1:{both.place.port}/sign-in/callback"
    settings = OidcSettings(both.provider.issuer, CLIENT, SECRET, callback)
    assert SECRET not in repr(settings)
    return Oidc(settings, lambda: time.time() + late_s)


def finished(oidc: Oidc, login: str = "bo", **other: str) -> Any:
    attempt = oidc.begin()
    query = parse_qs(urlsplit(approve(attempt.url, login)).query)
    answer = {name: values[0] for name, values in query.items()}
    changed: Attempt = attempt._replace(**{k: v for k, v in other.items() if k in Attempt._fields})
    answer |= {name: value for name, value in other.items() if name == "iss"}
    return oidc.finish(changed, answer)


def test_only_what_was_asked_for_is_believed(both: Both) -> None:
    assert finished(oidc_of(both)).roles == {"viewer", "analyst"}
    for other, message in (
        ({"nonce": "another"}, "nonce"),
        ({"verifier": "x" * 43}, "grant"),
        ({"state": "another"}, "not to the sign-in"),
        ({"iss": "https://evil.example"}, "another provider"),
    ):
        with pytest.raises(OidcError, match=message):
            finished(oidc_of(both), **other)


def test_clocks_may_differ_a_little(both: Both) -> None:
    assert finished(oidc_of(both, late_s=-SKEW_S / 2)).name == "bo"
    for late_s, message in ((-10 * SKEW_S, "future"), (86_400.0, "expired")):
        with pytest.raises(OidcError, match=message):
            finished(oidc_of(both, late_s=late_s))


def test_a_provider_that_is_gone_is_told_of(tmp_path: Path) -> None:
    gone, url = f"http://127.0.0.1:{free_port()}", "http://127.0.0.1:1/sign-in/callback"
    with console(
        tmp_path / "data", "--public-url", url, "--oidc-issuer", gone, "--oidc-client", "c"
    ) as place:
        answer = Client(place.port).get("/sign-in/oidc")
        assert (answer.status, "does not answer" in answer.text) == (502, True)
    with pytest.raises(ValueError, match="https"):
        OidcSettings("http://provider.example", "c", "s", url)
    with pytest.raises(ValueError, match="ROLE=WORD"):
        roles_of("chief=fraud-chiefs")
