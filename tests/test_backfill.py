"""Backfill: the order of events, marks on labels, and a file that is whole or not there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from featurizer import backfill as module
from featurizer.arena import Arena
from featurizer.backfill import VECTORS, backfill, order_events, read_history
from featurizer.features import FEATURES, INDEX, NAMES, SCHEMA_VERSION
from featurizer.hashing import IdHasher
from featurizer.history import History
from featurizer.records import NO_TIME_MS, Flag, Kind
from tests.test_arena import OneByOne

SEED = 20261126
DAY_MS = 86_400_000
START_MS = 1_700_000_000_000


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    names = ("transaction_id", "event_time", "customer_id", "terminal_id", "amount_minor",
             "is_fraud", "label_time", "label_source")  # fmt: skip
    pq.write_table(pa.table({n: [row.get(n) for row in rows] for n in names}), path)
    return path


def payment(i: int, at_ms: int, **more: Any) -> dict[str, Any]:
    row = {"transaction_id": f"t{i}", "event_time": START_MS + at_ms, "customer_id": "c"}
    return {**row, "terminal_id": "x", "amount_minor": 1_000, **more}


def random_rows(n: int) -> list[dict[str, Any]]:
    """Few entities, equal times, any order, labels from at once to weeks late."""
    print(f"SEED={SEED}")
    rng = np.random.default_rng(SEED)
    rows = []
    for i in range(n):
        at = int(rng.integers(0, n)) * 3_600_000 // 4
        row = payment(i, at, customer_id=f"c{rng.integers(9)}", terminal_id=f"x{rng.integers(5)}")
        row["amount_minor"] = int(rng.choice([500, 900, 20_000]))
        if rng.random() < 0.8:
            row["is_fraud"] = bool(rng.random() < 0.2)
            late = int(rng.choice([0, 60_000, 3_600_000, 9 * DAY_MS]))
            row["label_time"] = row["event_time"] + late if rng.random() < 0.9 else None
            row["label_source"] = "CHARGEBACK"
        rows.append(row)
    return rows


def read(path: Path) -> History:
    history = read_history(path, IdHasher(), {})
    assert history.bad_rows == 0
    return history


def vectors(table: pa.Table) -> NDArray[np.float32]:
    flat = table["features"].combine_chunks().flatten().to_numpy()
    found: NDArray[np.float32] = flat.reshape(-1, len(FEATURES))
    return found


def run(history: History, out: Path, **settings: Any) -> dict[str, NDArray[np.float32]]:
    """Return each transaction's vector, in the file's order."""
    assert backfill(history, out, Arena(), **settings) == len(history.records)
    table = pq.read_table(out)
    return dict(zip(table["transaction_id"].to_pylist(), vectors(table), strict=True))


def naive(history: History) -> dict[str, NDArray[np.float32]]:
    """One event at a time, in the documented order, written a second time."""
    events = []
    for i, record in enumerate(history.records):
        event_ms, known_ms = int(record["event_time_ms"]), int(history.label_time_ms[i])
        events.append((event_ms, 1, i, False))
        if history.is_fraud[i] >= 0 and known_ms != NO_TIME_MS:
            events.append((known_ms, 2 if known_ms == event_ms else 0, i, True))
    one, found = OneByOne(), {}
    marks = history.records["flags"].copy()
    for at, (known_ms, _, i, is_label) in enumerate(sorted(events)):
        record = history.records[i].copy()
        record["flags"] = marks[i]
        if is_label:
            record["kind"], record["known_time_ms"] = Kind.FEEDBACK, known_ms
            record["verdict"] = 1 if history.is_fraud[i] else 2
        else:
            out = np.zeros(len(FEATURES), np.float32)
            record["flags"] |= one.view(record, out)
            marks[i] = record["flags"]
            found[history.ids[i].as_py()] = out
        one.fold(record, 8 * (at + 1))
    return found


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "vectors.parquet"


def test_vectors_are_those_of_one_event_at_a_time(tmp_path: Path, out: Path) -> None:
    history = read(write(tmp_path / "h.parquet", random_rows(600)))
    expected = naive(history)
    got = run(history, out)
    assert got.keys() == expected.keys()
    for name, vector in got.items():
        assert vector.tobytes() == expected[name].tobytes(), name
    # The history itself is not changed.
    assert not (history.records["flags"] & (Flag.UNUSUAL | Flag.HAS_NORM)).any()


def test_files_are_the_same_whatever_the_chunks_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "h.parquet", random_rows(600))
    monkeypatch.setattr(module, "ROW_GROUP_ROWS", 100)
    found = []
    for chunk_events in (10_000, 1, 2, 7, 64):
        out, arena = tmp_path / f"{chunk_events}.parquet", Arena()
        backfill(read(path), out, arena, chunk_events=chunk_events)
        found.append((out.read_bytes(), arena.states()))
    assert all(one == found[0] for one in found)
    assert pq.ParquetFile(out).metadata.num_row_groups == 6


def test_unsorted_histories_come_out_in_event_order(tmp_path: Path, out: Path) -> None:
    rows = [payment(0, 50), payment(1, 10), payment(2, 50), payment(3, 0), payment(4, 50)]
    assert list(run(read(write(tmp_path / "h.parquet", rows)), out)) == [
        "t3", "t1", "t0", "t2", "t4",
    ]  # fmt: skip


def test_a_label_counts_from_the_instant_it_was_known(tmp_path: Path, out: Path) -> None:
    known = START_MS + DAY_MS
    rows = [payment(0, 0, is_fraud=True, label_time=known)]
    rows += [payment(1, DAY_MS - 1), payment(2, DAY_MS), payment(3, DAY_MS), payment(4, 2 * DAY_MS)]
    frauds = INDEX["terminal_frauds_7d"]
    got = {
        name: float(x[frauds]) for name, x in run(read(write(tmp_path / "h", rows)), out).items()
    }
    assert got == {"t0": 0, "t1": 0, "t2": 1, "t3": 1, "t4": 1}


def test_order_at_one_instant() -> None:
    records = np.zeros(4, np.dtype([("event_time_ms", "<i8")]))
    records["event_time_ms"] = [5, 5, 1, 5]
    history = History(
        records, pa.array([]), pa.array([]), np.array([1, 0, 1, -1], np.int8),
        np.array([5, 7, 5, 6]), np.zeros(4, np.uint8),
    )  # fmt: skip
    # The label of row 2 before all that happens at 5; that of row 0, at once known, after it.
    assert order_events(history).tolist() == [2, ~2, 0, 1, 3, ~0, ~1]


def test_a_transaction_never_sees_its_own_label(tmp_path: Path, out: Path) -> None:
    rows = [payment(i, i * 1000, is_fraud=True, label_time=START_MS + i * 1000) for i in range(3)]
    frauds = INDEX["terminal_frauds_7d"]
    got = run(read(write(tmp_path / "h.parquet", rows)), out)
    assert [float(got[f"t{i}"][frauds]) for i in range(3)] == [0, 1, 2]


def test_what_the_file_says(tmp_path: Path, out: Path) -> None:
    rows = [payment(0, 0, is_fraud=True, label_time=START_MS + 9), payment(1, 1, is_fraud=False)]
    run(read(write(tmp_path / "h.parquet", [*rows, payment(2, 2)])), out)
    table = pq.read_table(out)
    assert table.schema.names == VECTORS.names
    assert table.schema.types[:-1] == VECTORS.types[:-1]
    assert table.schema.types[-1].list_size == len(FEATURES)
    assert table.schema.types[-1].value_type == pa.float32()
    assert table.schema.metadata[b"fraud.schema_version"].decode() == SCHEMA_VERSION
    assert tuple(json.loads(table.schema.metadata[b"fraud.features"])) == NAMES
    assert table["is_fraud"].to_pylist() == [True, False, None]
    assert table["label_time_ms"].to_pylist() == [START_MS + 9, None, None]
    assert table["event_time_ms"].to_pylist() == [START_MS, START_MS + 1, START_MS + 2]
    assert table["customer_id"].to_pylist() == ["c"] * 3
    assert table["amount_ref"].to_pylist() == [1_000] * 3


def test_progress_ends_at_the_number_of_events(tmp_path: Path, out: Path) -> None:
    history = read(write(tmp_path / "h.parquet", random_rows(30)))
    told: list[tuple[int, int]] = []
    backfill(history, out, Arena(), lambda done, total: told.append((done, total)), 8)
    events = len(order_events(history))
    assert told[-1] == (events, events)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert len(told) == -(-events // 8)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_run_leaves_an_older_file_alone(
    error: type[BaseException], tmp_path: Path, out: Path
) -> None:
    history = read(write(tmp_path / "h.parquet", random_rows(50)))
    out.write_bytes(b"older")

    def stop(done: int, _total: int) -> None:
        if done > 20:
            raise error

    with pytest.raises(error):
        backfill(history, out, Arena(), stop, 8)
    assert out.read_bytes() == b"older"
    assert {p.name for p in tmp_path.iterdir()} == {"h.parquet", out.name}


def test_too_little_memory_leaves_nothing(tmp_path: Path, out: Path) -> None:
    history = read(write(tmp_path / "h.parquet", random_rows(200)))
    with pytest.raises(MemoryError, match="states need more"):
        backfill(history, out, Arena(bytes_max=4_096, states=2))
    assert {p.name for p in tmp_path.iterdir()} == {"h.parquet"}


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    history = read(write(tmp_path / "h.parquet", [payment(0, 0)]))
    with pytest.raises(OSError, match="nowhere"):
        backfill(history, tmp_path / "nowhere" / "out", Arena())


LIMITED = """
import resource, signal, sys
from featurizer.__main__ import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write past the limit fails, as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
sys.argv = ["featurizer", "backfill", sys.argv[1], sys.argv[2]]
sys.exit(main())
"""


def test_a_file_that_cannot_grow_is_a_clear_error(tmp_path: Path, out: Path) -> None:
    path = write(tmp_path / "h.parquet", random_rows(400))
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path), str(out)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "error: " in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert {p.name for p in tmp_path.iterdir()} == {"h.parquet"}
