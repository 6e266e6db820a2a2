"""Who asks: a name and what it may do. Set by the access middleware as ``request.state.person``."""

from __future__ import annotations

from dataclasses import dataclass

VIEWER, ANALYST, LEAD, OPERATOR = "viewer", "analyst", "lead", "operator"
ROLES = (VIEWER, ANALYST, LEAD, OPERATOR)


@dataclass(frozen=True)
class Person:
    """A signed-in person. ``name`` stands in the audit trail and as a label's reporter."""

    name: str
    roles: frozenset[str]

    def may(self, role: str) -> bool:
        """Return whether the person has a role; every role may view."""
        return role in self.roles or (role == VIEWER and bool(self.roles))


NOBODY = Person("", frozenset())  # on pages of before the sign-in, and where no gate stood
