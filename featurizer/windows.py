"""Sliding windows of one state, all lengths in one pass from the newest event to the oldest."""

from __future__ import annotations

import numpy as np
from numba import njit

from featurizer.buckets import EXTREMES, SPAN, SQUARES, SUM, TALLY, end_of, start_of
from featurizer.slots import ACCUMULATORS, RUNNING, SMALL_AMOUNT, WINDOWS_MS, Acc
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


@njit(cache=True, nogil=True)
def _write(running, line, window):  # type: ignore[no-untyped-def]
    at = window * ACCUMULATORS
    for i in range(ACCUMULATORS):
        line[at + i] = running[i]
    if running[Acc.COUNT] == 0.0:
        line[at + Acc.MIN] = np.nan
        line[at + Acc.MAX] = np.nan


@njit(cache=True, nogil=True)
def _add_event(running, head, body, tail, amount):  # type: ignore[no-untyped-def]
    value = body >> 32
    running[Acc.COUNT] += 1.0
    running[Acc.SUM] += value
    running[Acc.SQUARES] += float(value) * float(value)
    running[Acc.MIN] = min(running[Acc.MIN], float(value))
    running[Acc.MAX] = max(running[Acc.MAX], float(value))
    first = tail >> 32 & LOW_32 != 0 and head & FIRST_REPEATED == 0
    second = tail & LOW_32 != 0 and head & SECOND_REPEATED == 0
    region = head >> REGION_SHIFT & 0x3FF != 0 and head & REGION_REPEATED == 0
    running[Acc.FIRST] += 1.0 if first else 0.0
    running[Acc.SECOND] += 1.0 if second else 0.0
    running[Acc.REGIONS] += 1.0 if region else 0.0
    running[Acc.FAILED] += 1.0 if head & FAILED else 0.0
    running[Acc.UNUSUAL] += 1.0 if head & UNUSUAL else 0.0
    running[Acc.SMALL] += 1.0 if value <= SMALL_AMOUNT else 0.0
    running[Acc.SAME] += 1.0 if value == amount else 0.0


@njit(cache=True, nogil=True)
def _add_bucket(running, words, floats, place):  # type: ignore[no-untyped-def]
    tally = words[place + TALLY]
    running[Acc.COUNT] += tally & LOW_32
    running[Acc.SUM] += words[place + SUM]
    running[Acc.SQUARES] += floats[place + SQUARES]
    running[Acc.MIN] = min(running[Acc.MIN], float(words[place + EXTREMES] >> 32))
    running[Acc.MAX] = max(running[Acc.MAX], float(words[place + EXTREMES] & LOW_32))
    running[Acc.FAILED] += tally >> 32 & 0xFFFF
    running[Acc.UNUSUAL] += tally >> 48


@njit(cache=True, nogil=True)
def read_windows(words, floats, buckets_at, ring_at, ring_end, time, amount, line):  # type: ignore[no-untyped-def]
    """Fill the window slots of ``line`` for a view at ``time`` (ms) of an ``amount`` (cents).

    Distinct counts, small and same amounts see the ring only, so they stop at its size.
    """
    running = line[RUNNING:]
    running[:] = 0.0
    running[Acc.MIN] = np.inf
    running[Acc.MAX] = -np.inf
    windows = len(WINDOWS_MS)
    window = 0
    for i in range(ring_end - RING, ring_at - 1, -RING):
        then = words[i] >> TIME_SHIFT
        if then > time:
            continue
        while window < windows and then <= time - WINDOWS_MS[window]:
            _write(running, line, window)
            window += 1
        if window == windows:
            return
        _add_event(running, words[i], words[i + 1], words[i + 2], amount)
    for i in range(ring_at - BUCKET, buckets_at - 1, -BUCKET):
        if start_of(words[i + SPAN]) > time:
            continue
        while window < windows and end_of(words[i + SPAN]) - 1 <= time - WINDOWS_MS[window]:
            _write(running, line, window)
            window += 1
        if window == windows:
            return
        _add_bucket(running, words, floats, i)
    while window < windows:
        _write(running, line, window)
        window += 1
