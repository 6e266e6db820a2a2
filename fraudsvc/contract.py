"""Checks what callers send and turns a good transaction into its record.

Owns every bound that the contract states, the paths that violations name, and the ids that bind
a request to its content. Must not know gRPC, the log or the store; how a value becomes a number
is the records module's. No violation holds the value it is about.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from operator import gt

import numpy as np
from fraud.v1 import label_pb2, transaction_pb2
from google.protobuf.timestamp_pb2 import Timestamp
from numpy.typing import NDArray

from featurizer.currencies import AMOUNT_MINOR_MAX, CURRENCIES, to_reference
from featurizer.hashing import IdHasher
from featurizer.records import (
    NO_COORDINATE,
    NO_TIME_MS,
    RECORD,
    RECORD_VERSION,
    Kind,
    coordinate_e6,
    flags_of,
    mcc_number,
    network_of,
    region_number,
)
from fraudsvc.cardnumbers import looks_like_card_number, may_hold
from fraudsvc.errors import Violation

DAY_MS = 86_400_000
SECONDS_MIN, SECONDS_MAX = -62_135_596_800, 253_402_300_799  # protobuf: years 1 to 9999
ACCOUNT_OLDEST_MS = -2_208_988_800_000  # 1900-01-01
ACCOUNT_AHEAD_MS_MAX = DAY_MS  # clocks and time zones of the caller's own systems
REQUIRED = "is required"
CARD_NUMBER = (
    "looks like a card number; send a token, or name this field in FRAUD_EXEMPT_FIELDS if your "
    "own ids look like this"
)
CONTROL = "must not hold control characters"

# Free texts in the order of Checker.check, and the bytes that the contract allows them.
_TEXTS = {
    "transaction.transaction_id": 64,
    "transaction.customer_id": 64,
    "transaction.card.token": 64,
    "transaction.merchant.merchant_id": 64,
    "transaction.terminal_id": 64,
    "transaction.device_id": 128,
    "transaction.email.address_hash": 128,
    "transaction.email.domain": 253,
}
_LABEL_TEXTS = {"label.transaction_id": 64, "label.reporter": 128, "label.note": 1024}
FREE_TEXT_FIELDS = frozenset(_TEXTS) | frozenset(_LABEL_TEXTS)

_REGION_PATHS = (
    "transaction.merchant.region_code",
    "transaction.card.issuer_region_code",
    "transaction.billing_region_code",
    "transaction.shipping_region_code",
)
# Highest number of each enum, in the record's order; all start at 0 without gaps (tested).
_ENUMS = {
    "transaction.channel": 6,
    "transaction.pos_entry_mode": 6,
    "transaction.card.brand": 7,
    "transaction.card.funding": 3,
    "transaction.three_ds_result": 4,
    "transaction.avs_result": 4,
    "transaction.cvv_result": 3,
    "transaction.authorization_result": 2,
}
_LABEL_ENUMS = {"label.verdict": 4, "label.source": 4}

_TEXT_PATHS = tuple(_TEXTS)
_EVENT_TIME = "transaction.event_time"
_CREATED_TIME = "transaction.account_created_time"
_LABEL_TIME = "label.label_time"

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_BIN = re.compile(r"[0-9]{6,8}")
_LAST_FOUR = re.compile(r"[0-9]{4}")
_NO_REGION = -1
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_REGIONS = {code: region_number(code) for code in ("", *map("".join, product(_LETTERS, repeat=2)))}

_TRANSACTION = int(Kind.TRANSACTION)
_CODES = {"u1": "B", "u2": "H", "i4": "i", "i8": "q"}


def _row_format(dtype: np.dtype[np.void]) -> str:
    """Return the struct format of a packed dtype, so that one call fills a whole row."""
    codes = ["<"]
    for name in dtype.names or ():
        base, shape = dtype[name].base, dtype[name].shape
        count = shape[0] if shape else 1
        codes.append("x" * count if name == "reserved" else _CODES[base.str[1:]] * count)
    return "".join(codes)


_ROW = struct.Struct(_row_format(RECORD))


@dataclass(frozen=True, slots=True)
class ContractSettings:
    """The bounds that an operator may move.

    ``max_age_days`` None switches the age check off, for replays of history. ``exempt_fields``
    are paths of free texts that may look like card numbers. Raises ValueError for a path that is
    not in FREE_TEXT_FIELDS and for an amount that the reference currency cannot hold.
    """

    max_ahead_ms: int = 300_000
    max_age_days: int | None = 90
    amount_minor_max: int = AMOUNT_MINOR_MAX
    exempt_fields: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        unknown = sorted(self.exempt_fields - FREE_TEXT_FIELDS)
        if unknown:
            known = ", ".join(sorted(FREE_TEXT_FIELDS))
            raise ValueError(f"FRAUD_EXEMPT_FIELDS: unknown {unknown}; known are {known}")
        if not 0 < self.amount_minor_max <= AMOUNT_MINOR_MAX:
            raise ValueError(f"amount_minor_max must lie between 1 and {AMOUNT_MINOR_MAX}")


class Checker:
    """Checks messages against the contract; keeps no state, so threads may share it."""

    def __init__(self, hasher: IdHasher, settings: ContractSettings) -> None:
        self._hasher = hasher
        self._settings = settings

    def check(
        self, transaction: transaction_pb2.Transaction, now_ms: int, out: NDArray[np.void]
    ) -> Sequence[Violation]:
        """Return all violations; when there are none, ``out`` (RECORD, shape (1,)) is filled.

        ``now_ms`` is the scorer's clock. With violations ``out`` is not touched.
        """
        bad: list[Violation] = []
        card, merchant = transaction.card, transaction.merchant
        event_ms, created_ms = self._times(transaction, now_ms, bad)
        amount_minor = transaction.amount_minor
        currency, reference = self._money(amount_minor, transaction.currency_code, bad)
        texts = self._texts(transaction, card, merchant, bad)
        latitude, longitude = _position(transaction, bad)
        mcc, regions = _places(transaction, card, merchant, bad)
        enums = _enums(transaction, card, bad)
        if bad:
            return bad
        flags = flags_of(transaction.card_present, transaction.recurring, *enums[4:])
        ids = self._hasher.row(texts).tolist()
        _ROW.pack_into(
            out,  # type: ignore[arg-type]  # a buffer; typeshed can say so from 3.12
            0,
            RECORD_VERSION, _TRANSACTION, flags, mcc, currency, event_ms, NO_TIME_MS,
            amount_minor, reference, created_ms, *ids, latitude, longitude, *regions, *enums,
            0, 0,
        )  # fmt: skip
        return bad

    def check_label(self, label: label_pb2.Label, now_ms: int) -> Sequence[Violation]:
        """Return all violations of a label, in the order of its fields' kinds."""
        bad: list[Violation] = []
        self._label_time(label, now_ms, bad)
        raw = (label.transaction_id, label.reporter, label.note)
        _check_texts(_LABEL_TEXTS, raw, [text.encode() for text in raw], self._exempt, bad)
        if not label.transaction_id:
            bad.append(Violation("label.transaction_id", REQUIRED))
        numbers = (label.verdict, label.source)
        _check_numbers(_LABEL_ENUMS, numbers, bad)
        missing = (path for path, n in zip(_LABEL_ENUMS, numbers, strict=True) if n == 0)
        bad.extend(Violation(path, REQUIRED) for path in missing)
        return bad

    @property
    def _exempt(self) -> frozenset[str]:
        return self._settings.exempt_fields

    def _times(
        self, transaction: transaction_pb2.Transaction, now_ms: int, bad: list[Violation]
    ) -> tuple[int, int]:
        event_ms = NO_TIME_MS
        if transaction.HasField("event_time"):
            event_ms = _milliseconds(_EVENT_TIME, transaction.event_time, bad)
            if event_ms != NO_TIME_MS:
                self._check_age(event_ms, now_ms, bad)
        else:
            bad.append(Violation(_EVENT_TIME, REQUIRED))
        created_ms = NO_TIME_MS
        if transaction.HasField("account_created_time"):
            created_ms = _milliseconds(_CREATED_TIME, transaction.account_created_time, bad)
            if created_ms != NO_TIME_MS:
                _check_created(created_ms, event_ms, bad)
        return event_ms, created_ms

    def _check_age(self, event_ms: int, now_ms: int, bad: list[Violation]) -> None:
        settings = self._settings
        if event_ms > now_ms + settings.max_ahead_ms:
            bad.append(Violation(_EVENT_TIME, f"is more than {settings.max_ahead_ms} ms ahead"))
        days = settings.max_age_days
        if days is not None and event_ms < now_ms - days * DAY_MS:
            bad.append(Violation(_EVENT_TIME, f"is more than {days} days ago"))

    def _label_time(self, label: label_pb2.Label, now_ms: int, bad: list[Violation]) -> None:
        if not label.HasField("label_time"):
            bad.append(Violation(_LABEL_TIME, REQUIRED))
            return
        label_ms = _milliseconds(_LABEL_TIME, label.label_time, bad)
        ahead_ms = self._settings.max_ahead_ms
        if label_ms > now_ms + ahead_ms:
            bad.append(Violation(_LABEL_TIME, f"is more than {ahead_ms} ms ahead"))

    def _money(self, amount_minor: int, code: str, bad: list[Violation]) -> tuple[int, int]:
        if not 0 <= amount_minor <= self._settings.amount_minor_max:
            limit = self._settings.amount_minor_max
            bad.append(Violation("transaction.amount_minor", f"must lie between 0 and {limit}"))
        currency = CURRENCIES.get(code)
        if currency is None:
            text = "is not an ISO 4217 code that this service knows" if code else REQUIRED
            bad.append(Violation("transaction.currency_code", text))
            return 0, 0
        return currency.number, to_reference(amount_minor, code)

    def _texts(
        self,
        transaction: transaction_pb2.Transaction,
        card: transaction_pb2.Card,
        merchant: transaction_pb2.Merchant,
        bad: list[Violation],
    ) -> tuple[bytes, ...]:
        """Return the ten texts of IdHasher.row."""
        email = transaction.email
        raw = (
            transaction.transaction_id, transaction.customer_id, card.token, merchant.merchant_id,
            transaction.terminal_id, transaction.device_id, email.address_hash, email.domain,
        )  # fmt: skip
        encoded = [text.encode() for text in raw]
        _check_texts(_TEXTS, raw, encoded, self._exempt, bad)
        if not (raw[0] and raw[1]):
            missing = (path for path, text in zip(_TEXT_PATHS[:2], raw, strict=False) if not text)
            bad.extend(Violation(path, REQUIRED) for path in missing)
        request_id = transaction.request_id
        if not _UUID.fullmatch(request_id):
            text = "must be a UUID in lower case" if request_id else REQUIRED
            bad.append(Violation("transaction.request_id", text))
        payment, customer, token, payee, terminal, device, address, _ = encoded
        network = _network(transaction.ip_address, bad)
        digits = _digits(card, bad)
        return (
            payment, request_id.encode(), customer, token, payee, terminal, device,
            network.encode(), address, digits.encode(),
        )  # fmt: skip


