"""Who is signed in: a table of sessions in a file of its own, so that a restart signs nobody out.

Owns when a session ends. The file holds the SHA-256 of a session's id, so to read it lets nobody
in. Times are seconds since 1970; a clock that was set back ends what it makes look new.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fraudsvc.console.person import Person

SESSIONS_MAX = 10_000  # the oldest make room
TOUCH_S = 20.0  # between two notes of a session's last use
BACK_S = 120.0  # that a clock may be set back
BUSY_S = 2.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS sessions (
  id_hash TEXT PRIMARY KEY, name TEXT NOT NULL, roles TEXT NOT NULL, csrf TEXT NOT NULL,
  made_s REAL NOT NULL, seen_s REAL NOT NULL
)"""


class SessionsError(Exception):
    """The file of sessions cannot be used."""


@dataclass(frozen=True, slots=True)
class Session:
    """One person at one browser; ``csrf`` stands in each of its forms."""

    person: Person
    csrf: str
    ends_s: float


class Sessions:
    """The sessions of ``path``, ended ``idle_s`` after their last use and ``absolute_s`` in all.

    Any thread may use it. Raises SessionsError.
    """

    def __init__(
        self, path: Path, idle_s: float, absolute_s: float, now_s: Callable[[], float] = time.time
    ) -> None:
        self._idle_s, self._absolute_s, self._now_s = idle_s, absolute_s, now_s
        self._lock = threading.Lock()
        path.touch(mode=0o600)
        with _refusals():
            self._database = sqlite3.connect(
                path, timeout=BUSY_S, check_same_thread=False, isolation_level=None
            )
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute(_SCHEMA)

    def begin(self, person: Person) -> str:
        """Return the id of a new session."""
        made, now_s = secrets.token_urlsafe(32), self._now_s()
        row = (
            _hash(made), person.name, json.dumps(sorted(person.roles)), secrets.token_urlsafe(32),
            now_s, now_s,
        )  # fmt: skip
        with self._lock, _refusals():
            self._database.execute("INSERT INTO sessions VALUES (?, ?, ?, ?, ?, ?)", row)
            self._database.execute(
                "DELETE FROM sessions WHERE made_s < ? OR id_hash NOT IN"
                " (SELECT id_hash FROM sessions ORDER BY seen_s DESC LIMIT ?)",
                (now_s - self._absolute_s, SESSIONS_MAX),
            )
        return made

    def find(self, session_id: str) -> Session | None:
        """Return a session that has not ended, and note that it is used."""
        now_s, key = self._now_s(), _hash(session_id)
        with self._lock, _refusals():
            query = "SELECT name, roles, csrf, made_s, seen_s FROM sessions WHERE id_hash = ?"
            row = self._database.execute(query, (key,)).fetchone()
            if row is None:
                return None
            name, roles, csrf, made_s, seen_s = row
            ends_s = min(seen_s + self._idle_s, made_s + self._absolute_s)
            if not seen_s - BACK_S <= now_s < ends_s:
                self._database.execute("DELETE FROM sessions WHERE id_hash = ?", (key,))
                return None
            if now_s - seen_s > min(TOUCH_S, self._idle_s / 4):
                self._database.execute(
                    "UPDATE sessions SET seen_s = ? WHERE id_hash = ?", (now_s, key)
                )
        return Session(Person(name, frozenset(json.loads(roles))), csrf, ends_s)

    def end(self, session_id: str) -> None:
        """End a session."""
        with self._lock, _refusals():
            self._database.execute("DELETE FROM sessions WHERE id_hash = ?", (_hash(session_id),))

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._database.close()


def _hash(session_id: str) -> str:
    return hashlib.sha256(session_id.encode()).hexdigest()


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise SessionsError(f"the file of sessions cannot be used: {error}") from error
