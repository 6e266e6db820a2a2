"""Writes fields of a protobuf message into bytes, for kernels.

Owns the wire form of a field; must not know what it is for. Each returns where the field ends.
https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True)
def put_varint(out, at, value):  # type: ignore[no-untyped-def]
    """Write a number of at least 0 in its shortest form."""
    while value > 127:
        out[at] = value & 127 | 128
        value >>= 7
        at += 1
    out[at] = value
    return at + 1


@njit(cache=True)
def put_all(out, at, source, start, stop):  # type: ignore[no-untyped-def]
    """Write the bytes of a source from ``start`` to ``stop``."""
    # By unsigned places, which cannot count from the end: so the machine moves many at once.
    to, of = np.uint64(at), np.uint64(start)
    for i in range(np.uint64(stop - start)):
        out[to + i] = source[of + i]
    return at + stop - start


@njit(cache=True)
def put_word(out, at, tag, bits):  # type: ignore[no-untyped-def]
    """Write a field of 64 bits: a double or a fixed64."""
    word = np.uint64(bits)
    out[at] = tag
    for i in range(8):
        out[at + 1 + i] = (word >> np.uint64(8 * i)) & np.uint64(255)
    return at + 9


@njit(cache=True)
def put_double(out, at, tag, value):  # type: ignore[no-untyped-def]
    """Write a field of a double; nothing for a value that is not known."""
    if value != value:  # noqa: PLR0124 - true for NaN
        return at
    return put_word(out, at, tag, np.float64(value).view(np.uint64))


@njit(cache=True)
def put_instant(out, at, tag, seconds, nanos):  # type: ignore[no-untyped-def]
    """Write a Timestamp or a Duration; its length takes one byte."""
    end = at + 2
    if seconds:
        out[end] = 0x08
        end = put_varint(out, end + 1, seconds)
    if nanos:
        out[end] = 0x10
        end = put_varint(out, end + 1, nanos)
    out[at], out[at + 1] = tag, end - at - 2
    return end


@njit(cache=True)
def put_digits(out, at, word, first, stop):  # type: ignore[no-untyped-def]
    """Write the hexadecimal digits ``first`` to ``stop`` of a uint64, the highest being 0."""
    for i in range(first, stop):
        digit = np.int64((word >> np.uint64(60 - 4 * i)) & np.uint64(15))
        out[at] = digit + (0x30 if digit < 10 else 0x57)
        at += 1
    return at
