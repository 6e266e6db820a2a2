"""A history file (Parquet or CSV) as records: the columns, their conversion, and what is wrong.

Owns the reading of files; every number is made by the functions of ``records``, ``currencies``
and ``hashing`` that the scorer uses for a call. A row that cannot be used is reported with its
line and left out, never dropped in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from fraud.v1 import label_pb2, transaction_pb2
from numpy.typing import NDArray

from featurizer.currencies import AMOUNT_MINOR_MAX, CURRENCIES, to_reference_many
from featurizer.hashing import SPACE_TRANSACTION, IdHasher, set_pair
from featurizer.records import (
    NO_COORDINATE,
    NO_TIME_MS,
    RECORD,
    RECORD_VERSION,
    Entity,
    Kind,
    flags_of,
    mcc_number,
    network_of,
    region_number,
)

TEXT_BYTES_MAX = 128
REPORTED_MAX = 20
_HASH_CHUNK = 1 << 16

# The column that holds each entity's id; PAIR is made from the others.
ENTITY_COLUMNS = {
    Entity.CUSTOMER: "customer_id",
    Entity.CARD: "card_id",
    Entity.MERCHANT: "merchant_id",
    Entity.TERMINAL: "terminal_id",
    Entity.DEVICE: "device_id",
    Entity.NETWORK: "ip",
    Entity.EMAIL: "email",
    Entity.BIN: "bin",
}
# Column: record field, enum of the contract, prefix of its names.
ENUM_COLUMNS: dict[str, tuple[str, Any, str]] = {
    "channel": ("channel", transaction_pb2.Channel, "CHANNEL_"),
    "entry_mode": ("pos_entry_mode", transaction_pb2.PosEntryMode, "POS_ENTRY_MODE_"),
    "brand": ("brand", transaction_pb2.CardBrand, "CARD_BRAND_"),
    "funding": ("funding", transaction_pb2.CardFunding, "CARD_FUNDING_"),
    "three_ds": ("three_ds", transaction_pb2.ThreeDsResult, "THREE_DS_RESULT_"),
    "avs": ("avs", transaction_pb2.AvsResult, "AVS_RESULT_"),
    "cvv": ("cvv", transaction_pb2.CvvResult, "CVV_RESULT_"),
    "authorization": (
        "authorization",
        transaction_pb2.AuthorizationResult,
        "AUTHORIZATION_RESULT_",
    ),
    "label_source": ("label_source", label_pb2.LabelSource, "LABEL_SOURCE_"),
}
REGION_COLUMNS = {
    "region": "merchant_region",
    "issuer_region": "issuer_region",
    "billing_region": "billing_region",
    "shipping_region": "shipping_region",
}
COORDINATES = {"lat": ("latitude_e6", 90.0), "lon": ("longitude_e6", 180.0)}
REQUIRED = ("transaction_id", "event_time", "customer_id", "amount_minor")
OPTIONAL = (
    "currency", "mcc", "card_present", "recurring", "account_created_time", "is_fraud",
    "label_time", *COORDINATES, *REGION_COLUMNS, *ENUM_COLUMNS,
    *(name for name in ENTITY_COLUMNS.values() if name not in REQUIRED),
)  # fmt: skip


class HistoryError(Exception):
    """The file cannot be used at all."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A row that was left out: its line in the file (from 1, a CSV's header included) and why."""

    line: int
    column: str
    why: str


@dataclass(slots=True)
class History:
    """The good rows, in the file's order.

    ``records`` RECORD[n]; ``ids`` and ``customers`` the texts; ``is_fraud`` int8[n] (-1 unknown);
    ``label_time_ms`` int64[n] (NO_TIME_MS where no label ever became known).
    """

    records: NDArray[np.void]
    ids: pa.Array
    customers: pa.Array
    is_fraud: NDArray[np.int8]
    label_time_ms: NDArray[np.int64]
    bad_rows: int = 0
    problems: list[Problem] = field(default_factory=list)


class _Rows:
    """The table being converted, and which of its rows turned out bad."""

    def __init__(self, table: pa.Table, first_line: int) -> None:
        self.table = table
        self.first_line = first_line
        self.bad = np.zeros(len(table), bool)
        self.problems: list[Problem] = []

    def column(self, name: str) -> pa.Array | None:
        """Return a column as one array, or None where the file does not have it."""
        if name not in self.table.column_names:
            return None
        column = self.table.column(name).combine_chunks()
        return column.chunk(0) if isinstance(column, pa.ChunkedArray) else column

    def reject(self, mask: NDArray[np.bool_], column: str, why: str) -> None:
        """Mark rows as bad."""
        new = np.flatnonzero(mask & ~self.bad)
        room = REPORTED_MAX - len(self.problems)
        for row in new[: max(room, 0)]:
            self.problems.append(Problem(self.first_line + int(row), column, why))
        self.bad |= mask


