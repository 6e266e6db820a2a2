"""The layout of an entity's state: one row of 64-bit words, the same in memory and as a blob.

Owns where each number stands and how the packed words are taken apart. Knows nothing of windows,
features or stores. A blob is the row up to ``length``; an empty row is all zeros.

    header   HEADER words
    days     one word a day: labels that became known that day
    labels   one word a label, in order of the transaction's time
    buckets  BUCKET words each: events past the ring, oldest first
    ring     RING words an event, the newest, in order of time
"""

from __future__ import annotations

import numpy as np
from numba import njit

from featurizer.memory import move
from featurizer.records import Entity

STATE_VERSION = 1
ROW_WORDS = 1024  # 8 KiB, the hard bound of a blob

# Header words. F marks float64 bits, the rest are integers.
META = 0  # version and the counts of the four sections
LAST_TIME = 1  # newest event time, ms
POSITION = 2  # log position of the last record applied
FIRST_TIME = 3
COUNT = 4  # transactions folded since FIRST_TIME
DROPPED = 5  # transactions that came later than the horizon
LAST_PLACE = 6  # latitude << 32 | longitude, millionths of a degree
LAST_PLACE_TIME = 7  # 0 where no place is known
HOME = 8  # F: x, y, z on the unit sphere, weight; decayed
HOUR = 12  # F: cos, sin, weight of the time of day; decayed
DECAYS = 15  # F: count and amount for each half-life
GOOD_COUNT = 25  # labels known, since ever
BAD_COUNT = 26
GOOD_AMOUNT = 27  # cents
BAD_AMOUNT = 28
LAST_FRAUD_TIME = 29  # event time of the newest transaction known as fraud; 0 none
LAST_FRAUD_KNOWN = 30  # when the newest knowledge of a fraud came; 0 none
LARGEST = 31  # largest amount ever, cents
HEADER = 32

DAYS_MAX = 92
LABELS_MAX = 40
BUCKET = 5
RING = 3

# Newest events kept exactly, per entity.
RING_EVENTS = np.array([96, 64, 64, 64, 48, 48, 48, 48, 24], np.int64)
BUCKETS_MAX = (ROW_WORDS - HEADER - DAYS_MAX - LABELS_MAX - RING * 96) // BUCKET

AMOUNT_MAX = (1 << 31) - 1  # cents; larger amounts count as this
DAY_MS = 86_400_000
HORIZON_MS = 90 * DAY_MS
# An entity silent for longer starts anew, so that a store may drop it without being noticed.
EXPIRY_MS = 400 * DAY_MS

# Bits of a ring entry's first word below the time.
TIME_SHIFT = 20
REGION_SHIFT = 10
FAILED = 1
UNUSUAL = 2
FIRST_REPEATED = 4  # a later event has the same first counterparty
SECOND_REPEATED = 8
REGION_REPEATED = 16

# Bits of a label word: event time << 20 | 12 bits of the id << 8 | these.
LABEL_BAD = 1
LABEL_UNUSUAL = 2

LOW_32 = 0xFFFFFFFF

assert len(RING_EVENTS) == len(Entity)  # noqa: S101 - a broken table must not import


@njit(cache=True, nogil=True)
def _counts_of(meta):  # type: ignore[no-untyped-def]
    return (meta >> 8) & 0xFFF, (meta >> 20) & 0xFFF, (meta >> 32) & 0xFFF, (meta >> 44) & 0xFFF


@njit(cache=True, nogil=True)
def counts(words):  # type: ignore[no-untyped-def]
    """Return the number of days, labels, buckets and ring events of a row."""
    return _counts_of(words[META])


@njit(cache=True, nogil=True)
def length_of(meta):  # type: ignore[no-untyped-def]
    """Return ``length`` by a row's word META: where rows lie in one memory, none has to be cut out.

    For a kernel that is not free: it counts who refers to an array.
    """
    if meta == 0:
        return 0
    days, labels, buckets, ring = _counts_of(meta)
    return HEADER + days + labels + BUCKET * buckets + RING * ring


@njit(cache=True, nogil=True)
def set_counts(words, days, labels, buckets, ring):  # type: ignore[no-untyped-def]
    """Set the section counts and the version."""
    words[META] = STATE_VERSION | days << 8 | labels << 20 | buckets << 32 | ring << 44


@njit(cache=True, nogil=True)
def length(words):  # type: ignore[no-untyped-def]
    """Return how many words of the row are in use; 0 for an empty row."""
    return length_of(words[META])


@njit(cache=True, nogil=True)
def has_expired(words, time):  # type: ignore[no-untyped-def]
    """Return whether a state means nothing to an event at ``time`` (ms)."""
    return words[META] != 0 and time - words[LAST_TIME] > EXPIRY_MS


@njit(cache=True, nogil=True)
def open_gap(words, at, end, size):  # type: ignore[no-untyped-def]
    """Move ``words[at:end]`` up by ``size`` words."""
    move(words, at + size, words, at, end - at)


@njit(cache=True, nogil=True)
def close_gap(words, at, end, size):  # type: ignore[no-untyped-def]
    """Move ``words[at + size:end]`` down by ``size`` words."""
    move(words, at, words, at + size, end - size - at)


@njit(cache=True, nogil=True)
def are_states(data, stops):  # type: ignore[no-untyped-def]
    """Return whether ``data`` is states of this version, each of which ends at its stop."""
    start = 0
    for stop in stops:
        if not HEADER <= stop - start <= ROW_WORDS or data[start] & 0xFF != STATE_VERSION:
            return False
        if length(data[start:]) != stop - start:
            return False
        start = stop
    return start == len(data)


def check_blob(blob: bytes | memoryview) -> str:
    """Return why ``blob`` is no state of this version, or "" when it is one."""
    size = len(blob)
    if size % 8 or not HEADER * 8 <= size <= ROW_WORDS * 8:
        return f"a state of {size} bytes"
    words = np.frombuffer(blob, np.int64)
    if words[META] & 0xFF != STATE_VERSION:
        return f"a state of version {words[META] & 0xFF}, not {STATE_VERSION}"
    if int(length(words)) * 8 != size:
        return f"a state of {size} bytes whose sections take {int(length(words)) * 8}"
    return ""
