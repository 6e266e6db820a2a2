"""From a history file to vectors: the events in their order, labels once they were known.

Owns the files that are read and written, and the order of events. Must not know what a column
means (``history``) or how a state is kept (``arena``).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from featurizer.arena import Arena
from featurizer.features import FEATURES, NAMES, SCHEMA_VERSION
from featurizer.hashing import IdHasher
from featurizer.history import (
    OPTIONAL,
    REPORTED_MAX,
    REQUIRED,
    TIME_MAX_MS,
    History,
    HistoryError,
    Problem,
    convert,
)
from featurizer.records import NO_TIME_MS, Kind

READ_ROWS = 65_536
CHUNK_EVENTS = 8_192
ROW_GROUP_ROWS = 8_192
_POSITION_STEP = 8  # as on the log, whose positions are multiples of 8
_FRAUD, _LEGITIMATE = 1, 2  # the contract's Verdict
_TICKS_A_MS = {"ms": 1, "us": 1_000, "ns": 1_000_000}

VECTORS = pa.schema(
    [
        ("transaction_id", pa.string()),
        ("event_time_ms", pa.int64()),
        ("customer_id", pa.string()),
        ("amount_ref", pa.int64()),
        ("is_fraud", pa.bool_()),
        ("label_time_ms", pa.int64()),
        ("features", pa.list_(pa.float32(), len(FEATURES))),
    ],
    metadata={"fraud.schema_version": SCHEMA_VERSION, "fraud.features": json.dumps(NAMES)},
)
_NO_COLUMNS = {name: pa.array([], pa.string()) for name in REQUIRED}
# Minimum and maximum of 432 features a row would cost a quarter of the writing.
_STATISTICS = [name for name in VECTORS.names if name != "features"]


class _Broken:
    """Rows that are no rows: how many, and the first of them."""

    def __init__(self) -> None:
        self.count = 0
        self.problems: list[Problem] = []

    def add(self, line: int, why: str) -> None:
        self.count += 1
        if len(self.problems) < REPORTED_MAX:
            self.problems.append(Problem(line, "", why))


class _Part(NamedTuple):
    """Some rows of a file: columns by the documented names, and the line of each row."""

    columns: dict[str, pa.Array]
    lines: NDArray[np.int64]


def _our_names(theirs: list[str], renames: dict[str, str]) -> dict[str, str]:
    """Return the file's name of each documented column; ``renames`` maps ours to the file's."""
    known = (*REQUIRED, *OPTIONAL)
    for ours, name in renames.items():
        if ours not in known:
            raise HistoryError(f"--map {ours}={name}: there is no column {ours}")
        if name not in theirs:
            raise HistoryError(f"--map {ours}={name}: the file has no column {name}")
    if len(set(renames.values())) != len(renames):
        raise HistoryError("--map names one column of the file twice")
    taken = set(renames.values())
    names = {ours: ours for ours in known if ours in theirs and ours not in taken} | renames
    for name in names.values():
        if theirs.count(name) > 1:
            raise HistoryError(f"the file has two columns {name}")
    return names


def _milliseconds(array: pa.Array) -> pa.Array:
    """Return a date or timestamp as int64 ms since 1970, rounded down."""
    if pa.types.is_date(array.type) or array.type.unit == "s":
        array = pc.cast(array, pa.timestamp("ms"))
    ticks = pc.cast(array, pa.int64())
    values = pc.fill_null(ticks, 0).to_numpy() // _TICKS_A_MS[array.type.unit]
    return pa.array(values, mask=pc.is_null(ticks).to_numpy(zero_copy_only=False))


def _plain(name: str, array: pa.Array) -> pa.Array:
    """Return a column of any type as one of the four that ``convert`` takes."""
    kind = array.type
    try:
        if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
            return _milliseconds(array)
        if pa.types.is_boolean(kind):
            return array
        if pa.types.is_integer(kind):
            return pc.cast(array, pa.int64())
        return pc.cast(array, pa.float64() if pa.types.is_floating(kind) else pa.string())
    except pa.ArrowException as error:
        raise HistoryError(f"column {name} of type {kind} cannot be used: {error}") from error


def _parquet_parts(path: Path, renames: dict[str, str]) -> Iterator[_Part]:
    with pq.ParquetFile(path) as file:
        names = _our_names(file.schema_arrow.names, renames)
        line = 1
        for batch in file.iter_batches(READ_ROWS, columns=list(names.values())):
            columns = {ours: _plain(ours, batch.column(name)) for ours, name in names.items()}
            yield _Part(columns, np.arange(line, line + len(batch)))
            line += len(batch)


def _csv_rows(reader: Any, width: int, broken: _Broken) -> Iterator[tuple[int, list[str]]]:
    """Yield line and fields of each row that has ``width`` of them; blank lines are no rows."""
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            broken.add(line, f"is not CSV: {error}")
            continue
        if row is None:
            return
        if len(row) == width:
            yield line, row
        elif row:
            broken.add(line, f"has {len(row)} columns, not {width}")


def _is_utf8(row: list[str]) -> bool:
    try:
        "".join(row).encode()
    except UnicodeEncodeError:
        return False
    return True


def _csv_part(rows: list[tuple[int, list[str]]], at: dict[str, int], broken: _Broken) -> _Part:
    for line, row in rows:
        if not _is_utf8(row):
            broken.add(line, "is not UTF-8")
    rows = [(line, row) for line, row in rows if _is_utf8(row)]
    columns = {
        ours: pa.array([row[index] for _, row in rows], pa.string()) for ours, index in at.items()
    }
    return _Part(columns, np.array([line for line, _ in rows], np.int64))


def _csv_parts(path: Path, renames: dict[str, str], broken: _Broken) -> Iterator[_Part]:
    # What is not UTF-8 becomes lone surrogates, so that it costs its row and not the file.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True)
        header = next(reader, None)
        if not header:
            raise HistoryError(f"{path} is empty: it has no header")
        at = {ours: header.index(name) for ours, name in _our_names(header, renames).items()}
        rows = _csv_rows(reader, len(header), broken)
        while some := list(islice(rows, READ_ROWS)):
            yield _csv_part(some, at, broken)


def read_history(
    path: Path, hasher: IdHasher, renames: dict[str, str], label_delay_ms: int | None = None
) -> History:
    """Read a whole file: CSV where its name ends so, Parquet otherwise.

    ``renames`` maps documented columns to the file's. ``label_delay_ms`` stands in for a missing
    ``label_time`` column: a row's label becomes known that long after its event. Raises
    HistoryError where the file cannot be used at all.
    """
    broken = _Broken()
    is_csv = path.suffix.lower() == ".csv"
    parts = _csv_parts(path, renames, broken) if is_csv else _parquet_parts(path, renames)
    histories = []
    try:
        for part in parts:
            if label_delay_ms is not None and "label_time" not in part.columns:
                histories.append(_delayed(convert(*part, hasher), label_delay_ms))
            else:
                histories.append(convert(*part, hasher))
    except (OSError, csv.Error, pa.ArrowException, UnicodeDecodeError) as error:
        raise HistoryError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    if not histories and not broken.count:
        raise HistoryError(f"{path} has no rows")
    return _joined(histories, broken)


def _delayed(history: History, delay_ms: int) -> History:
    times = history.records["event_time_ms"] + delay_ms
    told = (history.is_fraud >= 0) & (times <= TIME_MAX_MS)
    history.label_time_ms = np.where(told, times, NO_TIME_MS)
    return history


def _joined(histories: list[History], broken: _Broken) -> History:
    if not histories:
        histories = [convert(_NO_COLUMNS, np.empty(0, np.int64), IdHasher())]
    problems = [*broken.problems, *(p for h in histories for p in h.problems)]
    return History(
        np.concatenate([h.records for h in histories]),
        pa.concat_arrays([h.ids for h in histories]),
        pa.concat_arrays([h.customers for h in histories]),
        np.concatenate([h.is_fraud for h in histories]),
        np.concatenate([h.label_time_ms for h in histories]),
        np.concatenate([h.label_source for h in histories]),
        broken.count + sum(h.bad_rows for h in histories),
        sorted(problems, key=lambda problem: problem.line)[:REPORTED_MAX],
    )


def _told(history: History) -> NDArray[np.bool_]:
    """Return bool[n]: whose label became known at some time."""
    told: NDArray[np.bool_] = (history.label_time_ms != NO_TIME_MS) & (history.is_fraud >= 0)
    return told


def order_events(history: History) -> NDArray[np.int64]:
    """Return int64[m]: rows in event order as i, their labels where they became known as ~i.

    A label known at the instant of a transaction comes before it, but never before its own;
    otherwise equal times keep the file's order.
    """
    events = history.records["event_time_ms"]
    labelled = np.flatnonzero(_told(history))
    known = history.label_time_ms[labelled]
    labels = 4 * known + 2 * (known == events[labelled])
    which = np.concatenate([~labelled, np.arange(len(events))])
    order = np.argsort(np.concatenate([labels, 4 * events + 1]), kind="stable")
    ordered: NDArray[np.int64] = which[order]
    return ordered


def _marks_of(chunk: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return per event of a chunk where in it the transaction of a label is, -1 for none."""
    is_label = chunk < 0
    transactions = np.flatnonzero(~is_label)
    by_row = transactions[np.argsort(chunk[transactions])]
    rows = chunk[by_row]
    wanted = ~chunk[is_label]
    found = np.searchsorted(rows, wanted)
    inside = found < len(rows)
    inside[inside] = rows[found[inside]] == wanted[inside]
    marks = np.full(len(chunk), -1, np.int64)
    marks[np.flatnonzero(is_label)[inside]] = by_row[found[inside]]
    return marks


