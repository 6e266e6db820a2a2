"""From a history's row to the contract's messages.

Owns the table that says which column becomes which field, and what a bad row is. Must not know
files or calls.
"""

from __future__ import annotations

import datetime
import math
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
from fraud.v1 import label_pb2, transaction_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from loadgen.columns import NUMBERS, REQUIRED, SCHEMA, TIME
from loadgen.history import column_names, read_batches

DAY_MS: Final = 86_400_000
# Names of the requests that replays send: the same row asks the same question each time.
REQUEST_NAMESPACE: Final = uuid.uuid5(uuid.NAMESPACE_URL, "urn:fraud:loadgen:replay")
DEFAULT_CURRENCY: Final = "USD"
# A file that names no source of its labels means the bank's own books.
UNNAMED_SOURCE: Final = "ISSUER"
_TRUTHS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True, slots=True)
class HistoryRow:
    """A row that can be sent: the transaction lacks only its request_id.

    ``is_fraud`` and ``label_ms`` are None where the file does not say or nobody ever will;
    ``source`` is a name of the contract's LabelSource without its prefix, "" for unknown.
    """

    line: int
    event_ms: int
    transaction: transaction_pb2.Transaction
    is_fraud: bool | None = None
    label_ms: int | None = None
    source: str = ""
    campaign: str = ""


@dataclass(frozen=True, slots=True)
class Span:
    """Times of rows that are wanted: from the first (inclusive) until the last (exclusive), ms."""

    from_ms: int | None = None
    until_ms: int | None = None

    def holds(self, time_ms: int) -> bool:
        """Return whether the time lies in the span."""
        early = self.from_ms is not None and time_ms < self.from_ms
        late = self.until_ms is not None and time_ms >= self.until_ms
        return not (early or late)


ALWAYS: Final = Span()


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be sent, and why; the reason never repeats the row's values."""

    line: int
    reason: str


def timestamp(time_ms: int) -> Timestamp:
    """Return milliseconds since 1970 as the contract's time."""
    seconds, rest = divmod(time_ms, 1000)
    return Timestamp(seconds=seconds, nanos=rest * 1_000_000)


def to_ms(value: object) -> int:
    """Return milliseconds since 1970 (UTC) of an integer, a datetime or ISO 8601 text.

    Text or datetimes without a zone are UTC. Raises ValueError for anything else.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        if value.lstrip("-").isdecimal():
            return int(value)
        value = datetime.datetime.fromisoformat(value)
    if not isinstance(value, datetime.datetime):
        raise ValueError("is not a time")
    if value.tzinfo is None:
        value = value.replace(tzinfo=datetime.UTC)
    since = value - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return since // datetime.timedelta(milliseconds=1)


def _to_int(value: object) -> int:
    number = int(value) if isinstance(value, (int, str)) else float(str(value))
    if number != int(number):
        raise ValueError("is not a whole number")
    return int(number)


def _to_degrees(value: object) -> float:
    number = float(str(value))
    if not math.isfinite(number):
        raise ValueError("is not finite")
    return number


def _to_bool(value: object) -> bool:
    truth = _TRUTHS.get(str(value).lower())
    if truth is None:
        raise ValueError("is neither true nor false")
    return truth


def _to_number(column: str) -> Callable[[object], int]:
    numbers = NUMBERS[column]

    def convert(value: object) -> int:
        number = numbers.get(str(value))
        if number is None:
            raise ValueError(f"is none of {', '.join(numbers)}")
        return number

    return convert


def _to_source(value: object) -> str:
    _to_number("label_source")(value)
    return str(value)


def _to_timestamp(value: object) -> Timestamp:
    return timestamp(to_ms(value))


# Column -> (message inside the transaction, or "" for the transaction itself; field; conversion).
FIELDS: Final[dict[str, tuple[str, str, Callable[[Any], Any]]]] = {
    "transaction_id": ("", "transaction_id", str),
    "event_time": ("", "event_time", _to_timestamp),
    "customer_id": ("", "customer_id", str),
    "account_created_time": ("", "account_created_time", _to_timestamp),
    "card_id": ("card", "token", str),
    "bin": ("card", "bin", str),
    "brand": ("card", "brand", _to_number("brand")),
    "funding": ("card", "funding", _to_number("funding")),
    "issuer_region": ("card", "issuer_region_code", str),
    "merchant_id": ("merchant", "merchant_id", str),
    "mcc": ("merchant", "category_code", str),
    "region": ("merchant", "region_code", str),
    "terminal_id": ("", "terminal_id", str),
    "device_id": ("", "device_id", str),
    "ip": ("", "ip_address", str),
    "email": ("email", "address_hash", str),
    "email_domain": ("email", "domain", str),
    "amount_minor": ("", "amount_minor", _to_int),
    "currency": ("", "currency_code", str),
    "channel": ("", "channel", _to_number("channel")),
    "entry_mode": ("", "pos_entry_mode", _to_number("entry_mode")),
    "card_present": ("", "card_present", _to_bool),
    "recurring": ("", "recurring", _to_bool),
    "three_ds": ("", "three_ds_result", _to_number("three_ds")),
    "avs": ("", "avs_result", _to_number("avs")),
    "cvv": ("", "cvv_result", _to_number("cvv")),
    "authorization": ("", "authorization_result", _to_number("authorization")),
    "billing_region": ("", "billing_region_code", str),
    "shipping_region": ("", "shipping_region_code", str),
    "lat": ("position", "latitude_degrees", _to_degrees),
    "lon": ("position", "longitude_degrees", _to_degrees),
}


def _convert(column: str, convert: Callable[[Any], Any], value: object) -> Any:
    try:
        return convert(value)
    except (ValueError, OverflowError) as error:
        # Python's own messages repeat the value, which may be a card number.
        reason = str(error) if str(error).startswith("is ") else "cannot be read"
        raise ValueError(f"{column} {reason}") from None


def _is_absent(value: object) -> bool:
    """Return whether the value is None, "" or NaN, which is how data frames write None."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def to_transaction(row: Mapping[str, object]) -> transaction_pb2.Transaction:
    """Return the row as a transaction without request_id.

    None, "" and NaN are absent. A position with one coordinate is none. Raises ValueError naming
    the column for a missing required value or one that cannot be read.
    """
    parts: dict[str, Any] = {"": {}}
    for column, (message, field, convert) in FIELDS.items():
        value = row.get(column)
        if not _is_absent(value):
            parts.setdefault(message, {})[field] = _convert(column, convert, value)
        elif column in REQUIRED:
            raise ValueError(f"{column} is missing")
    fields: dict[str, Any] = parts.pop("")
    fields.setdefault("currency_code", DEFAULT_CURRENCY)
    if len(parts.get("position", ())) == 1:
        del parts["position"]
    try:
        return transaction_pb2.Transaction(**fields, **parts)
    except (ValueError, TypeError, UnicodeError):
        raise ValueError("a value does not fit its field") from None


