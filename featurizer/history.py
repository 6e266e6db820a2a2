"""The columns of a history as records: their names, their conversion, and what is wrong.

Owns the documented columns; every number is made by the functions of ``records``, ``currencies``
and ``hashing`` that the scorer uses for a call. Must not know where the columns were read. A row
that cannot be used is reported with its line and left out, never dropped in silence; no report
repeats a value, which may be a card number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from fraud.v1 import label_pb2, transaction_pb2
from numpy.typing import DTypeLike, NDArray

from featurizer.currencies import AMOUNT_MINOR_MAX, CURRENCIES, REFERENCE_CODE, to_reference_many
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
from featurizer.state import DAY_MS

REPORTED_MAX = 20
# A state keeps labels by day in 15 bits: the last one is 2059-09-18.
TIME_MAX_MS = (1 << 15) * DAY_MS - 1
ACCOUNT_OLDEST_MS = -2_208_988_800_000  # 1900-01-01, as in the contract
ACCOUNT_AHEAD_MS_MAX = DAY_MS

# Free texts and the bytes that the contract allows them.
TEXT_BYTES_MAX = {
    "transaction_id": 64, "customer_id": 64, "card_id": 64, "merchant_id": 64, "terminal_id": 64,
    "device_id": 128, "email": 128,
}  # fmt: skip
# The column that holds each entity's id; PAIR is made from the others.
ENTITY_COLUMNS = {
    Entity.CUSTOMER: "customer_id", Entity.CARD: "card_id", Entity.MERCHANT: "merchant_id",
    Entity.TERMINAL: "terminal_id", Entity.DEVICE: "device_id", Entity.NETWORK: "ip",
    Entity.EMAIL: "email", Entity.BIN: "bin",
}  # fmt: skip
# Column: field of the record and the contract's enum; the column holds names without prefix.
ENUM_COLUMNS: dict[str, tuple[str, Any]] = {
    "channel": ("channel", transaction_pb2.Channel),
    "entry_mode": ("pos_entry_mode", transaction_pb2.PosEntryMode),
    "brand": ("brand", transaction_pb2.CardBrand),
    "funding": ("funding", transaction_pb2.CardFunding),
    "three_ds": ("three_ds", transaction_pb2.ThreeDsResult),
    "avs": ("avs", transaction_pb2.AvsResult),
    "cvv": ("cvv", transaction_pb2.CvvResult),
    "authorization": ("authorization", transaction_pb2.AuthorizationResult),
}
REGION_COLUMNS = {
    "region": "merchant_region", "issuer_region": "issuer_region",
    "billing_region": "billing_region", "shipping_region": "shipping_region",
}  # fmt: skip
COORDINATES = {"lat": ("latitude_e6", 90.0), "lon": ("longitude_e6", 180.0)}
REQUIRED = ("transaction_id", "event_time", "customer_id", "amount_minor")
OPTIONAL = (
    *(name for name in ENTITY_COLUMNS.values() if name not in REQUIRED), "currency", "mcc",
    *REGION_COLUMNS, *COORDINATES, *ENUM_COLUMNS, "card_present", "recurring",
    "account_created_time", "is_fraud", "label_time", "label_source",
)  # fmt: skip

_TRUTHS = {"1": 1, "true": 1, "t": 1, "0": 0, "false": 0, "f": 0}
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
_DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class HistoryError(Exception):
    """The file cannot be used at all."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A row that was left out: its line (from 1, a CSV's header included; rows of Parquet)."""

    line: int
    column: str
    why: str


@dataclass(slots=True)
class History:
    """The good rows, in the file's order.

    ``records`` RECORD[n]; ``ids`` and ``customers`` large_string[n]; ``is_fraud`` int8[n] (-1
    unknown); ``label_time_ms`` int64[n] (NO_TIME_MS where no label ever became known);
    ``label_source`` uint8[n], by the contract's LabelSource.
    """

    records: NDArray[np.void]
    ids: pa.Array
    customers: pa.Array
    is_fraud: NDArray[np.int8]
    label_time_ms: NDArray[np.int64]
    label_source: NDArray[np.uint8]
    bad_rows: int = 0
    problems: list[Problem] = field(default_factory=list)


