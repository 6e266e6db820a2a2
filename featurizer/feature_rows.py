"""The data of the feature table: which sums, windows and slots each entity has.

What is left out is not worth its bytes in every logged vector. ``features`` turns this into rows.
"""

from __future__ import annotations

from typing import NamedTuple

from featurizer.records import Entity
from featurizer.slots import Acc, Own, Slot

C, K, M, T, D, N, E, B, P = Entity

# What the first and the second counterparty of each entity are, as in fold.COUNTERPARTIES.
COUNTERPARTS = {
    C: ("merchant", "device"),
    K: ("merchant", "network"),
    M: ("card", "bin"),
    T: ("customer", "bin"),
    D: ("customer", "card"),
    N: ("customer", "card"),
    E: ("customer", "card"),
    B: ("card", "merchant"),
    P: ("terminal", "device"),
}


class Windowed(NamedTuple):
    """A sum over windows: which windows for which entity, and how it is called."""

    windows: dict[Entity, str]
    acc: Acc
    stat: str
    family: str
    unit: str
    default: str
    meaning: str


class Plain(NamedTuple):
    """A slot that is a feature as it stands."""

    slot: Slot
    stat: str
    family: str
    unit: str
    default: str
    meaning: str
    entities: tuple[Entity, ...]


COUNTS = {
    C: "1m 10m 1h 6h 1d 3d 7d 14d 30d 90d",
    K: "1m 10m 1h 1d 7d 30d",
    M: "1m 10m 1h 1d 7d",
    T: "10m 1h 1d 7d 30d",
    D: "10m 1h 1d 30d",
    N: "1m 10m 1h 1d",
    E: "1h 1d 30d",
    B: "1m 10m 1h 1d",
    P: "1h 1d 30d",
}
WINDOWED = (
    Windowed(COUNTS, Acc.COUNT, "count", "velocity", "events", "0", "transactions in the window"),
    Windowed(
        {C: "1h 1d 7d 30d", K: "1h 1d 7d", M: "1h", T: "1d", D: "1d", N: "1h"},
        Acc.SUM, "sum", "velocity", "cents", "0", "sum of amounts in the window",
    ),
    Windowed(
        {C: "1d 7d 14d 30d", K: "1d 30d", M: "1d", T: "1d 7d", D: "1d"},
        Acc.MAX, "max", "amount", "cents", "unknown", "largest amount in the window",
    ),
    Windowed(
        {C: "7d", K: "1d", M: "1h"},
        Acc.MIN, "min", "amount", "cents", "unknown", "smallest amount in the window",
    ),
    Windowed(
        {C: "1h 1d", K: "10m 1h 1d", M: "10m 1h 1d", T: "1d", D: "10m 1d", N: "10m 1h",
         B: "10m 1h"},
        Acc.FAILED, "failed", "verification", "events", "0",
        "failed checks (CVV, AVS, 3-D Secure, issuer) in the window",
    ),
    Windowed(
        {K: "1h 1d", M: "10m 1h", D: "10m 1d", N: "10m 1h", B: "10m 1h"},
        Acc.SMALL, "small", "card testing", "events", "0", "amounts of at most 2.00 in the window",
    ),
    Windowed(
        {C: "1d", K: "1h", M: "10m 1h", T: "1d", N: "1h", P: "30d"},
        Acc.SAME, "same_amount", "card testing", "events", "0",
        "events of exactly this amount in the window",
    ),
    Windowed(
        {C: "1d 3d 7d 14d 30d", T: "7d", M: "1d"},
        Acc.UNUSUAL, "unusual", "robust norm", "events", "0",
        "payments above three medians of their customer in the window",
    ),
    Windowed(
        {C: "1d 7d", K: "1d"},
        Acc.REGIONS, "regions", "distinct", "regions", "0",
        "distinct merchant regions among the newest events in the window",
    ),
)  # fmt: skip
FIRSTS = {C: "1h 1d 7d", K: "1h 1d 7d", M: "10m 1h 1d", T: "1h 1d", D: "1h 1d 30d",
          N: "10m 1h 1d", E: "1d 30d", B: "10m 1h 1d"}  # fmt: skip
SECONDS = {C: "1d 30d", K: "1d 7d", M: "1h", D: "1h 1d 30d", N: "10m 1h 1d", E: "30d", B: "10m 1h"}
MEANS = {C: "1d 7d 14d 30d 90d", K: "7d 30d", M: "1d 7d", T: "1d 7d 30d", D: "7d", N: "1d",
         P: "90d"}  # fmt: skip
STDS = {C: "7d 30d 90d", K: "30d", M: "7d", T: "30d"}
DECAYED_COUNTS = {C: "5m 1h 1d 7d 30d", K: "5m 1h 1d 7d", M: "5m 1h", T: "1d 30d", D: "1h 7d",
                  N: "5m 1d"}  # fmt: skip