def _milliseconds(path: str, time: Timestamp, bad: list[Violation]) -> int:
    """Return the time rounded down, or NO_TIME_MS where it is not a protobuf timestamp."""
    seconds, nanos = time.seconds, time.nanos
    if SECONDS_MIN <= seconds <= SECONDS_MAX and 0 <= nanos <= 999_999_999:
        return seconds * 1000 + nanos // 1_000_000
    bad.append(Violation(path, "is outside the years 1 to 9999, or nanos outside 0 to 999999999"))
    return NO_TIME_MS


def _check_created(created_ms: int, event_ms: int, bad: list[Violation]) -> None:
    if created_ms < ACCOUNT_OLDEST_MS:
        bad.append(Violation(_CREATED_TIME, "is before 1900"))
    if event_ms != NO_TIME_MS and created_ms > event_ms + ACCOUNT_AHEAD_MS_MAX:
        bad.append(Violation(_CREATED_TIME, "is more than a day after event_time"))


def _check_texts(
    limits: Mapping[str, int],
    raw: Sequence[str],
    encoded: Sequence[bytes],
    exempt: frozenset[str],
    bad: list[Violation],
) -> None:
    """Look at all texts at once, which is all a good message costs, then one by one."""
    if any(map(gt, map(len, encoded), limits.values())):
        for (path, limit), data in zip(limits.items(), encoded, strict=True):
            if len(data) > limit:
                bad.append(Violation(path, f"must not be longer than {limit} bytes"))
    joined = "|".join(raw)
    if not joined.isprintable():
        held = (path for path, text in zip(limits, raw, strict=True) if _CONTROL.search(text))
        bad.extend(Violation(path, CONTROL) for path in held)
    if may_hold(joined.encode()):
        for path, text, data in zip(limits, raw, encoded, strict=True):
            if path not in exempt and may_hold(data) and looks_like_card_number(text):
                bad.append(Violation(path, CARD_NUMBER, card_number=True))


