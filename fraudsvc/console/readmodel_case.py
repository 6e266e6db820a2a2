"""A case's queries: what a customer did before, what is shared with others, what came of it.

Owns the queries of one case and of verdicts. Every one is bounded. Must not know pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import and_, or_, select, tuple_, union_all

from fraudsvc.console.readmodel import ReadModel, Row
from fraudsvc.console.readmodel_tables import CASES, DECISIONS, ENTITIES, LABELS, MODEL_EVENTS

TIMELINE_MAX = 40
SHARED_MAX = 40  # decisions that have one thing in common with this
LABELLED_MAX = 300  # newest labelled decisions that similar ones are looked for among
COMPARED_MAX = 60  # of those, whose bodies are read
ANALYST = 2
_LOADED = 13
_BRIEF = (
    DECISIONS.c.decision_id, DECISIONS.c.receive_time_ms, DECISIONS.c.outcome, DECISIONS.c.score,
    DECISIONS.c.amount_minor, DECISIONS.c.currency_code, DECISIONS.c.merchant_id,
    DECISIONS.c.customer_id, DECISIONS.c.transaction_id, DECISIONS.c.codes, DECISIONS.c.is_open,
)  # fmt: skip


class CaseFiles:
    """What a read model knows around a decision. Raises ReadModelError."""

    def __init__(self, model: ReadModel) -> None:
        self._model = model

    def timeline(self, customer_id: str, until_ms: int) -> list[Row]:
        """Return the customer's kept decisions up to a time, the newest first."""
        theirs = (DECISIONS.c.customer_id == customer_id) & (
            DECISIONS.c.receive_time_ms <= until_ms
        )
        newest = select(*_BRIEF).where(theirs).order_by(DECISIONS.c.receive_time_ms.desc())
        return self._model.rows(newest.limit(TIMELINE_MAX))

    def sharing(
        self, decision_id: str, around: Sequence[tuple[int, str]], until_ms: int
    ) -> list[Row]:
        """Return of others' decisions up to a time which share some (kind, value), with both."""
        if not around:
            return []
        newest = union_all(*(_newest(decision_id, thing, until_ms) for thing in around)).subquery()
        query = select(newest.c.kind, newest.c.value, *_BRIEF)
        return self._model.rows(
            query.join(DECISIONS, DECISIONS.c.decision_id == newest.c.decision_id)
        )

    def labels_of(self, decision_ids: Sequence[str]) -> dict[str, list[Row]]:
        """Return the labels of some decisions, oldest first."""
        found: dict[str, list[Row]] = {}
        query = select(LABELS).where(LABELS.c.decision_id.in_(decision_ids))
        for row in self._model.rows(query.order_by(LABELS.c.position)) if decision_ids else ():
            found.setdefault(row["decision_id"], []).append(row)
        return found

    def alike(self, decision_id: str, codes: Sequence[str]) -> list[Row]:
        """Return the newest labelled decisions that share a reason, with their bodies."""
        recent = (
            select(LABELS.c.decision_id)
            .where(LABELS.c.decision_id.is_not(None), LABELS.c.decision_id != decision_id)
            .order_by(LABELS.c.seen_ms.desc())
            .limit(LABELLED_MAX)
            .subquery()
        )
        has_one = or_(*(DECISIONS.c.codes.contains(f'"{code}"', autoescape=True) for code in codes))
        alike = (
            select(*_BRIEF, DECISIONS.c.body)
            .where(DECISIONS.c.decision_id.in_(select(recent.c.decision_id)), has_one)
            .order_by(DECISIONS.c.receive_time_ms.desc())
            .limit(COMPARED_MAX)
        )
        return self._model.rows(alike) if codes else []

    def runs_on(self, journal: str, position: int) -> list[Row]:
        """Return what became of the bundles that learnt from a label: events, oldest first."""
        learnt = and_(
            MODEL_EVENTS.c.journal == journal, MODEL_EVENTS.c.from_position <= position,
            MODEL_EVENTS.c.until_position > position, MODEL_EVENTS.c.change != _LOADED,
        )  # fmt: skip
        runs = self._model.rows(
            select(MODEL_EVENTS).where(learnt).order_by(MODEL_EVENTS.c.position).limit(10)
        )
        versions = {row["model_version"] for row in runs}
        loaded = and_(MODEL_EVENTS.c.model_version.in_(versions), MODEL_EVENTS.c.change == _LOADED)
        later = select(MODEL_EVENTS).where(loaded).order_by(MODEL_EVENTS.c.position).limit(50)
        return [*runs, *(self._model.rows(later) if versions else ())]

    def verdicts(self, reporter: str, before: str, limit: int) -> tuple[list[Row], str]:
        """Return a page of analysts' labels with their decisions, the newest first.

        Of one reporter, or "" for all. Raises ValueError for a ``before`` that no page gave.
        """
        key = (LABELS.c.seen_ms, LABELS.c.position)
        query = select(LABELS, *(each for each in _BRIEF if each.name not in LABELS.c)).join(
            DECISIONS, DECISIONS.c.decision_id == LABELS.c.decision_id
        )
        query = query.where(LABELS.c.source == ANALYST)
        if reporter:
            query = query.where(LABELS.c.reporter == reporter)
        if before:
            seen, _, position = before.partition(":")
            query = query.where(tuple_(*key) < tuple_(int(seen), int(position)))
        newest = query.order_by(*(each.desc() for each in key)).limit(limit + 1)
        rows = self._model.rows(newest)
        more, rows = len(rows) > limit, rows[:limit]
        return rows, f"{rows[-1]['seen_ms']}:{rows[-1]['position']}" if more else ""

    def linked_open(self, decision_ids: Sequence[str]) -> list[Row]:
        """Return which of some decisions are open cases, the dearest first."""
        which = CASES.c.decision_id.in_(decision_ids) & CASES.c.is_open.is_(True)
        query = select(CASES).where(which).order_by(CASES.c.expected_loss.desc())
        return self._model.rows(query) if decision_ids else []


def _newest(decision_id: str, thing: tuple[int, str], until_ms: int) -> Any:
    """Return the query of the newest decisions but one that have a thing, up to a time."""
    kind, value = thing
    shared = and_(
        ENTITIES.c.kind == kind, ENTITIES.c.value == value, ENTITIES.c.decision_id != decision_id,
        ENTITIES.c.receive_time_ms <= until_ms,
    )  # fmt: skip
    newest = select(ENTITIES).where(shared).order_by(ENTITIES.c.receive_time_ms.desc())
    return select(newest.limit(SHARED_MAX).subquery())