def _events(history: History, chunk: NDArray[np.int64]) -> NDArray[np.void]:
    """Return RECORD[n]: the transactions of a chunk, and FEEDBACK records for its labels."""
    is_label = chunk < 0
    rows = np.where(is_label, ~chunk, chunk)
    events = history.records[rows]
    events["kind"][is_label] = Kind.FEEDBACK
    labels = rows[is_label]
    events["verdict"][is_label] = np.where(history.is_fraud[labels] == 1, _FRAUD, _LEGITIMATE)
    events["known_time_ms"][is_label] = history.label_time_ms[labels]
    events["label_source"][is_label] = history.label_source[labels]
    return events


class _Vectors:
    """The file of vectors: row groups of ROW_GROUP_ROWS, under its name only once it is whole."""

    def __init__(self, out: Path, history: History) -> None:
        self._out = out
        self._partial = out.with_name(out.name + ".partial")
        self._history = history
        self._rows = np.empty(ROW_GROUP_ROWS, np.int64)
        self._features = np.empty((ROW_GROUP_ROWS, len(FEATURES)), np.float32)
        self._waiting = 0
        self._writer = pq.ParquetWriter(
            self._partial, VECTORS, compression="lz4", use_dictionary=False,
            write_statistics=_STATISTICS,
        )  # fmt: skip

    def add(self, rows: NDArray[np.int64], features: NDArray[np.float32]) -> None:
        """Add vectors (float32[n, features]) of rows of the history."""
        done = 0
        while done < len(rows):
            room = min(ROW_GROUP_ROWS - self._waiting, len(rows) - done)
            place = slice(self._waiting, self._waiting + room)
            self._rows[place] = rows[done : done + room]
            self._features[place] = features[done : done + room]
            self._waiting += room
            done += room
            if self._waiting == ROW_GROUP_ROWS:
                self._flush()

    def _flush(self) -> None:
        history, rows = self._history, self._rows[: self._waiting]
        features = self._features[: self._waiting].reshape(-1)
        label_time, is_fraud = history.label_time_ms[rows], history.is_fraud[rows]
        columns = [
            pc.cast(history.ids.take(pa.array(rows)), pa.string()),
            pa.array(history.records["event_time_ms"][rows]),
            pc.cast(history.customers.take(pa.array(rows)), pa.string()),
            pa.array(history.records["amount_ref"][rows]),
            pa.array(is_fraud == 1, mask=is_fraud < 0),
            pa.array(label_time, mask=label_time == NO_TIME_MS),
            pa.FixedSizeListArray.from_arrays(pa.array(features), len(FEATURES)),
        ]
        self._writer.write_table(pa.table(columns, schema=VECTORS))
        self._waiting = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None and self._waiting:
                self._flush()
            self._writer.close()
            if kind is None:
                self._partial.replace(self._out)
        finally:
            self._partial.unlink(missing_ok=True)


