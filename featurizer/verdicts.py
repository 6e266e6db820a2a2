"""Labels in an entity's state: what became known of its transactions, and when."""

from __future__ import annotations

from numba import njit

from featurizer.records import Flag
from featurizer.state import (
    AMOUNT_MAX,
    BAD_AMOUNT,
    BAD_COUNT,
    BUCKET,
    DAY_MS,
    DAYS_MAX,
    GOOD_AMOUNT,
    GOOD_COUNT,
    HEADER,
    LABEL_BAD,
    LABEL_UNUSUAL,
    LABELS_MAX,
    LAST_FRAUD_KNOWN,
    LAST_FRAUD_TIME,
    LAST_TIME,
    META,
    RING,
    close_gap,
    counts,
    open_gap,
    set_counts,
)

FRAUD = 1  # Verdict.VERDICT_FRAUD of the contract

_NEW = -1
_SAME = -2


@njit(cache=True, nogil=True)
def _count_day(words, day, bad, odd):  # type: ignore[no-untyped-def]
    """Count one verdict on the UTC day it became known (days since 1970), if not too old."""
    days, labels, buckets, ring = counts(words)
    end = HEADER + days + labels + BUCKET * buckets + RING * ring
    place = HEADER + days
    while place > HEADER and words[place - 1] >> 48 >= day:
        place -= 1
    if place == HEADER + days or words[place] >> 48 != day:
        if days < DAYS_MAX:
            open_gap(words, place, end, 1)
            set_counts(words, days + 1, labels, buckets, ring)
        elif place == HEADER:
            return
        else:
            place -= 1
            close_gap(words, HEADER, place + 1, 1)
        words[place] = day << 48
    good_count = min((words[place] >> 32 & 0xFFFF) + 1 - bad, 0xFFFF)
    bad_count = min((words[place] >> 16 & 0xFFFF) + bad, 0xFFFF)
    odd_count = min((words[place] & 0xFFFF) + odd, 0xFFFF)
    words[place] = day << 48 | good_count << 32 | bad_count << 16 | odd_count


@njit(cache=True, nogil=True)
def _place(words, word):  # type: ignore[no-untyped-def]
    """Put a label in order of its transaction's time; the oldest leaves a full section.

    Returns the word it replaced, _NEW, or _SAME where that transaction has this verdict already.
    """
    days, labels, buckets, ring = counts(words)
    at = HEADER + days
    place = at + labels
    while place > at and words[place - 1] >> 8 >= word >> 8:
        place -= 1
    if place < at + labels and words[place] >> 8 == word >> 8:
        before = words[place]
        words[place] = word
        return before if (before ^ word) & LABEL_BAD else _SAME
    if labels < LABELS_MAX:
        open_gap(words, place, at + labels + BUCKET * buckets + RING * ring, 1)
        words[place] = word
        set_counts(words, days, labels + 1, buckets, ring)
    elif place > at:
        close_gap(words, at, place, 1)
        words[place - 1] = word
    return _NEW


@njit(cache=True, nogil=True)
def _total(words, bad, sign, amount):  # type: ignore[no-untyped-def]
    if bad:
        words[BAD_COUNT] += sign
        words[BAD_AMOUNT] += sign * amount
    else:
        words[GOOD_COUNT] += sign
        words[GOOD_AMOUNT] += sign * amount


@njit(cache=True, nogil=True)
def fold_verdict(words, rec):  # type: ignore[no-untyped-def]
    """Apply a FEEDBACK record; True where it said something new.

    A later verdict on the same transaction replaces the earlier one in the totals and in the
    order of labels; the counts by day keep both, as they came.
    """
    if words[META] == 0:
        set_counts(words, 0, 0, 0, 0)
        words[LAST_TIME] = rec.event_time_ms
    bad = 1 if rec.verdict == FRAUD else 0
    odd = 1 if rec.flags & Flag.UNUSUAL else 0
    word = rec.event_time_ms << 20 | (rec.transaction & 0xFFF) << 8
    word |= (LABEL_BAD if bad else 0) | (LABEL_UNUSUAL if odd else 0)
    before = _place(words, word)
    if before == _SAME:
        return False
    amount = min(max(rec.amount_ref, 0), AMOUNT_MAX)
    if before != _NEW:
        _total(words, 1 - bad, -1, amount)
    _total(words, bad, 1, amount)
    _count_day(words, rec.known_time_ms // DAY_MS, bad, bad * odd)
    if bad:
        words[LAST_FRAUD_TIME] = max(words[LAST_FRAUD_TIME], rec.event_time_ms)
        words[LAST_FRAUD_KNOWN] = max(words[LAST_FRAUD_KNOWN], rec.known_time_ms)
    return True
