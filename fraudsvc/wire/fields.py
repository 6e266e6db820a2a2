"""The table of a Transaction's fields on the wire, and the places where their values are kept.

Owns numbers, wire types and what a value may be without doubt; must not know how bytes are read.
What it states twice, the contract's own numbers and bounds, a test compares.
Wire format: https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fraudsvc.contract import SECONDS_MAX

VARINT, FIXED64, BYTES = 0, 1, 2  # wire types
PART_BYTES_MAX = 4_096  # a message with every text at its longest is below half of it
NANOS_MAX = 999_999_999
_INT64_MAX = (1 << 63) - 1


class Slot(IntEnum):
    """Where a field's value is kept: texts and messages as start and stop, numbers as they are.

    The first ten are in the order of ROW_SPACES, regions and enums in the record's.
    """

    TRANSACTION_ID = 0
    REQUEST_ID = 1
    CUSTOMER_ID = 2
    TOKEN = 3
    MERCHANT_ID = 4
    TERMINAL_ID = 5
    DEVICE_ID = 6
    IP_ADDRESS = 7
    ADDRESS_HASH = 8
    BIN = 9
    DOMAIN = 10
    LAST_FOUR = 11
    CATEGORY = 12
    CURRENCY = 13
    MERCHANT_REGION = 14
    ISSUER_REGION = 15
    BILLING_REGION = 16
    SHIPPING_REGION = 17
    CHANNEL = 18
    POS_ENTRY_MODE = 19
    BRAND = 20
    FUNDING = 21
    THREE_DS = 22
    AVS = 23
    CVV = 24
    AUTHORIZATION = 25
    CARD_PRESENT = 26
    RECURRING = 27
    AMOUNT = 28
    EVENT_SECONDS = 29
    EVENT_NANOS = 30
    CREATED_SECONDS = 31
    CREATED_NANOS = 32
    LATITUDE = 33
    LONGITUDE = 34
    TRANSACTION = 35
    EVENT_TIME = 36
    CREATED_TIME = 37
    CARD = 38
    MERCHANT = 39
    EMAIL = 40
    POSITION = 41


class Shape(IntEnum):
    """What the characters of a text must be; an address has a form of its own."""

    NONE = 0
    PRINTABLE = 1
    DIGITS = 2
    CAPITALS = 3
    UUID = 4


class Field(NamedTuple):
    """A field on the wire; ``least`` and ``most`` bound a number, or the bytes of a text."""

    number: int
    wire: int
    slot: Slot
    least: int
    most: int
    shape: Shape = Shape.NONE


def _text(number: int, slot: Slot, most: int) -> Field:
    return Field(number, BYTES, slot, 1, most, Shape.PRINTABLE)


def _code(number: int, slot: Slot, least: int, most: int, shape: Shape) -> Field:
    return Field(number, BYTES, slot, least, most, shape)


def _count(number: int, slot: Slot, most: int) -> Field:
    """Return the row of a number; 0 is never on the wire."""
    return Field(number, VARINT, slot, 1, most)


def _degrees(number: int, slot: Slot) -> Field:
    return Field(number, FIXED64, slot, -_INT64_MAX - 1, _INT64_MAX)


def _part(number: int, slot: Slot) -> Field:
    return Field(number, BYTES, slot, 0, PART_BYTES_MAX)


# Paths as violations name them.
FIELDS: Mapping[str, Field] = {
    "transaction.request_id": _code(1, Slot.REQUEST_ID, 36, 36, Shape.UUID),
    "transaction.transaction_id": _text(2, Slot.TRANSACTION_ID, 64),
    "transaction.event_time": _part(3, Slot.EVENT_TIME),
    "transaction.event_time.seconds": _count(1, Slot.EVENT_SECONDS, SECONDS_MAX),
    "transaction.event_time.nanos": _count(2, Slot.EVENT_NANOS, NANOS_MAX),
    "transaction.customer_id": _text(4, Slot.CUSTOMER_ID, 64),
    "transaction.account_created_time": _part(5, Slot.CREATED_TIME),
    "transaction.account_created_time.seconds": _count(1, Slot.CREATED_SECONDS, SECONDS_MAX),
    "transaction.account_created_time.nanos": _count(2, Slot.CREATED_NANOS, NANOS_MAX),
    "transaction.card": _part(6, Slot.CARD),
    "transaction.card.token": _text(1, Slot.TOKEN, 64),
    "transaction.card.bin": _code(2, Slot.BIN, 6, 8, Shape.DIGITS),
    "transaction.card.last_four": _code(3, Slot.LAST_FOUR, 4, 4, Shape.DIGITS),
    "transaction.card.brand": _count(4, Slot.BRAND, 7),
    "transaction.card.funding": _count(5, Slot.FUNDING, 3),
    "transaction.card.issuer_region_code": _code(6, Slot.ISSUER_REGION, 2, 2, Shape.CAPITALS),
    "transaction.merchant": _part(7, Slot.MERCHANT),
    "transaction.merchant.merchant_id": _text(1, Slot.MERCHANT_ID, 64),
    "transaction.merchant.category_code": _code(2, Slot.CATEGORY, 4, 4, Shape.DIGITS),
    "transaction.merchant.region_code": _code(3, Slot.MERCHANT_REGION, 2, 2, Shape.CAPITALS),
    "transaction.terminal_id": _text(8, Slot.TERMINAL_ID, 64),
    "transaction.device_id": _text(9, Slot.DEVICE_ID, 128),
    "transaction.ip_address": _code(10, Slot.IP_ADDRESS, 2, 39, Shape.NONE),
    "transaction.email": _part(11, Slot.EMAIL),
    "transaction.email.address_hash": _text(1, Slot.ADDRESS_HASH, 128),
    "transaction.email.domain": _text(2, Slot.DOMAIN, 253),
    "transaction.amount_minor": _count(12, Slot.AMOUNT, _INT64_MAX),
    "transaction.currency_code": _code(13, Slot.CURRENCY, 3, 3, Shape.CAPITALS),
    "transaction.channel": _count(14, Slot.CHANNEL, 6),
    "transaction.pos_entry_mode": _count(15, Slot.POS_ENTRY_MODE, 6),
    "transaction.card_present": _count(16, Slot.CARD_PRESENT, 1),
    "transaction.recurring": _count(17, Slot.RECURRING, 1),
    "transaction.three_ds_result": _count(18, Slot.THREE_DS, 4),
    "transaction.avs_result": _count(19, Slot.AVS, 4),
    "transaction.cvv_result": _count(20, Slot.CVV, 3),
    "transaction.authorization_result": _count(21, Slot.AUTHORIZATION, 2),
    "transaction.billing_region_code": _code(22, Slot.BILLING_REGION, 2, 2, Shape.CAPITALS),
    "transaction.shipping_region_code": _code(23, Slot.SHIPPING_REGION, 2, 2, Shape.CAPITALS),
    "transaction.position": _part(24, Slot.POSITION),
    "transaction.position.latitude_degrees": _degrees(1, Slot.LATITUDE),
    "transaction.position.longitude_degrees": _degrees(2, Slot.LONGITUDE),
}
SLOTS = len(Slot)
TRANSACTION = int(Slot.TRANSACTION)  # it and the slots behind it are of messages
REQUIRED = tuple(
    int(FIELDS[f"transaction.{name}"].slot)
    for name in ("request_id", "transaction_id", "event_time", "customer_id", "currency_code")
)
TEXTS = int(Slot.CHANNEL)  # slots before it hold texts
NUMBERS = 1 + max(field.number for field in FIELDS.values())


def _plan() -> NDArray[np.int64]:
    """Return int64[messages, numbers, 4]: slot (-1 unknown), wire type, least and most."""
    plan = np.full((SLOTS - TRANSACTION, NUMBERS, 4), -1, np.int64)
    for path, field in FIELDS.items():
        parent = path.rpartition(".")[0]
        message = FIELDS[parent].slot if parent in FIELDS else TRANSACTION
        row = (field.slot, field.wire, field.least, field.most)
        plan[message - TRANSACTION, field.number] = row
    return plan


def _shapes() -> NDArray[np.int64]:
    shapes = np.zeros(SLOTS, np.int64)
    for field in FIELDS.values():
        shapes[field.slot] = field.shape
    return shapes


PLAN, SHAPES = _plan(), _shapes()
