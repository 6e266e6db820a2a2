"""Reads a transaction's protobuf bytes and fills its record where nothing about it is in doubt.

Owns what counts as beyond doubt and how slots become a record. Must not know a violation or gRPC:
it accepts or leaves the message to ``contract.Checker``, the one judge of what is valid, whose
record it equals in every byte. Left to the judge are fields that are unknown, repeated, out of
order or not in their shortest form, text beyond ASCII, runs of 13 digits and negative numbers.
So accepted bytes are also what serialising the parsed message gives again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit
from numpy.typing import NDArray

from featurizer.currencies import CURRENCIES, PARTS
from featurizer.hashing import ROW_SPACES, IdHasher, set_pair, siphash
from featurizer.records import (
    AUTHORIZATION_DECLINED,
    AVS_MISMATCH,
    CVV_MISMATCH,
    NO_COORDINATE,
    NO_TIME_MS,
    RECORD,
    RECORD_VERSION,
    THREE_DS_FAILED,
    Flag,
    Kind,
)
from fraudsvc.contract import (
    ACCOUNT_AHEAD_MS_MAX,
    ACCOUNT_OLDEST_MS,
    DAY_MS,
    ContractSettings,
)
from fraudsvc.wire.addresses import NETWORK_TEXT_MAX, write_network
from fraudsvc.wire.fields import FIELDS, SLOTS, Slot
from fraudsvc.wire.scan import scan, texts_fit

_MS_MAX = 1 << 60  # settings beyond it bound nothing, and sums with it stay in 64 bits
_IDS = len(ROW_SPACES)
_KIND = int(Kind.TRANSACTION)
# Places in the limits of an acceptor.
_AGE, _AHEAD, _AMOUNT, _EXEMPT = range(4)


# The kernels called per request keep the GIL: giving it up for 2 µs invites a switch that costs
# more than it lets others do.
@njit(cache=True)
def _decimal(data, start, stop):  # type: ignore[no-untyped-def]
    number = np.int64(0)
    for i in range(start, stop):
        number = number * 10 + data[i] - 0x30
    return number


@njit(cache=True)
def _letters(data, start, stop, base):  # type: ignore[no-untyped-def]
    """Return capital letters as a number in ``base``: A is 1 in base 27, 0 in base 26."""
    number = np.int64(0)
    for i in range(start, stop):
        number = number * base + data[i] - 0x41 + (base - 26)
    return number


@njit(cache=True)
def _milliseconds(slots, seconds, nanos):  # type: ignore[no-untyped-def]
    return slots[seconds, 0] * 1000 + slots[nanos, 0] // 1_000_000


@njit(cache=True)
def _times(slots, now_ms, limits):  # type: ignore[no-untyped-def]
    """Return whether both times are within bounds, and them; NO_TIME_MS where absent."""
    event_ms = _milliseconds(slots, Slot.EVENT_SECONDS, Slot.EVENT_NANOS)
    good = -_MS_MAX <= now_ms <= _MS_MAX
    good &= now_ms - limits[_AGE] <= event_ms <= now_ms + limits[_AHEAD]
    created_ms = np.int64(NO_TIME_MS)
    if slots[Slot.CREATED_TIME, 0] > 0:
        created_ms = _milliseconds(slots, Slot.CREATED_SECONDS, Slot.CREATED_NANOS)
        good &= ACCOUNT_OLDEST_MS <= created_ms <= event_ms + ACCOUNT_AHEAD_MS_MAX
    return good, event_ms, created_ms


@njit(cache=True)
def _reference(amount_minor, rate_parts):  # type: ignore[no-untyped-def]
    """Return cents of the reference currency as currencies.to_reference_many computes them."""
    high, low = amount_minor // PARTS, amount_minor % PARTS
    return high * rate_parts + (low * rate_parts + PARTS // 2) // PARTS


@njit(cache=True)
def _coordinate_e6(slots, slot, most):  # type: ignore[no-untyped-def]
    """Return millionths of a degree, rounded half to even; NO_COORDINATE for doubt."""
    degrees = np.int64(slots[slot, 0]).view(np.float64)
    if -most <= degrees <= most:  # false for NaN
        return np.int64(np.rint(degrees * 1e6))
    return np.int64(NO_COORDINATE)


@njit(cache=True)
def _place(slots):  # type: ignore[no-untyped-def]
    """Return whether the position is good or absent, and it."""
    if slots[Slot.POSITION, 0] == 0:
        return True, np.int64(NO_COORDINATE), np.int64(NO_COORDINATE)
    latitude = _coordinate_e6(slots, Slot.LATITUDE, 90.0)
    longitude = _coordinate_e6(slots, Slot.LONGITUDE, 180.0)
    return min(latitude, longitude) > NO_COORDINATE, latitude, longitude


@njit(cache=True)
def _flags(slots):  # type: ignore[no-untyped-def]
    flags = 0
    if slots[Slot.CARD_PRESENT, 0]:
        flags |= Flag.CARD_PRESENT
    if slots[Slot.RECURRING, 0]:
        flags |= Flag.RECURRING
    if (
        slots[Slot.CVV, 0] == CVV_MISMATCH
        or slots[Slot.AVS, 0] == AVS_MISMATCH
        or slots[Slot.THREE_DS, 0] == THREE_DS_FAILED
        or slots[Slot.AUTHORIZATION, 0] == AUTHORIZATION_DECLINED
    ):
        flags |= Flag.FAILED
    return flags


@njit(cache=True)
def _network(data, start, stop):  # type: ignore[no-untyped-def]
    """Return the network's text as uint8[n], empty where there is none or doubt."""
    text = np.empty(NETWORK_TEXT_MAX, np.uint8)
    return text[: write_network(data, start, stop, text) if stop > start else 0]


