"""The read model's tables that are made from the log, and who holds a case, which is not.

Owns columns and indexes. Must not know queries.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Float,
    Index,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
)

TABLES = MetaData()
VERSION = Table("schema_version", TABLES, Column("version", SmallInteger, primary_key=True))
PROGRESS = Table(
    "progress", TABLES,
    Column("journal", String(64), primary_key=True),
    Column("position", BigInteger, nullable=False),
)  # fmt: skip
DECISIONS = Table(
    "decisions", TABLES,
    Column("decision_id", String(36), primary_key=True),
    Column("position", BigInteger, nullable=False),
    Column("trace_id", String(32), nullable=False, index=True),
    Column("receive_time_ms", BigInteger, nullable=False),
    Column("outcome", SmallInteger, nullable=False),
    Column("rung", SmallInteger, nullable=False),
    Column("score", Float),
    Column("expected_loss", Float, nullable=False),  # units of the reference currency
    Column("amount_minor", BigInteger, nullable=False),
    Column("currency_code", String(3), nullable=False),
    Column("transaction_id", Text, nullable=False, index=True),
    Column("customer_id", Text, nullable=False),
    Column("merchant_id", Text, nullable=False),
    Column("model_version", String(128), nullable=False),
    Column("policy_version", String(128), nullable=False),
    Column("used_ns", BigInteger, nullable=False),
    Column("kept", String(16), nullable=False),
    Column("codes", Text, nullable=False),  # of the reasons, a JSON list
    Column("is_open", Boolean, nullable=False),  # to be reviewed, and without a label yet
    Column("body", LargeBinary, nullable=False),  # the Decision
)  # fmt: skip
# What a customer did before.
Index("decisions_customer", DECISIONS.c.customer_id, DECISIONS.c.receive_time_ms)
Index("decisions_newest", DECISIONS.c.receive_time_ms, DECISIONS.c.decision_id)
# The review queue: open cases by what they may cost.
Index("decisions_queue", DECISIONS.c.is_open, DECISIONS.c.expected_loss, DECISIONS.c.decision_id)
# The same of a decision to be reviewed, as the queue shows and filters it: narrow, since a filter
# looks at every open case.
CASES = Table(
    "cases", TABLES,
    Column("decision_id", String(36), primary_key=True),
    Column("receive_time_ms", BigInteger, nullable=False),
    Column("is_open", Boolean, nullable=False),
    Column("expected_loss", Float, nullable=False),
    Column("rung", SmallInteger, nullable=False),
    Column("score", Float),
    Column("amount_minor", BigInteger, nullable=False),
    Column("currency_code", String(3), nullable=False),
    Column("amount_ref", BigInteger, nullable=False),  # hundredths of the reference currency
    Column("channel", SmallInteger, nullable=False),
    Column("transaction_id", Text, nullable=False),
    Column("customer_id", Text, nullable=False),
    Column("merchant_id", Text, nullable=False),
    Column("model_version", String(128), nullable=False),
    Column("codes", Text, nullable=False),
)  # fmt: skip
Index("cases_queue", CASES.c.is_open, CASES.c.expected_loss, CASES.c.decision_id)
Index("cases_newest", CASES.c.is_open, CASES.c.receive_time_ms)
# What a decision has in common with others; kinds are those of featurizer.records.Entity.
ENTITIES = Table(
    "decision_entities", TABLES,
    Column("kind", SmallInteger, primary_key=True),
    Column("value", Text, primary_key=True),
    Column("receive_time_ms", BigInteger, primary_key=True, index=True),
    Column("decision_id", String(36), primary_key=True),
    sqlite_with_rowid=False,
)  # fmt: skip
LABELS = Table(
    "labels", TABLES,
    Column("journal", String(64), primary_key=True),
    Column("position", BigInteger, primary_key=True),
    Column("transaction_id", Text, nullable=False, index=True),
    Column("decision_id", String(36), index=True),
    Column("verdict", SmallInteger, nullable=False),
    Column("source", SmallInteger, nullable=False),
    Column("label_time_ms", BigInteger, nullable=False),
    Column("seen_ms", BigInteger, nullable=False, index=True),
    Column("reporter", Text, nullable=False),
    Column("note", Text, nullable=False),
)  # fmt: skip
MODEL_EVENTS = Table(
    "model_events", TABLES,
    Column("journal", String(64), primary_key=True),
    Column("position", BigInteger, primary_key=True),
    Column("change", SmallInteger, nullable=False),
    Column("model_version", String(128), nullable=False, index=True),
    Column("event_time_ms", BigInteger, nullable=False),
    Column("author", Text, nullable=False),
    # Of a run: the labels that were new in it stand from the one to before the other.
    Column("from_position", BigInteger, nullable=False),
    Column("until_position", BigInteger, nullable=False),
    Column("body", LargeBinary, nullable=False),  # the ModelEvent
)  # fmt: skip
SPANS = Table(
    "spans", TABLES,
    Column("trace_id", String(32), primary_key=True),
    Column("span_id", String(16), primary_key=True),
    Column("parent", String(16), nullable=False),
    Column("name", Text, nullable=False),
    Column("kind", SmallInteger, nullable=False),
    Column("service", Text, nullable=False),
    Column("start_ns", BigInteger, nullable=False, index=True),
    Column("end_ns", BigInteger, nullable=False),
    Column("attributes", Text, nullable=False),  # JSON
    Column("source", String(4), nullable=False),
)  # fmt: skip
LINKS = Table(
    "span_links", TABLES,
    Column("trace_id", String(32), primary_key=True),
    Column("span_id", String(16), primary_key=True),
    Column("to_trace_id", String(32), primary_key=True),
    Column("to_span_id", String(16), primary_key=True),
)  # fmt: skip
Index("span_links_back", LINKS.c.to_span_id, LINKS.c.to_trace_id)

# Who holds a case, and until when. Not made from the log, and a rebuild leaves it: a claim ends by
# itself within minutes, and who claimed what stands in the audit trail.
_DESK = MetaData()
CLAIMS = Table(
    "claims", _DESK,
    Column("decision_id", String(36), primary_key=True),
    Column("holder", Text, nullable=False, index=True),
    Column("since_ms", BigInteger, nullable=False),
    Column("until_ms", BigInteger, nullable=False),
)  # fmt: skip


def create_cases(connection: Connection) -> None:
    """Make the tables of the log anew, which are then read from it again, and those of claims."""
    made_again = (DECISIONS, LABELS, MODEL_EVENTS, PROGRESS)
    TABLES.drop_all(connection, made_again)
    TABLES.create_all(connection)
    _DESK.create_all(connection)
