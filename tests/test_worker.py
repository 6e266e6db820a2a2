"""The featurizer: whatever happens to it, its store is what folding the whole log gives."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from featurizer.adapters import FollowedStore
from featurizer.eventlog import Entry, Topic
from featurizer.features import SCHEMA_VERSION
from featurizer.records import Kind
from featurizer.role import open_or_rebuild
from featurizer.store import Store, StoreError
from featurizer.store_lmdb import LmdbStore
from featurizer.worker import Worker, WorkerSettings
from tests.conftest import (
    MAP_BYTES,
    SEED,
    Asked,
    Host,
    Payments,
    Process,
    call_now,
    first_records,
    process,
    read_all,
    recomputed,
    until,
)
from trainer.bundle import Bundle

KILLS = 2


def states_of(store: Store | FollowedStore, keys: list[int]) -> dict[int, bytes]:
    snapshot = store.snapshot()
    try:
        blobs = snapshot.get_many(keys)
        return {k: bytes(b) for k, b in zip(keys, blobs, strict=True) if b is not None}
    finally:
        snapshot.close()


def position_of(store: Store | FollowedStore) -> int:
    try:
        snapshot = store.snapshot()
    except StoreError:
        return -1
    position = snapshot.position
    snapshot.close()
    return position


def fill(scorer: Asked, payments: Payments, count: int) -> None:
    """Score payments and report labels."""
    for _ in range(count):
        scorer.score(payments.one(), call_now())
        if payments.rng.random() < 0.2:
            known = payments.made[int(payments.rng.integers(len(payments.made)))]
            scorer.report_labels([payments.label(known.transaction_id)])


def assert_store_is_log(host: Host, store: Store | FollowedStore) -> None:
    """States and ids, byte for byte."""
    _, states = recomputed(host.log)
    assert len(states) > 20
    assert states_of(store, list(states)) == states
    records, _, frames = first_records(read_all(host.log))
    sent = records["kind"] == Kind.TRANSACTION
    snapshot = store.snapshot()
    found = snapshot.find_many(records["request"][sent].tolist())
    snapshot.close()
    assert found == [frame for frame, is_sent in zip(frames, sent, strict=True) if is_sent]


@pytest.mark.parametrize("read_bytes", [4 << 10, 64 << 10, 4 << 20])
def test_steps_of_any_size_give_the_states_of_the_log(host: Host, read_bytes: int) -> None:
    fill(host.scorer(), Payments(), 300)
    host.worker = Worker(
        host.log, host.store, WorkerSettings(read_bytes=read_bytes), host.damage.append
    )
    host.fold()
    assert host.worker.position == host.log.ends()[1]
    assert_store_is_log(host, host.store)
    assert host.damage == []


def test_little_memory_changes_no_state(host: Host) -> None:
    settings = WorkerSettings(read_bytes=4 << 10, arena_bytes_max=256 << 10)
    host.worker = Worker(host.log, host.store, settings, host.damage.append)
    fill(host.scorer(), Payments(SEED + 1), 300)
    host.fold()
    assert_store_is_log(host, host.store)


def test_a_new_worker_goes_on_where_the_last_one_was(host: Host) -> None:
    scorer, payments = host.scorer(), Payments(SEED + 2)
    for _ in range(8):
        fill(scorer, payments, 40)
        host.fold(3)
        settings = WorkerSettings(read_bytes=8 << 10)
        host.worker = Worker(host.log, host.store, settings, host.damage.append)
        assert host.worker.position == position_of(host.store)
    host.fold()
    assert_store_is_log(host, host.store)


def test_a_second_append_of_a_request_is_not_folded(host: Host) -> None:
    fill(host.scorer(), Payments(), 40)
    transactions = [e for e in read_all(host.log) if e.topic == Topic.TRANSACTIONS]
    host.fold()
    again = [[Entry(e.topic, 1, e.value)] for e in transactions]
    host.log.append([*again[:20], again[5], *again[20:]])
    host.fold()
    assert_store_is_log(host, host.store)


def test_other_entries_do_not_matter(host: Host) -> None:
    fill(host.scorer(), Payments(), 30)
    _, states = recomputed(host.log)
    host.log.append([[Entry(Topic.MODELS, 0, b"a model")], [Entry(Topic.TRANSACTIONS, 0, b"?")]])
    host.fold()
    assert host.worker.position == host.log.ends()[1]
    assert states_of(host.store, list(states)) == states


def test_damage_to_the_log_is_reported_and_the_rest_is_folded(host: Host) -> None:
    fill(host.scorer(), Payments(), 60)
    frames = sorted({e.frame for e in read_all(host.log)})
    (segment,) = (host.folder / "log").glob("*.seg")
    with segment.open("r+b") as file:
        file.seek(frames[30] + 40)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    host.fold()
    assert [d.position for d in host.damage] == [frames[30]]
    assert host.damage[0].length == frames[31] - frames[30]
    assert_store_is_log(host, host.store)


def test_a_store_of_another_schema_is_built_anew(tmp_path: Path, bundle: Bundle) -> None:
    old = LmdbStore(tmp_path / "store", schema="s-old", map_bytes=MAP_BYTES, min_free_bytes=0)
    old.write([(7, bytes(256))], [(8, 16)], 24)
    old.close()
    store = open_or_rebuild(f"lmdb://{tmp_path}/store")
    assert (position_of(store), states_of(store, [7])) == (0, {})
    store.close()


# As a process.


def featurizer(folder: Path) -> tuple[str, ...]:
    return (
        "featurizer", "run", "--log", f"file://{folder}/log", "--store", f"lmdb://{folder}/built",
        "--ready-file", str(folder / "ready"),
    )  # fmt: skip


@pytest.fixture
def followed(host: Host) -> Iterator[FollowedStore]:
    store = FollowedStore(f"lmdb://{host.folder}/built", schema=SCHEMA_VERSION)
    yield store
    store.close()


def wait_until_folded(host: Host, store: FollowedStore) -> None:
    end = host.log.ends()[1]
    until(lambda: store.poll() is not None and position_of(store) == end, "the featurizer")


def test_killed_at_any_moment_it_goes_on_from_its_store(
    host: Host, followed: FollowedStore
) -> None:
    payments, rng = Payments(), np.random.default_rng(SEED)
    host.store.close()
    host.store = followed  # type: ignore[assignment]  # the scorer reads what the process writes
    scorer = host.scorer()
    ready, output = host.folder / "ready", host.folder / "output"
    for _ in range(KILLS):
        with process(output, *featurizer(host.folder)) as role:
            role.wait_for(ready)
            end_s = time.monotonic() + float(rng.uniform(0.05, 0.6))
            while time.monotonic() < end_s:
                fill(scorer, payments, 5)
            assert role.stop(signal.SIGKILL) == -signal.SIGKILL
        ready.unlink()
        fill(scorer, payments, 20)
        followed.poll()
    with process(output, *featurizer(host.folder)) as role:
        wait_until_folded(host, followed)
        assert_store_is_log(host, followed)
        assert role.stop() == 0
    assert "damaged" not in role.said


def test_a_store_that_was_removed_is_built_anew(host: Host, followed: FollowedStore) -> None:
    fill(host.scorer(), Payments(), 100)
    output = host.folder / "output"
    with process(output, *featurizer(host.folder)) as role:
        role.wait_for(host.folder / "ready")
        wait_until_folded(host, followed)
        assert role.stop() == 0
    shutil.rmtree(host.folder / "built")
    stale = LmdbStore(host.folder / "built", schema="s-old", map_bytes=MAP_BYTES, min_free_bytes=0)
    stale.close()
    with process(output, *featurizer(host.folder)) as role:
        wait_until_folded(host, followed)
        assert_store_is_log(host, followed)
        assert role.stop() == 0
        assert_rebuild_was_told(role)


def assert_rebuild_was_told(role: Process) -> None:
    assert role.said.count("the store is rebuilt from the log") == 1
    assert "s-old" in role.said
