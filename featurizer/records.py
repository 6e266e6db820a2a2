"""The transaction record: one fixed-width row per event, and how ids and codes become numbers.

Owns the only mapping from what a caller says to what the kernel reads. Scorer, backfill and
training use it, so that there is nothing to keep in step. Knows no protobuf and no file format.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Mapping
from enum import IntEnum
from typing import Any

import numpy as np

RECORD_VERSION = 1
NO_TIME_MS = np.iinfo(np.int64).min
NO_COORDINATE = np.iinfo(np.int32).min


class Kind(IntEnum):
    """What a record is: a payment attempt, or one whose verdict became known."""

    TRANSACTION = 1
    FEEDBACK = 2


class Entity(IntEnum):
    """What keeps a state of its own; the number is the row in ``entities`` and in the vector."""

    CUSTOMER = 0
    CARD = 1
    MERCHANT = 2
    TERMINAL = 3
    DEVICE = 4
    NETWORK = 5
    EMAIL = 6
    BIN = 7
    PAIR = 8


class Flag(IntEnum):
    """Bits of ``flags``. FAILED is any failed check: CVV, AVS, 3-D Secure or the issuer's no.

    UNUSUAL and HAS_NORM are marks that the view adds before the record is appended, so that no
    entity's fold needs the state of another.
    """

    CARD_PRESENT = 1
    RECURRING = 2
    FAILED = 4
    UNUSUAL = 8
    HAS_NORM = 16


# Answers that count as a failed check, by the numbers of the contract's enums.
THREE_DS_FAILED = 3
AVS_MISMATCH = 3
CVV_MISMATCH = 2
AUTHORIZATION_DECLINED = 2

RECORD = np.dtype(
    [
        ("version", "u1"),
        ("kind", "u1"),
        ("flags", "<u2"),
        ("mcc", "<u2"),  # 0 unknown
        ("currency", "<u2"),  # ISO 4217 numeric
        ("event_time_ms", "<i8"),
        ("known_time_ms", "<i8"),  # FEEDBACK: when the verdict became known; else NO_TIME_MS
        ("amount_minor", "<i8"),
        ("amount_ref", "<i8"),  # cents of the reference currency
        ("account_created_ms", "<i8"),  # NO_TIME_MS unknown
        ("transaction", "<i8"),  # id hash
        ("request", "<i8"),  # id hash
        ("entities", "<i8", (len(Entity),)),  # keys; 0 absent
        ("latitude_e6", "<i4"),  # NO_COORDINATE unknown
        ("longitude_e6", "<i4"),
        ("merchant_region", "<u2"),  # 0 unknown, see region_number
        ("issuer_region", "<u2"),
        ("billing_region", "<u2"),
        ("shipping_region", "<u2"),
        ("channel", "u1"),  # the numbers of the contract's enums; 0 unknown
        ("pos_entry_mode", "u1"),
        ("brand", "u1"),
        ("funding", "u1"),
        ("three_ds", "u1"),
        ("avs", "u1"),
        ("cvv", "u1"),
        ("authorization", "u1"),
        ("verdict", "u1"),  # FEEDBACK: the contract's Verdict; else 0
        ("label_source", "u1"),
        ("reserved", "u1", (6,)),
    ]
)
_OFFSETS: Mapping[str, tuple[Any, ...]] = RECORD.fields or {}
# Words of a record: a field of a structured array costs ten times as much to read.
REQUEST_WORD = _OFFSETS["request"][1] // 8
TRANSACTION_WORD = _OFFSETS["transaction"][1] // 8
ENTITIES_WORD = _OFFSETS["entities"][1] // 8


def network_of(ip_address: str) -> str:
    """Return the /24 (IPv4) or /48 (IPv6) of an address in hexadecimal; "" for "".

    Raises OSError where the text is no address.
    """
    if not ip_address:
        return ""
    if ":" in ip_address:
        return socket.inet_pton(socket.AF_INET6, ip_address)[:6].hex()
    return socket.inet_pton(socket.AF_INET, ip_address)[:3].hex()


def region_number(code: str) -> int:
    """Return 1 to 728 for an ISO 3166-1 alpha-2 code, 0 for "".

    Raises ValueError for anything but two capital letters.
    """
    if not code:
        return 0
    if len(code) != 2 or not (code.isascii() and code.isalpha() and code.isupper()):
        raise ValueError("must be two capital letters (ISO 3166-1 alpha-2)")
    return (ord(code[0]) - 64) * 27 + ord(code[1]) - 64


def coordinate_e6(degrees: float) -> int:
    """Return millionths of a degree, rounded half to even.

    Raises ValueError for NaN and infinities.
    """
    if not math.isfinite(degrees):
        raise ValueError("must be a finite number of degrees")
    return round(degrees * 1_000_000)


def mcc_number(code: str) -> int:
    """Return the number of an ISO 18245 merchant category code, 0 for "".

    Raises ValueError for anything but four digits.
    """
    if not code:
        return 0
    if len(code) != 4 or not (code.isascii() and code.isdigit()):
        raise ValueError("must be four digits (ISO 18245)")
    return int(code)


def flags_of(
    card_present: bool, recurring: bool, three_ds: int, avs: int, cvv: int, authorization: int
) -> int:
    """Return the bits that a transaction sets itself; the numbers are those of the enums."""
    flags = int(Flag.CARD_PRESENT) if card_present else 0
    if recurring:
        flags |= Flag.RECURRING
    if (
        cvv == CVV_MISMATCH
        or avs == AVS_MISMATCH
        or three_ds == THREE_DS_FAILED
        or authorization == AUTHORIZATION_DECLINED
    ):
        flags |= Flag.FAILED
    return flags
