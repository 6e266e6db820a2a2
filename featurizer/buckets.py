"""Events past the ring, merged into buckets whose span grows with their age.

A bucket spans at most its age divided by RATIO, on a grid of powers of two. A window of length W
that reaches past the ring is therefore answered exactly for some length between W and
W * (1 + 1 / RATIO): whole buckets are counted, never parts of one. (The idea of buckets that grow
with age is that of exponential histograms: Datar, Gionis, Indyk and Motwani, 2002.)
"""

from __future__ import annotations

from numba import njit

from featurizer.state import (
    BUCKET,
    BUCKETS_MAX,
    FAILED,
    HEADER,
    HORIZON_MS,
    LOW_32,
    RING,
    TIME_SHIFT,
    UNUSUAL,
    close_gap,
    counts,
    open_gap,
    set_counts,
)

BASE_BITS = 13  # the narrowest bucket spans 2 ** 13 ms
RATIO = 4

# Words of a bucket: start << 8 | level; count | failed << 32 | unusual << 48; sum; sum of squares
# (F); smallest << 32 | largest.
SPAN = 0
TALLY = 1
SUM = 2
SQUARES = 3
EXTREMES = 4


@njit(cache=True, nogil=True)
def start_of(span):  # type: ignore[no-untyped-def]
    """Return the first ms of a bucket from its SPAN word."""
    return span >> 8


@njit(cache=True, nogil=True)
def end_of(span):  # type: ignore[no-untyped-def]
    """Return the ms after a bucket's last from its SPAN word."""
    return (span >> 8) + (1 << (BASE_BITS + (span & 0xFF)))


@njit(cache=True, nogil=True)
def _merge(words, floats, target, counts, amounts, extremes):  # type: ignore[no-untyped-def]
    """Add to the bucket at ``target``: how many, failed and unusual; sum and squares; low, high.

    Counts stop at their width.
    """
    tally = words[target + TALLY]
    count = min((tally & LOW_32) + counts[0], LOW_32)
    failed = min((tally >> 32 & 0xFFFF) + counts[1], 0xFFFF)
    unusual = min((tally >> 48) + counts[2], 0x7FFF)
    words[target + TALLY] = count | failed << 32 | unusual << 48
    words[target + SUM] += amounts[0]
    floats[target + SQUARES] += amounts[1]
    low = min(words[target + EXTREMES] >> 32, extremes[0])
    high = max(words[target + EXTREMES] & LOW_32, extremes[1])
    words[target + EXTREMES] = low << 32 | high


@njit(cache=True, nogil=True)
def _add(words, floats, target, source):  # type: ignore[no-untyped-def]
    """Add the bucket at ``source`` to the one at ``target``."""
    tally, ends = words[source + TALLY], words[source + EXTREMES]
    _merge(
        words, floats, target, (tally & LOW_32, tally >> 32 & 0xFFFF, tally >> 48),
        (words[source + SUM], floats[source + SQUARES]), (ends >> 32, ends & LOW_32),
    )  # fmt: skip


@njit(cache=True, nogil=True)
def _widened(span, last_time):  # type: ignore[no-untyped-def]
    """Return the SPAN word of the widest bucket that the age of ``span`` allows."""
    start = span >> 8
    level = span & 0xFF
    while True:
        width = 1 << (BASE_BITS + level + 1)
        parent = start & ~(width - 1)
        # A parent may be made only once all of it is old enough.
        if last_time - (parent + width) < RATIO * width:
            return start << 8 | level
        start = parent
        level += 1


@njit(cache=True, nogil=True)
def _compact(words, floats, at, buckets, last_time):  # type: ignore[no-untyped-def]
    """Widen buckets by their age, merge those that meet, drop those past the horizon."""
    kept = 0
    for b in range(buckets):
        source = at + BUCKET * b
        if end_of(words[source]) <= last_time - HORIZON_MS:
            continue
        words[source] = _widened(words[source], last_time)
        target = at + BUCKET * kept
        if kept > 0 and start_of(words[source]) < end_of(words[target - BUCKET]):
            _add(words, floats, target - BUCKET, source)
            continue
        if target != source:
            for i in range(BUCKET):
                words[target + i] = words[source + i]
        kept += 1
    return kept


@njit(cache=True, nogil=True)
def _put(words, floats, at, buckets, end, head, amount):  # type: ignore[no-untyped-def]
    """Add one event to the bucket that covers it, or open one; return how many buckets then."""
    time = head >> TIME_SHIFT
    place = at + BUCKET * buckets
    while place > at and start_of(words[place - BUCKET]) > time:
        place -= BUCKET
    failed = 1 if head & FAILED else 0
    unusual = 1 if head & UNUSUAL else 0
    squares = float(amount) * float(amount)
    if place > at and time < end_of(words[place - BUCKET]):
        _merge(
            words, floats, place - BUCKET, (1, failed, unusual), (amount, squares),
            (amount, amount),
        )  # fmt: skip
        return buckets
    open_gap(words, place, end, BUCKET)
    words[place + SPAN] = (time >> BASE_BITS << BASE_BITS) << 8
    words[place + TALLY] = 1 | failed << 32 | unusual << 48
    words[place + SUM] = amount
    floats[place + SQUARES] = squares
    words[place + EXTREMES] = amount << 32 | amount
    return buckets + 1


@njit(cache=True, nogil=True)
def add_to_buckets(words, floats, head, amount, last_time):  # type: ignore[no-untyped-def]
    """Add the event with ring word ``head`` and ``amount`` in cents to the state's buckets."""
    days, labels, buckets, ring = counts(words)
    at = HEADER + days + labels
    end = at + BUCKET * buckets + RING * ring
    opened = _put(words, floats, at, buckets, end, head, amount)
    end += BUCKET * (opened - buckets)
    kept = _compact(words, floats, at, opened, last_time)
    if kept < opened:
        close_gap(words, at + BUCKET * kept, end, BUCKET * (opened - kept))
    if kept >= BUCKETS_MAX:  # a backstop: the spans keep the number below this
        _add(words, floats, at, at + BUCKET)
        close_gap(words, at + BUCKET, end - BUCKET * (opened - kept), BUCKET)
        kept -= 1
    set_counts(words, days, labels, kept, ring)
