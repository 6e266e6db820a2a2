"""Reads a transaction's bytes into slots and looks at its texts, all in doubt or none.

Owns the walk over the wire and the shapes of texts. Must not know times, money, ids or a record.
Every read is bounds-checked, whatever the bytes say.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from fraudsvc.cardnumbers import DIGITS_MIN
from fraudsvc.wire.fields import (
    BYTES,
    FIXED64,
    NUMBERS,
    PLAN,
    REQUIRED,
    SHAPES,
    SLOTS,
    TEXTS,
    TRANSACTION,
    Shape,
)

# Characters as bytes; numba compiles ord() to a call that costs more than the look itself.
_SPACE, _DASH, _ZERO, _NINE, _CAPITAL_A, _CAPITAL_Z, _A, _F, _TILDE = b" -09AZaf~"


@njit(cache=True)
def _varint(data, at, stop):  # type: ignore[no-untyped-def]
    """Return a number and where it ends; -1 for a negative, cut or needlessly long one."""
    value = np.int64(0)
    for i in range(min(9, stop - at)):
        byte = np.int64(data[at + i])
        value |= (byte & 127) << (7 * i)
        if byte < 128:
            if byte == 0 and i > 0:
                break
            return value, at + i + 1
    return np.int64(-1), stop


@njit(cache=True)
def _fixed64(data, at, stop):  # type: ignore[no-untyped-def]
    """Return eight bytes as a number and where they end; 0 where they are cut."""
    bits = np.uint64(0)
    if stop - at < 8:
        return np.int64(0), stop
    for i in range(8):
        bits |= np.uint64(data[at + i]) << np.uint64(8 * i)
    return np.int64(bits), at + 8


@njit(cache=True)
def _scan_part(data, start, stop, message, slots):  # type: ignore[no-untyped-def]
    """Fill the slots of one message's own fields; return whether all are as planned."""
    at, last = start, 0
    while at < stop:
        tag, at = _varint(data, at, stop)
        number = tag >> 3
        if not last < number < NUMBERS:
            return False
        last = number
        plan = PLAN[message - TRANSACTION, number]
        slot, wire = plan[0], plan[1]
        if wire != tag & 7:
            return False
        value, at = _fixed64(data, at, stop) if wire == FIXED64 else _varint(data, at, stop)
        size = value if wire == BYTES else 0
        absent = value == 0 and wire == FIXED64
        if absent or not plan[2] <= value <= plan[3] or stop - at < size:
            return False
        slots[slot, 0] = at if wire == BYTES else value
        slots[slot, 1] = at + size
        at += size
    return True


@njit(cache=True)
def scan(data, slots):  # type: ignore[no-untyped-def]
    """Fill the slots of a transaction and of the messages inside it; return False for doubt."""
    slots[:] = 0
    if not _scan_part(data, 0, len(data), TRANSACTION, slots):
        return False
    for part in range(TRANSACTION + 1, SLOTS):
        if slots[part, 0] > 0 and not _scan_part(data, slots[part, 0], slots[part, 1], part, slots):
            return False
    for slot in REQUIRED:  # noqa: SIM110 - numba compiles no all()
        if slots[slot, 0] == 0:
            return False
    return True


@njit(cache=True)
def _all_within(data, start, stop, low, high):  # type: ignore[no-untyped-def]
    for i in range(start, stop):  # noqa: SIM110 - numba compiles no all()
        if not low <= data[i] <= high:
            return False
    return True


@njit(cache=True)
def _digit_run(data, start, stop):  # type: ignore[no-untyped-def]
    """Return the length of the longest run of digits, spaces and dashes between them ignored."""
    longest = run = 0
    for i in range(start, stop):
        byte = data[i]
        digit = _ZERO <= byte <= _NINE
        run = run + digit if digit or byte in (_SPACE, _DASH) else 0
        longest = max(longest, run)
    return longest


@njit(cache=True)
def _is_uuid(data, start):  # type: ignore[no-untyped-def]
    for i in range(36):
        byte = data[start + i]
        if i in (8, 13, 18, 23):
            if byte != _DASH:
                return False
        elif not (_ZERO <= byte <= _NINE or _A <= byte <= _F):
            return False
    return True


@njit(cache=True)
def _has_shape(data, start, stop, shape):  # type: ignore[no-untyped-def]
    if shape == Shape.PRINTABLE:
        return _all_within(data, start, stop, _SPACE, _TILDE)
    if shape == Shape.DIGITS:
        return _all_within(data, start, stop, _ZERO, _NINE)
    if shape == Shape.CAPITALS:
        return _all_within(data, start, stop, _CAPITAL_A, _CAPITAL_Z)
    return shape != Shape.UUID or _is_uuid(data, start)


@njit(cache=True)
def texts_fit(data, slots, exempt):  # type: ignore[no-untyped-def]
    """Return whether all texts have their shape and no free one may hold a card number."""
    for slot in range(TEXTS):
        start, stop = slots[slot, 0], slots[slot, 1]
        if stop == start:
            continue
        shape = SHAPES[slot]
        if not _has_shape(data, start, stop, shape):
            return False
        watched = shape == Shape.PRINTABLE and not (exempt >> slot) & 1
        if watched and _digit_run(data, start, stop) >= DIGITS_MIN:
            return False
    return True
