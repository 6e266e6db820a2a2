"""Owns the speed of the feature kernel: ``view`` and ``fold``, against the naive oracle in Python.

Run with ``python -m tests.bench kernel``. Both sides take turns in one process on one core, so
that a busy machine slows both; times are of CPU, medians over rounds.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from featurizer.arena import Arena
from featurizer.backfill import order_events
from featurizer.features import FEATURES, OPS
from featurizer.fold import FOLDED, fold
from featurizer.records import NO_TIME_MS, RECORD, Entity, Kind
from featurizer.slots import LINES, SLOTS
from featurizer.state import DAY_MS, LABELS_MAX, RING_EVENTS, ROW_WORDS, counts
from featurizer.view import view
from tests import oracle
from tests.bench.claims import SEED, busy_s, claim, in_turn, make_world, pin, read_world
from tests.bench.serving import SERVER_CPU

ROUNDS = 7
VIEWS = 20_000
ORACLE_VIEWS = 5
FOLDS = 60_000
ORACLE_FOLDS = 2_000
WORLD_DAYS = 10
SAMPLE = 64  # records whose states are viewed in turn: 4.5 MiB, more than the nearest caches
BUSY_EVENTS, BUSY_DAYS = 600, 90
START_MS = 1_700_000_000_000
VIEW_US_MAX = 15.0


class Case(NamedTuple):
    """Records and the states that each meets, for the kernel and for the oracle.

    ``records`` RECORD[n]; ``rows`` int64[n, entities, ROW_WORDS].
    """

    records: NDArray[np.void]
    rows: NDArray[np.int64]
    memories: dict[int, oracle.Memory]


@njit(cache=True, nogil=True)
def _view_all(cases, records, ops, lines, out, views):  # type: ignore[no-untyped-def]
    """View the cases in turn, ``views`` times; return a number that depends on every view."""
    marks = 0
    for i in range(views):
        at = i % len(records)
        marks += view(cases[at], records[at], ops, lines, out)
    return marks


def busy_records(events: int, days: int) -> NDArray[np.void]:
    """Return RECORD[2 * events]: payments in which the same nine entities meet, each labelled."""
    rng = np.random.default_rng(SEED)
    records = np.zeros(2 * events, RECORD)
    records["kind"][0::2], records["kind"][1::2] = Kind.TRANSACTION, Kind.FEEDBACK
    times = START_MS + np.sort(rng.integers(0, days * DAY_MS, events))
    records["event_time_ms"] = np.repeat(times, 2)
    records["known_time_ms"][0::2] = NO_TIME_MS
    records["known_time_ms"][1::2] = times
    records["verdict"][1::2] = np.where(rng.random(events) < 0.1, 1, 2)
    records["amount_minor"] = np.repeat(rng.integers(100, 90_000, events), 2)
    records["amount_ref"] = records["amount_minor"]
    records["account_created_ms"] = START_MS - 400 * DAY_MS
    records["transaction"] = np.repeat(rng.integers(1, 2**62, events), 2)
    records["entities"] = np.arange(1, len(Entity) + 1) * 1_000_003
    records["latitude_e6"] = np.repeat(rng.integers(40_000_000, 60_000_000, events), 2)
    records["longitude_e6"] = np.repeat(rng.integers(0, 20_000_000, events), 2)
    for name in ("merchant_region", "issuer_region", "billing_region", "shipping_region"):
        records[name] = np.repeat(rng.integers(1, 6, events), 2)
    return records


def full_case() -> Case:
    """Return one payment whose nine entities all have full rings, days and labels.

    Raises AssertionError where a section is not as full as it should be.
    """
    records = busy_records(BUSY_EVENTS, BUSY_DAYS)
    rows = np.zeros((len(Entity), ROW_WORDS), np.int64)
    memories: dict[int, oracle.Memory] = {}
    for number, record in enumerate(records[:-2], 1):
        for entity in Entity:
            assert fold(rows[entity], int(entity), record, 8 * number) == FOLDED
            key = int(record["entities"][entity])
            oracle.learn(memories.setdefault(key, oracle.Memory()), int(entity), record)
    for entity in Entity:
        days, labels, buckets, ring = (int(n) for n in counts(rows[entity]))
        assert (labels, ring) == (LABELS_MAX, int(RING_EVENTS[entity]))
        assert days >= 90
        assert buckets >= 12
    return Case(records[-2:-1], rows[None], memories)


def world_case(records: NDArray[np.void], first: int) -> Case:
    """Return SAMPLE payments spread over ``records[first:]`` with the states of then."""
    arena, memories = Arena(), dict[int, oracle.Memory]()
    at = np.flatnonzero(records["kind"] == Kind.TRANSACTION)
    chosen = at[at >= first][:: max(int((at >= first).sum()) // SAMPLE, 1)][:SAMPLE]
    rows = np.zeros((len(chosen), len(Entity), ROW_WORDS), np.int64)
    done = 0
    for number, index in enumerate(chosen):
        arena.run(records[done:index].copy(), 8 * np.arange(done + 1, index + 1))
        done = int(index)
        arena.lend(records[index : index + 1], rows[number])
    _learn(memories, records[: chosen[0]])
    return Case(records[chosen].copy(), rows, memories)


def _learn(memories: dict[int, oracle.Memory], records: NDArray[np.void]) -> None:
    for record in records:
        for entity in Entity:
            if key := int(record["entities"][entity]):
                oracle.learn(memories.setdefault(key, oracle.Memory()), int(entity), record)


def _view_us(case: Case) -> float:
    lines, out = np.zeros((LINES, SLOTS)), np.zeros(len(FEATURES), np.float32)
    arguments = (case.rows, case.records, OPS, lines, out)
    return 1e6 * busy_s(lambda: _view_all(*arguments, VIEWS)) / VIEWS


def _oracle_view_us(case: Case) -> float:
    def work() -> None:
        for number in range(ORACLE_VIEWS):
            record = case.records[number % len(case.records)]
            oracle.vector(oracle.lines_of(case.memories, record))

    return 1e6 * busy_s(work) / ORACLE_VIEWS


def _views(name: str, case: Case) -> dict[str, Any]:
    ours, theirs = in_turn(ROUNDS, lambda: _view_us(case), lambda: _oracle_view_us(case))
    return claim(
        name, round(ours, 2), "µs of CPU", baseline=round(theirs, 1), ratio=round(theirs / ours, 1),
        at_most=VIEW_US_MAX,
    )  # fmt: skip


def _fold_us(records: NDArray[np.void]) -> float:
    arena, positions = Arena(states=1 << 16), 8 * np.arange(1, len(records) + 1)
    return 1e6 * busy_s(lambda: arena.run(records, positions)) / len(records)


def _both_us(records: NDArray[np.void], out: NDArray[np.float32]) -> float:
    arena, positions = Arena(states=1 << 16), 8 * np.arange(1, len(records) + 1)
    return 1e6 * busy_s(lambda: arena.run(records, positions, out)) / len(records)


def _folds(records: NDArray[np.void]) -> list[dict[str, Any]]:
    some, few = records[:FOLDS], records[:ORACLE_FOLDS]
    out = np.zeros((len(some), len(FEATURES)), np.float32)
    fold_us, both_us, naive_us = in_turn(
        ROUNDS,
        lambda: _fold_us(some.copy()),
        lambda: _both_us(some.copy(), out),
        lambda: 1e6 * busy_s(lambda: _learn({}, few)) / len(few),
    )
    return [
        claim(
            "fold of an event into its entities, a world's states", round(fold_us, 2), "µs of CPU",
            baseline=round(naive_us, 1), ratio=round(naive_us / fold_us, 1),
        ),
        claim("view and fold of an event, a world's states", round(both_us, 2), "µs of CPU"),
    ]  # fmt: skip


def world_events() -> NDArray[np.void]:
    """Return RECORD[n]: a world's payments in their order, before any label."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "world.parquet"
        make_world(path, WORLD_DAYS)
        history = read_world(path)
    order = order_events(history)
    events: NDArray[np.void] = history.records[order[order >= 0]]
    return events


def rows() -> list[dict[str, Any]]:
    """Return one row per claim: name, value, unit, baseline, ratio, target, met."""
    pin(SERVER_CPU)
    records = world_events()
    count = f"view of {len(FEATURES)} features"
    return [
        _views(f"{count}, 9 entities with full rings", full_case()),
        _views(f"{count}, a world's states", world_case(records, len(records) // 2)),
        *_folds(records),
    ]


if __name__ == "__main__":
    print(f"seed {SEED}")
    for row in rows():
        print(row)
