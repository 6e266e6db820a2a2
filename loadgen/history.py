"""History files: Parquet or CSV with the documented columns, by the ending of the name.

Owns how rows are written, and how any file with (some of) the columns is read back row by row,
bad rows included. Must not know what the rows are used for.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

ROW_GROUP_ROWS = 65_536


class _TableSink(Protocol):
    def write_table(self, table: pa.Table) -> None: ...
    def close(self) -> None: ...


def is_csv(path: Path) -> bool:
    """Return whether the file's ending says CSV; anything else is Parquet."""
    return path.suffix.lower() == ".csv"


def _open_sink(path: Path, schema: pa.Schema) -> _TableSink:
    if is_csv(path):
        sink: _TableSink = pa_csv.CSVWriter(path, schema)
    else:
        sink = pq.ParquetWriter(path, schema, compression="zstd")
    return sink


class HistoryWriter:
    """Gathers small tables of one schema into row groups of about ROW_GROUP_ROWS.

    Writes to a neighbouring file and takes the name when closed without an error, so that a
    broken run leaves an older file as it was. Raises OSError where the file cannot be written.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path = path
        # The ending stays, because it decides the format.
        self._partial = path.with_name(f".{path.stem}.partial{path.suffix}")
        self._sink = _open_sink(self._partial, schema)
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0

    def write(self, table: pa.Table) -> None:
        """Add a table."""
        self._waiting.append(table)
        self._waiting_rows += len(table)
        if self._waiting_rows >= ROW_GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._waiting_rows:
            # One chunk a column, or Parquet's bytes would depend on how the rows arrived.
            self._sink.write_table(pa.concat_tables(self._waiting).combine_chunks())
        self._waiting, self._waiting_rows = [], 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._flush()
        self._sink.close()
        if kind is None:
            self._partial.replace(self._path)
        else:
            self._partial.unlink(missing_ok=True)
