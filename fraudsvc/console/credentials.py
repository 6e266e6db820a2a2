"""One-time links of people and lasting tokens of machines, as files that only their owner reads.

Owns what a file holds: never the token, only who it stands for; its name is the token's SHA-256. So
whoever may write to the folder may let somebody in, and a link is used up by removing its file,
which only one of two can do.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fraudsvc.console.access import is_name, roles_up_to
from fraudsvc.console.person import ROLES, Person

TOKEN_BYTES = 32
TOKEN_CHARACTERS = 43  # 256 bits in the URL's alphabet
LINKS, TOKENS = "links", "tokens"


class Credentials:
    """The files of ``home``, made where it is missing. Raises OSError.

    ``now_s`` is the wall clock, seconds since 1970.
    """

    def __init__(self, home: Path, now_s: Callable[[], float] = time.time) -> None:
        self._home, self._now_s = home, now_s
        for folder in (LINKS, TOKENS):
            (home / folder).mkdir(mode=0o700, parents=True, exist_ok=True)
        home.chmod(0o700)

    def new_link(self, person: Person, seconds: int) -> str:
        """Return a token that lets a person in once, within some time."""
        return self._new(LINKS, person, int(self._now_s()) + seconds)

    def new_token(self, person: Person) -> str:
        """Return a token by which a machine asks until its file is removed."""
        return self._new(TOKENS, person, None)

    def use_link(self, token: str) -> Person | None:
        """Use a link up; return whom it lets in, None where it was used, is too old or is none."""
        path = self._path(LINKS, token)
        told = _read(path)
        try:
            path.unlink()
        except OSError:
            return None  # another was faster
        return _person(told) if told is not None and self._now_s() < told["until_s"] else None

    def of_token(self, token: str) -> Person | None:
        """Return the machine that a token is of."""
        told = _read(self._path(TOKENS, token))
        return None if told is None else _person(told)

    def drop_links(self) -> None:
        """Remove links that are too old."""
        for path in (self._home / LINKS).iterdir():
            told = _read(path)
            if told is None or self._now_s() >= told["until_s"]:
                path.unlink(missing_ok=True)

    def _new(self, folder: str, person: Person, until_s: int | None) -> str:
        if not is_name(person.name) or not person.roles or not person.roles <= set(ROLES):
            raise ValueError(f"a name without control characters, and roles of {', '.join(ROLES)}")
        token = secrets.token_urlsafe(TOKEN_BYTES)
        told = {"name": person.name, "roles": sorted(person.roles), "until_s": until_s}
        path = self._path(folder, token)
        partial = path.with_suffix(".partial")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with os.fdopen(os.open(partial, flags, 0o600), "w") as file:
            json.dump(told, file)
        partial.replace(path)
        return token

    def _path(self, folder: str, token: str) -> Path:
        return self._home / folder / hashlib.sha256(token.encode()).hexdigest()


def _read(path: Path) -> dict[str, Any] | None:
    try:
        told = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return told if isinstance(told, dict) else None


def _person(told: dict[str, Any]) -> Person:
    return Person(str(told["name"]), roles_up_to(set(told["roles"]) & set(ROLES)))
