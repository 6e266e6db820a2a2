"""The read half of the kernel: the feature vector of a record from the states it meets.

First every present entity's row is read, newest event to oldest, into a line of *slots*; then the
operations made from FEATURES turn slots into the vector. A window of length W covers the events
in (t - W, t] of event time that were folded before; never the record itself.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from featurizer.fold import amount_of
from featurizer.lines import read_familiarity, read_habits, read_norm, read_rhythm, read_totals
from featurizer.numerics import on_sphere
from featurizer.records import NO_COORDINATE, NO_TIME_MS, Flag
from featurizer.risk import read_risk
from featurizer.slots import (
    NORM_EVENTS,
    OP_MEAN_RATIO,
    OP_RATIO,
    OP_ROBUST,
    OP_STD,
    OP_VALUE,
    OP_ZSCORE,
    OWN_LINE,
    SCRATCH_LINE,
    UNUSUAL_EVENTS_MIN,
    UNUSUAL_RATIO,
    Own,
    Slot,
)
from featurizer.state import BUCKET, DAY_MS, HEADER, RING, counts, has_expired
from featurizer.windows import read_windows

_CUSTOMER = 0
_FAILED = int(Flag.FAILED)
_CARD_PRESENT = int(Flag.CARD_PRESENT)
_RECURRING = int(Flag.RECURRING)
_UNUSUAL = int(Flag.UNUSUAL)
_HAS_NORM = int(Flag.HAS_NORM)


@njit(cache=True, nogil=True)
def _code(number):  # type: ignore[no-untyped-def]
    return np.float64(number) if number != 0 else np.nan


@njit(cache=True, nogil=True)
def _differs(a, b):  # type: ignore[no-untyped-def]
    if a == 0 or b == 0:
        return np.nan
    return 1.0 if a != b else 0.0


@njit(cache=True, nogil=True)
def _read_amount(rec, line):  # type: ignore[no-untyped-def]
    minor = rec.amount_minor
    line[Own.AMOUNT] = amount_of(rec.amount_ref)
    line[Own.CENTS] = minor % 100
    line[Own.ROUND_10] = 1.0 if minor % 1_000 == 0 else 0.0
    line[Own.ROUND_100] = 1.0 if minor % 10_000 == 0 else 0.0
    digits = 0
    while minor > 0 and minor % 10 == 0:
        minor //= 10
        digits -= 1
    while minor > 0:
        minor //= 10
        digits += 1
    line[Own.DIGITS] = digits


@njit(cache=True, nogil=True)
def _read_codes(rec, line):  # type: ignore[no-untyped-def]
    line[Own.CHANNEL] = _code(rec.channel)
    line[Own.POS_ENTRY_MODE] = _code(rec.pos_entry_mode)
    line[Own.CARD_PRESENT] = 1.0 if rec.flags & _CARD_PRESENT else 0.0
    line[Own.RECURRING] = 1.0 if rec.flags & _RECURRING else 0.0
    line[Own.THREE_DS] = _code(rec.three_ds)
    line[Own.AVS] = _code(rec.avs)
    line[Own.CVV] = _code(rec.cvv)
    line[Own.AUTHORIZATION] = _code(rec.authorization)
    line[Own.FAILED] = 1.0 if rec.flags & _FAILED else 0.0
    line[Own.MCC] = _code(rec.mcc)
    line[Own.BRAND] = _code(rec.brand)
    line[Own.FUNDING] = _code(rec.funding)
    line[Own.CURRENCY] = _code(rec.currency)
    line[Own.MERCHANT_REGION] = _code(rec.merchant_region)
    line[Own.ISSUER_REGION] = _code(rec.issuer_region)
    line[Own.FOREIGN_ISSUER] = _differs(rec.issuer_region, rec.merchant_region)
    line[Own.FOREIGN_BILLING] = _differs(rec.billing_region, rec.issuer_region)
    line[Own.SHIPS_ELSEWHERE] = _differs(rec.shipping_region, rec.billing_region)


@njit(cache=True, nogil=True)
def _read_record(rec, line):  # type: ignore[no-untyped-def]
    """Fill the record's own line."""
    time = rec.event_time_ms
    _read_amount(rec, line)
    _read_codes(rec, line)
    line[Own.HOUR] = (time // 60_000 % 1440) / 60.0
    line[Own.WEEKDAY] = (time // DAY_MS + 3) % 7
    line[Own.MONTH_DAY] = _month_day(time // DAY_MS)
    if rec.account_created_ms == NO_TIME_MS:
        line[Own.ACCOUNT_AGE] = np.nan
    else:
        line[Own.ACCOUNT_AGE] = (time - rec.account_created_ms) / 86_400_000.0
    known = 0
    for key in rec.entities:
        known += 1 if key != 0 else 0
    line[Own.ENTITIES] = known


@njit(cache=True, nogil=True)
def _month_day(days):  # type: ignore[no-untyped-def]
    """Return the day of the month of a day since 1970 (Hinnant, "chrono-compatible dates")."""
    era_day = (days + 719_468) % 146_097
    year = (era_day - era_day // 1_460 + era_day // 36_524 - era_day // 146_096) // 365
    year_day = era_day - (365 * year + year // 4 - year // 100)
    month = (5 * year_day + 2) // 153
    return year_day - (153 * month + 2) // 5 + 1


@njit(cache=True, nogil=True)
def _read_entity(words, entity, rec, here, line, scratch):  # type: ignore[no-untyped-def]
    """Fill an entity's line from its row; ``here`` is the record's place on the unit sphere.

    ``scratch`` as for ``read_norm``.
    """
    if has_expired(words, rec.event_time_ms):
        words = np.zeros(HEADER, np.int64)
    floats = words.view(np.float64)
    days, labels, buckets, ring = counts(words)
    at = HEADER + days + labels
    ring_at = at + BUCKET * buckets
    ring_end = ring_at + RING * ring
    time = rec.event_time_ms
    amount = amount_of(rec.amount_ref)
    read_windows(words, floats, at, ring_at, ring_end, time, amount, line)
    read_rhythm(words, ring_at, ring_end, time, line)
    read_familiarity(words, ring_at, ring_end, rec, entity, line)
    read_norm(words, ring_at, ring_end, time, NORM_EVENTS[entity], line, scratch)
    read_totals(words, floats, time, line)
    read_habits(words, floats, rec, here, line)
    read_risk(words, days, labels, time, line)


@njit(cache=True, nogil=True)
def _deviation(flat, at):  # type: ignore[no-untyped-def]
    """Return the population standard deviation of the window at ``at``; NaN below two events."""
    count = flat[at]
    if not count >= 2.0:
        return np.nan
    mean = flat[at + 1] / count
    return np.sqrt(max(flat[at + 2] / count - mean * mean, 0.0))


@njit(cache=True, nogil=True)
def _quotient(a, b):  # type: ignore[no-untyped-def]
    return a / b if b > 0.0 else np.nan


@njit(cache=True, nogil=True)
def _apply(ops, flat, out):  # type: ignore[no-untyped-def]
    """Turn slots into features; ``ops`` int32[n, 3] holds operation, a and b for each."""
    for i in range(ops.shape[0]):
        op = ops[i, 0]
        a = ops[i, 1]
        b = ops[i, 2]
        if op == OP_VALUE:
            out[i] = flat[a]
        elif op == OP_RATIO:
            out[i] = _quotient(flat[a], flat[b])
        elif op == OP_STD:
            out[i] = _deviation(flat, a)
        elif op == OP_ZSCORE:
            spread = _deviation(flat, b)
            out[i] = _quotient(flat[a] - flat[b + 1] / flat[b], spread) if spread > 0 else np.nan
        elif op == OP_MEAN_RATIO:
            out[i] = _quotient(flat[a] * flat[b], flat[b + 1])
        elif op == OP_ROBUST:
            out[i] = _quotient(flat[a] - flat[b], flat[b + 1])


@njit(cache=True, nogil=True)
def view(rows, rec, ops, lines, out):  # type: ignore[no-untyped-def]
    """Fill ``out`` with the features of ``rec`` and return the marks to set in its flags.

    ``rows`` int64[len(Entity), ROW_WORDS], the states before the record (all zeros for one never
    seen); ``rec`` one row of RECORD; ``ops`` int32[n, 3]; ``lines`` float64[LINES, SLOTS], scratch
    memory; ``out`` float32[n]. Absent entities give NaN.
    """
    here = (0.0, 0.0, 0.0)
    if rec.latitude_e6 != NO_COORDINATE:
        here = on_sphere(rec.latitude_e6, rec.longitude_e6)
    scratch = lines[SCRATCH_LINE].view(np.int32)
    for entity in range(rows.shape[0]):
        line = lines[entity]
        if rec.entities[entity] == 0:
            line[:] = np.nan
        else:
            _read_entity(rows[entity], entity, rec, here, line, scratch)
    _read_record(rec, lines[OWN_LINE])
    _apply(ops, lines.reshape(lines.size), out)
    customer = lines[_CUSTOMER]
    if not customer[Slot.NORM_COUNT] >= UNUSUAL_EVENTS_MIN:
        return 0
    if amount_of(rec.amount_ref) > UNUSUAL_RATIO * customer[Slot.MEDIAN]:
        return _HAS_NORM | _UNUSUAL
    return _HAS_NORM