@njit(cache=True)
def _fill_ids(data, slots, network, key, rec):  # type: ignore[no-untyped-def]
    """Fill the ids as IdHasher.row does."""
    ids = np.zeros(_IDS + 1, np.int64)
    for i in range(_IDS):
        start, stop = slots[i, 0], slots[i, 1]
        if stop == start:
            continue
        k1 = key[1] ^ np.uint64(ROW_SPACES[i])
        if i == Slot.IP_ADDRESS:
            value = np.int64(siphash(network, 0, len(network), key[0], k1))
        else:
            value = np.int64(siphash(data, start, stop, key[0], k1))
        ids[i] = value if value != 0 else 1
    set_pair(ids[2:].reshape(1, -1))
    rec.transaction, rec.request = ids[0], ids[1]
    for i in range(_IDS - 1):
        rec.entities[i] = ids[2 + i]


@njit(cache=True)
def _region(data, slots, slot):  # type: ignore[no-untyped-def]
    return _letters(data, slots[slot, 0], slots[slot, 1], 27)


@njit(cache=True)
def _fill_codes(data, slots, rec):  # type: ignore[no-untyped-def]
    """Fill what regions, merchant category and enums become, and what is not a transaction's."""
    rec.merchant_region = _region(data, slots, Slot.MERCHANT_REGION)
    rec.issuer_region = _region(data, slots, Slot.ISSUER_REGION)
    rec.billing_region = _region(data, slots, Slot.BILLING_REGION)
    rec.shipping_region = _region(data, slots, Slot.SHIPPING_REGION)
    rec.mcc = _decimal(data, slots[Slot.CATEGORY, 0], slots[Slot.CATEGORY, 1])
    rec.channel, rec.pos_entry_mode = slots[Slot.CHANNEL, 0], slots[Slot.POS_ENTRY_MODE, 0]
    rec.brand, rec.funding = slots[Slot.BRAND, 0], slots[Slot.FUNDING, 0]
    rec.three_ds, rec.avs = slots[Slot.THREE_DS, 0], slots[Slot.AVS, 0]
    rec.cvv, rec.authorization = slots[Slot.CVV, 0], slots[Slot.AUTHORIZATION, 0]
    rec.verdict, rec.label_source = 0, 0
    rec.reserved[:] = 0


