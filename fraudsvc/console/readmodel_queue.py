"""The review queue's queries: open cases by what they may cost, and who holds which.

Owns filters, paging by key, and claims by compare-and-set. Must not know pages.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, and_, delete, func, or_, select

from fraudsvc.console.readmodel import ReadModel, Row
from fraudsvc.console.readmodel_tables import CASES, CLAIMS, LABELS

PAGE_ROWS = 50
COUNT_MAX = 100_000
KEEP_ENDED_MS = 86_400_000


class Filter(NamedTuple):
    """Which cases; None or "" for all. Amounts in units of the reference currency."""

    rung: int | None = None
    channel: int | None = None
    code: str = ""
    merchant: str = ""
    model: str = ""
    amount_from: float | None = None
    amount_until: float | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    holder: str = ""  # a name; "*" for those that somebody holds, "-" for those that nobody does


class Counts(NamedTuple):
    """What is to be done, and what was."""

    open: int
    held: int
    mine: int
    oldest_ms: int | None
    done_today: int
    mine_today: int


class Page(NamedTuple):
    """Rows of the queue with ``holder`` and ``until_ms``; ``after`` is the key of what follows.

    It is "" at the end.
    """

    rows: list[Row]
    after: str


def _like(text: str) -> str:
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def _conditions(wanted: Filter) -> Iterator[ColumnElement[bool]]:
    yield CASES.c.is_open.is_(True)
    for column, value in (
        (CASES.c.rung, wanted.rung), (CASES.c.channel, wanted.channel),
        (CASES.c.merchant_id, wanted.merchant or None),
        (CASES.c.model_version, wanted.model or None),
    ):  # fmt: skip
        if value is not None:
            yield column == value
    if wanted.code:
        yield CASES.c.codes.like(f'%"{_like(wanted.code)}"%', escape="\\")
    if wanted.amount_from is not None:
        yield CASES.c.amount_ref >= math.ceil(wanted.amount_from * 100)
    if wanted.amount_until is not None:
        yield CASES.c.amount_ref <= math.floor(wanted.amount_until * 100)
    if wanted.since_ms is not None:
        yield CASES.c.receive_time_ms >= wanted.since_ms
    if wanted.until_ms is not None:
        yield CASES.c.receive_time_ms < wanted.until_ms
    if wanted.holder:
        holders = {"*": CLAIMS.c.holder.is_not(None), "-": CLAIMS.c.holder.is_(None)}
        yield holders.get(wanted.holder, CLAIMS.c.holder == wanted.holder)


class CaseQueue:
    """The queue in a read model. Raises ReadModelError."""

    def __init__(self, model: ReadModel) -> None:
        self._model = model

    def page(self, wanted: Filter, now_ms: int, after: str = "", limit: int = PAGE_ROWS) -> Page:
        """Return open cases, the dearest first. Raises ValueError for an ``after`` of no page."""
        query = _queue(now_ms, CASES, CLAIMS.c.holder, CLAIMS.c.until_ms)
        query = query.where(*_conditions(wanted))
        if after:
            loss, _, last = after.partition(":")
            same = and_(CASES.c.expected_loss == float(loss), CASES.c.decision_id < last)
            query = query.where(or_(CASES.c.expected_loss < float(loss), same))
        by = (CASES.c.expected_loss.desc(), CASES.c.decision_id.desc())
        rows = self._model.rows(query.order_by(*by).limit(limit + 1))
        more, rows = len(rows) > limit, rows[:limit]
        key = f"{rows[-1]['expected_loss']!r}:{rows[-1]['decision_id']}" if more else ""
        return Page(rows, key)

    def matching(self, wanted: Filter, now_ms: int) -> int:
        """Return how many open cases a filter shows; who holds them is looked at where it asks."""
        query = select(CASES.c.decision_id)
        if wanted.holder:
            query = _queue(now_ms, CASES.c.decision_id)
        inner = query.where(*_conditions(wanted)).limit(COUNT_MAX).subquery()
        return self._number(select(func.count()).select_from(inner))

    def counts(self, person: str, now_ms: int, day_ms: int) -> Counts:
        """Return what is open and held, and what analysts decided since ``day_ms``."""
        is_open = CASES.c.is_open.is_(True)
        first = self._model.rows(
            select(func.count().label("open"), func.min(CASES.c.receive_time_ms).label("oldest"))
            .where(is_open)
        )[0]  # fmt: skip
        live = self._model.rows(
            select(CLAIMS.c.decision_id, CLAIMS.c.holder).where(CLAIMS.c.until_ms > now_ms)
        )
        # Two queries, as a join is planned as if there were as many claims as cases.
        theirs = CASES.c.decision_id.in_([row["decision_id"] for row in live])
        still = self._model.rows(select(CASES.c.decision_id).where(is_open, theirs)) if live else []
        open_ids = {row["decision_id"] for row in still}
        held = [row for row in live if row["decision_id"] in open_ids]
        judged = (
            select(func.max(LABELS.c.reporter).label("reporter"))
            .where(LABELS.c.seen_ms >= day_ms, LABELS.c.source == 2, LABELS.c.verdict <= 3)
            .group_by(LABELS.c.decision_id)
            .subquery()
        )
        done = self._model.rows(
            select(judged.c.reporter, func.count().label("cases")).group_by(judged.c.reporter)
        )
        done_by = {row["reporter"]: row["cases"] for row in done}
        return Counts(
            first["open"], len(held), sum(row["holder"] == person for row in held),
            first["oldest"], sum(done_by.values()), done_by.get(person, 0),
        )  # fmt: skip

    def newer(self, since_ms: int) -> int:
        """Return how many open cases came after a time."""
        fresh = CASES.c.is_open.is_(True) & (CASES.c.receive_time_ms > since_ms)
        return self._number(select(func.count()).select_from(CASES).where(fresh))

    def case(self, decision_id: str, now_ms: int) -> Row | None:
        """Return a case with who holds it, None for a decision that needs no review."""
        query = _queue(now_ms, CASES, CLAIMS.c.holder, CLAIMS.c.until_ms)
        rows = self._model.rows(query.where(CASES.c.decision_id == decision_id))
        return rows[0] if rows else None

    def held_by(self, decision_ids: list[str], now_ms: int) -> dict[str, str]:
        """Return who holds which of some cases, open or not."""
        live = CLAIMS.c.decision_id.in_(decision_ids) & (CLAIMS.c.until_ms > now_ms)
        rows = self._model.rows(select(CLAIMS.c.decision_id, CLAIMS.c.holder).where(live))
        return {row["decision_id"]: row["holder"] for row in rows}

    def claim(self, decision_id: str, person: str, now_ms: int, lasts_ms: int) -> bool:
        """Take a case, or hold it for longer, where nobody else holds it; return whether it is.

        One statement, so two that ask at once never both get it.
        """
        return self._take(decision_id, person, now_ms, lasts_ms, only_free=True)

    def assign(self, decision_id: str, person: str, now_ms: int, lasts_ms: int) -> None:
        """Give a case to somebody, whoever has it."""
        self._take(decision_id, person, now_ms, lasts_ms, only_free=False)
        self._model.change(delete(CLAIMS).where(CLAIMS.c.until_ms < now_ms - KEEP_ENDED_MS))

    def _take(
        self, decision_id: str, person: str, now_ms: int, lasts_ms: int, *, only_free: bool
    ) -> bool:
        row = {
            "decision_id": decision_id, "holder": person, "since_ms": now_ms,
            "until_ms": now_ms + lasts_ms,
        }  # fmt: skip
        free = or_(CLAIMS.c.holder == person, CLAIMS.c.until_ms <= now_ms)
        insert: Any = self._model.insert(CLAIMS).values(row)
        taken = insert.on_conflict_do_update(
            index_elements=[CLAIMS.c.decision_id],
            set_={"holder": person, "since_ms": now_ms, "until_ms": now_ms + lasts_ms},
            where=free if only_free else None,
        )
        return self._model.change(taken) == 1

    def release(self, decision_id: str, person: str) -> bool:
        """Let go of a case; return whether the person held it."""
        own = (CLAIMS.c.decision_id == decision_id) & (CLAIMS.c.holder == person)
        return self._model.change(delete(CLAIMS).where(own)) == 1

    def claim_next(
        self, wanted: Filter, person: str, now_ms: int, lasts_ms: int, but: str = ""
    ) -> str | None:
        """Take the dearest case that nobody holds; None where there is none."""
        free = wanted._replace(holder="-")
        query = _queue(now_ms, CASES.c.decision_id).where(*_conditions(free))
        by = (CASES.c.expected_loss.desc(), CASES.c.decision_id.desc())
        for row in self._model.rows(query.order_by(*by).limit(20)):
            decision_id: str = row["decision_id"]
            if decision_id != but and self.claim(decision_id, person, now_ms, lasts_ms):
                return decision_id
        return None

    def _number(self, query: Select[Any]) -> int:
        (row,) = self._model.rows(query)
        return int(next(iter(row.values())))


def _queue(now_ms: int, *columns: Any) -> Select[Any]:
    live = and_(CLAIMS.c.decision_id == CASES.c.decision_id, CLAIMS.c.until_ms > now_ms)
    return select(*columns).select_from(CASES.outerjoin(CLAIMS, live))
