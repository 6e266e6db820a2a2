"""The write half of the kernel: apply one record to one entity's state.

``fold`` needs that state and the record, nothing else, so entities can live on different machines.
Applying a record twice, or one at or before the state's position, changes nothing.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from featurizer.buckets import add_to_buckets
from featurizer.numerics import POWERS, half, on_sphere
from featurizer.records import NO_COORDINATE, Flag, Kind
from featurizer.state import (
    AMOUNT_MAX,
    BUCKET,
    COUNT,
    DAY_MS,
    DECAYS,
    DROPPED,
    FAILED,
    FIRST_REPEATED,
    FIRST_TIME,
    HEADER,
    HOME,
    HORIZON_MS,
    HOUR,
    LARGEST,
    LAST_PLACE,
    LAST_PLACE_TIME,
    LAST_TIME,
    LOW_32,
    META,
    POSITION,
    REGION_REPEATED,
    REGION_SHIFT,
    RING,
    RING_EVENTS,
    SECOND_REPEATED,
    TIME_SHIFT,
    UNUSUAL,
    close_gap,
    counts,
    has_expired,
    open_gap,
    set_counts,
)
from featurizer.verdicts import fold_verdict

HALF_LIVES_MS = np.array([300_000, 3_600_000, DAY_MS, 7 * DAY_MS, 30 * DAY_MS], np.int64)

# Per entity, whose distinct values its events count: first and second counterparty, each with
# the entity that stands in where it is absent (a payment without a card, or without a merchant).
COUNTERPARTIES = np.array(
    [
        [[2, 3], [4, 5]],  # customer: merchant, device
        [[2, 3], [5, 4]],  # card: merchant, network
        [[1, 0], [7, 5]],  # merchant: card, BIN
        [[0, 1], [7, 5]],  # terminal: customer, BIN
        [[0, 1], [1, 2]],  # device: customer, card
        [[0, 1], [1, 4]],  # network: customer, card
        [[0, 1], [1, 4]],  # e-mail: customer, card
        [[1, 0], [2, 3]],  # BIN: card, merchant
        [[3, 0], [4, 5]],  # pair: terminal, device
    ],
    np.int64,
)

_REGION = 0x3FF << REGION_SHIFT
_ALL_REPEATED = FIRST_REPEATED | SECOND_REPEATED | REGION_REPEATED

FOLDED = 0
REPEATED = 1
TOO_OLD = 2
BEFORE = 3


def _minute_table() -> NDArray[np.float64]:
    """Cosine and sine of each minute of the day, rounded so that libm cannot matter."""
    angle = np.arange(1440) * (2 * np.pi / 1440)
    return np.round(np.stack([np.cos(angle), np.sin(angle)], axis=1) * 2.0**40) / 2.0**40


MINUTES = _minute_table()
MINUTES.flags.writeable = False


@njit(cache=True, nogil=True)
def amount_of(amount_ref):  # type: ignore[no-untyped-def]
    """Return the amount as the state keeps it: cents, from 0 to AMOUNT_MAX."""
    return min(max(amount_ref, 0), AMOUNT_MAX)


@njit(cache=True, nogil=True)
def counterparty(entities, entity, which):  # type: ignore[no-untyped-def]
    """Return 32 bits of the entity's first (0) or second (1) counterparty; 0 where absent."""
    key = entities[COUNTERPARTIES[entity, which, 0]]
    if key == 0:
        key = entities[COUNTERPARTIES[entity, which, 1]]
    return key & LOW_32


@njit(cache=True, nogil=True)
def _is_repeat(words, at, end, time, body):  # type: ignore[no-untyped-def]
    for i in range(end - RING, at - 1, -RING):
        then = words[i] >> TIME_SHIFT
        if then < time:
            return False
        if then == time and words[i + 1] == body:
            return True
    return False


@njit(cache=True, nogil=True)
def _shared(head, tail):  # type: ignore[no-untyped-def]
    """Return the marks of what two events share, of which these are the bits that differ."""
    bits = 0
    if tail >> 32 == 0:
        bits |= FIRST_REPEATED
    if tail & LOW_32 == 0:
        bits |= SECOND_REPEATED
    if head & _REGION == 0:
        bits |= REGION_REPEATED
    return bits


@njit(cache=True, nogil=True)
def _mark_repeated(words, at, end, place):  # type: ignore[no-untyped-def]
    """Leave each counterparty and region unmarked in its newest event only.

    Distinct values in a window that ends now are then the unmarked events in it.
    """
    head, tail = words[place], words[place + 2]
    marks = 0
    for i in range(place - RING, at - 1, -RING):
        bits = _shared(words[i] ^ head, words[i + 2] ^ tail)
        if bits:
            words[i] |= bits
            marks |= bits
            if marks == _ALL_REPEATED:  # what is older was marked when these came
                break
    own = 0
    for i in range(place + RING, end, RING):
        own |= _shared(words[i] ^ head, words[i + 2] ^ tail)
    words[place] |= own