def to_row(line: int, values: Mapping[str, object], label_delay_ms: int | None) -> HistoryRow:
    """Return one row of a file; ``label_delay_ms`` stands in where it has no label_time column.

    Raises ValueError naming the column.
    """
    transaction = to_transaction(values)
    event_ms = transaction.event_time.ToMilliseconds()
    truth = {
        column: None
        if _is_absent(values.get(column))
        else _convert(column, convert, values[column])
        for column, convert in _TRUTH.items()
    }
    label_ms = truth["label_time"]
    if "label_time" not in values and label_delay_ms is not None:
        label_ms = event_ms + label_delay_ms
    return HistoryRow(
        line=line,
        event_ms=event_ms,
        transaction=transaction,
        is_fraud=truth["is_fraud"],
        label_ms=label_ms,
        source=truth["label_source"] or "",
        campaign=truth["campaign"] or "",
    )


_TRUTH: Final[dict[str, Callable[[Any], Any]]] = {
    "is_fraud": _to_bool,
    "label_time": to_ms,
    "label_source": _to_source,
    "campaign": str,
}


def read_rows(
    path: Path,
    renamed: Mapping[str, str],
    label_delay_ms: int | None = None,
    span: Span = ALWAYS,
) -> Iterator[HistoryRow | BadRow]:
    """Yield a history file's rows of the span in its order.

    ``renamed`` maps documented names to the file's own. Raises ValueError for an unknown
    documented name or a required column the file lacks.
    """
    unknown = set(renamed) - set(SCHEMA.names)
    if unknown:
        raise ValueError(f"no such column: {', '.join(sorted(unknown))}")
    columns = {name: renamed.get(name, name) for name in SCHEMA.names}
    held = column_names(path)
    missing = [columns[name] for name in REQUIRED if columns[name] not in held]
    if missing:
        raise ValueError(f"{path} has no column {', '.join(missing)}; --map new=old renames")
    return _rows_of(read_batches(path, columns), label_delay_ms, span)


def table_rows(table: pa.Table) -> Iterator[HistoryRow | BadRow]:
    """Yield the rows of a table of SCHEMA, such as a day of the world."""
    for at, field in enumerate(SCHEMA):
        if field.type == TIME:
            table = table.set_column(at, field.name, table[field.name].cast(pa.int64()))
    return _rows_of(iter([(1, table.to_pydict())]), None, ALWAYS)


def _rows_of(
    batches: Iterator[tuple[int, dict[str, list[Any]]]], label_delay_ms: int | None, span: Span
) -> Iterator[HistoryRow | BadRow]:
    for first_line, columns in batches:
        names = tuple(columns)
        for line, values in enumerate(zip(*columns.values(), strict=True), first_line):
            row = dict(zip(names, values, strict=True))
            try:
                # The time alone first: converting a whole row that nobody wants costs ten times it.
                if span is ALWAYS or span.holds(_convert("event_time", to_ms, row["event_time"])):
                    yield to_row(line, row, label_delay_ms)
            except ValueError as error:
                yield BadRow(line, str(error))


def request_id(transaction_id: str) -> str:
    """Return the UUID (version 5) under which a replay sends the transaction."""
    return str(uuid.uuid5(REQUEST_NAMESPACE, transaction_id))


def to_label(row: HistoryRow, shift_ms: int = 0) -> label_pb2.Label:
    """Return what became known of a row that has a verdict and a time for it."""
    if row.is_fraud is None or row.label_ms is None:
        raise ValueError(f"line {row.line} has no label")
    fraud = row.is_fraud
    return label_pb2.Label(
        transaction_id=row.transaction.transaction_id,
        verdict=label_pb2.VERDICT_FRAUD if fraud else label_pb2.VERDICT_LEGITIMATE,
        source=f"LABEL_SOURCE_{row.source or UNNAMED_SOURCE}",
        label_time=timestamp(row.label_ms + shift_ms),
        reporter="loadgen",
    )
