"""The audit trail: each read of a customer's data and each change, as an event on the log.

Owns what an event holds. It is appended before what it tells of is shown or done, so a full disk
refuses the read too; nothing ever changes or removes one. The read model keeps what it shows of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from fraud.v1 import audit_event_pb2

from featurizer.eventlog import Batch, Entry, Topic
from fraudsvc.cardnumbers import looks_like_card_number
from fraudsvc.console.person import Person

TEXT_MAX = 2_000  # characters of each text
LEFT_OUT = "(left out: it looks like a card number)"
Append = Callable[[Sequence[Sequence[Entry]]], object]


def _text(text: str) -> str:
    return LEFT_OUT if looks_like_card_number(text) else text[:TEXT_MAX]


class AuditTrail:
    """Appends to the trail by ``append``, an EventLog's. Any thread may."""

    def __init__(
        self, append: Append, now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    ) -> None:
        self._append = append
        self._now_ms = now_ms

    def audit(
        self, person: Person, what: str, entity: str, old: str = "", new: str = "", why: str = ""
    ) -> None:
        """Tell that a person read or changed something. Raises LogError: then it must not be.

        ``what`` is a verb and its object ("read case"), ``entity`` an id. A text that looks like a
        card number is left out, one of more than TEXT_MAX characters is cut.
        """
        event = audit_event_pb2.AuditEvent(
            person=_text(person.name), roles=", ".join(sorted(person.roles)), what=what,
            entity=_text(entity), old=_text(old), new=_text(new), why=_text(why),
        )  # fmt: skip
        event.event_time.FromMilliseconds(self._now_ms())
        self._append([[Entry(Topic.AUDIT, 0, event.SerializeToString())]])


def audit_row(batch: Batch, at: int, journal: str) -> dict[str, object]:
    """Return an event of the log as a row of the read model."""
    event = audit_event_pb2.AuditEvent.FromString(batch.value(at))
    return {
        "journal": journal, "position": int(batch.positions[at]),
        "event_time_ms": event.event_time.ToMilliseconds(), "person": event.person,
        "roles": event.roles, "what": event.what, "entity": event.entity, "old": event.old,
        "new": event.new, "why": event.why,
    }  # fmt: skip
