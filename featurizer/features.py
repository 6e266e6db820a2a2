"""FEATURES: the one table of what a feature is. The kernel, the catalogue and the schema follow it.

A feature is an operation on slots of the lines that a view reads (see ``slots``). To add one, add
a row to ``feature_rows``; the schema's digest changes, and bundles of another schema are refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from featurizer import buckets, feature_rows, slots, state
from featurizer.feature_rows import COUNTERPARTS
from featurizer.fold import COUNTERPARTIES, HALF_LIVES_MS, MINUTES
from featurizer.numerics import POWERS
from featurizer.records import RECORD, RECORD_VERSION, Entity
from featurizer.slots import (
    ACCUMULATORS,
    HALF_LIVES,
    OP_MEAN_RATIO,
    OP_RATIO,
    OP_ROBUST,
    OP_STD,
    OP_VALUE,
    OP_ZSCORE,
    OWN_LINE,
    RISK_WINDOWS,
    SLOTS,
    WINDOWS,
    Acc,
    Own,
    Slot,
)

OWN = "transaction"


@dataclass(frozen=True, slots=True)
class Feature:
    """One column of the vector: how it is named, what it means and how it is made.

    ``default`` is its value for an entity never seen ("unknown" is NaN); for an absent entity it
    is always NaN. ``op``, ``a`` and ``b`` are the operation and its slots, as indices into the
    flattened lines. ``norm`` names the feature that is the entity's own norm for it, "" for none.
    """

    name: str
    family: str
    entity: str
    window: str
    unit: str
    default: str
    meaning: str
    op: int
    a: int
    b: int = 0
    norm: str = ""


def _slot(entity: Entity, slot: int) -> int:
    return entity * SLOTS + slot


def _window(entity: Entity, window: str, acc: Acc = Acc.COUNT) -> int:
    return _slot(entity, list(WINDOWS).index(window) * ACCUMULATORS + acc)


def _risk_slot(entity: Entity, window: str) -> int:
    return _slot(entity, Slot.RISK + 3 * list(RISK_WINDOWS).index(window))


def _each(windows: dict[Entity, str]) -> Iterator[tuple[Entity, str, str]]:
    """Yield entity, its name in lower case and window."""
    for entity, names in windows.items():
        for window in names.split():
            yield entity, entity.name.lower(), window


_AMOUNT = OWN_LINE * SLOTS + Own.AMOUNT


def _own() -> Iterator[Feature]:
    for slot, name, family, unit, meaning in feature_rows.OWN_ROWS:
        at = OWN_LINE * SLOTS + slot
        yield Feature(name, family, OWN, "", unit, "unknown", meaning, OP_VALUE, at)


def _windowed() -> Iterator[Feature]:
    for row in feature_rows.WINDOWED:
        for entity, name, w in _each(row.windows):
            yield Feature(
                f"{name}_{row.stat}_{w}", row.family, name, w, row.unit, row.default, row.meaning,
                OP_VALUE, _window(entity, w, row.acc),
            )  # fmt: skip
    for entity, name, w in _each(feature_rows.MEANS):
        yield Feature(
            f"{name}_mean_{w}", "amount", name, w, "cents", "unknown",
            "mean amount in the window", OP_RATIO, _window(entity, w, Acc.SUM), _window(entity, w),
        )  # fmt: skip
    for entity, name, w in _each(feature_rows.STDS):
        yield Feature(
            f"{name}_std_{w}", "amount", name, w, "cents", "unknown",
            "standard deviation of amounts in the window", OP_STD, _window(entity, w),
        )  # fmt: skip


def _distinct() -> Iterator[Feature]:
    for which, table in enumerate((feature_rows.FIRSTS, feature_rows.SECONDS)):
        for entity, name, w in _each(table):
            what = COUNTERPARTS[entity][which] + "s"
            yield Feature(
                f"{name}_{what}_{w}", "distinct", name, w, what, "0",
                f"distinct {what} among the newest events in the window",
                OP_VALUE, _window(entity, w, (Acc.FIRST, Acc.SECOND)[which]),
            )  # fmt: skip


def _decayed() -> Iterator[Feature]:
    for offset, stat, unit, table in (
        (0, "count", "events", feature_rows.DECAYED_COUNTS),
        (1, "sum", "cents", feature_rows.DECAYED_SUMS),
    ):
        for entity, name, w in _each(table):
            yield Feature(
                f"{name}_decayed_{stat}_{w}", "decay", name, w, unit, "0",
                f"{'amounts' if offset else 'transactions'}, weighing half after every half-life",
                OP_VALUE, _slot(entity, Slot.DECAYED + 2 * HALF_LIVES.index(w) + offset),
            )  # fmt: skip


def _plain() -> Iterator[Feature]:
    for row in feature_rows.PLAIN:
        for entity in row.entities:
            name = entity.name.lower()
            yield Feature(
                f"{name}_{row.stat}", row.family, name, "", row.unit, row.default, row.meaning,
                OP_VALUE, _slot(entity, row.slot),
            )  # fmt: skip


def _familiar() -> Iterator[Feature]:
    for entity, sides in feature_rows.FAMILIAR.items():
        for side in sides:
            name = entity.name.lower()
            other = COUNTERPARTS[entity][side]
            slot = (Slot.FIRST_TIMES, Slot.SECOND_TIMES)[side]
            yield Feature(
                f"{name}_{other}_times", "novelty", name, "", "events", "0",
                f"newest events with this {other}; 0 is a first meeting",
                OP_VALUE, _slot(entity, slot),
            )  # fmt: skip
            yield Feature(
                f"{name}_{other}_since", "novelty", name, "", "s", "unknown",
                f"time since the last event with this {other}",
                OP_VALUE, _slot(entity, slot + 1),
            )  # fmt: skip


def _risk() -> Iterator[Feature]:
    for entity, name, w in _each(feature_rows.RISK):
        at = _risk_slot(entity, w)
        yield Feature(
            f"{name}_fraud_rate_{w}", "risk", name, w, "1", "unknown",
            "share of fraud among labels that became known in the last days", OP_RATIO, at, at + 1,
        )  # fmt: skip
        yield Feature(
            f"{name}_frauds_{w}", "risk", name, w, "labels", "0",
            "frauds that became known in the last days", OP_VALUE, at,
        )  # fmt: skip
    for entity, name, w in _each(feature_rows.UNUSUAL_RISK):
        yield Feature(
            f"{name}_unusual_frauds_{w}", "risk", name, w, "labels", "0",
            "of those frauds, the ones with an amount unusual for their customer",
            OP_VALUE, _risk_slot(entity, w) + 2,
        )  # fmt: skip


def _amount_ratios() -> Iterator[Feature]:
    for entity, w in feature_rows.MEAN_RATIOS:
        name = entity.name.lower()
        yield Feature(
            f"{name}_amount_to_mean_{w}", "ratio", name, w, "1", "unknown",
            "amount over the mean in the window",
            OP_MEAN_RATIO, _AMOUNT, _window(entity, w), f"{name}_mean_{w}",
        )  # fmt: skip
    for entity, w in feature_rows.ZSCORES:
        name = entity.name.lower()
        yield Feature(
            f"{name}_amount_z_{w}", "ratio", name, w, "1", "unknown",
            "amount in deviations from the mean in the window",
            OP_ZSCORE, _AMOUNT, _window(entity, w),
        )  # fmt: skip
    for entity, slot, other in feature_rows.AMOUNT_RATIOS:
        name = entity.name.lower()
        yield Feature(
            f"{name}_amount_to_{other}", "ratio", name, "", "1", "unknown",
            f"amount over {other.replace('_', ' ')}",
            OP_RATIO, _AMOUNT, _slot(entity, slot), f"{name}_{other}",
        )  # fmt: skip
    for entity in feature_rows.ROBUST:
        name = entity.name.lower()
        yield Feature(
            f"{name}_amount_robust_z", "robust norm", name, "", "1", "unknown",
            "amount in median distances from the median",
            OP_ROBUST, _AMOUNT, _slot(entity, Slot.MEDIAN),
        )  # fmt: skip


def _rates() -> Iterator[Feature]:
    for entity, short, long in feature_rows.BURSTS:
        name = entity.name.lower()
        yield Feature(
            f"{name}_burst_{short}_{long}", "burst", name, long, "1", "unknown",
            f"share of the last {long} that fell into the last {short}",
            OP_RATIO, _window(entity, short), _window(entity, long),
        )  # fmt: skip
    for entity in feature_rows.PACES:
        name = entity.name.lower()
        yield Feature(
            f"{name}_pace", "recency", name, "", "1", "unknown",
            "time since the last event over the mean gap",
            OP_RATIO, _slot(entity, Slot.SINCE_LAST), _slot(entity, Slot.MEAN_GAP),
            f"{name}_mean_gap",
        )  # fmt: skip


def _table() -> tuple[Feature, ...]:
    makers = (
        _own, _windowed, _distinct, _decayed, _plain, _familiar, _risk, _amount_ratios, _rates,
    )  # fmt: skip
    rows = tuple(feature for make in makers for feature in make())
    names = {f.name for f in rows}
    if len(names) != len(rows):
        raise ValueError("two features share a name")
    if unknown := {f.norm for f in rows} - names - {""}:
        raise ValueError(f"norms that are no features: {sorted(unknown)}")
    return rows


FEATURES = _table()
NAMES = tuple(f.name for f in FEATURES)
INDEX = {name: i for i, name in enumerate(NAMES)}
OPS = np.array([(f.op, f.a, f.b) for f in FEATURES], np.int32)
OPS.flags.writeable = False


def _schema_version() -> str:
    """Digest of everything that decides what a vector or a state means."""
    digest = hashlib.sha256(repr((RECORD_VERSION, RECORD.descr, state.STATE_VERSION)).encode())
    digest.update(repr([(f.name, f.op, f.a, f.b) for f in FEATURES]).encode())
    settings = (
        buckets.BASE_BITS, buckets.RATIO, slots.SESSION_GAP_MS, slots.SMALL_AMOUNT, slots.GAPS_MAX,
        slots.UNUSUAL_RATIO, slots.UNUSUAL_EVENTS_MIN, state.HORIZON_MS, state.EXPIRY_MS,
        state.AMOUNT_MAX,
    )  # fmt: skip
    digest.update(repr(settings).encode())
    for table in (
        POWERS, MINUTES, COUNTERPARTIES, HALF_LIVES_MS, slots.WINDOWS_MS, slots.RISK_DAYS,
        slots.NORM_EVENTS, state.RING_EVENTS,
    ):  # fmt: skip
        digest.update(table.tobytes())
    return "s-" + digest.hexdigest()[:16]


SCHEMA_VERSION = _schema_version()
