"""Owns reading the Parquet file of feature vectors. Must not know what a model is.

Columns: transaction_id string, event_time_ms int64, customer_id string, amount_ref int64 (cents of
the reference currency), is_fraud bool or null, label_time_ms int64 or null, features
fixed_size_list<float32>[n]; the schema's metadata names the features and their version.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

FEATURES_MAX = 65_536
ROWS_A_READ = 65_536

_KEY_VERSION = b"fraud.schema_version"
_KEY_FEATURES = b"fraud.features"
_COLUMNS: dict[str, pa.DataType] = {
    "event_time_ms": pa.int64(),
    "customer_id": pa.string(),
    "amount_ref": pa.int64(),
    "is_fraud": pa.bool_(),
    "label_time_ms": pa.int64(),
}
_NEVER_NULL = ("event_time_ms", "amount_ref")


class VectorsError(Exception):
    """The file is not one of feature vectors, or has no rows to give."""


@dataclass(frozen=True, slots=True)
class Vectors:
    """Labelled rows in the order of their event time.

    ``features`` float32[m, n]; ``event_time_ms`` and ``amount_ref`` int64[m]; ``is_fraud``
    bool[m]; ``customer`` int64[m], equal where the customer is the same. ``left_out`` rows of the
    range had no label as of its end. ``label_times_known`` is false where the file told no time
    for any label, which then counted as known at once.
    """

    schema_version: str
    feature_names: tuple[str, ...]
    features: NDArray[np.float32]
    event_time_ms: NDArray[np.int64]
    amount_ref: NDArray[np.int64]
    is_fraud: NDArray[np.bool_]
    customer: NDArray[np.int64]
    left_out: int
    label_times_known: bool

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.event_time_ms)


def read_vectors(
    path: Path,
    *,
    from_ms: int | None = None,
    until_ms: int | None = None,
    known_until_ms: int | None = None,
) -> Vectors:
    """Return the labelled rows with ``from_ms <= event time < until_ms``.

    A label whose time lies after ``known_until_ms`` counts as not known; None takes every label.
    Times are milliseconds since 1970 in UTC. Raises VectorsError with the reason where the file
    cannot be read or no row is left.
    """
    try:
        with pq.ParquetFile(path) as file:
            return _read(file, from_ms, until_ms, known_until_ms)
    except (OSError, pa.ArrowException) as error:
        raise VectorsError(f"cannot read vectors from {path}: {error}") from error


def _read(
    file: Any, from_ms: int | None, until_ms: int | None, known_until_ms: int | None
) -> Vectors:
    schema_version, names = _check_schema(file.schema_arrow)
    columns = _read_columns(file)
    time_ms = columns["event_time_ms"].to_numpy()
    in_range = np.ones(len(time_ms), np.bool_)
    if from_ms is not None:
        in_range &= time_ms >= from_ms
    if until_ms is not None:
        in_range &= time_ms < until_ms
    if not in_range.any():
        raise VectorsError(f"no rows in the range{_range_of(time_ms)}")
    known, times_known = _known_labels(columns, known_until_ms)
    keep = in_range & known
    if not keep.any():
        raise VectorsError(f"none of the {int(in_range.sum())} rows in the range has a known label")
    rows = np.flatnonzero(keep)
    rows = rows[np.argsort(time_ms[rows], kind="stable")]
    return Vectors(
        schema_version=schema_version,
        feature_names=names,
        features=_read_features(file, rows, len(names)),
        event_time_ms=time_ms[rows],
        amount_ref=columns["amount_ref"].to_numpy()[rows],
        is_fraud=pc.fill_null(columns["is_fraud"], False).to_numpy(zero_copy_only=False)[rows],
        customer=_codes(columns["customer_id"])[rows],
        left_out=int(in_range.sum()) - len(rows),
        label_times_known=times_known,
    )


def _check_schema(schema: Any) -> tuple[str, tuple[str, ...]]:
    """Return the schema version and the feature names, or raise VectorsError."""
    version, names = _read_metadata(schema.metadata or {})
    for name, kind in _COLUMNS.items():
        if name not in schema.names:
            raise VectorsError(f"column {name} is missing")
        if schema.field(name).type != kind:
            raise VectorsError(f"column {name} must be {kind}, not {schema.field(name).type}")
    if "features" not in schema.names:
        raise VectorsError("column features is missing")
    # Compared by parts: whether the items may be null, and their name, do not matter.
    found = schema.field("features").type
    if (
        not pa.types.is_fixed_size_list(found)
        or found.list_size != len(names)
        or found.value_type != pa.float32()
    ):
        raise VectorsError(f"column features must be float32[{len(names)}] a row, not {found}")
    return version, names


def _read_metadata(metadata: Mapping[bytes, bytes]) -> tuple[str, tuple[str, ...]]:
    for key in (_KEY_VERSION, _KEY_FEATURES):
        if key not in metadata:
            raise VectorsError(f"the metadata lacks {key.decode()}; was the file made by backfill?")
    try:
        version, names = metadata[_KEY_VERSION].decode(), json.loads(metadata[_KEY_FEATURES])
    except ValueError as error:
        raise VectorsError(f"the file's metadata is not readable: {error}") from error
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise VectorsError("fraud.features must be a JSON list of names")
    if len(set(names)) != len(names) or not 0 < len(names) <= FEATURES_MAX:
        raise VectorsError(f"fraud.features must hold 1 to {FEATURES_MAX} different names")
    return version, tuple(names)


def _read_columns(file: Any) -> dict[str, Any]:
    table = file.read(columns=list(_COLUMNS))
    for name in _NEVER_NULL:
        if table[name].null_count:
            raise VectorsError(f"column {name} has {table[name].null_count} empty values")
    return {name: table[name].combine_chunks() for name in _COLUMNS}


def _known_labels(
    columns: dict[str, Any], known_until_ms: int | None
) -> tuple[NDArray[np.bool_], bool]:
    """Return which labels count (bool[rows]) and whether the file tells when any became known."""
    labelled: NDArray[np.bool_] = pc.is_valid(columns["is_fraud"]).to_numpy(zero_copy_only=False)
    label_time = columns["label_time_ms"]
    times_known = label_time.null_count < len(label_time)
    if known_until_ms is None or not times_known:
        return labelled, times_known
    in_time = pc.fill_null(pc.less_equal(label_time, known_until_ms), False)
    return labelled & in_time.to_numpy(zero_copy_only=False), times_known


def _codes(customers: Any) -> NDArray[np.int64]:
    """Return int64[rows], one number per customer; rows without one are customers of their own."""
    indices = pc.fill_null(customers.dictionary_encode().indices, -1)
    codes: NDArray[np.int64] = indices.to_numpy().astype(np.int64)
    absent = np.flatnonzero(codes < 0)
    codes[absent] = -1 - np.arange(len(absent))
    return codes


def _read_features(file: Any, rows: NDArray[np.int64], width: int) -> NDArray[np.float32]:
    """Return float32[len(rows), width]: row i is row ``rows[i]`` of the file.

    Reads only the row groups that hold any, a few thousand rows at a time, so that the matrix
    itself is the only large thing in memory.
    """
    out = np.empty((len(rows), width), np.float32)
    order = np.argsort(rows, kind="stable")
    wanted = rows[order]
    start = 0
    for group in range(file.num_row_groups):
        stop = start + file.metadata.row_group(group).num_rows
        if np.searchsorted(wanted, stop) > np.searchsorted(wanted, start):
            batches = file.iter_batches(ROWS_A_READ, row_groups=[group], columns=["features"])
            first = start
            for batch in batches:
                low, high = np.searchsorted(wanted, [first, first + batch.num_rows])
                out[order[low:high]] = _matrix(batch.column(0), width)[wanted[low:high] - first]
                first += batch.num_rows
        start = stop
    return out


def _matrix(column: Any, width: int) -> NDArray[np.float32]:
    values = column.flatten()
    if column.null_count or values.null_count:
        raise VectorsError("column features has empty values; unknown must be NaN")
    matrix: NDArray[np.float32] = values.to_numpy().reshape(-1, width)
    return matrix


def _range_of(time_ms: NDArray[np.int64]) -> str:
    """Return a hint at what the file does hold, for a message."""
    if not len(time_ms):
        return ": the file is empty"
    first, last = (np.datetime64(int(t), "ms") for t in (time_ms.min(), time_ms.max()))
    return f": the file holds {first} to {last} UTC"
