"""What is known of an entity's past: rates of confirmed fraud, runs, and how long ago."""

from __future__ import annotations

import numpy as np
from numba import njit

from featurizer.slots import RISK_DAYS, Slot
from featurizer.state import (
    BAD_AMOUNT,
    BAD_COUNT,
    DAY_MS,
    GOOD_AMOUNT,
    GOOD_COUNT,
    HEADER,
    LABEL_BAD,
    LABEL_UNUSUAL,
    LABELS_MAX,
    LAST_FRAUD_KNOWN,
    LAST_FRAUD_TIME,
)


@njit(cache=True, nogil=True)
def _read_rates(words, days, time, line):  # type: ignore[no-untyped-def]
    """Labels that became known on the last d UTC days, today included."""
    today = time // DAY_MS
    good = 0
    bad = 0
    odd = 0
    place = HEADER + days - 1
    for w in range(len(RISK_DAYS)):
        while place >= HEADER and words[place] >> 48 > today - RISK_DAYS[w]:
            if words[place] >> 48 <= today:
                good += words[place] >> 32 & 0xFFFF
                bad += words[place] >> 16 & 0xFFFF
                odd += words[place] & 0xFFFF
            place -= 1
        line[Slot.RISK + 3 * w] = bad
        line[Slot.RISK + 3 * w + 1] = good + bad
        line[Slot.RISK + 3 * w + 2] = odd


@njit(cache=True, nogil=True)
def _newest(words, at, end, bad):  # type: ignore[no-untyped-def]
    """Return where the newest label is that is bad (or good), ``at - 1`` where there is none."""
    for i in range(end - 1, at - 1, -1):
        if (words[i] & LABEL_BAD != 0) == bad:
            return i
    return at - 1


@njit(cache=True, nogil=True)
def _read_runs(words, at, end, time, line):  # type: ignore[no-untyped-def]
    """Measure runs in the order of the transactions, from the newest labelled one back."""
    fraud = _newest(words, at, end, True)
    good = _newest(words, at, end, False)
    line[Slot.GOOD_SINCE_FRAUD] = end - 1 - fraud
    line[Slot.BAD_RUN] = end - 1 - good
    plain = 0
    for i in range(good + 1, end):
        plain += 0 if words[i] & LABEL_UNUSUAL else 1
    line[Slot.PLAIN_BAD_RUN] = plain
    line[Slot.SINCE_GOOD] = np.nan
    line[Slot.SINCE_FRAUD] = np.nan
    line[Slot.LAST_BAD_UNUSUAL] = np.nan
    if good >= at:
        line[Slot.SINCE_GOOD] = (time - (words[good] >> 20)) / 86_400_000.0
    if fraud >= at:
        line[Slot.SINCE_FRAUD] = (time - (words[fraud] >> 20)) / 86_400_000.0
        line[Slot.LAST_BAD_UNUSUAL] = 1.0 if words[fraud] & LABEL_UNUSUAL else 0.0
    elif end - at == LABELS_MAX and words[LAST_FRAUD_TIME] > 0:
        # Every label kept is good; the last fraud is older than all of them.
        line[Slot.SINCE_FRAUD] = (time - words[LAST_FRAUD_TIME]) / 86_400_000.0


@njit(cache=True, nogil=True)
def read_risk(words, days, labels, time, line):  # type: ignore[no-untyped-def]
    """Fill the risk slots; labels count once they were folded, which is once they were known."""
    good = words[GOOD_COUNT]
    bad = words[BAD_COUNT]
    line[Slot.GOOD] = good
    line[Slot.BAD] = bad
    line[Slot.LABELLED] = good + bad
    line[Slot.GOOD_MEAN] = words[GOOD_AMOUNT] / good if good > 0 else np.nan
    line[Slot.BAD_MEAN] = words[BAD_AMOUNT] / bad if bad > 0 else np.nan
    line[Slot.SINCE_FRAUD_KNOWN] = np.nan
    if words[LAST_FRAUD_KNOWN] > 0:
        line[Slot.SINCE_FRAUD_KNOWN] = (time - words[LAST_FRAUD_KNOWN]) / 86_400_000.0
    _read_rates(words, days, time, line)
    _read_runs(words, HEADER + days, HEADER + days + labels, time, line)
