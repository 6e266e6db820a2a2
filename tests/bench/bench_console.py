"""How fast the analysts' pages are with 1,000,000 decisions, of which 20,000 are open cases.

In SQLite, and in PostgreSQL where it is installed, over HTTP, from the request to the last byte.
The open cases are whole, bodies and things that they share included; the rest are plain approvals
without a body, as no page of the queue reads one.
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
from sqlalchemy import text

from fraudsvc.console.case_rows import case_of_row, entity_rows, row_of_decision
from fraudsvc.console.credentials import Credentials
from fraudsvc.console.desk_command import DeskOptions
from fraudsvc.console.person import ROLES, Person
from fraudsvc.console.readmodel import LOG, Changes, ReadModel
from tests.bench.claims import claim
from tests.browser import Console, serving
from tests.console_world import JOURNAL, a_decision, a_label
from tests.test_readmodel import postgres

DECISIONS, CASES, LABELLED = 1_000_000, 20_000, 5_000
CHUNK, ASKED, WARM = 2_000, 100, 10
P95_MS_MAX = 150.0
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
    rng = np.random.default_rng(5)
    changes, ids = Changes(), []
    for number in range(cases):
        time_ms = now_ms - number * 1_500 * (decisions // cases)
        logged = a_decision(number, time_ms, rng, device_id=f"v-4-{number % 40_000}")
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
                return _rows(kind, console, token, ids, f"{decisions:,} decisions, {cases:,} open")
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


def rows(decisions: int = DECISIONS, cases: int = CASES) -> list[dict[str, object]]:
    """Return one row per claim."""
    kinds = ["SQLite"]
    if shutil.which("postgres") or list(Path("/usr/lib/postgresql").glob("*/bin/postgres")):
        kinds.append("PostgreSQL")
    return [row for kind in kinds for row in _measured(kind, decisions, cases)]


if __name__ == "__main__":
    for row in rows(*map(int, sys.argv[1:])):
        print(row)