def _network(address: str, bad: list[Violation]) -> str:
    try:
        return network_of(address)
    except (OSError, ValueError):
        bad.append(Violation("transaction.ip_address", "is not an IPv4 or IPv6 address"))
        return ""


def _digits(card: transaction_pb2.Card, bad: list[Violation]) -> str:
    """Return the BIN after a look at it and at the last four."""
    digits, last_four = card.bin, card.last_four
    if digits and not _BIN.fullmatch(digits):
        bad.append(Violation("transaction.card.bin", "must be 6 to 8 digits"))
    if last_four and not _LAST_FOUR.fullmatch(last_four):
        bad.append(Violation("transaction.card.last_four", "must be 4 digits"))
    return digits


def _position(transaction: transaction_pb2.Transaction, bad: list[Violation]) -> tuple[int, int]:
    if not transaction.HasField("position"):
        return NO_COORDINATE, NO_COORDINATE
    position = transaction.position
    latitude, longitude = position.latitude_degrees, position.longitude_degrees
    # NaN and infinities fail these comparisons too.
    if not -90 <= latitude <= 90:
        bad.append(Violation("transaction.position.latitude_degrees", "must lie in -90 to 90"))
    elif not -180 <= longitude <= 180:
        bad.append(Violation("transaction.position.longitude_degrees", "must lie in -180 to 180"))
    else:
        return coordinate_e6(latitude), coordinate_e6(longitude)
    return NO_COORDINATE, NO_COORDINATE


