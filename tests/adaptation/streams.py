"""Owns a stream: its payments with vectors, what is true of each, and what may be said of it.

Vectors come from the product's kernel, one fold after the other over the whole stream. Labels as
they enter the features are those that no system decides: reports and random judgements. Must not
know systems.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from featurizer.arena import Arena
from featurizer.backfill import views
from featurizer.features import FEATURES
from featurizer.history import History
from featurizer.records import NO_TIME_MS, Entity
from loadgen.payments import NOWHERE, Payments
from tests.adaptation import attacks
from tests.adaptation.world import MINUTE_MS, Ground, Scale, by_time

GOOD, OLD, ATTACK, SECOND, SURGE = range(5)
JUDGED_SHARE, JUDGED_MEDIAN_MS, JUDGED_SPREAD = 0.01, 5 * MINUTE_MS, 0.5
REPORTED_SHARE, REPORTED_MEDIAN_MS, REPORTED_SPREAD = 0.3, 20 * MINUTE_MS, 0.8
ANALYSTS = 5
SURGE_SHARE = 0.2
SURGE_MINUTES = 45
ARENA_BYTES = 3 << 30
_ANALYST, _CUSTOMER = 1, 2  # any two sources of feedback

# What is true of a payment, and what would be said of it: the same for every system.
ROW = np.dtype(
    [
        ("transaction", "<i8"),
        ("time_ms", "<i8"),
        ("customer", "<i8"),
        ("merchant", "<i8"),
        ("amount_ref", "<i8"),
        ("kind", "u1"),
        ("drawn", "?"),  # judged without an alert
        ("judged_ms", "<i8"),  # when a judgement would come
        ("reported_ms", "<i8"),  # when it would be reported if it was missed, NEVER if not
        ("analyst", "u1"),
    ]
)
NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class Stream:
    """Payments in their order: ``rows`` ROW[m], ``vectors`` float32[m, n]."""

    attack: str
    seed: int
    scale: Scale
    rows: NDArray[Any]
    vectors: NDArray[np.float32]

    @property
    def is_fraud(self) -> NDArray[np.bool_]:
        """Which payments are fraud, bool[m]."""
        kind = self.rows["kind"]
        fraud: NDArray[np.bool_] = (kind == OLD) | self.is_attack
        return fraud

    @property
    def is_attack(self) -> NDArray[np.bool_]:
        """Which payments are of a new attack, bool[m]."""
        kind = self.rows["kind"]
        attack: NDArray[np.bool_] = (kind == ATTACK) | (kind == SECOND)
        return attack


# What happens from the onset on: functions, the kind that their payments are of, and
# which part of the attack they are.
NEWS: dict[str, tuple[tuple[attacks.Attack, int, float], ...]] = {
    "A": ((attacks.combination, ATTACK, 1.0),),
    "B": ((attacks.unused_feature, ATTACK, 1.0),),
    "C": ((attacks.good_turned_bad, ATTACK, 1.0),),
    "D": ((attacks.surge, SURGE, 1.0),),
    "E": (),
    "F": ((attacks.combination, ATTACK, 1.0),),
    "G": (
        (attacks.combination, ATTACK, 0.5),
        (attacks.good_turned_bad, SECOND, 0.5),
    ),
}


class Begun:
    """A seed's ground with everything up to the stream folded: where all its streams begin."""

    def __init__(self, seed: int, scale: Scale, folder: Path) -> None:
        self.seed, self.scale, self._folder = seed, scale, folder
        self.ground = Ground(seed, scale)
        past, dense = self.ground.past(), self.ground.dense()
        early = dense["time_ms"] < scale.stream_ms
        before = np.concatenate([past, dense[early]])
        before["shipping_region"] = NOWHERE  # nobody states it yet; see attack B
        self.later = dense[~early]
        self.later_records = self.ground.records(self.later, folder)
        records = self.ground.records(before, folder)
        kinds = np.where(before["campaign"] != 0, OLD, GOOD).astype(np.uint8)
        self.rows = told(records, kinds, seed, 0)
        self._arena = Arena(ARENA_BYTES, 1 << 18)
        vectors = fold(records, self.rows, self._arena, scale.stream_ms)
        warm = slice(len(past), None)
        self.rows, self.vectors = self.rows[warm], vectors[warm]

    def stream(self, attack: str) -> Stream:
        """Return the stream of an attack."""
        scale, number = self.scale, ord(attack)
        rng = np.random.default_rng([self.seed, 32, number])
        parts, records, kinds = [], [self.later_records], [_kinds(self.later)]
        for make, kind, share in NEWS[attack]:
            minutes = scale.after_minutes
            if kind == SURGE:
                minutes = min(SURGE_MINUTES, minutes)
            of_all = SURGE_SHARE if kind == SURGE else share * scale.attack_share
            count = rng.poisson(of_all * scale.per_minute * minutes)
            times = np.sort(scale.onset_ms + rng.integers(0, minutes * MINUTE_MS, count))
            rows = by_time(make(rng, self.ground.people, times))
            parts.append(rows)
            records.append(self.ground.records(rows, self._folder))
            kinds.append(np.full(count, kind, np.uint8))
        keep = self._make_room(rng, parts)
        records[0], kinds[0] = records[0][keep], kinds[0][keep]
        both, all_kinds = np.concatenate(records), np.concatenate(kinds)
        order = np.argsort(both["event_time_ms"], kind="stable")
        both = both[order]
        rows = told(both, all_kinds[order], self.seed, number)
        vectors = fold(both, rows, copy_of(self._arena), NEVER)
        return Stream(attack, self.seed, scale, rows, vectors)

    def _make_room(self, rng: np.random.Generator, parts: list[Payments]) -> NDArray[np.bool_]:
        """Return which honest payments stay, so that each minute has as many as before."""
        keep = np.ones(len(self.later), np.bool_)
        minute = (self.later["time_ms"] - self.scale.stream_ms) // MINUTE_MS
        for part in parts:
            new = (part["time_ms"] - self.scale.stream_ms) // MINUTE_MS
            for at, count in zip(*np.unique(new, return_counts=True), strict=True):
                there = np.flatnonzero((minute == at) & keep & (self.later["campaign"] == 0))
                keep[rng.permutation(there)[:count]] = False
        return keep