@njit(cache=True, nogil=True)
def _insert(words, floats, entity, head, body, tail, last_time):  # type: ignore[no-untyped-def]
    """Put an event into the ring in order of time; the oldest leaves a full ring."""
    days, labels, buckets, ring = counts(words)
    at = HEADER + days + labels + BUCKET * buckets
    end = at + RING * ring
    place = end
    while place > at and words[place - RING] >> TIME_SHIFT > head >> TIME_SHIFT:
        place -= RING
    full = ring >= RING_EVENTS[entity]
    if full and place == at:
        add_to_buckets(words, floats, head, body >> 32, last_time)
        return
    old_head = words[at]
    old_amount = words[at + 1] >> 32
    if full:
        close_gap(words, at, place, RING)
        place -= RING
    else:
        open_gap(words, place, end, RING)
        end += RING
        set_counts(words, days, labels, buckets, ring + 1)
    words[place] = head
    words[place + 1] = body
    words[place + 2] = tail
    _mark_repeated(words, at, end, place)
    if full:
        add_to_buckets(words, floats, old_head, old_amount, last_time)


@njit(cache=True, nogil=True)
def _decay(words, floats, rec, amount, elapsed):  # type: ignore[no-untyped-def]
    """Bring the decayed sums to the newest time and add the event.

    ``elapsed`` ms since the newest event; negative for a late one. Home and hour follow the
    longest half-life.
    """
    old = 1.0
    new = 1.0
    for h in range(len(HALF_LIVES_MS)):
        old = half(elapsed, HALF_LIVES_MS[h], POWERS) if elapsed > 0 else 1.0
        new = half(-elapsed, HALF_LIVES_MS[h], POWERS) if elapsed < 0 else 1.0
        floats[DECAYS + 2 * h] = floats[DECAYS + 2 * h] * old + new
        floats[DECAYS + 2 * h + 1] = floats[DECAYS + 2 * h + 1] * old + new * amount
    minute = rec.event_time_ms // 60_000 % 1440
    floats[HOUR] = floats[HOUR] * old + new * MINUTES[minute, 0]
    floats[HOUR + 1] = floats[HOUR + 1] * old + new * MINUTES[minute, 1]
    floats[HOUR + 2] = floats[HOUR + 2] * old + new
    for i in range(4):
        floats[HOME + i] *= old
    if rec.latitude_e6 != NO_COORDINATE:
        x, y, z = on_sphere(rec.latitude_e6, rec.longitude_e6)
        floats[HOME] += new * x
        floats[HOME + 1] += new * y
        floats[HOME + 2] += new * z
        floats[HOME + 3] += new
        if words[LAST_PLACE_TIME] <= rec.event_time_ms:
            words[LAST_PLACE_TIME] = rec.event_time_ms
            longitude = np.int64(rec.longitude_e6) & LOW_32
            words[LAST_PLACE] = np.int64(rec.latitude_e6) << 32 | longitude


@njit(cache=True, nogil=True)
def _fold_transaction(words, floats, entity, rec):  # type: ignore[no-untyped-def]
    time = rec.event_time_ms
    amount = amount_of(rec.amount_ref)
    body = amount << 32 | rec.transaction & LOW_32
    if has_expired(words, time):
        words[:HEADER] = 0
    if words[META] == 0:
        set_counts(words, 0, 0, 0, 0)
    known = words[COUNT] > 0
    newest = words[LAST_TIME] if known else time
    if time < newest - HORIZON_MS:
        words[DROPPED] += 1
        return TOO_OLD
    days, labels, buckets, ring = counts(words)
    at = HEADER + days + labels + BUCKET * buckets
    if _is_repeat(words, at, at + RING * ring, time, body):
        return REPEATED
    _decay(words, floats, rec, float(amount), time - newest)
    words[FIRST_TIME] = min(words[FIRST_TIME], time) if known else time
    words[LAST_TIME] = max(newest, time)
    words[COUNT] += 1
    words[LARGEST] = max(words[LARGEST], amount)
    flags = (FAILED if rec.flags & Flag.FAILED else 0) | (
        UNUSUAL if rec.flags & Flag.UNUSUAL else 0
    )
    head = time << TIME_SHIFT | (np.int64(rec.merchant_region) & 0x3FF) << REGION_SHIFT | flags
    tail = counterparty(rec.entities, entity, 0) << 32 | counterparty(rec.entities, entity, 1)
    _insert(words, floats, entity, head, body, tail, words[LAST_TIME])
    return FOLDED


@njit(cache=True, nogil=True)
def fold(words, entity, rec, position):  # type: ignore[no-untyped-def]
    """Apply the record ``rec`` (one row of RECORD) at log ``position`` to a state.

    ``words`` int64[ROW_WORDS], changed in place; ``entity`` the Entity number. Returns FOLDED,
    REPEATED, TOO_OLD or BEFORE (the state had already applied this position).
    """
    if words[META] != 0 and position <= words[POSITION]:
        return BEFORE
    if rec.kind == Kind.FEEDBACK:
        result = FOLDED if fold_verdict(words, rec) else REPEATED
    else:
        result = _fold_transaction(words, words.view(np.float64), entity, rec)
    words[POSITION] = position
    return result
