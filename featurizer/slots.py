"""The line of numbers that a view reads from one entity's state, and the operations on lines.

Owns the numbering shared by the kernel (``view``) and the table (``features``); nothing else.
A line is float64[SLOTS]; line 9 holds the record's own numbers.
"""

from __future__ import annotations

from enum import IntEnum, auto

import numpy as np

from featurizer.state import DAY_MS

HOUR_MS = 3_600_000
WINDOWS = {
    "1m": 60_000,
    "10m": 600_000,
    "1h": HOUR_MS,
    "6h": 6 * HOUR_MS,
    "1d": DAY_MS,
    "3d": 3 * DAY_MS,
    "7d": 7 * DAY_MS,
    "14d": 14 * DAY_MS,
    "30d": 30 * DAY_MS,
    "90d": 90 * DAY_MS,
}
WINDOWS_MS = np.array(list(WINDOWS.values()), np.int64)
HALF_LIVES = ("5m", "1h", "1d", "7d", "30d")
RISK_WINDOWS = {"1d": 1, "3d": 3, "7d": 7, "14d": 14, "30d": 30, "60d": 60, "90d": 90}
RISK_DAYS = np.array(list(RISK_WINDOWS.values()), np.int64)


class Acc(IntEnum):
    """What is summed up over a window, in this order from its first slot."""

    COUNT = 0
    SUM = 1
    SQUARES = 2
    MIN = 3
    MAX = 4
    FIRST = 5  # distinct first counterparties among the events of the ring
    SECOND = 6
    REGIONS = 7
    FAILED = 8
    UNUSUAL = 9
    SMALL = 10
    SAME = 11  # events with exactly the record's amount


ACCUMULATORS = len(Acc)


class Slot(IntEnum):
    """What an entity's line holds after its windows."""

    SINCE_LAST = len(WINDOWS) * ACCUMULATORS
    LAST_GAP = auto()
    MEAN_GAP = auto()
    STD_GAP = auto()
    SESSION_COUNT = auto()
    SESSION_SUM = auto()
    SESSION_SECONDS = auto()
    LAST_AMOUNT = auto()
    MEDIAN = auto()
    DEVIATION = auto()  # median absolute deviation
    NORM_COUNT = auto()
    DECAYED = auto()  # count and amount for each half-life
    DECAYED_END = DECAYED + 2 * len(HALF_LIVES) - 1  # type: ignore[operator]  # numbers in here
    AGE = auto()
    LIFETIME = auto()
    LARGEST = auto()
    HOUR_AFFINITY = auto()
    HOUR_CONCENTRATION = auto()
    KM_LAST = auto()
    KMH_LAST = auto()
    KM_HOME = auto()
    FIRST_TIMES = auto()
    FIRST_SINCE = auto()
    SECOND_TIMES = auto()
    SECOND_SINCE = auto()
    REGION_TIMES = auto()
    REGION_SINCE = auto()
    GOOD = auto()
    BAD = auto()
    LABELLED = auto()
    GOOD_MEAN = auto()
    BAD_MEAN = auto()
    SINCE_FRAUD = auto()
    SINCE_FRAUD_KNOWN = auto()
    GOOD_SINCE_FRAUD = auto()
    BAD_RUN = auto()
    PLAIN_BAD_RUN = auto()  # the run counted without frauds that their amount explains
    LAST_BAD_UNUSUAL = auto()
    SINCE_GOOD = auto()
    RISK = auto()  # bad, labelled and unusual bad for each risk window
    RISK_END = RISK + 3 * len(RISK_WINDOWS) - 1  # type: ignore[operator]


SLOTS = Slot.RISK_END + 1 + ACCUMULATORS  # the last are free: the schema counts lines this wide


class Own(IntEnum):
    """What the record's own line holds."""

    AMOUNT = 0
    CENTS = auto()
    ROUND_10 = auto()
    ROUND_100 = auto()
    DIGITS = auto()
    HOUR = auto()
    WEEKDAY = auto()
    MONTH_DAY = auto()
    CHANNEL = auto()
    POS_ENTRY_MODE = auto()
    CARD_PRESENT = auto()
    RECURRING = auto()
    THREE_DS = auto()
    AVS = auto()
    CVV = auto()
    AUTHORIZATION = auto()
    FAILED = auto()
    MCC = auto()
    BRAND = auto()
    FUNDING = auto()
    CURRENCY = auto()
    MERCHANT_REGION = auto()
    ISSUER_REGION = auto()
    FOREIGN_ISSUER = auto()  # issuer's region is not the merchant's
    FOREIGN_BILLING = auto()
    SHIPS_ELSEWHERE = auto()
    ACCOUNT_AGE = auto()
    ENTITIES = auto()  # how many entities are known


LINES = 11
OWN_LINE = 9
SCRATCH_LINE = 10  # of a view: memory for what is in no slot

SESSION_GAP_MS = 30 * 60_000
SMALL_AMOUNT = 200  # cents; what card testers try
NORM_EVENTS = np.array([63, 31, 31, 0, 0, 0, 0, 0, 23], np.int64)  # events in the robust norm
NORM_EVENTS_MAX = 64
GAPS_MAX = 16
UNUSUAL_RATIO = 3  # an amount above this many medians is unusual ...
UNUSUAL_EVENTS_MIN = 5  # ... where the norm has at least this many events
EARTH_RADIUS_KM = 6371.0

# Operations on slots: how a feature is made from the lines.
OP_VALUE = 0  # a
OP_RATIO = 1  # a / b
OP_STD = 2  # of the window at a
OP_ZSCORE = 3  # a against mean and deviation of the window at b
OP_MEAN_RATIO = 4  # a against the mean of the window at b
OP_ROBUST = 5  # (a - median) / deviation of the norm at b