def _texts(array: pa.Array) -> pa.Array:
    """Return any column as strings; null stays null."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    return array if pa.types.is_string(array.type) else pc.cast(array, pa.string())


def _nulls(array: pa.Array) -> NDArray[np.bool_]:
    mask: NDArray[np.bool_] = pc.is_null(array).to_numpy(zero_copy_only=False)
    return mask


def _distinct(texts: pa.Array) -> tuple[list[str], NDArray[np.int64]]:
    """Return the distinct texts and, per row, which one it is; null counts as ""."""
    encoded = pc.fill_null(texts, "").dictionary_encode()
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy().astype(np.int64)


def _by_distinct(
    rows: _Rows, name: str, convert: Callable[[str], int], default: int
) -> NDArray[np.int64]:
    """Convert a column of few distinct texts; what ``convert`` refuses is a bad row."""
    array = rows.column(name)
    if array is None:
        return np.full(len(rows.bad), default, np.int64)
    texts, which = _distinct(_texts(array))
    values = np.zeros(max(len(texts), 1), np.int64)
    for i, text in enumerate(texts):
        try:
            values[i] = convert(text) if text else default
        except (ValueError, KeyError, OSError) as error:
            why = f"{text[:40]!r} is not known" if isinstance(error, KeyError) else str(error)
            rows.reject(which == i, name, why)
    return values[which]


def _hash(hasher: IdHasher, space: int, texts: list[str]) -> NDArray[np.int64]:
    parts = [np.zeros(0, np.int64)]
    for start in range(0, len(texts), _HASH_CHUNK):
        chunk = [t.encode() for t in texts[start : start + _HASH_CHUNK]]
        parts.append(hasher.many(np.full(len(chunk), space, np.int64), chunk))
    return np.concatenate(parts)


def _ids(rows: _Rows, name: str, space: int, hasher: IdHasher) -> NDArray[np.int64]:
    array = rows.column(name)
    if array is None:
        return np.zeros(len(rows.bad), np.int64)
    texts = _texts(array)
    lengths = pc.fill_null(pc.binary_length(texts), 0).to_numpy()
    rows.reject(lengths > TEXT_BYTES_MAX, name, f"longer than {TEXT_BYTES_MAX} bytes")
    distinct, which = _distinct(texts)
    if space == Entity.NETWORK:
        distinct = [_network(rows, which == i, t) for i, t in enumerate(distinct)]
    return _hash(hasher, space, distinct)[which]


def _network(rows: _Rows, mask: NDArray[np.bool_], text: str) -> str:
    try:
        return network_of(text)
    except OSError:
        rows.reject(mask, "ip", "not an IP address")
        return ""


def _times(rows: _Rows, name: str) -> NDArray[np.int64]:
    """Return ms since 1970, NO_TIME_MS for null. Integers are ms; text is ISO 8601, UTC."""
    array = rows.column(name)
    if array is None:
        return np.full(len(rows.bad), NO_TIME_MS, np.int64)
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        array = _parse(rows, name, array, _time_of)
    elif pa.types.is_timestamp(array.type) or pa.types.is_date(array.type):
        array = pc.cast(array, pa.timestamp("ms", getattr(array.type, "tz", None)), safe=False)
        array = pc.cast(array, pa.int64())
    else:
        array = pc.cast(array, pa.int64())
    values: NDArray[np.int64] = pc.fill_null(array, int(NO_TIME_MS)).to_numpy()
    return values


def _time_of(text: str) -> int:
    return int(np.datetime64(text.strip().removesuffix("Z").replace(" ", "T"), "ms").astype(int))


def _parse(rows: _Rows, name: str, array: pa.Array, convert: Callable[[str], float]) -> pa.Array:
    """Convert a column of texts value by value; "" is null, what fails is a bad row."""
    values: list[float | None] = []
    failed = np.zeros(len(array), bool)
    for i, text in enumerate(array.to_pylist()):
        try:
            values.append(convert(text) if text else None)
        except ValueError:
            values.append(None)
            failed[i] = True
    rows.reject(failed, name, "cannot be read")
    return pa.array(values, pa.float64() if convert is float else pa.int64())


def _numbers(rows: _Rows, name: str, integral: bool) -> pa.Array | None:
    array = rows.column(name)
    if array is None:
        return None
    if pa.types.is_string(array.type):
        return _parse(rows, name, array, int if integral else float)
    try:
        return pc.cast(array, pa.int64() if integral else pa.float64())
    except pa.ArrowInvalid as error:
        raise HistoryError(f"column {name}: {error}") from error


def _flags(rows: _Rows, name: str, unknown: int = 0) -> NDArray[np.int8]:
    """Return 1, 0 or ``unknown`` (for null) of a column of booleans, 0/1 or texts."""
    array = rows.column(name)
    if array is None:
        return np.full(len(rows.bad), unknown, np.int8)
    if not pa.types.is_boolean(array.type):
        texts = pc.utf8_lower(_texts(array))
        known = {"1": 1, "true": 1, "t": 1, "0": 0, "false": 0, "f": 0}
        values = _by_text(rows, name, texts, known, unknown)
        return values.astype(np.int8)
    filled: NDArray[np.int8] = pc.fill_null(pc.cast(array, pa.int8()), unknown).to_numpy()
    return filled


def _by_text(
    rows: _Rows, name: str, texts: pa.Array, known: dict[str, int], unknown: int
) -> NDArray[np.int64]:
    distinct, which = _distinct(texts)
    values = np.array([known.get(t, unknown) for t in distinct] or [unknown], np.int64)
    for i, text in enumerate(distinct):
        if text and text not in known:
            rows.reject(which == i, name, f"{text[:40]!r} is neither true nor false")
    return values[which]


def _fill_required(rows: _Rows, records: NDArray[np.void]) -> None:
    for name in REQUIRED:
        array = rows.column(name)
        if array is None:
            raise HistoryError(f"no column {name} (use --map {name}=YOURS)")
        rows.reject(_nulls(array), name, "missing")
        if pa.types.is_string(array.type):
            empty = pc.fill_null(pc.equal(array, ""), False).to_numpy(zero_copy_only=False)
            rows.reject(empty, name, "missing")
    records["event_time_ms"] = _times(rows, "event_time")
    rows.reject(records["event_time_ms"] < 0, "event_time", "before 1970")
    amounts = _numbers(rows, "amount_minor", integral=True)
    assert amounts is not None  # noqa: S101 - required above
    minor = pc.fill_null(amounts, 0).to_numpy()
    outside = (minor < 0) | (minor > AMOUNT_MINOR_MAX)
    rows.reject(outside, "amount_minor", f"not between 0 and {AMOUNT_MINOR_MAX}")
    records["amount_minor"] = np.where(outside, 0, minor)


def _fill_money(rows: _Rows, records: NDArray[np.void]) -> None:
    usd = CURRENCIES["USD"].number
    records["currency"] = _by_distinct(rows, "currency", lambda c: CURRENCIES[c].number, usd)
    rates = np.zeros(1000, np.int64)
    for currency in CURRENCIES.values():
        rates[currency.number] = currency.rate_parts
    records["amount_ref"] = to_reference_many(
        np.ascontiguousarray(records["amount_minor"]), rates[records["currency"]]
    )


def _fill_codes(rows: _Rows, records: NDArray[np.void]) -> None:
    records["mcc"] = _by_distinct(rows, "mcc", mcc_number, 0)
    for name, target in REGION_COLUMNS.items():
        records[target] = _by_distinct(rows, name, region_number, 0)
    for name, (target, enum, prefix) in ENUM_COLUMNS.items():
        records[target] = _by_distinct(rows, name, lambda t, e=enum, p=prefix: e.Value(p + t), 0)  # type: ignore[misc]
    present, recurring = _flags(rows, "card_present"), _flags(rows, "recurring")
    codes = [records[n].astype(np.int64) for n in ("three_ds", "avs", "cvv", "authorization")]
    packed = np.stack([present, recurring, *codes], axis=1)
    distinct, which = np.unique(packed, axis=0, return_inverse=True)
    flags = np.array([flags_of(bool(r[0]), bool(r[1]), *map(int, r[2:])) for r in distinct])
    records["flags"] = flags[which.reshape(-1)] if len(records) else 0


def _fill_places(rows: _Rows, records: NDArray[np.void]) -> None:
    for name, (target, bound) in COORDINATES.items():
        numbers = _numbers(rows, name, integral=False)
        if numbers is None:
            records[target] = NO_COORDINATE
            continue
        known = ~_nulls(numbers)
        degrees = pc.fill_null(numbers, 0.0).to_numpy()
        outside = known & ~(np.abs(degrees) <= bound)
        rows.reject(outside, name, f"not between -{bound:g} and {bound:g}")
        safe = np.where(outside, 0.0, degrees)
        # np.rint rounds half to even, as coordinate_e6 does.
        records[target] = np.where(known, np.rint(safe * 1_000_000), NO_COORDINATE)
    either = (records["latitude_e6"] == NO_COORDINATE) | (records["longitude_e6"] == NO_COORDINATE)
    for target, _ in COORDINATES.values():
        records[target][either] = NO_COORDINATE


def _fill_ids(rows: _Rows, records: NDArray[np.void], hasher: IdHasher) -> None:
    records["transaction"] = _ids(rows, "transaction_id", SPACE_TRANSACTION, hasher)
    entities = np.zeros((len(records), len(Entity)), np.int64)
    for entity, name in ENTITY_COLUMNS.items():
        entities[:, entity] = _ids(rows, name, entity.value, hasher)
    set_pair(entities)
    records["entities"] = entities


def convert(table: pa.Table, hasher: IdHasher, first_line: int = 1) -> History:
    """Turn a table with the documented columns into records. Raises HistoryError."""
    rows = _Rows(table, first_line)
    records = np.zeros(len(table), RECORD)
    records["version"], records["kind"] = RECORD_VERSION, Kind.TRANSACTION
    records["known_time_ms"] = NO_TIME_MS
    _fill_required(rows, records)
    _fill_money(rows, records)
    _fill_codes(rows, records)
    _fill_places(rows, records)
    _fill_ids(rows, records, hasher)
    records["account_created_ms"] = _times(rows, "account_created_time")
    is_fraud = _flags(rows, "is_fraud", unknown=-1)
    label_time_ms = _times(rows, "label_time")
    good = ~rows.bad
    keep = pa.array(good)
    ids, customers = (
        _texts(rows.column(n)).filter(keep)
        for n in ("transaction_id", "customer_id")  # type: ignore[arg-type]
    )
    return History(
        records[good], ids, customers, is_fraud[good], label_time_ms[good],
        int(rows.bad.sum()), rows.problems,
    )  # fmt: skip


def _read_csv(path: Path, broken: list[Problem]) -> pa.Table:
    def skip(row: Any) -> str:
        why = f"{row.actual_columns} columns, not {row.expected_columns}"
        broken.append(Problem(row.number or 0, "", why))
        return "skip"

    header = pyarrow.csv.open_csv(path).schema.names
    return pyarrow.csv.read_csv(
        path,
        read_options=pyarrow.csv.ReadOptions(use_threads=False),
        parse_options=pyarrow.csv.ParseOptions(invalid_row_handler=skip, newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(header, pa.string()), strings_can_be_null=False
        ),
    )


def _rename(table: pa.Table, renames: dict[str, str]) -> pa.Table:
    """Give columns their documented names; ``renames`` maps ours to the file's."""
    for ours, theirs in renames.items():
        if ours not in (*REQUIRED, *OPTIONAL):
            raise HistoryError(f"--map {ours}=…: there is no column {ours}")
        if theirs not in table.column_names:
            raise HistoryError(f"--map {ours}={theirs}: the file has no column {theirs}")
    back = {theirs: ours for ours, theirs in renames.items()}
    names = [back.get(n, n) for n in table.column_names]
    if len(set(names)) != len(names):
        raise HistoryError(f"two columns have one name: {sorted(names)}")
    return table.rename_columns(names)


def read_history(
    path: Path,
    hasher: IdHasher,
    renames: dict[str, str],
    label_delay_ms: int | None = None,
    wanted: Iterable[str] = (*REQUIRED, *OPTIONAL),
) -> History:
    """Read a whole file, Parquet by default, CSV by its ending.

    ``label_delay_ms`` stands in for a missing ``label_time`` column: a row's label becomes known
    that long after its event. Raises HistoryError where the file cannot be used at all.
    """
    broken: list[Problem] = []
    try:
        is_csv = path.suffix == ".csv"
        table = _read_csv(path, broken) if is_csv else pyarrow.parquet.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise HistoryError(f"{path}: {error}") from error
    table = _rename(table, renames)
    table = table.select([n for n in table.column_names if n in set(wanted)])
    history = convert(table, hasher, first_line=2 if path.suffix == ".csv" else 1)
    history.problems = [*broken, *history.problems][:REPORTED_MAX]
    history.bad_rows += len(broken)
    if label_delay_ms is not None and "label_time" not in table.column_names:
        known = history.is_fraud >= 0
        times = history.records["event_time_ms"] + label_delay_ms
        history.label_time_ms = np.where(known, times, NO_TIME_MS)
    return history