DECAYED_SUMS = {C: "1h 1d 7d 30d", K: "1h 7d"}
RISK = {C: "7d 30d 90d", K: "7d 30d", M: "1d 7d 30d", T: "1d 3d 7d 14d 30d 60d 90d", D: "7d 90d",
        N: "1d 30d", E: "30d", B: "1d 7d"}  # fmt: skip
UNUSUAL_RISK = {T: "7d 30d"}
FAMILIAR = {C: (0, 1), K: (0, 1), M: (0,), T: (0,), D: (0, 1), N: (0, 1), E: (0,), P: (1,)}

PLAIN = (
    Plain(
        Slot.SESSION_COUNT, "session_count", "session", "events", "0",
        "events since the last pause of 30 minutes", (C, K, D, N),
    ),
    Plain(
        Slot.SESSION_SUM, "session_sum", "session", "cents", "0",
        "amounts since the last pause of 30 minutes", (C, K),
    ),
    Plain(
        Slot.SESSION_SECONDS, "session_seconds", "session", "s", "0",
        "length of the session so far", (C, K),
    ),
    Plain(
        Slot.SINCE_LAST, "since_last", "recency", "s", "unknown",
        "time since the last event", (C, K, M, T, D, N, E, P),
    ),
    Plain(
        Slot.LAST_GAP, "last_gap", "recency", "s", "unknown",
        "time between the last two events", (C, K),
    ),
    Plain(
        Slot.MEAN_GAP, "mean_gap", "recency", "s", "unknown",
        "mean of the newest 16 times between events", (C, K, T),
    ),
    Plain(
        Slot.STD_GAP, "std_gap", "recency", "s", "unknown",
        "deviation of the newest 16 times between events", (C, K),
    ),
    Plain(
        Slot.AGE, "age", "recency", "d", "unknown",
        "time since first seen", (C, K, M, T, D, N, E, P),
    ),
    Plain(
        Slot.LIFETIME, "lifetime", "velocity", "events", "0",
        "events since first seen", (C, K, M, T, D, E, P),
    ),
    Plain(
        Slot.LARGEST, "largest", "amount", "cents", "unknown",
        "largest amount since first seen", (C, K),
    ),
    Plain(
        Slot.LAST_AMOUNT, "last_amount", "amount", "cents", "unknown",
        "amount of the last event", (C, K),
    ),
    Plain(
        Slot.MEDIAN, "median", "robust norm", "cents", "unknown",
        "median of the newest amounts", (C, K, M, P),
    ),
    Plain(
        Slot.DEVIATION, "deviation", "robust norm", "cents", "unknown",
        "median distance from that median", (C, K),
    ),
    Plain(
        Slot.HOUR_AFFINITY, "hour_affinity", "periodic", "1", "unknown",
        "closeness of the hour to the usual hours", (C, K, M, T),
    ),
    Plain(
        Slot.HOUR_CONCENTRATION, "hour_concentration", "periodic", "1", "unknown",
        "how concentrated the usual hours are", (C, K),
    ),
    Plain(Slot.KM_LAST, "km_last", "geo", "km", "unknown", "distance from the last place", (C, K)),
    Plain(
        Slot.KMH_LAST, "kmh_last", "geo", "km/h", "unknown",
        "speed needed from the last place", (C, K),
    ),
    Plain(Slot.KM_HOME, "km_home", "geo", "km", "unknown", "distance from the usual place", (C, K)),
    Plain(
        Slot.REGION_TIMES, "region_times", "novelty", "events", "0",
        "newest events in this merchant region", (C, K),
    ),
    Plain(
        Slot.REGION_SINCE, "region_since", "novelty", "s", "unknown",
        "time since the last event in this region", (C, K),
    ),
    Plain(
        Slot.GOOD, "known_good", "risk", "labels", "0",
        "transactions known as legitimate", (C, M, T, D),
    ),
    Plain(
        Slot.BAD, "known_bad", "risk", "labels", "0",
        "transactions known as fraud", (C, K, M, T, D, N, E, B),
    ),
    Plain(
        Slot.GOOD_MEAN, "known_good_mean", "risk", "cents", "unknown",
        "mean amount known as legitimate", (C, K, T),
    ),
    Plain(
        Slot.BAD_MEAN, "known_bad_mean", "risk", "cents", "unknown",
        "mean amount known as fraud", (C, T),
    ),
    Plain(
        Slot.SINCE_FRAUD, "since_fraud", "risk", "d", "unknown",
        "time since the newest transaction known as fraud", (C, K, M, T, D, N),
    ),
    Plain(
        Slot.SINCE_FRAUD_KNOWN, "since_fraud_known", "risk", "d", "unknown",
        "time since a fraud last became known", (C, M, T, D),
    ),
    Plain(
        Slot.GOOD_SINCE_FRAUD, "good_since_fraud", "risk", "labels", "0",
        "legitimate transactions after the last known fraud", (C, M, T, D),
    ),
    Plain(
        Slot.BAD_RUN, "bad_run", "risk", "labels", "0",
        "frauds in a row at the end of what is known", (C, M, T, D),
    ),
    Plain(
        Slot.PLAIN_BAD_RUN, "plain_bad_run", "risk", "labels", "0",
        "of that run, those whose amount was not unusual", (C, T),
    ),
    Plain(
        Slot.LAST_BAD_UNUSUAL, "last_bad_unusual", "risk", "0/1", "unknown",
        "the last known fraud had an unusual amount", (C, T),
    ),
    Plain(
        Slot.SINCE_GOOD, "since_good", "risk", "d", "unknown",
        "time since the newest transaction known as legitimate", (C, K, M, T, D),
    ),
)  # fmt: skip