class _Rows:
    """Rows being converted, the line of each, and which of them turned out bad."""

    def __init__(self, columns: dict[str, pa.Array], lines: NDArray[np.int64]) -> None:
        self.columns = columns
        self.lines = lines
        self.bad = np.zeros(len(lines), bool)
        self.problems: list[Problem] = []

    def __len__(self) -> int:
        return len(self.lines)

    def reject(self, mask: NDArray[np.bool_], column: str, why: Callable[[int], str]) -> None:
        """Mark rows as bad; ``why`` tells the reason of one."""
        new = np.flatnonzero(mask & ~self.bad)[:REPORTED_MAX].tolist()
        self.problems += [Problem(int(self.lines[row]), column, why(row)) for row in new]
        self.bad |= mask

    def bound(
        self, outside: NDArray[np.bool_], column: str, why: str, values: NDArray[Any]
    ) -> None:
        """Mark rows as bad and make their ``values`` 0, so that the rest can be computed."""
        self.reject(outside, column, lambda _: why)
        values[outside] = 0

    def distinct(self, name: str) -> tuple[list[str], NDArray[np.int64]]:
        """Return the distinct texts of a column and, per row, which it is; null is ""."""
        if name not in self.columns:
            return [""], np.zeros(len(self), np.int64)
        coded = self.columns[name].dictionary_encode()
        texts = pc.cast(coded.dictionary, pa.string()).to_pylist()
        which = pc.fill_null(pc.cast(coded.indices, pa.int64()), len(texts)).to_numpy()
        return [*texts, ""], which

    def convert(
        self, name: str, convert: Callable[[str], Any], default: Any, dtype: DTypeLike = np.int64
    ) -> NDArray[Any]:
        """Convert each distinct text once; "" gives ``default``, a refusal is a bad row."""
        texts, which = self.distinct(name)
        values = np.full(len(texts), default, dtype)
        converted, faults = _try_each(convert, texts)
        for i, value in converted.items():
            values[i] = value
        self._reject_texts(faults, which, name)
        return values[which]

    def ids(self, name: str, space: int, hasher: IdHasher) -> NDArray[np.int64]:
        """Return int64[n]: the ids of a column in a space, 0 where absent."""
        texts, which = self.distinct(name)
        limit = TEXT_BYTES_MAX.get(name, 0)
        check = _ID_CHECKS.get(name) or partial(_bounded, limit)
        faults: dict[int, str] = {}
        encoded = [text.encode() for text in texts]
        if max(map(len, encoded)) > limit or not "".join(texts).isprintable():
            converted, faults = _try_each(check, texts)
            encoded = [converted.get(i, "").encode() for i in range(len(texts))]
        self._reject_texts(faults, which, name)
        return hasher.many(np.full(len(encoded), space, np.int64), encoded)[which]

    def _reject_texts(self, faults: dict[int, str], which: NDArray[np.int64], name: str) -> None:
        if faults:
            mask = np.isin(which, list(faults))
            self.reject(mask, name, lambda row: faults[int(which[row])])


def _try_each(
    convert: Callable[[str], Any], texts: Sequence[str]
) -> tuple[dict[int, Any], dict[int, str]]:
    """Return what became of each text that is not empty, and why the others were refused."""
    converted: dict[int, Any] = {}
    faults: dict[int, str] = {}
    for i, text in enumerate(texts):
        try:
            if text:
                converted[i] = convert(text)
        except KeyError:
            faults[i] = "is not a known value"
        except ValueError as error:
            faults[i] = str(error)
    return converted, faults


def _bounded(bytes_max: int, text: str) -> str:
    if len(text.encode()) > bytes_max:
        raise ValueError(f"must not be longer than {bytes_max} bytes")
    if _CONTROL.search(text):
        raise ValueError("must not hold control characters")
    return text


def _network(text: str) -> str:
    try:
        return network_of(text)
    except (OSError, ValueError):
        raise ValueError("is not an IPv4 or IPv6 address") from None


def _matching(pattern: re.Pattern[str], convert: Callable[[str], Any], why: str, text: str) -> Any:
    if not pattern.fullmatch(text):
        raise ValueError(why)
    return convert(text)


_bin = partial(_matching, re.compile(r"[0-9]{6,8}"), str, "must be 6 to 8 digits")
_whole = partial(_matching, _WHOLE, int, "is not a whole number")
_decimal = partial(_matching, _DECIMAL, float, "is not a number")
# Ids that are more than a free text.
_ID_CHECKS: dict[str, Callable[[str], str]] = {"ip": _network, "bin": _bin}


