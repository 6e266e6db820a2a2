"""The read model: what people look at, in SQLite or PostgreSQL.

Owns migrations, how rows get in, and the queries of decisions and traces; those of cases are in
``readmodel_queue`` and ``readmodel_case``. All of it but claims, and spans that came by OTLP, can
be made again from the log; rows and the log position they are as of are written in one
transaction. One process writes, any number reads. Must not know where rows come from.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Connection,
    Table,
    and_,
    create_engine,
    delete,
    event,
    func,
    inspect,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import ConnectionPoolEntry

from featurizer.spans import Context, Kind, Span, is_of_decision
from fraudsvc.console.audit_table import AUDIT, create_audit
from fraudsvc.console.letter_table import LETTERS, create_letters
from fraudsvc.console.readmodel_tables import (
    CASES,
    DECISIONS,
    ENTITIES,
    LABELS,
    LINKS,
    MODEL_EVENTS,
    PROGRESS,
    SPANS,
    TABLES,
    VERSION,
    create_cases,
)

Row = Mapping[str, Any]
BUSY_MS = 5_000  # for a lock that another process has
PAGE_MAX = 500
SPANS_MAX = 8_000  # of one trace with all that is linked to it; a ScoreBatch may have most of them
HOPS_MAX = 6
LOG, OTLP = "log", "otlp"
REVIEW = 2

# What brings a schema of one version to the next; a database says how many it has had.
MIGRATIONS: tuple[Callable[[Connection], None], ...] = (
    TABLES.create_all, create_audit, create_cases, create_letters,
)  # fmt: skip


class ReadModelError(Exception):
    """The database refuses, or is of a newer version than this code."""


@dataclass(slots=True)
class Changes:
    """What one read of the log, or of the network, adds; rows by the names of their columns."""

    decisions: list[Row] = field(default_factory=list)
    cases: list[Row] = field(default_factory=list)
    entities: list[Row] = field(default_factory=list)
    labels: list[Row] = field(default_factory=list)
    model_events: list[Row] = field(default_factory=list)
    audit: list[Row] = field(default_factory=list)
    letters: list[Row] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    # Decisions that got a label, or lost the last one: whether each is open, the newest word last.
    opened: dict[str, bool] = field(default_factory=dict)


@contextlib.contextmanager
def _refusals(action: str) -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        raise ReadModelError(f"cannot {action}: {str(error).splitlines()[0]}") from error


class ReadModel:
    """A database by its URL: ``sqlite:///FILE`` or ``postgresql+psycopg://…``.

    ``write`` is for one thread; the rest for any. With ``existing`` a file must be there.
    Raises ReadModelError.
    """

    def __init__(self, url: str, *, existing: bool = False) -> None:
        try:
            self._engine = create_engine(url, pool_pre_ping=not url.startswith("sqlite"))
        except (ArgumentError, ImportError) as error:
            raise ReadModelError(f"no read model at {url!r}: {error}") from error
        self._shared = threading.local()
        if self._engine.dialect.name == "sqlite":
            file = self._engine.url.database or ""
            if existing and not Path(file).exists():
                raise ReadModelError(f"there is no read model {file} yet: the console makes it")
            event.listen(self._engine, "connect", _prepare_sqlite)

    def migrate(self) -> None:
        """Bring the schema to this code's version."""
        with _refusals("migrate the read model"), self._engine.begin() as connection:
            there = inspect(connection).has_table(VERSION.name)
            newest = select(func.max(VERSION.c.version))
            version = connection.execute(newest).scalar() if there else 0
            if (version or 0) > len(MIGRATIONS):
                raise ReadModelError(f"the read model is of version {version}, newer than this")
            for number in range(version or 0, len(MIGRATIONS)):
                MIGRATIONS[number](connection)
                connection.execute(VERSION.insert().values(version=number + 1))

    def position(self, journal: str) -> int | None:
        """Return how far a log is in, None for nothing of it."""
        query = select(PROGRESS.c.position).where(PROGRESS.c.journal == journal)
        with _refusals("read the position"), self._engine.connect() as connection:
            found: int | None = connection.execute(query).scalar()
            return found

    def forget(self) -> None:
        """Drop all that is made from logs; spans that came by OTLP stay."""
        from_log = SPANS.c.source == LOG
        with _refusals("empty the read model"), self._engine.begin() as connection:
            connection.execute(_delete_links(from_log))
            connection.execute(delete(SPANS).where(from_log))
            for table in (DECISIONS, CASES, ENTITIES, LABELS, MODEL_EVENTS, PROGRESS):
                connection.execute(delete(table))

    def write(self, changes: Changes, source: str, journal: str = "", position: int = 0) -> None:
        """Add rows, those that are there already left as they are, and how far the log is in."""
        with _refusals("write"), self._engine.begin() as connection:
            self._add(connection, DECISIONS, changes.decisions)
            self._add(connection, CASES, changes.cases)
            self._add(connection, ENTITIES, changes.entities)
            self._add(connection, LABELS, changes.labels)
            self._add(connection, MODEL_EVENTS, changes.model_events)
            self._add(connection, AUDIT, changes.audit)
            self._add(connection, LETTERS, changes.letters)
            self._add(connection, SPANS, [_span_row(each, source) for each in changes.spans])
            self._add(connection, LINKS, [row for each in changes.spans for row in _links(each)])
            for is_open in (False, True):
                ids = [each for each, told in changes.opened.items() if told == is_open]
                for table in (DECISIONS, CASES) if ids else ():
                    which = update(table).where(table.c.decision_id.in_(ids))
                    if table is DECISIONS:
                        which = which.where(DECISIONS.c.outcome == REVIEW)
                    connection.execute(which.values(is_open=is_open))
            if journal:
                row = {"journal": journal, "position": position}
                connection.execute(delete(PROGRESS).where(PROGRESS.c.journal == journal))
                connection.execute(PROGRESS.insert(), [row])

    def _add(self, connection: Connection, table: Table, rows: Sequence[Row]) -> None:
        if not rows:
            return
        statement = self.insert(table).on_conflict_do_nothing()
        connection.execute(statement, [dict(row) for row in rows])

    def decision(self, decision_id: str) -> Row | None:
        """Return a decision's row."""
        return self._one(select(DECISIONS).where(DECISIONS.c.decision_id == decision_id))

    def decision_of(self, transaction_id: str) -> Row | None:
        """Return the first decision on a transaction."""
        of_it = select(DECISIONS).where(DECISIONS.c.transaction_id == transaction_id)
        return self._one(of_it.order_by(DECISIONS.c.position).limit(1))

    def decisions(
        self, *, outcome: int | None = None, queue: bool = False, after: str = "", limit: int = 50
    ) -> tuple[list[Row], str]:
        """Return a page of decisions, and what to pass as ``after`` for the next, "" at the end.

        Newest first, or with ``queue`` the open reviews by expected loss. Raises ValueError for
        an ``after`` that no page gave.
        """
        key = DECISIONS.c.expected_loss if queue else DECISIONS.c.receive_time_ms
        query = select(*(c for c in DECISIONS.c if c.name != "body"))
        if queue:
            query = query.where(DECISIONS.c.is_open.is_(True))
        if outcome is not None:
            query = query.where(DECISIONS.c.outcome == outcome)
        if after:
            value, _, last = after.partition(":")
            same = and_(key == float(value), DECISIONS.c.decision_id < last)
            query = query.where(or_(key < float(value), same))
        limit = max(1, min(limit, PAGE_MAX))
        query = query.order_by(key.desc(), DECISIONS.c.decision_id.desc()).limit(limit)
        rows = self.rows(query)
        more = f"{rows[-1][key.name]!r}:{rows[-1]['decision_id']}" if len(rows) == limit else ""
        return rows, more

    def labels(self, decision_id: str) -> list[Row]:
        """Return the labels of a decision, oldest first."""
        of_it = select(LABELS).where(LABELS.c.decision_id == decision_id)
        return self.rows(of_it.order_by(LABELS.c.position))

    def labels_between(self, journal: str, start: int, stop: int) -> list[Row]:
        """Return the joined labels of a log from a position to before another."""
        between = (LABELS.c.position >= start) & (LABELS.c.position < stop)
        joined = (LABELS.c.journal == journal) & LABELS.c.decision_id.is_not(None)
        return self.rows(select(LABELS).where(between & joined).order_by(LABELS.c.position))

    def model_events(self, model_version: str) -> list[Row]:
        """Return what happened to a bundle, oldest first."""
        of_it = select(MODEL_EVENTS).where(MODEL_EVENTS.c.model_version == model_version)
        return self.rows(of_it.order_by(MODEL_EVENTS.c.position))

    def count(self) -> int:
        """Return how many decisions there are."""
        with _refusals("count"), self._engine.connect() as connection:
            return int(connection.execute(select(func.count()).select_from(DECISIONS)).scalar_one())

    def trace(self, trace_id: str) -> list[Span]:
        """Return the spans of a trace, and those that what it began led to, by links.

        A span that links to one of them counts, with all of its own trace; a call counts alone, and
        what another decision led to does not. By start time.
        """
        found: dict[Context, Span] = {}
        fresh = self._spans([trace_id])
        for _ in range(HOPS_MAX):
            fresh = [each for each in fresh if each.context not in found]
            if not fresh or len(found) >= SPANS_MAX:
                break
            found.update({each.context: each for each in fresh})
            ours = [s for s in fresh if not is_of_decision(s) or s.context.trace_id == trace_id]
            fresh = self._followers([each.context for each in ours])
        return sorted(found.values(), key=lambda span: (span.start_ns, -span.end_ns))

    def built(self, contexts: Collection[Context]) -> set[Context]:
        """Return which of some spans are there."""
        traces = SPANS.c.trace_id.in_({context.trace_id for context in contexts})
        ids = traces & SPANS.c.span_id.in_({context.span_id for context in contexts})
        rows = self.rows(select(SPANS.c.trace_id, SPANS.c.span_id).where(ids))
        return {Context(each["trace_id"], each["span_id"]) for each in rows} & set(contexts)

    def _followers(self, contexts: Sequence[Context]) -> list[Span]:
        """Return the spans that link to some, each with its trace where it begins one."""
        ids = {context.span_id for context in contexts}
        back = LINKS.c.to_span_id.in_(ids)
        links = self.rows(select(LINKS.c.trace_id, LINKS.c.span_id).where(back).limit(SPANS_MAX))
        wanted = {Context(each["trace_id"], each["span_id"]) for each in links}
        spans = self._spans(sorted({context.trace_id for context in wanted}))
        roots = {
            s.context.trace_id
            for s in spans
            if s.context in wanted and s.kind != Kind.SERVER and not is_of_decision(s)
        }
        return [each for each in spans if each.context in wanted or each.context.trace_id in roots]

    def _spans(self, trace_ids: Sequence[str]) -> list[Span]:
        where = SPANS.c.trace_id.in_(trace_ids)
        rows = self.rows(select(SPANS).where(where).order_by(SPANS.c.start_ns).limit(SPANS_MAX))
        links: dict[Context, list[Context]] = {}
        for row in self.rows(select(LINKS).where(LINKS.c.trace_id.in_(trace_ids))):
            to = Context(row["to_trace_id"], row["to_span_id"])
            links.setdefault(Context(row["trace_id"], row["span_id"]), []).append(to)
        return [_span(row, links) for row in rows]

    def drop_oldest(self, decisions_max: int, spans_before_ns: int) -> None:
        """Drop the oldest decisions beyond a number, and spans that began before a time."""
        with _refusals("drop the oldest"), self._engine.begin() as connection:
            bound = (
                select(DECISIONS.c.receive_time_ms)
                .order_by(DECISIONS.c.receive_time_ms.desc())
                .offset(decisions_max)
                .limit(1)
            )
            oldest = connection.execute(bound).scalar()
            if oldest is not None:
                for table in (DECISIONS, CASES, ENTITIES):
                    connection.execute(delete(table).where(table.c.receive_time_ms <= oldest))
            is_old = SPANS.c.start_ns < spans_before_ns
            connection.execute(_delete_links(is_old))
            connection.execute(delete(SPANS).where(is_old))

    def close(self) -> None:
        """Let go of the connections."""
        self._engine.dispose()

    def _one(self, query: Any) -> Row | None:
        found = self.rows(query)
        return found[0] if found else None

    def rows(self, query: Any) -> list[Row]:
        """Return what a query finds, for the files of queries."""
        shared: Connection | None = getattr(self._shared, "connection", None)
        with _refusals("read"), contextlib.ExitStack() as stack:
            connection = shared or stack.enter_context(self._engine.connect())
            found = connection.execute(query)
            names = tuple(found.keys())
            return [dict(zip(names, row, strict=True)) for row in found]

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Let all reads of this thread go over one connection; for pages of many small ones."""
        with _refusals("read"), self._engine.connect() as connection:
            self._shared.connection = connection
            try:
                yield
            finally:
                self._shared.connection = None

    def change(self, statement: Any) -> int:
        """Do one statement as a whole, and return how many rows it changed."""
        with _refusals("change"), self._engine.begin() as connection:
            counting = {"preserve_rowcount": True}  # which an insert otherwise loses
            return int(connection.execute(statement, execution_options=counting).rowcount)

    def insert(self, table: Any) -> Any:
        """Return the database's own insert, which knows what to do about a row that is there."""
        return self._dialect.insert(table)

    @property
    def _dialect(self) -> Any:
        return postgresql if self._engine.dialect.name == "postgresql" else sqlite


