"""History files: Parquet or CSV with the documented columns, by the ending of the name.

Owns how rows are written, and how any file with (some of) the columns is read back row by row,
bad rows included. Must not know what the rows are used for.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

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


def read_batches(
    path: Path, columns: dict[str, str], batch_rows: int = 8_192
) -> Iterator[tuple[int, dict[str, list[Any]]]]:
    """Yield (line of the first row, column -> values) for the columns the file has.

    ``columns`` maps a documented name to the file's. Lines count from 1; a CSV's header is line
    1, so its first row is line 2. CSV values are text; Parquet times become integer milliseconds.
    Raises ValueError for a file that cannot be parsed, OSError for one that cannot be read.
    """
    line = 2 if is_csv(path) else 1
    for batch in _open_source(path, batch_rows):
        held = {new: old for new, old in columns.items() if old in batch.schema.names}
        yield line, {new: _values(batch.column(old)) for new, old in held.items()}
        line += len(batch)


def column_names(path: Path) -> list[str]:
    """Return the names of the file's columns. Raises as `read_batches` does."""
    if is_csv(path):
        with path.open(newline="", encoding="utf-8") as file:
            return next(csv.reader(file), [])
    names: list[str] = pq.read_schema(path).names
    return names


def _open_source(path: Path, batch_rows: int) -> Iterable[pa.RecordBatch]:
    if is_csv(path):
        # Everything as text: one bad value must cost its row, not its file.
        as_text = pa_csv.ConvertOptions(column_types=dict.fromkeys(column_names(path), pa.string()))
        batches: Iterable[pa.RecordBatch] = pa_csv.open_csv(path, convert_options=as_text)
    else:
        batches = pq.ParquetFile(path).iter_batches(batch_size=batch_rows)
    return batches


def _values(column: pa.Array) -> list[Any]:
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("ms", tz=column.type.tz), safe=False).cast(pa.int64())
    values: list[Any] = column.to_pylist()
    return values