def _time_of(text: str) -> int:
    """Return ms since 1970, rounded down, of such a number or of ISO 8601 (UTC by default)."""
    if _WHOLE.fullmatch(text):
        return int(text)
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("is not a time: ISO 8601 or milliseconds since 1970") from None
    aware = time if time.tzinfo else time.replace(tzinfo=UTC)
    return (aware - _EPOCH) // timedelta(milliseconds=1)


def _truth(text: str) -> int:
    if text.lower() not in _TRUTHS:
        raise ValueError("is neither true nor false")
    return _TRUTHS[text.lower()]


def _missing(array: pa.Array) -> NDArray[np.bool_]:
    """Return bool[n]: null, NaN (how data frames write null) or ""."""
    mask: NDArray[np.bool_] = pc.is_null(array, nan_is_null=True).to_numpy(zero_copy_only=False)
    if pa.types.is_string(array.type):
        mask = mask | pc.fill_null(pc.equal(array, ""), True).to_numpy(zero_copy_only=False)
    return mask


def _times(rows: _Rows, name: str) -> NDArray[np.int64]:
    """Return int64[n]: ms since 1970, NO_TIME_MS for null."""
    array = rows.columns.get(name)
    if array is None or not pa.types.is_integer(array.type):
        return rows.convert(name, _time_of, NO_TIME_MS)
    return np.array(pc.fill_null(array, int(NO_TIME_MS)).to_numpy())


def _amounts(rows: _Rows) -> NDArray[np.int64]:
    """Return int64[n]: minor units, -1 for null."""
    array = rows.columns["amount_minor"]
    if pa.types.is_integer(array.type):
        return np.array(pc.fill_null(array, -1).to_numpy())
    if not pa.types.is_floating(array.type):
        return rows.convert("amount_minor", _whole, -1)
    numbers = array.to_numpy(zero_copy_only=False)
    # NaN fails both comparisons.
    whole = (numbers == np.rint(numbers)) & (np.abs(numbers) <= 2.0**53)
    rows.reject(~whole, "amount_minor", lambda _: "is not a whole number")
    return np.where(whole, numbers, -1).astype(np.int64)


def _degrees(rows: _Rows, name: str) -> NDArray[np.float64]:
    """Return float64[n]: degrees, NaN for null."""
    array = rows.columns.get(name)
    if array is None or not pa.types.is_floating(array.type):
        return rows.convert(name, _decimal, np.nan, np.float64)
    return np.array(array.to_numpy(zero_copy_only=False))


def _fill_required(rows: _Rows, records: NDArray[np.void]) -> None:
    for name in REQUIRED:
        rows.reject(_missing(rows.columns[name]), name, lambda _: "is missing")
    times, amounts = _times(rows, "event_time"), _amounts(rows)
    why = "must lie between 1970 and 2059-09-18"
    rows.bound((times < 0) | (times > TIME_MAX_MS), "event_time", why, times)
    why = f"must lie between 0 and {AMOUNT_MINOR_MAX}"
    rows.bound((amounts < 0) | (amounts > AMOUNT_MINOR_MAX), "amount_minor", why, amounts)
    records["event_time_ms"], records["amount_minor"] = times, amounts


def _fill_money(rows: _Rows, records: NDArray[np.void]) -> None:
    default = CURRENCIES[REFERENCE_CODE]
    number = rows.convert("currency", lambda code: CURRENCIES[code].number, default.number)
    rate = rows.convert("currency", lambda code: CURRENCIES[code].rate_parts, default.rate_parts)
    records["currency"] = number
    records["amount_ref"] = to_reference_many(records["amount_minor"], rate)


def _numbers_of(enum: Any) -> dict[str, int]:
    prefix = enum.Name(0).removesuffix("UNSPECIFIED")
    return {name.removeprefix(prefix): number for name, number in enum.items() if number}


@cache
def _flag_table() -> NDArray[np.uint16]:
    """Return uint16[2, 2, 8, 8, 8, 8]: flags_of for every combination of its arguments."""
    table = np.zeros((2, 2, 8, 8, 8, 8), np.uint16)
    for at in np.ndindex(table.shape):
        table[at] = flags_of(bool(at[0]), bool(at[1]), *at[2:])
    return table