def _prepare_sqlite(connection: Any, _: ConnectionPoolEntry) -> None:
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", f"busy_timeout={BUSY_MS}"):
        connection.execute(f"PRAGMA {pragma}")


def _delete_links(of: Any) -> Any:
    """Return what deletes the links of some spans."""
    spans = select(SPANS.c.trace_id, SPANS.c.span_id).where(of)
    return delete(LINKS).where(tuple_(LINKS.c.trace_id, LINKS.c.span_id).in_(spans))


def _span_row(span: Span, source: str) -> Row:
    return {
        "trace_id": span.context.trace_id, "span_id": span.context.span_id, "parent": span.parent,
        "name": span.name, "kind": int(span.kind), "service": span.service,
        "start_ns": span.start_ns, "end_ns": span.end_ns,
        "attributes": json.dumps(span.attributes), "source": source,
    }  # fmt: skip


def _links(span: Span) -> Iterator[Row]:
    for each in dict.fromkeys(span.links):
        yield {
            "trace_id": span.context.trace_id, "span_id": span.context.span_id,
            "to_trace_id": each.trace_id, "to_span_id": each.span_id,
        }  # fmt: skip


def _span(row: Row, links: Mapping[Context, list[Context]]) -> Span:
    context = Context(row["trace_id"], row["span_id"])
    return Span(
        context, row["parent"], row["name"], Kind(row["kind"]), row["start_ns"], row["end_ns"],
        json.loads(row["attributes"]), tuple(links.get(context, ())), row["service"],
    )  # fmt: skip
