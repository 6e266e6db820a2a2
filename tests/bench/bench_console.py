"""How fast the analysts' pages are with 1,000,000 decisions, of which 20,000 are open cases.

In SQLite, and in PostgreSQL where it is installed, over HTTP, from the request to the last byte.
The open cases are whole, bodies and things that they share included; the rest are plain approvals
without a body, as no page of the queue reads one.

And how long after its answer a payment that is to be reviewed is in the queue: a scorer and a
console as processes of their own on that read model, asked by gRPC and by HTTP.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from fraud.v1 import decision_pb2, fraud_service_pb2
from sqlalchemy import text

from fraudsvc.console.case_rows import REVIEW, case_of_row, entity_rows, row_of_decision
from fraudsvc.console.credentials import Credentials
from fraudsvc.console.desk_command import DeskOptions
from fraudsvc.console.person import ROLES, Person
from fraudsvc.console.readmodel import LOG, Changes, ReadModel
from fraudsvc.policy import DEFAULT_POLICY
from tests import consoles
from tests.bench.claims import claim
from tests.browser import Console, serving
from tests.conftest import Payments, connected, free_port, process, score_patiently
from tests.console_world import JOURNAL, Logged, a_decision, a_label
from tests.test_readmodel import postgres

DECISIONS, CASES, LABELLED = 1_000_000, 20_000, 5_000
CHUNK, ASKED, WARM, DISTINCT = 2_000, 100, 10, 1_000
P95_MS_MAX = 150.0
ARRIVALS, ARRIVED_MS_MAX, LOOK_S = 20, 2_000.0, 0.1
WATCHED = """
[[overrides]]
code = "WATCHED_DEVICE"
field = "device_id"
value = "watched"
until = 2099-01-01T00:00:00Z
action = "review"
"""
FILTERS = ("", "?code=MANY_SMALL_PAYMENTS", "?channel=2&from=50", "?merchant=merchant-3&age=older")


_NUMBERS = "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < {last}) "
_PLAIN = """INSERT INTO decisions SELECT '2-' || CAST(n.i AS text), n.i, 't-' || CAST(n.i AS text),
 {now} - 1500 * CAST(n.i AS bigint), 1, d.rung, d.score, d.expected_loss, d.amount_minor,
 d.currency_code, 'q-' || CAST(n.i AS text), 'c-' || CAST(n.i % 60000 AS text), d.merchant_id,
 d.model_version, d.policy_version, d.used_ns, d.kept, d.codes, {false}, {empty}
 FROM n, decisions d WHERE d.decision_id = '{like}'"""
_SHARED = """INSERT INTO decision_entities SELECT {kind}, 'v-{kind}-' || CAST(n.i % 40000 AS text),
 {now} - 1500 * CAST(n.i AS bigint), '2-' || CAST(n.i AS text) FROM n"""
KINDS = (1, 3, 4, 5, 6)


def fill_many(
    model: ReadModel, now_ms: int, decisions: int, cases: int, *, is_postgres: bool
) -> list[str]:
    """Write open cases with all that they have, and plain approvals up to so many decisions."""
    changes, ids = Changes(), []
    for number, logged in enumerate(_open_cases(now_ms, 1_500 * (decisions // cases), cases)):
        time_ms = logged.decision.receive_time.ToMilliseconds()
        row = row_of_decision(logged, "outcome")
        changes.decisions.append(row)
        changes.cases.append(case_of_row(row, logged))
        changes.entities += entity_rows(logged.decision)
        ids.append(row["decision_id"])
        if number % (cases // LABELLED or 2) == 1 and len(changes.labels) < LABELLED:
            changes.labels.append(a_label(row, number, time_ms + 1_000, 1 + number % 2))
        if len(changes.decisions) == CHUNK:
            model.write(changes, LOG, JOURNAL, number)
            changes = Changes()
    model.write(changes, LOG, JOURNAL, cases)
    told = {
        "now": now_ms, "like": ids[0], "false": "false" if is_postgres else "0",
        "empty": "''::bytea" if is_postgres else "x''",
    }  # fmt: skip
    numbers = _NUMBERS.format(last=decisions - cases - 1)
    _into(model, _PLAIN.format(**told), numbers)
    for kind in KINDS:
        _into(model, _SHARED.format(kind=kind, **told), numbers)
    model.change(text("ANALYZE"))
    return ids


def _open_cases(now_ms: int, step_ms: int, count: int) -> Iterator[Logged]:
    """Yield cases, the newest first, of DISTINCT vectors and payments: to draw each takes long."""
    rng = np.random.default_rng(5)
    drawn = [a_decision(number, now_ms, rng) for number in range(min(count, DISTINCT))]
    for number in range(count):
        logged = drawn[number % DISTINCT]
        decision = decision_pb2.Decision.FromString(logged.decision.SerializeToString())
        told, payment = decision.assessment, decision.transaction
        told.decision_id = f"00000000-0000-8000-8000-{number:012x}"
        told.trace_id = f"{number + 1:032x}"
        payment.transaction_id = f"pay-{number:06d}"
        payment.device_id = f"v-4-{number % 40_000}"
        decision.receive_time.FromMilliseconds(now_ms - number * step_ms)
        yield Logged(decision, logged.record, number + 1)


def _into(model: ReadModel, statement: str, numbers: str) -> None:
    """Run an INSERT … SELECT over numbers."""
    table, _, chosen = statement.partition(" SELECT ")
    model.change(text(f"{table} {numbers} SELECT {chosen}"))


def _asked_ms(console: Console, token: str, paths: list[str]) -> list[float]:
    took = []
    for path in paths:
        headers = {"authorization": f"Bearer {token}", "accept": "text/html"}
        request = urllib.request.Request(console.url + path, headers=headers)  # noqa: S310 - ours
        begin = time.perf_counter()
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - as above
            answer.read()
        took.append((time.perf_counter() - begin) * 1e3)
    return took[WARM:]


@contextlib.contextmanager
def _url(kind: str, folder: Path) -> Iterator[str]:
    if kind == "SQLite":
        yield f"sqlite:///{folder}/readmodel.sqlite"
        return
    with postgres(folder) as url:
        yield url


def _measured(kind: str, decisions: int, cases: int) -> list[dict[str, Any]]:
    folder = Path(tempfile.mkdtemp())
    now_ms = time.time_ns() // 1_000_000
    try:
        with _url(kind, folder) as url:
            model = ReadModel(url)
            model.migrate()
            begin = time.monotonic()
            ids = fill_many(model, now_ms, decisions, cases, is_postgres=kind != "SQLite")
            print(f"{kind}: filled in {time.monotonic() - begin:.0f} s", file=sys.stderr)
            model.close()
            with serving(folder, DeskOptions(scorer="127.0.0.1:1"), url, count=1) as console:
                person = Person("bench", frozenset(ROLES))
                token = Credentials(console.home).new_token(person)
                size = f"{decisions:,} decisions, {cases:,} open"
                found = _rows(kind, console, token, ids, size)
            return [*found, *_arrival_rows(kind, folder, url, size)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _rows(
    kind: str, console: Console, token: str, ids: list[str], size: str
) -> list[dict[str, Any]]:
    rng = np.random.default_rng(9)
    some = [ids[i] for i in rng.choice(len(ids), ASKED + WARM, replace=False).tolist()]
    asked = {
        "queue": [f"/queue{FILTERS[n % len(FILTERS)]}" for n in range(ASKED + WARM)],
        "case": [f"/cases/{each}" for each in some],
    }
    found = []
    for page, paths in asked.items():
        took = _asked_ms(console, token, paths)
        for name, share, bound in (("p50", 50, None), ("p95", 95, P95_MS_MAX)):
            value = round(float(np.percentile(took, share)), 1)
            what = f"{page} page {name}, {kind}, {size}"
            found.append(claim(what, value, "ms", at_most=bound))
    return found


def _arrival_rows(kind: str, folder: Path, url: str, size: str) -> list[dict[str, Any]]:
    """Run a scorer and a console; return how long after its answer a case is in the queue."""
    data, address = folder / "up", f"127.0.0.1:{free_port()}"
    data.mkdir()
    policy = data / "policy.toml"
    policy.write_text(DEFAULT_POLICY.read_text() + WATCHED)
    with process(
        folder / "up.output", "fraudsvc", "up", "--data", str(data), "--address", address,
        "--policy", str(policy), "--max-age-days", "0", "--console", "",
    ) as up:  # fmt: skip
        up.wait_for(data / "serve-0.ready")
        with consoles.console(data, "--read-model", url, "--scorer", address) as place:
            took = [_arrival_ms(place, address, number) for number in range(ARRIVALS + 1)][1:]
        up.stop()
    name = f"from its answer to the queue page, {kind}, {size}"
    return [
        claim(f"{name}: p50", round(float(np.median(took))), "ms"),
        claim(f"{name}: slowest of {ARRIVALS}", round(max(took)), "ms", at_most=ARRIVED_MS_MAX),
    ]


def _arrival_ms(place: consoles.Place, address: str, number: int) -> float:
    """Score a payment that is to be reviewed, and look at the queue until it is there."""
    payment = Payments(seed=1_000 + number).one(device_id="watched")
    payment.merchant.merchant_id = f"arrival-{number}"
    with connected(int(address.rpartition(":")[2])) as client:
        request = fraud_service_pb2.ScoreRequest(transaction=payment)
        told = score_patiently(client, request)
    begin = time.perf_counter()
    assert told.outcome == REVIEW
    page = f"/queue?merchant=arrival-{number}"
    while told.decision_id not in place.get_json(page):
        time.sleep(LOOK_S)  # as to look without a pause would take the console's time
    return (time.perf_counter() - begin) * 1e3


def rows(decisions: int = DECISIONS, cases: int = CASES) -> list[dict[str, object]]:
    """Return one row per claim."""
    kinds = ["SQLite"]
    if shutil.which("postgres") or list(Path("/usr/lib/postgresql").glob("*/bin/postgres")):
        kinds.append("PostgreSQL")
    return [row for kind in kinds for row in _measured(kind, decisions, cases)]


if __name__ == "__main__":
    for row in rows(*map(int, sys.argv[1:])):
        print(row)
