"""The audit trail's table of the read model. Rows are only ever added: a rebuild leaves them.

Owns its columns. What dropped out of the log stays here, and what is lost here is read again from
the log.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Connection, Index, MetaData, String, Table, Text

_TABLES = MetaData()
AUDIT = Table(
    "audit", _TABLES,
    Column("journal", String(64), primary_key=True),
    Column("position", BigInteger, primary_key=True),
    Column("event_time_ms", BigInteger, nullable=False),
    Column("person", Text, nullable=False),
    Column("roles", Text, nullable=False),
    Column("what", Text, nullable=False),
    Column("entity", Text, nullable=False, index=True),
    Column("old", Text, nullable=False),
    Column("new", Text, nullable=False),
    Column("why", Text, nullable=False),
)  # fmt: skip
Index("audit_newest", AUDIT.c.event_time_ms, AUDIT.c.position)


def create_audit(connection: Connection) -> None:
    """Create the table and its indexes."""
    _TABLES.create_all(connection)
