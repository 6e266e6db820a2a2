"""Who is at the console."""

from __future__ import annotations

from typing import NamedTuple


class Person(NamedTuple):
    """Somebody who signed in, or a machine by the name of its token."""

    name: str
    roles: frozenset[str]
