"""What-ifs and what became of them: a table in a file of its own.

Owns the states and which may follow which; a step is one statement that only one of two can do.
Times are ms since 1970.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RUNNING, DONE, FAILED, PROPOSED, LIVE, REJECTED = (
    "running", "done", "failed", "proposed", "live", "rejected",
)  # fmt: skip
STEPS = {
    DONE: (RUNNING,), FAILED: (RUNNING,), PROPOSED: (DONE,), LIVE: (DONE, PROPOSED),
    REJECTED: (DONE, PROPOSED),
}  # fmt: skip
SHOWN = 100
BUSY_S = 5.0
_COLUMNS = (
    "id", "author", "made_ms", "state", "summary", "base", "text", "span", "result", "trouble",
    "proposed_by", "decided_by", "decided_ms", "why",
)  # fmt: skip
_SCHEMA = f"CREATE TABLE IF NOT EXISTS what_ifs ({', '.join(_COLUMNS)}, PRIMARY KEY (id))"


class ProposalsError(Exception):
    """The file of what-ifs cannot be used."""


class Proposals:
    """The what-ifs of ``path``. Any thread may use it. Raises ProposalsError."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        path.touch(mode=0o600)
        with _refusals():
            self._database = sqlite3.connect(
                path, timeout=BUSY_S, check_same_thread=False, isolation_level=None
            )
            self._database.row_factory = sqlite3.Row
            self._database.execute(_SCHEMA)
            self._database.execute(
                "UPDATE what_ifs SET state = ?, trouble = ? WHERE state = ?",
                (FAILED, "the console was started anew meanwhile", RUNNING),
            )

    def add(self, author: str, made_ms: int, summary: str, base: str, text: str, span: str) -> str:
        """Add one that runs; return its id."""
        made = secrets.token_hex(8)
        row = dict.fromkeys(_COLUMNS, "")
        row |= {"id": made, "author": author, "state": RUNNING, "summary": summary, "base": base}
        row |= {"text": text, "span": span}
        values = [made_ms if name == "made_ms" else row[name] for name in _COLUMNS]
        marks = ", ".join("?" * len(_COLUMNS))
        self._do(f"INSERT INTO what_ifs VALUES ({marks})", values)  # noqa: S608  # nosec B608
        return made

    def one(self, what_if: str) -> dict[str, Any] | None:
        """Return one, its result as it was."""
        rows = self._do("SELECT * FROM what_ifs WHERE id = ?", [what_if])
        return rows[0] if rows else None

    def newest(self) -> list[dict[str, Any]]:
        """Return the newest, the newest first."""
        return self._do("SELECT * FROM what_ifs ORDER BY made_ms DESC LIMIT ?", [SHOWN])

    def step(self, what_if: str, state: str, **told: str | int) -> bool:
        """Take one to a state, and note what is told; False where another was faster."""
        changed = {"state": state, **told}
        sets = ", ".join(f"{name} = ?" for name in changed)
        marks = ", ".join("?" * len(STEPS[state]))
        where = f"id = ? AND state IN ({marks})"
        statement = f"UPDATE what_ifs SET {sets} WHERE {where} RETURNING id"  # noqa: S608  # nosec B608
        return bool(self._do(statement, [*changed.values(), what_if, *STEPS[state]]))

    def back(self, what_if: str, state: str, trouble: str) -> None:
        """Take one that could not go live back to where it was, and say why."""
        self._do(
            "UPDATE what_ifs SET state = ?, trouble = ?, decided_by = '' WHERE id = ?",
            [state, trouble, what_if],
        )

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._database.close()

    def _do(self, statement: str, values: list[Any]) -> list[dict[str, Any]]:
        with self._lock, _refusals():
            rows = [dict(row) for row in self._database.execute(statement, values).fetchall()]
        for row in rows:
            if row.get("result"):
                row["result"] = json.loads(row["result"])
        return rows


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise ProposalsError(f"the file of what-ifs cannot be used: {error}") from error
