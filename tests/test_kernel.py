"""The kernel against the naive oracle, over random events made to be awkward."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from featurizer.features import FEATURES, INDEX, NAMES, OPS
from featurizer.fold import BEFORE, FOLDED, REPEATED, TOO_OLD, fold
from featurizer.records import NO_COORDINATE, NO_TIME_MS, RECORD, Entity, Flag, Kind
from featurizer.slots import LINES, SLOTS, WINDOWS, Acc, Slot
from featurizer.state import BUCKETS_MAX, RING_EVENTS, ROW_WORDS, check_blob, counts, length
from featurizer.view import view
from tests import oracle

DAY = 86_400_000
SEED = int(os.environ.get("ORACLE_SEED", "20261124"))
EVENTS = int(os.environ.get("ORACLE_EVENTS", "8000"))
EVERY = int(os.environ.get("ORACLE_EVERY", "8"))

# Sums that rings and buckets share; the rest sees the ring only.
SHARED = (Acc.COUNT, Acc.SUM, Acc.SQUARES, Acc.MIN, Acc.MAX, Acc.FAILED, Acc.UNUSUAL)
# Kept by recursion in floating point: equal to 1 part in 100,000, not to the bit.
RECURSIVE = {
    *range(Slot.DECAYED, Slot.DECAYED_END + 1),
    *(Slot.HOUR_AFFINITY, Slot.HOUR_CONCENTRATION, Slot.KM_LAST, Slot.KMH_LAST, Slot.KM_HOME),
}


class World:
    """States by the kernel and memories by the oracle, side by side."""

    def __init__(self) -> None:
        self.states: dict[int, NDArray[np.int64]] = {}
        self.memories: dict[int, oracle.Memory] = {}
        self.position = 0
        self.lines = np.zeros((LINES, SLOTS))
        self.out = np.zeros(len(FEATURES), np.float32)

    def rows(self, record: Any) -> NDArray[np.int64]:
        rows = np.zeros((len(Entity), ROW_WORDS), np.int64)
        for e in Entity:
            if (state := self.states.get(int(record["entities"][e]))) is not None:
                rows[e] = state
        return rows

    def view(self, record: Any) -> int:
        return int(view(self.rows(record), record, OPS, self.lines, self.out))

    def fold(self, record: Any) -> list[int]:
        self.position += 8
        results = []
        for e in Entity:
            key = int(record["entities"][e])
            if key:
                state = self.states.setdefault(key, np.zeros(ROW_WORDS, np.int64))
                results.append(int(fold(state, int(e), record, self.position)))
                oracle.learn(self.memories.setdefault(key, oracle.Memory()), e, record)
        return results


def random_records(seed: int, n: int) -> NDArray[Any]:
    """Equal times, late arrivals, repeats, bursts past the ring, gaps past the longest window."""
    rng = np.random.default_rng(seed)
    pace = rng.choice([0, 1, 900, 40_000, 3_000_000], n, p=[0.1, 0.2, 0.3, 0.3, 0.1])
    gap = rng.choice([0, 100 * DAY, 450 * DAY], n, p=[0.9995, 0.0003, 0.0002])
    time = 1_700_000_000_000 + np.cumsum(rng.integers(0, pace + 1) + gap)
    late = rng.choice([0, 5_000, DAY, 100 * DAY], n, p=[0.9, 0.06, 0.035, 0.005])
    records = np.zeros(n, RECORD)
    records["kind"] = Kind.TRANSACTION
    records["event_time_ms"] = time - rng.integers(0, late + 1)
    records["known_time_ms"] = NO_TIME_MS
    records["amount_minor"] = rng.choice([0, 1, 100, 5_000, 1_000_000], n) + rng.integers(0, 300, n)
    records["amount_ref"] = records["amount_minor"]
    records["account_created_ms"] = np.where(
        rng.random(n) < 0.5, NO_TIME_MS, time - rng.integers(0, 400 * DAY, n)
    )
    records["transaction"] = rng.integers(1, 2**62, n)
    for e in Entity:
        few = rng.integers(1, 12, n) if e % 2 else rng.integers(1, 60, n)
        records["entities"][:, e] = (e + 1) * 1_000_003 + few
        records["entities"][rng.random(n) < 0.1, e] = 0
    placed = rng.random(n) < 0.7
    for name, bound in (("latitude_e6", 90_000_000), ("longitude_e6", 180_000_000)):
        records[name] = np.where(placed, rng.integers(-bound, bound, n), NO_COORDINATE)
    for name in ("merchant_region", "issuer_region", "billing_region", "shipping_region"):
        records[name] = rng.integers(0, 6, n)
    for name in ("channel", "pos_entry_mode", "brand", "funding", "three_ds", "avs", "cvv"):
        records[name] = rng.integers(0, 4, n)
    records["mcc"], records["currency"] = 5411, 840
    bits = (Flag.CARD_PRESENT, Flag.RECURRING, Flag.FAILED, Flag.UNUSUAL)
    records["flags"] = sum(np.where(rng.random(n) < 0.2, int(b), 0) for b in bits)
    _repeat_and_label(records, rng)
    return records


def _repeat_and_label(records: NDArray[Any], rng: np.random.Generator) -> None:
    for i in range(50, len(records)):
        chance = rng.random()
        source = int(i - rng.integers(1, 50))
        if records["kind"][source] != Kind.TRANSACTION or chance > 0.2:
            continue
        now = records["event_time_ms"][i]
        records[i] = records[source]
        if chance > 0.02:  # a verdict on it, else the same transaction once more
            records["kind"][i] = Kind.FEEDBACK
            records["verdict"][i] = 1 if rng.random() < 0.3 else 2
            records["known_time_ms"][i] = max(int(now), int(records["event_time_ms"][i]))


def _compare_window(world: World, flat: dict[int, float], entity: int, key: int, time: int) -> int:
    """Past the ring, check the stated bound and take the kernel's sums for the oracle's."""
    memory = world.memories[key]
    size = int(RING_EVENTS[entity])
    checked = 0
    if len(memory.events) <= size:
        return 0
    newest = [e for e in reversed(memory.events) if e.time <= time]
    for w, span in enumerate(WINDOWS.values()):
        if time - span >= memory.events[-size].time:
            continue
        at = entity * SLOTS + w * len(Acc)
        line = world.lines[entity][w * len(Acc) :]
        if time >= memory.events[-1].time:
            count = int(line[Acc.COUNT])
            least = sum(e.time > time - span for e in newest)
            most = sum(e.time > time - span - span // 4 for e in newest)
            assert least <= count <= most, (entity, w, least, count, most)
            some = newest[:count]
            expected = oracle.stats(some, 0)
            expected += [sum(e.failed for e in some), sum(e.unusual for e in some)]
            np.testing.assert_array_equal([line[a] for a in SHARED], expected)
            checked += 1
        for a in SHARED:
            flat[at + a] = float(line[a])
    return checked


def _compare(world: World, record: Any) -> int:
    """Compare every slot and every feature of one view; return how many bounds were checked."""
    flat = oracle.lines_of(world.memories, record)
    bounds = 0
    for e in Entity:
        key = int(record["entities"][e])
        if key in world.memories:
            bounds += _compare_window(world, flat, e, key, int(record["event_time_ms"]))
    recursive = []
    for address, value in flat.items():
        entity, slot = divmod(address, SLOTS)
        got = float(world.lines[entity][slot])
        if entity < len(Entity) and slot in RECURSIVE:
            assert got == pytest.approx(value, rel=1e-5, abs=1e-3, nan_ok=True), (entity, slot)
            recursive.append(address)
        else:
            assert got == value or (np.isnan(got) and np.isnan(value)), (entity, slot, got, value)
    flat.update({a: float(world.lines[divmod(a, SLOTS)]) for a in recursive})
    np.testing.assert_array_equal(world.out, oracle.vector(flat))
    return bounds


def test_kernel_equals_oracle_on_random_events() -> None:
    print(f"ORACLE_SEED={SEED} ORACLE_EVENTS={EVENTS} ORACLE_EVERY={EVERY}")
    records = random_records(SEED, EVENTS)
    world = World()
    views = bounds = 0
    results: set[int] = set()
    for i, record in enumerate(records):
        if record["kind"] == Kind.TRANSACTION and i % EVERY == 0:
            world.view(record)
            bounds += _compare(world, record)
            views += 1
        results.update(world.fold(record))
    print(
        f"{views} views of {len(FEATURES)} features equal, {bounds} windows past a ring in bounds"
    )
    assert {FOLDED, REPEATED, TOO_OLD} <= results
    assert views > EVENTS // EVERY // 2
    assert bounds > views
    for state in world.states.values():
        assert check_blob(state[: int(length(state))].tobytes()) == ""


def test_buckets_stay_within_the_row_for_a_busy_entity() -> None:
    rng = np.random.default_rng(SEED)
    state = np.zeros(ROW_WORDS, np.int64)
    record = np.zeros(1, RECORD)[0]
    record["kind"], record["latitude_e6"] = Kind.TRANSACTION, NO_COORDINATE
    time = 1_700_000_000_000
    most = 0
    for i in range(60_000):
        time += int(rng.integers(0, 2 * 400 * DAY // 60_000))
        record["event_time_ms"], record["transaction"] = time, i + 1
        assert fold(state, int(Entity.CUSTOMER), record, 8 * (i + 1)) == FOLDED
        most = max(most, counts(state)[2])
    print(f"at most {most} buckets of {BUCKETS_MAX}, {int(length(state)) * 8} bytes")
    assert most < BUCKETS_MAX - 1  # the backstop was never used


def make_record(**fields: Any) -> Any:
    record = np.zeros(1, RECORD)[0]
    record["kind"], record["event_time_ms"] = Kind.TRANSACTION, 1_700_000_000_000
    record["known_time_ms"] = record["account_created_ms"] = NO_TIME_MS
    record["latitude_e6"] = record["longitude_e6"] = NO_COORDINATE
    for name, value in fields.items():
        record[name] = value
    return record


def test_features_of_a_customer_known_by_hand() -> None:
    world = World()
    keys = np.zeros(len(Entity), np.int64)
    keys[Entity.CUSTOMER], keys[Entity.MERCHANT] = 11, 22
    start = 1_700_000_000_000
    for minutes, cents in ((0, 1000), (50, 2000), (59, 3000)):
        at = start + minutes * 60_000
        amount = {"amount_minor": cents, "amount_ref": cents}
        world.fold(make_record(entities=keys, event_time_ms=at, transaction=minutes + 1, **amount))
    now = make_record(
        entities=keys, event_time_ms=start + 3_600_000, amount_minor=6000, amount_ref=6000
    )
    world.view(now)
    got = {name: float(world.out[INDEX[name]]) for name in NAMES}
    assert got["customer_count_10m"] == 1  # the event 10 minutes ago is just outside
    assert got["customer_count_1h"] == 2
    assert got["customer_count_1d"] == 3
    assert got["customer_sum_1d"] == 6000
    assert got["customer_mean_1d"] == 2000
    assert got["customer_max_1d"] == 3000
    assert got["customer_since_last"] == 60
    assert got["customer_median"] == 2000
    assert got["customer_amount_to_median"] == 3
    assert got["customer_session_count"] == 2  # 50 minutes of silence ended the first
    assert got["customer_merchants_1d"] == 1
    assert got["customer_merchant_times"] == 3
    assert np.isnan(got["card_count_1d"])
    assert got["amount"] == 6000


def test_unusual_amount_is_marked_once_there_is_a_norm() -> None:
    world = World()
    keys = np.zeros(len(Entity), np.int64)
    keys[Entity.CUSTOMER] = 11
    marks = []
    for i in range(7):
        amount = 10_000 if i == 6 else 1_000
        record = make_record(
            entities=keys, transaction=i + 1, amount_minor=amount, amount_ref=amount
        )
        record["event_time_ms"] += i * 1000
        marks.append(world.view(record))
        world.fold(record)
    assert marks == [0] * 5 + [Flag.HAS_NORM, Flag.HAS_NORM | Flag.UNUSUAL]


def test_a_position_is_applied_once() -> None:
    state = np.zeros(ROW_WORDS, np.int64)
    assert fold(state, 0, make_record(transaction=1), 16) == FOLDED
    before = state.copy()
    assert fold(state, 0, make_record(transaction=2), 16) == BEFORE
    assert fold(state, 0, make_record(transaction=2), 8) == BEFORE
    np.testing.assert_array_equal(state, before)


def test_a_broken_blob_is_told_apart() -> None:
    state = np.zeros(ROW_WORDS, np.int64)
    fold(state, 0, make_record(transaction=1), 8)
    blob = state[: int(length(state))].tobytes()
    assert check_blob(blob) == ""
    assert "bytes" in check_blob(blob[:-8])
    assert "version" in check_blob(b"\x07" + blob[1:])