def _fill_codes(rows: _Rows, records: NDArray[np.void]) -> None:
    records["mcc"] = rows.convert("mcc", mcc_number, 0)
    for name, target in REGION_COLUMNS.items():
        records[target] = rows.convert(name, region_number, 0)
    for name, (target, enum) in ENUM_COLUMNS.items():
        records[target] = rows.convert(name, _numbers_of(enum).__getitem__, 0)
    said = (rows.convert(name, _truth, 0) for name in ("card_present", "recurring"))
    checks = (records[name] for name in ("three_ds", "avs", "cvv", "authorization"))
    records["flags"] = _flag_table()[(*said, *checks)]


def _fill_places(rows: _Rows, records: NDArray[np.void]) -> None:
    places = {name: _degrees(rows, name) for name in COORDINATES}
    absent = np.isnan(places["lat"]) | np.isnan(places["lon"])
    for name, (target, bound) in COORDINATES.items():
        degrees = places[name]
        rows.bound(np.abs(degrees) > bound, name, f"must lie in -{bound:g} to {bound:g}", degrees)
        degrees[absent] = 0.0
        # np.rint rounds half to even, as coordinate_e6 does.
        records[target] = np.where(absent, NO_COORDINATE, np.rint(degrees * 1_000_000))


def _fill_ids(rows: _Rows, records: NDArray[np.void], hasher: IdHasher) -> None:
    records["transaction"] = rows.ids("transaction_id", SPACE_TRANSACTION, hasher)
    entities = np.zeros((len(records), len(Entity)), np.int64)
    for entity, name in ENTITY_COLUMNS.items():
        entities[:, entity] = rows.ids(name, entity.value, hasher)
    set_pair(entities)
    records["entities"] = entities


def _fill_account(rows: _Rows, records: NDArray[np.void]) -> None:
    times = _times(rows, "account_created_time")
    known = times != NO_TIME_MS
    early = known & (times < ACCOUNT_OLDEST_MS)
    rows.bound(early, "account_created_time", "is before 1900", times)
    late = known & (times > records["event_time_ms"] + ACCOUNT_AHEAD_MS_MAX)
    rows.bound(late, "account_created_time", "is more than a day after event_time", times)
    records["account_created_ms"] = times


def _labels(
    rows: _Rows, records: NDArray[np.void]
) -> tuple[NDArray[np.int8], NDArray[np.int64], NDArray[np.uint8]]:
    """Return the verdicts (-1 unknown), when they became known, and who said so."""
    is_fraud = rows.convert("is_fraud", _truth, -1, np.int8)
    times = _times(rows, "label_time")
    known = times != NO_TIME_MS
    why = "must lie between event_time and 2059-09-18"
    outside = known & ((times < records["event_time_ms"]) | (times > TIME_MAX_MS))
    rows.bound(outside, "label_time", why, times)
    numbers = _numbers_of(label_pb2.LabelSource)
    return is_fraud, times, rows.convert("label_source", numbers.__getitem__, 0, np.uint8)


def convert(columns: dict[str, pa.Array], lines: NDArray[np.int64], hasher: IdHasher) -> History:
    """Turn columns of n rows, under their documented names, into records.

    The arrays are string, int64, float64 or bool; times as integers are ms since 1970. ``lines``
    int64[n] says where each row stands in its file. Raises HistoryError where a required column
    is missing.
    """
    for name in REQUIRED:
        if name not in columns:
            raise HistoryError(f"there is no column {name} (name yours: --map {name}=YOURS)")
    rows = _Rows(columns, lines)
    records = np.zeros(len(rows), RECORD)
    records["version"], records["kind"] = RECORD_VERSION, Kind.TRANSACTION
    records["known_time_ms"] = NO_TIME_MS
    for fill in (_fill_required, _fill_money, _fill_codes, _fill_places, _fill_account):
        fill(rows, records)
    _fill_ids(rows, records, hasher)
    is_fraud, label_times, sources = _labels(rows, records)
    good = ~rows.bad if rows.bad.any() else slice(None)  # copying costs as much as hashing
    ids, customers = (
        pc.cast(columns[name].filter(pa.array(~rows.bad)), pa.large_string())
        for name in ("transaction_id", "customer_id")
    )
    return History(
        records[good], ids, customers, is_fraud[good], label_times[good], sources[good],
        int(rows.bad.sum()), rows.problems,
    )  # fmt: skip
