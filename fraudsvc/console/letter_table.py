"""The dead letters' table of the read model, and the notes that one was sent again.

Owns its columns. Rows are only ever added, so a rebuild leaves them.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Connection, LargeBinary, MetaData, String, Table

_TABLES = MetaData()
LETTERS = Table(
    "dead_letters", _TABLES,
    Column("journal", String(64), primary_key=True),
    Column("position", BigInteger, primary_key=True),
    Column("body", LargeBinary, nullable=False),  # the DeadLetter
)  # fmt: skip


def create_letters(connection: Connection) -> None:
    """Create the table."""
    _TABLES.create_all(connection)
