"""Sliding windows of one state, all lengths in one pass from the newest event to the oldest.

The running sums are plain variables: in memory each of them would wait for its last write.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from featurizer.buckets import EXTREMES, SPAN, SQUARES, SUM, TALLY, end_of, start_of
from featurizer.slots import ACCUMULATORS, SMALL_AMOUNT, WINDOWS_MS, Acc
from featurizer.state import (
    BUCKET,
    FAILED,
    FIRST_REPEATED,
    LOW_32,
    REGION_REPEATED,
    REGION_SHIFT,
    RING,
    SECOND_REPEATED,
    TIME_SHIFT,
    UNUSUAL,
)

_WINDOWS = len(WINDOWS_MS)


@njit(cache=True, nogil=True)
def _write(line, window, sums, extremes, tallies, distinct):  # type: ignore[no-untyped-def]
    """Write what a window holds: the sums so far."""
    at = window * ACCUMULATORS
    line[at + Acc.COUNT], line[at + Acc.SUM], line[at + Acc.SQUARES] = sums
    known = sums[0] > 0.0
    line[at + Acc.MIN] = extremes[0] if known else np.nan
    line[at + Acc.MAX] = extremes[1] if known else np.nan
    line[at + Acc.FAILED], line[at + Acc.UNUSUAL] = tallies[0], tallies[1]
    line[at + Acc.SMALL], line[at + Acc.SAME] = tallies[2], tallies[3]
    line[at + Acc.FIRST], line[at + Acc.SECOND], line[at + Acc.REGIONS] = distinct


@njit(cache=True, nogil=True)
def _read_ring(words, at, end, time, amount, line):  # type: ignore[no-untyped-def]
    """Fill the windows that end within the ring; return how many, and the sums of all its events.

    Their distinct values, too.
    """
    count, total, squares, low, high = 0.0, 0.0, 0.0, np.inf, -np.inf
    failed, unusual, small, same = 0, 0, 0, 0
    firsts, seconds, regions = 0, 0, 0
    window = 0
    for i in range(end - RING, at - 1, -RING):
        head, tail = words[i], words[i + 2]
        then = head >> TIME_SHIFT
        if then > time:
            continue
        while window < _WINDOWS and then <= time - WINDOWS_MS[window]:
            _write(
                line, window, (count, total, squares), (low, high),
                (failed, unusual, small, same), (firsts, seconds, regions),
            )  # fmt: skip
            window += 1
        if window == _WINDOWS:
            break
        cents = words[i + 1] >> 32
        value = float(cents)
        count += 1.0
        total += value
        squares += value * value
        low = min(low, value)
        high = max(high, value)
        failed += (head & FAILED) != 0
        unusual += (head & UNUSUAL) != 0
        small += cents <= SMALL_AMOUNT
        same += cents == amount
        firsts += (tail >> 32 & LOW_32 != 0) & (head & FIRST_REPEATED == 0)
        seconds += (tail & LOW_32 != 0) & (head & SECOND_REPEATED == 0)
        regions += (head >> REGION_SHIFT & 0x3FF != 0) & (head & REGION_REPEATED == 0)
    sums = (count, total, squares)
    return window, sums, (low, high), (failed, unusual, small, same), (firsts, seconds, regions)


@njit(cache=True, nogil=True)
def read_windows(words, floats, buckets_at, ring_at, ring_end, time, amount, line):  # type: ignore[no-untyped-def]
    """Fill the window slots of ``line`` for a view at ``time`` (ms) of an ``amount`` (cents).

    Distinct counts, small and same amounts see the ring only, so they stop at its size.
    """
    window, sums, extremes, tallies, distinct = _read_ring(
        words, ring_at, ring_end, time, amount, line
    )
    count, total, squares = sums
    low, high = extremes
    failed, unusual, small, same = tallies
    for i in range(ring_at - BUCKET, buckets_at - 1, -BUCKET):
        span, tally, ends = words[i + SPAN], words[i + TALLY], words[i + EXTREMES]
        if start_of(span) > time:
            continue
        while window < _WINDOWS and end_of(span) - 1 <= time - WINDOWS_MS[window]:
            _write(
                line, window, (count, total, squares), (low, high),
                (failed, unusual, small, same), distinct,
            )  # fmt: skip
            window += 1
        if window == _WINDOWS:
            return
        count += tally & LOW_32
        total += words[i + SUM]
        squares += floats[i + SQUARES]
        low = min(low, float(ends >> 32))
        high = max(high, float(ends & LOW_32))
        failed += tally >> 32 & 0xFFFF
        unusual += tally >> 48
    sums, extremes = (count, total, squares), (low, high)
    while window < _WINDOWS:
        _write(line, window, sums, extremes, (failed, unusual, small, same), distinct)
        window += 1