@njit(cache=True)
def _accept(data, now_ms, key, limits, currencies, out):  # type: ignore[no-untyped-def]
    """Fill ``out[0]`` from the bytes and return True, or leave it and return False."""
    slots = np.empty((SLOTS, 2), np.int64)
    if not scan(data, slots) or not texts_fit(data, slots, limits[_EXEMPT]):
        return False
    timely, event_ms, created_ms = _times(slots, now_ms, limits)
    placed, latitude, longitude = _place(slots)
    amount = slots[Slot.AMOUNT, 0]
    currency = currencies[_letters(data, slots[Slot.CURRENCY, 0], slots[Slot.CURRENCY, 1], 26)]
    network = _network(data, slots[Slot.IP_ADDRESS, 0], slots[Slot.IP_ADDRESS, 1])
    known = len(network) > 0 or slots[Slot.IP_ADDRESS, 0] == 0
    if not (timely and placed and known and amount <= limits[_AMOUNT] and currency[0] > 0):
        return False
    rec = out[0]
    rec.version, rec.kind, rec.flags = RECORD_VERSION, _KIND, _flags(slots)
    rec.event_time_ms, rec.known_time_ms = event_ms, NO_TIME_MS
    rec.account_created_ms = created_ms
    rec.amount_minor, rec.amount_ref = amount, _reference(amount, currency[1])
    rec.currency = currency[0]
    rec.latitude_e6, rec.longitude_e6 = latitude, longitude
    _fill_codes(data, slots, rec)
    _fill_ids(data, slots, network, key, rec)
    return True


@njit(cache=True)
def _accept_all(data, ends, now_ms, key, limits, currencies, out, accepted):  # type: ignore[no-untyped-def]
    """Accept each transaction of ``data``, one after another to ``ends``, into its row of out."""
    start = 0
    for i in range(len(ends)):
        body, row = data[start : ends[i]], out[i : i + 1]
        accepted[i] = _accept(body, now_ms, key, limits, currencies, row)
        start = ends[i]


def _currency_table() -> NDArray[np.int64]:
    """Return int64[26 ** 3, 2]: ISO number (0 unknown) and rate of each three letters."""
    table = np.zeros((26, 26, 26, 2), np.int64)
    for code, currency in CURRENCIES.items():
        letters = tuple(ord(letter) - ord("A") for letter in code)
        table[letters] = currency.number, currency.rate_parts
    return table.reshape(-1, 2)


def _limits(settings: ContractSettings) -> NDArray[np.int64]:
    """Return int64[4]: age and time ahead in ms, amount, and a bit for each exempt slot."""
    days = settings.max_age_days
    age_ms = _MS_MAX if days is None else days * DAY_MS
    exempt = sum(1 << FIELDS[path].slot for path in settings.exempt_fields if path in FIELDS)
    bounded = (max(min(each, _MS_MAX), -2 * _MS_MAX) for each in (age_ms, settings.max_ahead_ms))
    return np.array([*bounded, settings.amount_minor_max, exempt], np.int64)


class Acceptor:
    """Fills records from bytes where Checker would find no violation; threads may share it.

    True means that the record is filled as Checker.check fills it, and that the bytes of the
    transaction are its deterministic serialisation. False means nothing but doubt: the record is
    as it was, and Checker.check is to be asked. Building one compiles the kernels.
    """

    def __init__(self, hasher: IdHasher, settings: ContractSettings) -> None:
        self._key = hasher.key
        self._limits = _limits(settings)
        self._currencies = _currency_table()
        self.accept(b"", 0, np.zeros(1, RECORD))
        self.accept_all([b"\0"], 0, np.zeros(1, RECORD))

    def accept(self, data: bytes, now_ms: int, out: NDArray[np.void]) -> bool:
        """Return whether ``out`` (RECORD, shape (1,)) was filled from a Transaction's bytes.

        ``now_ms`` is the scorer's clock.
        """
        accepted: bool = _accept(data, now_ms, self._key, self._limits, self._currencies, out)
        return accepted

    def accept_all(self, datas: Sequence[bytes], now_ms: int, out: NDArray[np.void]) -> list[bool]:
        """Return for each Transaction's bytes what ``accept`` does; ``out`` is RECORD[n]."""
        accepted = np.zeros(len(datas), np.bool_)
        data = np.frombuffer(b"".join(datas), np.uint8)
        ends = np.fromiter(map(len, datas), np.int64, len(datas)).cumsum()
        _accept_all(data, ends, now_ms, self._key, self._limits, self._currencies, out, accepted)
        told: list[bool] = accepted.tolist()
        return told
