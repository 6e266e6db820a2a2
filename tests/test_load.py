"""A history on the log: every event, in order, marked as the scorer would, and folded."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from featurizer.adapters import open_log, open_store
from featurizer.arena import Arena
from featurizer.backfill import backfill, order_events, read_history
from featurizer.eventlog import Batch, Damage, Entry, EventLog, LogError, Topic
from featurizer.features import FEATURES, SCHEMA_VERSION
from featurizer.hashing import IdHasher
from featurizer.history import History
from featurizer.load import LoggedArena
from featurizer.records import NO_TIME_MS, RECORD, Entity, Flag, Kind
from featurizer.state import ROW_WORDS, length
from featurizer.store import Store
from featurizer.worker import Worker, WorkerSettings, records_of
from fraudsvc.tail import Tail
from loadgen.columns import SCHEMA
from loadgen.history import HistoryWriter
from loadgen.world import World, WorldSettings

SEED = 11
DAYS = 16
MARKS = Flag.UNUSUAL | Flag.HAS_NORM
ARENA_BYTES = 1 << 30


@pytest.fixture(scope="module")
def history_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    print(f"seed {SEED}")
    path = tmp_path_factory.mktemp("load") / "history.parquet"
    settings = WorldSettings(
        seed=SEED, start=date(2025, 3, 1), customers=60, rate_per_day=150, fraud_rate=0.05
    )
    with HistoryWriter(path, SCHEMA) as writer:
        for table in World(settings).days(DAYS):
            writer.write(table)
    return path


@pytest.fixture
def history(history_file: Path) -> History:
    return read_history(history_file, IdHasher(), {}, None)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EventLog]:
    with closing(open_log(f"file://{tmp_path}/log")) as log:
        yield log


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(open_store(f"lmdb://{tmp_path}/store", schema=SCHEMA_VERSION)) as store:
        yield store


def read_all(log: EventLog) -> Batch:
    batch = log.read(log.ends()[0], 64 << 20)
    assert batch.next_position == log.ends()[1]
    return batch


def load(history: History, log: EventLog, out: Path, until_ms: int | None = None) -> LoggedArena:
    arena = LoggedArena(log, until_ms, ARENA_BYTES)
    backfill(history, out, arena, chunk_events=700)
    return arena


def known_from(records: NDArray[np.void]) -> NDArray[np.int64]:
    times: NDArray[np.int64] = np.where(
        records["kind"] == Kind.FEEDBACK, records["known_time_ms"], records["event_time_ms"]
    )
    return times


def no_damage(damage: Damage) -> None:
    raise AssertionError(damage)


def follow(log: EventLog, store: Store) -> Worker:
    worker = Worker(log, store, WorkerSettings(read_bytes=1 << 18), no_damage)
    while worker.step():
        pass
    return worker


def test_the_log_holds_every_event_in_order(
    history: History, log: EventLog, tmp_path: Path
) -> None:
    arena = load(history, log, tmp_path / "out")
    batch = read_all(log)
    records, _, frames = records_of(batch)
    order = order_events(history)
    assert arena.appended == len(order) == len(records) == len(batch.topics)
    assert len(set(frames.tolist())) == len(records)
    rows = np.where(order < 0, ~order, order)
    assert (records["transaction"] == history.records["transaction"][rows]).all()
    assert ((records["kind"] == Kind.FEEDBACK) == (order < 0)).all()
    assert ((batch.topics == Topic.FEEDBACK) == (order < 0)).all()
    assert (batch.keys == records["entities"][:, Entity.CUSTOMER]).all()
    assert (np.diff(known_from(records)) >= 0).all()
    assert (records["request"] == 0).all()


def test_the_vectors_are_those_of_a_backfill_without_a_log(
    history: History, log: EventLog, tmp_path: Path
) -> None:
    load(history, log, tmp_path / "with")
    backfill(history, tmp_path / "without", Arena(ARENA_BYTES), chunk_events=700)
    assert (tmp_path / "with").read_bytes() == (tmp_path / "without").read_bytes()


def test_marks_are_those_that_the_view_sets(
    history: History, log: EventLog, tmp_path: Path
) -> None:
    load(history, log, tmp_path / "out")
    records, positions, _ = records_of(read_all(log))
    is_payment = records["kind"] == Kind.TRANSACTION
    again = records.copy()
    again["flags"][is_payment] &= ~np.uint16(MARKS)
    out = np.empty((len(again), len(FEATURES)), np.float32)
    Arena(ARENA_BYTES).run(again, positions, out)
    assert (again["flags"] == records["flags"]).all()
    assert (records["flags"] & Flag.UNUSUAL != 0).any()
    payments = records[is_payment]
    marked = dict(zip(payments["transaction"].tolist(), payments["flags"].tolist(), strict=True))
    feedback = records[~is_payment]
    assert len(feedback) > 100
    assert feedback["flags"].tolist() == [marked[t] for t in feedback["transaction"].tolist()]


def test_nothing_that_was_not_known_by_then_is_loaded(
    history: History, log: EventLog, tmp_path: Path
) -> None:
    times = history.records["event_time_ms"]
    until_ms = int(times[len(times) * 3 // 4])
    arena = load(history, log, tmp_path / "out", until_ms)
    records, _, _ = records_of(read_all(log))
    labels = history.label_time_ms
    labelled = (labels != NO_TIME_MS) & (history.is_fraud >= 0)
    expected = int((times < until_ms).sum() + (labels[labelled] < until_ms).sum())
    assert arena.appended == len(records) == expected
    assert (known_from(records) < until_ms).all()
    assert len(pq.read_table(tmp_path / "out", columns=["transaction_id"])) == len(times)


def test_a_log_that_holds_something_is_refused_and_stays(
    history: History, log: EventLog, tmp_path: Path
) -> None:
    load(history, log, tmp_path / "out")
    end = log.ends()
    with pytest.raises(LogError, match="not empty"):
        LoggedArena(log, None, ARENA_BYTES)
    assert log.ends() == end


def test_the_featurizer_folds_it_and_finds_each_payment(
    history: History, log: EventLog, store: Store, tmp_path: Path
) -> None:
    load(history, log, tmp_path / "out")
    worker = follow(log, store)
    records, positions, frames = records_of(read_all(log))
    assert worker.position == log.ends()[1]
    expected = Arena(ARENA_BYTES)
    expected.run(records.copy(), positions)
    payments = records["kind"] == Kind.TRANSACTION
    with closing(store.snapshot()) as snapshot:
        for key, blob in expected.states():
            (held,) = snapshot.get_many([key])
            assert held is not None
            assert bytes(held) == blob
        found = snapshot.find_many(records["transaction"][payments].tolist())
        assert found == frames[payments].tolist()
        assert snapshot.find_many([0]) == [None]


def test_a_scorer_sees_it_before_the_featurizer_does(
    history: History, log: EventLog, store: Store, tmp_path: Path
) -> None:
    load(history, log, tmp_path / "out", int(history.records["event_time_ms"][1_500]))
    records, positions, _ = records_of(read_all(log))
    expected = Arena(ARENA_BYTES)
    expected.run(records.copy(), positions)
    states = dict(expected.states())
    tail = Tail(log, store, Arena(ARENA_BYTES))
    rows = np.zeros((len(Entity), ROW_WORDS), np.int64)
    with closing(tail.refresh()) as snapshot:
        assert not tail.stale
        assert tail.find(0, snapshot) is None
        for record in records[-50:].reshape(-1, 1):
            rows[:] = 0
            assert tail.load(snapshot, record, rows)
            for entity in Entity:
                key = int(record[0]["entities"][entity])
                if key:
                    assert rows[entity][: int(length(rows[entity]))].tobytes() == states[key]


def test_a_payment_that_was_requested_is_still_kept_once(log: EventLog, store: Store) -> None:
    record = np.zeros(1, RECORD)
    record["version"], record["kind"], record["known_time_ms"] = 1, Kind.TRANSACTION, NO_TIME_MS
    record["event_time_ms"], record["transaction"], record["request"] = 1_000_000, 5, 6
    record["entities"][:, Entity.CUSTOMER] = 7
    first = log.append([[Entry(Topic.TRANSACTIONS, 7, record.tobytes())]] * 2)[0]
    follow(log, store)
    with closing(store.snapshot()) as snapshot:
        assert snapshot.find_many([5, 6]) == [first, first]


def test_the_command_says_how_much_it_put_on_the_log(history_file: Path, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/log"
    command = (
        sys.executable, "-m", "featurizer", "backfill", str(history_file), str(tmp_path / "out"),
        "--log", url, "--log-until", "2025-03-09T12:00",
    )  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    with closing(open_log(url, read_only=True)) as log:
        records, _, _ = records_of(read_all(log))
    assert f"{len(records)} events → {url}" in done.stderr
    until_ms = int(np.datetime64("2025-03-09T12:00", "ms").astype(np.int64))
    assert until_ms - 3_600_000 < int(known_from(records).max()) < until_ms
    again = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert again.returncode == 2
    assert "not empty" in again.stderr