def _kinds(rows: Payments) -> NDArray[np.uint8]:
    return np.where(rows["campaign"] != 0, OLD, GOOD).astype(np.uint8)


def told(
    records: NDArray[np.void], kinds: NDArray[np.uint8], seed: int, number: int
) -> NDArray[Any]:
    """Return ROW[n] of records: what is true of them and what would be said when."""
    rng = np.random.default_rng([seed, 33, number])
    rows = np.zeros(len(records), ROW)
    rows["transaction"], rows["time_ms"] = records["transaction"], records["event_time_ms"]
    rows["customer"] = records["entities"][:, Entity.CUSTOMER]
    rows["merchant"] = records["entities"][:, Entity.MERCHANT]
    rows["amount_ref"], rows["kind"] = records["amount_ref"], kinds
    count = len(rows)
    rows["drawn"] = rng.random(count) < JUDGED_SHARE
    rows["judged_ms"] = rows["time_ms"] + _delays(rng, count, JUDGED_MEDIAN_MS, JUDGED_SPREAD)
    reported = rows["time_ms"] + _delays(rng, count, REPORTED_MEDIAN_MS, REPORTED_SPREAD)
    heard = (rng.random(count) < REPORTED_SHARE) & np.isin(kinds, (OLD, ATTACK, SECOND))
    rows["reported_ms"] = np.where(heard, reported, NEVER)
    rows["analyst"] = rng.integers(0, ANALYSTS, count)
    return rows


def _delays(
    rng: np.random.Generator, count: int, median_ms: float, spread: float
) -> NDArray[np.int64]:
    return np.maximum(rng.lognormal(np.log(median_ms), spread, count), 1.0).astype(np.int64)


def fold(
    records: NDArray[np.void], rows: NDArray[Any], arena: Arena, until_ms: int
) -> NDArray[np.float32]:
    """Return the vectors float32[m, n] of records in their order, folded into ``arena``.

    Labels known before ``until_ms`` are folded when they became known.
    """
    count = len(records)
    known = np.where(rows["drawn"], rows["judged_ms"], rows["reported_ms"])
    fraud = np.isin(rows["kind"], (OLD, ATTACK, SECOND))
    last = min(until_ms, int(rows["time_ms"].max()))
    empty = pa.array([], pa.string())
    history = History(
        records, empty, empty, fraud.astype(np.int8),
        np.where(known <= last, known, NO_TIME_MS),
        np.where(rows["drawn"], _ANALYST, _CUSTOMER).astype(np.uint8),
    )  # fmt: skip
    vectors = np.empty((count, len(FEATURES)), np.float32)
    for places, features, _ in views(history, arena):
        vectors[places] = features
    return vectors


def copy_of(arena: Arena) -> Arena:
    """Return an arena with the same states; its memory is private, and there is no other way."""
    other = Arena(ARENA_BYTES, 1 << 4)
    used = arena.used_bytes // 8 + 1
    other._words[:used] = arena._words[:used]
    for name in ("_index", "_counters", "_changed"):
        setattr(other, name, getattr(arena, name).copy())
    return other
