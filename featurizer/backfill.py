"""From a history to vectors: the events in their order, labels once they were known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from featurizer.arena import Arena
from featurizer.features import FEATURES, NAMES, SCHEMA_VERSION
from featurizer.history import History
from featurizer.records import NO_TIME_MS, Kind

CHUNK_EVENTS = 8_192
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


def order_events(history: History) -> NDArray[np.int64]:
    """Return int64[m]: rows in event order as i, their labels where they became known as ~i.

    A label known at the time of a transaction comes before it; equal times keep the file's order.
    """
    events = history.records["event_time_ms"]
    labelled = np.flatnonzero((history.label_time_ms != NO_TIME_MS) & (history.is_fraud >= 0))
    times = np.concatenate([history.label_time_ms[labelled], events])
    which = np.concatenate([~labelled, np.arange(len(events))])
    order: NDArray[np.int64] = which[np.argsort(times, kind="stable")]
    return order


def feedback_of(
    records: NDArray[np.void], is_fraud: NDArray[np.int8], known_ms: NDArray[np.int64]
) -> NDArray[np.void]:
    """Return the FEEDBACK records of transactions whose verdicts became known."""
    feedback = records.copy()
    feedback["kind"] = Kind.FEEDBACK
    feedback["verdict"] = np.where(is_fraud == 1, 1, 2)
    feedback["known_time_ms"] = known_ms
    return feedback


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


def _write(
    writer: pq.ParquetWriter, history: History, rows: NDArray[np.int64], x: NDArray[np.float32]
) -> None:
    label_time = history.label_time_ms[rows]
    is_fraud = history.is_fraud[rows]
    columns = [
        history.ids.take(pa.array(rows)),
        pa.array(history.records["event_time_ms"][rows]),
        history.customers.take(pa.array(rows)),
        pa.array(history.records["amount_ref"][rows]),
        pa.array(is_fraud == 1, mask=is_fraud < 0),
        pa.array(label_time, mask=label_time == NO_TIME_MS),
        pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), len(FEATURES)),
    ]
    writer.write_table(pa.table(columns, schema=VECTORS))


def backfill(
    history: History, out: Path, arena: Arena, progress: Callable[[int], None] = lambda _: None
) -> int:
    """Write the vector of every row of ``history`` to ``out`` and return how many.

    The rows come in event order. The states end up in ``arena``. The file appears under its name
    only once it is whole. ``progress`` is told the number of events after each chunk.
    """
    order = order_events(history)
    partial = out.with_name(out.name + ".partial")
    written = 0
    with pq.ParquetWriter(partial, VECTORS, compression="lz4", use_dictionary=False) as writer:
        for start in range(0, len(order), CHUNK_EVENTS):
            chunk = order[start : start + CHUNK_EVENTS]
            rows = np.where(chunk < 0, ~chunk, chunk)
            events = history.records[rows]
            is_label = chunk < 0
            events[is_label] = feedback_of(
                events[is_label], history.is_fraud[rows[is_label]],
                history.label_time_ms[rows[is_label]],
            )  # fmt: skip
            x = np.empty((len(chunk), len(FEATURES)), np.float32)
            positions = np.arange(start + 1, start + len(chunk) + 1) * 8
            arena.run(events, positions, x, _marks_of(chunk))
            history.records["flags"][chunk[~is_label]] = events["flags"][~is_label]
            _write(writer, history, chunk[~is_label], x[~is_label])
            written += int((~is_label).sum())
            progress(len(chunk))
    partial.replace(out)
    return written