# The record's own numbers: slot, name, family, unit, meaning.
OWN_ROWS = (
    (Own.AMOUNT, "amount", "amount shape", "cents", "amount in the reference currency"),
    (Own.CENTS, "cents", "amount shape", "minor units", "last two digits of the amount"),
    (Own.ROUND_10, "is_round_10", "amount shape", "0/1", "a multiple of 10.00"),
    (Own.ROUND_100, "is_round_100", "amount shape", "0/1", "a multiple of 100.00"),
    (Own.DIGITS, "digits", "amount shape", "digits", "digits less twice the trailing zeros"),
    (Own.HOUR, "hour", "periodic", "h", "hour of the day, UTC"),
    (Own.WEEKDAY, "weekday", "periodic", "d", "day of the week, Monday 0, UTC"),
    (Own.MONTH_DAY, "month_day", "periodic", "d", "day of the month, UTC"),
    (Own.CHANNEL, "channel", "payment", "code", "Channel of the contract"),
    (Own.POS_ENTRY_MODE, "pos_entry_mode", "payment", "code", "PosEntryMode of the contract"),
    (Own.CARD_PRESENT, "card_present", "payment", "0/1", "the card was present"),
    (Own.RECURRING, "recurring", "payment", "0/1", "agreed to earlier"),
    (Own.THREE_DS, "three_ds", "verification", "code", "ThreeDsResult of the contract"),
    (Own.AVS, "avs", "verification", "code", "AvsResult of the contract"),
    (Own.CVV, "cvv", "verification", "code", "CvvResult of the contract"),
    (Own.AUTHORIZATION, "authorization", "verification", "code", "AuthorizationResult"),
    (Own.FAILED, "failed", "verification", "0/1", "any check failed"),
    (Own.MCC, "mcc", "payment", "code", "merchant category code"),
    (Own.BRAND, "brand", "payment", "code", "CardBrand of the contract"),
    (Own.FUNDING, "funding", "payment", "code", "CardFunding of the contract"),
    (Own.CURRENCY, "currency", "payment", "code", "ISO 4217 number"),
    (Own.MERCHANT_REGION, "merchant_region", "geo", "code", "merchant's region"),
    (Own.ISSUER_REGION, "issuer_region", "geo", "code", "issuer's region"),
    (Own.FOREIGN_ISSUER, "foreign_issuer", "geo", "0/1", "issuer's and merchant's regions differ"),
    (Own.FOREIGN_BILLING, "foreign_billing", "geo", "0/1", "billing and issuer's regions differ"),
    (Own.SHIPS_ELSEWHERE, "ships_elsewhere", "geo", "0/1", "shipping and billing regions differ"),
    (Own.ACCOUNT_AGE, "account_age", "recency", "d", "age of the customer's account"),
    (Own.ENTITIES, "entities", "payment", "entities", "how many entities are known"),
)  # fmt: skip

# The amount against a window's mean, and in its deviations.
MEAN_RATIOS = ((C, "7d"), (C, "30d"), (C, "90d"), (K, "30d"), (M, "7d"), (T, "30d"), (P, "90d"))
ZSCORES = ((C, "30d"), (C, "90d"), (K, "30d"), (M, "7d"), (T, "30d"))
# The amount against a slot, with the name of the feature that shows that slot, if any.
AMOUNT_RATIOS = (
    (C, Slot.MEDIAN, "median"),
    (K, Slot.MEDIAN, "median"),
    (M, Slot.MEDIAN, "median"),
    (P, Slot.MEDIAN, "median"),
    (C, Slot.LARGEST, "largest"),
    (K, Slot.LARGEST, "largest"),
    (C, Slot.LAST_AMOUNT, "last_amount"),
    (C, Slot.GOOD_MEAN, "known_good_mean"),
    (K, Slot.GOOD_MEAN, "known_good_mean"),
    (C, Slot.BAD_MEAN, "known_bad_mean"),
)
ROBUST = (C, K, M)
# Share of the long window that fell into the short one.
BURSTS = (
    (C, "1h", "7d"), (C, "1d", "30d"), (K, "1h", "7d"), (M, "10m", "1d"), (M, "1h", "7d"),
    (T, "1h", "7d"), (D, "1h", "7d"), (N, "1h", "7d"), (B, "10m", "1d"),
)  # fmt: skip
PACES = (C, K)
