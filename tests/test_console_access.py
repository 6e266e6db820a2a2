"""Who may into the console, and what of it is told afterwards: a console of its own, real HTTP."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fraud.v1 import audit_event_pb2

from featurizer.eventlog import Entry, Topic
from featurizer.eventlog_file import FileEventLog
from fraudsvc.console.access import RULES, role_of, roles_up_to
from fraudsvc.console.audit import LEFT_OUT, AuditTrail
from fraudsvc.console.person import ROLES, Person
from fraudsvc.console.sessions import Sessions
from fraudsvc.console.sign_in import Tries
from tests.conftest import read_all, until
from tests.consoles import Client, Place, console, path_of

IDLE_S = 0.5
TEST_CARD = "4111 1111 1111 1111"


@pytest.fixture(scope="module", name="place")
def place_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with console(tmp_path_factory.mktemp("access") / "data", "--tries-a-minute", "1000") as made:
        yield made


def trail_of(log: FileEventLog) -> list[audit_event_pb2.AuditEvent]:
    entries = [each for each in read_all(log) if each.topic == Topic.AUDIT]
    return [audit_event_pb2.AuditEvent.FromString(each.value) for each in entries]


def told(place: Place) -> list[tuple[str, str, str]]:
    log = place.log()
    found = [(each.person, each.what, each.entity) for each in trail_of(log)]
    log.close()
    return found


def test_a_link_lets_in_once(place: Place) -> None:
    link, first, second = place.link("ada", "lead"), Client(place.port), Client(place.port)
    # when two open it
    answers = [first.get(path_of(link)), second.get(path_of(link))]
    # then one is in, by a cookie that scripts cannot read, and the other is told why not
    assert [each.status for each in answers] == [303, 403]
    cookie = answers[0].headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert first.get("/sign-in").status == 200
    assert "used already" in answers[1].text
    assert first.csrf("/nowhere")
    assert not second.csrf("/nowhere")
    assert ("ada", "sign in", "session") in told(place)
    secrets = [each for each in (place.home / "links").rglob("*") if each.is_file()]
    assert all(stat.S_IMODE(each.stat().st_mode) == 0o600 for each in secrets)
    assert stat.S_IMODE(place.home.stat().st_mode) == 0o700


def test_the_command_makes_links_and_tokens(place: Place) -> None:
    def run(*more: str) -> str:
        argv = [sys.executable, "-m", "fraudsvc", *more, "--log", f"file://{place.data}/log"]
        done = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60)
        return done.stdout.strip()

    client = Client(place.port)
    answer = client.get(path_of(run("console-link", "--name", "bo", "--next", "/audit?limit=7")))
    assert (answer.status, answer.headers["location"]) == (303, "/audit?limit=7")
    token = run("console-token", "--name", "prometheus")
    api = Client(place.port).get("/api/decisions", authorization=f"Bearer {token}")
    assert (api.status, json.loads(api.text)["decisions"]) == (200, [])
    assert ("prometheus", "list decisions", "api") in told(place)


def test_a_link_that_is_too_old_lets_nobody_in(place: Place) -> None:
    link = place.link("late", "viewer")
    for path in (place.home / "links").iterdir():
        content = json.loads(path.read_text())
        if content["name"] == "late":
            path.write_text(json.dumps({**content, "until_s": 1}))
    assert Client(place.port).get(path_of(link)).status == 403


def test_a_stranger_is_brought_to_sign_in_and_back(place: Place) -> None:
    client = Client(place.port)
    answer = client.get("/models?a=b")
    assert (answer.status, answer.headers["location"]) == (303, "/sign-in?next=/models%3Fa%3Db")
    assert "console-link --next /models?a=b" in client.get(answer.headers["location"]).text
    for path in ("/api/decisions", "/api/traces/x", "/queue"):
        refusal = client.ask("GET", path, {"accept": "application/json"})
        assert (refusal.status, "SIGN_IN_NEEDED" in refusal.text) == (401, True), path
    assert client.get("/healthz").status == 200
    assert client.get("/metrics").status == 200
    for evil in ("//evil.example", "https://evil.example", "/\\evil.example"):
        link = path_of(place.link("ada", "viewer"))
        assert client.get(f"{link}&next={evil}").headers["location"] == "/queue"


def test_a_session_ends_and_says_so(tmp_path: Path) -> None:
    with console(tmp_path / "data", "--idle-minutes", str(IDLE_S / 60)) as place:
        client = place.signed_in()
        time.sleep(IDLE_S + 0.1)  # each request would begin the wait again
        answer = client.get("/models")
        assert answer.headers["location"] == "/sign-in?next=/models&ended=1"
        assert "Your session has ended" in client.get(answer.headers["location"]).text
        late = client.post("/models/promote", "/sign-in", model="m", reason="r")
        assert (late.status, "nothing was changed" in late.text) == (401, True)


def test_sessions_outlive_a_restart_but_not_their_end(tmp_path: Path) -> None:
    now_s, ada = 1_000_000.0, Person("ada", frozenset(ROLES[:2]))

    def opened() -> Sessions:
        return Sessions(tmp_path / "s", 100.0, 250.0, lambda: now_s)

    made = opened().begin(ada)
    for step_s in (90.0, 90.0):
        now_s += step_s
        session = opened().find(made)
        assert session is not None
        assert session.person == ada
    now_s += 80.0
    assert opened().find(made) is None, "ended in all, though used a moment ago"
    made = opened().begin(ada)
    now_s += 101.0
    assert opened().find(made) is None, "idle"
    made = opened().begin(ada)
    now_s -= 1_000.0
    assert opened().find(made) is None, "a clock that was set back makes no session longer"
    made = opened().begin(ada)
    opened().end(made)
    assert opened().find(made) is None


def test_a_form_of_another_site_changes_nothing(place: Place) -> None:
    client = place.signed_in()
    form = {"content-type": "application/x-www-form-urlencoded"}
    stolen = place.signed_in("eve", "operator").csrf("/nowhere")
    own = client.csrf("/nowhere")
    for headers, body in (
        (form, ""),
        (form, f"csrf={stolen}"),
        ({**form, "origin": "https://evil.example"}, f"csrf={own}"),
        ({"content-type": "text/plain"}, f"csrf={own}"),
    ):
        answer = client.ask("POST", "/sign-out", headers, body)
        assert (answer.status, "not of this session" in answer.text) == (403, True), headers
    assert client.ask("POST", "/sign-out", form, "x" * (1 << 21)).status == 413
    assert client.csrf("/nowhere") == own, "still signed in"
    assert client.ask("POST", "/sign-out", {"x-csrf-token": own}).status == 303
    assert not client.csrf("/nowhere")


def test_roles_are_least_for_each_path(place: Place) -> None:
    for role, path in (("viewer", "/models/promote"), ("lead", "/models/promote"),
                       ("analyst", "/dead-letters/resend")):  # fmt: skip
        refusal = place.signed_in("bo", role).post(path, "/nowhere")
        assert (refusal.status, "wants the role" in refusal.text) == (403, True), path
    assert place.signed_in("bo", "analyst").get("/audit").status == 403
    assert role_of("POST", "/anything/new") == "analyst", "what no row names"
    assert role_of("GET", "/anything/new") == "viewer"
    assert {rule.role for rule in RULES} <= {"", *ROLES}
    assert roles_up_to({"lead"}) == {"viewer", "analyst", "lead"}
    assert roles_up_to(()) == frozenset()


def test_another_name_is_refused_as_another_site_would_give_itself_ours(place: Place) -> None:
    client = place.signed_in()
    for host, status in (("evil.example", 421), ("", 421), ("localhost", 303)):
        assert client.ask("GET", "/", {"host": host}).status == status, host
    assert client.ask("GET", "/metrics", {"host": "console-h1:8080"}).status == 200


def test_every_answer_forbids_what_is_not_ours(place: Place) -> None:
    client = place.signed_in()
    for path in ("/", "/sign-in", "/nowhere", "/audit", "/api/decisions", "/metrics"):
        answer = client.get(path)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy, path
        assert "script-src 'self';" in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        for tag in re.findall(r"<script[^>]*>", answer.text):
            assert "src=" in tag, f"an inline script on {path}"
        assert not re.search(r"<[^>]+\son[a-z]+=|<[^>]+\sstyle=|<style", answer.text), path


def test_tries_to_sign_in_are_bounded(tmp_path: Path) -> None:
    with console(tmp_path / "data", "--tries-a-minute", "3") as place:
        client = Client(place.port)
        answers = [client.get("/sign-in/link?token=guess") for _ in range(4)]
        assert [each.status for each in answers] == [403, 403, 403, 429]
        assert 0 < int(answers[-1].headers["retry-after"]) <= 60
    now_s = 0.0
    tries = Tries(2, lambda: now_s)
    assert [tries.wait_s(f"a{n}") for n in range(20)] == [0.0] * 20
    assert tries.wait_s("another") == 60.0, "all addresses together are bounded too"
    now_s = 61.0
    assert tries.wait_s("another") == 0.0


def test_the_trail_holds_no_card_number_and_survives_a_rebuild(tmp_path: Path) -> None:
    data = tmp_path / "data"
    ada = Person("ada", frozenset({"viewer", "lead"}))
    log = FileEventLog(data / "log")
    trail = AuditTrail(log.append, lambda: 1_700_000_000_000)
    trail.audit(ada, "read case", "d-1")
    trail.audit(ada, "label", "d-1", "none", "fraud", f"they used {TEST_CARD}")
    assert [each.why for each in trail_of(log)] == ["", LEFT_OUT]
    log.append([[Entry(Topic.AUDIT, 0, b"")]])  # of a version that tells less
    log.close()
    for more in ((), ("--rebuild",)):
        with console(data, *more) as place:
            client = place.signed_in()
            until(lambda client=client: "read case" in client.get("/audit").text, "the trail")  # type: ignore[misc]
            assert TEST_CARD not in client.get("/audit").text
