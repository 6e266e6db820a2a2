"""Everything a state's line holds beside windows and risk: rhythm, familiarity, norm, habits."""

from __future__ import annotations

import numpy as np
from numba import njit

from featurizer.fold import HALF_LIVES_MS, MINUTES, counterparty
from featurizer.numerics import POWERS, half, on_sphere
from featurizer.records import NO_COORDINATE
from featurizer.slots import (
    EARTH_RADIUS_KM,
    GAPS_MAX,
    NORM_EVENTS_MAX,
    SESSION_GAP_MS,
    Slot,
)
from featurizer.state import (
    COUNT,
    DECAYS,
    FIRST_TIME,
    HOME,
    HOUR,
    LARGEST,
    LAST_PLACE,
    LAST_PLACE_TIME,
    LAST_TIME,
    LOW_32,
    REGION_SHIFT,
    RING,
    TIME_SHIFT,
)

_INT32_MAX = np.int32((1 << 31) - 1)  # no amount is larger


@njit(cache=True, nogil=True)
def _read_gaps(words, ring_at, newest, line):  # type: ignore[no-untyped-def]
    """Mean and deviation of the newest GAPS_MAX times between events, seconds."""
    gaps = 0
    total = 0.0
    squares = 0.0
    for i in range(newest, ring_at, -RING):
        if gaps == GAPS_MAX:
            break
        gap = ((words[i] >> TIME_SHIFT) - (words[i - RING] >> TIME_SHIFT)) / 1000.0
        if gaps == 0:
            line[Slot.LAST_GAP] = gap
        gaps += 1
        total += gap
        squares += gap * gap
    if gaps > 0:
        mean = total / gaps
        line[Slot.MEAN_GAP] = mean
        line[Slot.STD_GAP] = np.sqrt(max(squares / gaps - mean * mean, 0.0))


@njit(cache=True, nogil=True)
def _read_session(words, ring_at, newest, time, line):  # type: ignore[no-untyped-def]
    """Measure the run of events up to ``time`` with no pause longer than SESSION_GAP_MS."""
    count = 0
    total = 0
    start = time
    for i in range(newest, ring_at - 1, -RING):
        then = words[i] >> TIME_SHIFT
        if start - then > SESSION_GAP_MS:
            break
        count += 1
        total += words[i + 1] >> 32
        start = then
    line[Slot.SESSION_COUNT] = count
    line[Slot.SESSION_SUM] = total
    line[Slot.SESSION_SECONDS] = (time - start) / 1000.0


@njit(cache=True, nogil=True)
def read_rhythm(words, ring_at, ring_end, time, line):  # type: ignore[no-untyped-def]
    """Recency, times between events, session."""
    newest = ring_end - RING
    while newest >= ring_at and words[newest] >> TIME_SHIFT > time:
        newest -= RING
    for slot in range(Slot.SINCE_LAST, Slot.LAST_AMOUNT + 1):
        line[slot] = np.nan
    if newest >= ring_at:
        line[Slot.SINCE_LAST] = (time - (words[newest] >> TIME_SHIFT)) / 1000.0
        line[Slot.LAST_AMOUNT] = words[newest + 1] >> 32
        _read_gaps(words, ring_at, newest, line)
    _read_session(words, ring_at, newest, time, line)


@njit(cache=True, nogil=True)
def read_familiarity(words, ring_at, ring_end, rec, entity, line):  # type: ignore[no-untyped-def]
    """How often and how lately the ring's events had the record's counterparties and region."""
    first = counterparty(rec.entities, entity, 0)
    second = counterparty(rec.entities, entity, 1)
    region = np.int64(rec.merchant_region) & 0x3FF
    first_times = 0
    second_times = 0
    region_times = 0
    first_at = 0
    second_at = 0
    region_at = 0
    for i in range(ring_at, ring_end, RING):
        if words[i] >> TIME_SHIFT > rec.event_time_ms:
            break
        if words[i + 2] >> 32 & LOW_32 == first:
            first_times += 1
            first_at = i
        if words[i + 2] & LOW_32 == second:
            second_times += 1
            second_at = i
        if words[i] >> REGION_SHIFT & 0x3FF == region:
            region_times += 1
            region_at = i
    _familiar(words, rec, first, first_times, first_at, line, Slot.FIRST_TIMES)
    _familiar(words, rec, second, second_times, second_at, line, Slot.SECOND_TIMES)
    _familiar(words, rec, region, region_times, region_at, line, Slot.REGION_TIMES)


@njit(cache=True, nogil=True)
def _familiar(words, rec, value, times, at, line, slot):  # type: ignore[no-untyped-def]
    line[slot] = times if value != 0 else np.nan
    line[slot + 1] = np.nan
    if value != 0 and times > 0:
        line[slot + 1] = (rec.event_time_ms - (words[at] >> TIME_SHIFT)) / 1000.0


@njit(cache=True, nogil=True)
def _sort(values, count, places, ranked):  # type: ignore[no-untyped-def]
    """Set ``ranked[:count]`` to ``values[:count]`` in order; those are 0 or more.

    All are int32[NORM_EVENTS_MAX], and ``places`` is scratch.

    A value's place is how many are smaller, counted for many at once and without a branch: to
    sort by insertion takes as long again, most of it for branches that cannot be foreseen.
    """
    for i in range(NORM_EVENTS_MAX):
        places[i] = 0
    for i in range(count, NORM_EVENTS_MAX):
        values[i] = _INT32_MAX  # smaller than none
    # Unsigned, and by four: so the machine compares many at once, and adds up in registers.
    for j in range(np.uint64(0), np.uint64(count), np.uint64(4)):
        first, second = values[j], values[j + np.uint64(1)]
        third, fourth = values[j + np.uint64(2)], values[j + np.uint64(3)]
        for i in range(NORM_EVENTS_MAX):
            value = values[i]
            smaller = np.int32(first < value) + np.int32(second < value)
            places[i] += smaller + np.int32(third < value) + np.int32(fourth < value)
    for i in range(count):
        ranked[i] = -1
    for i in range(count):
        ranked[places[i]] = values[i]
    for i in range(1, count):
        if ranked[i] < 0:  # the same as the one before
            ranked[i] = ranked[i - 1]