def _places(
    transaction: transaction_pb2.Transaction,
    card: transaction_pb2.Card,
    merchant: transaction_pb2.Merchant,
    bad: list[Violation],
) -> tuple[int, list[int]]:
    """Return the MCC and the four regions as numbers."""
    codes = (
        merchant.region_code, card.issuer_region_code,
        transaction.billing_region_code, transaction.shipping_region_code,
    )  # fmt: skip
    regions = [_REGIONS.get(code, _NO_REGION) for code in codes]
    if _NO_REGION in regions:
        wrong = (path for path, number in zip(_REGION_PATHS, regions, strict=True) if number < 0)
        bad.extend(Violation(path, "must be two capital letters") for path in wrong)
    try:
        return mcc_number(merchant.category_code), regions
    except ValueError as error:
        bad.append(Violation("transaction.merchant.category_code", str(error)))
        return 0, regions


def _enums(
    transaction: transaction_pb2.Transaction,
    card: transaction_pb2.Card,
    bad: list[Violation],
) -> tuple[int, int, int, int, int, int, int, int]:
    numbers = (
        transaction.channel, transaction.pos_entry_mode, card.brand, card.funding,
        transaction.three_ds_result, transaction.avs_result, transaction.cvv_result,
        transaction.authorization_result,
    )  # fmt: skip
    _check_numbers(_ENUMS, numbers, bad)
    return numbers


def _check_numbers(
    highest: Mapping[str, int], numbers: Sequence[int], bad: list[Violation]
) -> None:
    if any(map(gt, numbers, highest.values())) or min(numbers) < 0:
        for (path, limit), number in zip(highest.items(), numbers, strict=True):
            if not 0 <= number <= limit:
                bad.append(Violation(path, "is a number that this service does not know"))
