"""The queries of the operations pages: models, alarms, rules' hits, letters, labels, the trail.

Owns what is asked of the read model; every answer is bounded. Must not know pages.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import and_, or_, select

from fraudsvc.console.audit_table import AUDIT
from fraudsvc.console.letter_table import LETTERS
from fraudsvc.console.readmodel import ReadModel, Row
from fraudsvc.console.readmodel_tables import DECISIONS, LABELS, MODEL_EVENTS

EVENTS_MAX = 500
DECISIONS_MAX = 50_000
LABELS_MAX = 50_000
LETTERS_MAX = 20_000
_AUDIT_TEXTS = ("person", "what", "entity")


class Operations:
    """Queries of a read model. Raises ReadModelError."""

    def __init__(self, model: ReadModel) -> None:
        self._model = model

    def model_events(self, changes: Sequence[int] = (), limit: int = EVENTS_MAX) -> list[Row]:
        """Return the newest events of models, of some changes alone where they are named."""
        query = select(MODEL_EVENTS)
        if changes:
            query = query.where(MODEL_EVENTS.c.change.in_(changes))
        newest = (MODEL_EVENTS.c.event_time_ms.desc(), MODEL_EVENTS.c.position.desc())
        return self._model.rows(query.order_by(*newest).limit(limit))

    def audit(self, wanted: dict[str, str], after: str, limit: int) -> tuple[list[Row], str]:
        """Return a page of the trail, newest first, and what to pass as ``after`` for the next.

        ``wanted`` has texts that columns begin with. Raises ValueError for an ``after`` that no
        page gave.
        """
        query = select(AUDIT)
        for name in _AUDIT_TEXTS:
            if wanted.get(name):
                query = query.where(AUDIT.c[name].startswith(wanted[name], autoescape=True))
        if after:
            time_ms, _, position = after.partition(":")
            same = and_(AUDIT.c.event_time_ms == int(time_ms), AUDIT.c.position < int(position))
            query = query.where(or_(AUDIT.c.event_time_ms < int(time_ms), same))
        newest = (AUDIT.c.event_time_ms.desc(), AUDIT.c.position.desc())
        rows = self._model.rows(query.order_by(*newest).limit(limit))
        last = rows[-1] if len(rows) == limit else None
        return rows, "" if last is None else f"{last['event_time_ms']}:{last['position']}"

    def letters(self) -> list[tuple[int, bytes]]:
        """Return position and bytes of the newest dead letters, oldest first."""
        query = select(LETTERS.c.position, LETTERS.c.body).order_by(LETTERS.c.position.desc())
        rows = self._model.rows(query.limit(LETTERS_MAX))
        return [(row["position"], row["body"]) for row in reversed(rows)]

    def codes(self, from_ms: int) -> list[Row]:
        """Return the newest kept decisions since a time, with the codes of their reasons."""
        columns = (
            DECISIONS.c.decision_id, DECISIONS.c.transaction_id, DECISIONS.c.codes,
            DECISIONS.c.outcome, DECISIONS.c.receive_time_ms, DECISIONS.c.kept,
        )  # fmt: skip
        query = select(*columns).where(DECISIONS.c.receive_time_ms >= from_ms)
        return self._model.rows(
            query.order_by(DECISIONS.c.receive_time_ms.desc()).limit(DECISIONS_MAX)
        )

    def labels(self, from_ms: int) -> list[Row]:
        """Return the newest labels since a time, oldest first, with what was decided."""
        columns = (
            LABELS.c.transaction_id, LABELS.c.decision_id, LABELS.c.verdict, LABELS.c.source,
            LABELS.c.label_time_ms, LABELS.c.seen_ms, LABELS.c.reporter, LABELS.c.position,
            DECISIONS.c.outcome, DECISIONS.c.amount_minor, DECISIONS.c.currency_code,
        )  # fmt: skip
        query = (
            select(*columns)
            .join(DECISIONS, DECISIONS.c.decision_id == LABELS.c.decision_id, isouter=True)
            .where(LABELS.c.seen_ms >= from_ms)
            .order_by(LABELS.c.seen_ms.desc(), LABELS.c.position.desc())
        )
        return self._model.rows(query.limit(LABELS_MAX))[::-1]