def views(
    history: History, arena: Arena, chunk_events: int = CHUNK_EVENTS
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32], int]]:
    """Fold all of ``history`` into ``arena`` in event order; yield the vectors, chunk by chunk.

    Yields rows int64[m], maybe none, their vectors float32[m, n], and how many events are done.
    Raises MemoryError where the states outgrow the arena.
    """
    order = order_events(history)
    flags = history.records["flags"].copy()  # with the marks of those already viewed
    features = np.empty((min(chunk_events, max(len(order), 1)), len(FEATURES)), np.float32)
    for start in range(0, len(order), chunk_events):
        chunk = order[start : start + chunk_events]
        events = _events(history, chunk)
        events["flags"] = flags[np.where(chunk < 0, ~chunk, chunk)]
        positions = np.arange(start + 1, start + len(chunk) + 1) * _POSITION_STEP
        arena.run(events, positions, features[: len(chunk)], _marks_of(chunk))
        viewed = np.flatnonzero(chunk >= 0)
        flags[chunk[viewed]] = events["flags"][viewed]
        yield chunk[viewed], features[viewed], start + len(chunk)


def count_events(history: History) -> int:
    """Return how many events ``views`` folds: transactions, and labels that became known."""
    return len(history.records) + int(_told(history).sum())


def backfill(
    history: History,
    out: Path,
    arena: Arena,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
    chunk_events: int = CHUNK_EVENTS,
) -> int:
    """Write the vector of every row of ``history`` to ``out`` and return how many.

    The rows come in event order, the same bytes whatever ``chunk_events`` is. The states end up
    in ``arena``. ``progress`` is told the events done and all of them after each chunk. Raises
    OSError where the file cannot be written and MemoryError where the states outgrow the arena;
    ``out`` is then as it was.
    """
    total = count_events(history)
    with _Vectors(out, history) as vectors:
        for rows, features, done in views(history, arena, chunk_events):
            vectors.add(rows, features)
            progress(done, total)
    return len(history.records)