@njit(cache=True, nogil=True)
def _deviation(ranked, count, median):  # type: ignore[no-untyped-def]
    """Return the median distance from the median of ``ranked[:count]``, which is in order.

    Distances grow to both sides, so the nearer of two neighbours is the next, until the middle.
    """
    low = (count - 1) // 2
    high = low + 1
    before = last = 0.0
    for _ in range(count // 2 + 1):
        before = last
        below = median - ranked[low] if low >= 0 else np.inf
        above = ranked[high] - median if high < count else np.inf
        last = min(below, above)
        if below <= above:
            low -= 1
        else:
            high += 1
    return last if count % 2 == 1 else 0.5 * (before + last)


@njit(cache=True, nogil=True)
def read_norm(words, ring_at, ring_end, time, events_max, line, scratch):  # type: ignore[no-untyped-def]
    """Median amount of the newest ``events_max`` events, and the median distance from it.

    ``scratch`` is int32[3 * NORM_EVENTS_MAX] or longer.
    """
    line[Slot.MEDIAN] = np.nan
    line[Slot.DEVIATION] = np.nan
    line[Slot.NORM_COUNT] = 0
    if events_max == 0:
        return
    values = scratch[:NORM_EVENTS_MAX]
    count = 0
    for i in range(ring_end - RING, ring_at - 1, -RING):
        if count == events_max:
            break
        if words[i] >> TIME_SHIFT <= time:
            values[count] = words[i + 1] >> 32
            count += 1
    line[Slot.NORM_COUNT] = count
    if count == 0:
        return
    ranked = scratch[NORM_EVENTS_MAX : 2 * NORM_EVENTS_MAX]
    _sort(values, count, scratch[2 * NORM_EVENTS_MAX :], ranked)
    median = float(ranked[count // 2])
    if count % 2 == 0:
        median = 0.5 * (ranked[count // 2 - 1] + median)
    line[Slot.MEDIAN] = median
    line[Slot.DEVIATION] = _deviation(ranked, count, median)


@njit(cache=True, nogil=True)
def read_totals(words, floats, time, line):  # type: ignore[no-untyped-def]
    """Age, lifetime totals and exponentially decayed sums as of ``time``."""
    count = words[COUNT]
    line[Slot.AGE] = max(time - words[FIRST_TIME], 0) / 86_400_000.0 if count > 0 else np.nan
    line[Slot.LIFETIME] = count
    line[Slot.LARGEST] = words[LARGEST] if count > 0 else np.nan
    elapsed = max(time - words[LAST_TIME], 0)
    for h in range(len(HALF_LIVES_MS)):
        weight = half(elapsed, HALF_LIVES_MS[h], POWERS)
        line[Slot.DECAYED + 2 * h] = floats[DECAYS + 2 * h] * weight
        line[Slot.DECAYED + 2 * h + 1] = floats[DECAYS + 2 * h + 1] * weight


@njit(cache=True, nogil=True)
def _read_hour(floats, time, line):  # type: ignore[no-untyped-def]
    """Von Mises statistics of the hour (Mardia and Jupp, Directional Statistics, 2000).

    Concentration is the mean resultant length; affinity that length times the cosine of the
    distance between the record's hour and the usual one.
    """
    line[Slot.HOUR_AFFINITY] = np.nan
    line[Slot.HOUR_CONCENTRATION] = np.nan
    weight = floats[HOUR + 2]
    if weight > 0.0:
        cos = floats[HOUR] / weight
        sin = floats[HOUR + 1] / weight
        minute = time // 60_000 % 1440
        line[Slot.HOUR_AFFINITY] = cos * MINUTES[minute, 0] + sin * MINUTES[minute, 1]
        line[Slot.HOUR_CONCENTRATION] = np.sqrt(cos * cos + sin * sin)


@njit(cache=True, nogil=True)
def _chord_km(x, y, z):  # type: ignore[no-untyped-def]
    return EARTH_RADIUS_KM * np.sqrt(x * x + y * y + z * z)


@njit(cache=True, nogil=True)
def read_habits(words, floats, rec, here, line):  # type: ignore[no-untyped-def]
    """Usual hour; distance (along the chord, km) and speed from the last and the usual place.

    ``here`` is where the record is, on the unit sphere.
    """
    _read_hour(floats, rec.event_time_ms, line)
    line[Slot.KM_LAST] = np.nan
    line[Slot.KMH_LAST] = np.nan
    line[Slot.KM_HOME] = np.nan
    weight = floats[HOME + 3]
    if rec.latitude_e6 == NO_COORDINATE or not weight > 0.0:
        return
    x, y, z = here
    place = words[LAST_PLACE]
    longitude = (place & LOW_32 ^ 0x80000000) - 0x80000000
    last_x, last_y, last_z = on_sphere(place >> 32, longitude)
    distance = _chord_km(x - last_x, y - last_y, z - last_z)
    hours = max(rec.event_time_ms - words[LAST_PLACE_TIME], 1_000) / 3_600_000.0
    line[Slot.KM_LAST] = distance
    line[Slot.KMH_LAST] = distance / hours
    line[Slot.KM_HOME] = _chord_km(
        x - floats[HOME] / weight, y - floats[HOME + 1] / weight, z - floats[HOME + 2] / weight
    )
