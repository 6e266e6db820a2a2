"""What only the LMDB adapter can suffer: kills, stopped machines, a second writer, a full disk."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from featurizer.store import StoreError, StoreStale
from featurizer.store_lmdb import LmdbStore

MAP_BYTES = 64 << 20
KEYS = list(range(-4, 5))

# Writes batch after batch; batch n sets every key to n, repeated, and says so when it is done.
WRITER = """
import os, struct, sys
from featurizer.store_lmdb import LmdbStore

store = LmdbStore(sys.argv[1], schema="one", map_bytes=64 << 20, sync=sys.argv[2])
snapshot = store.snapshot()
n = snapshot.position // 8
snapshot.close()
while True:
    n += 1
    blob = struct.pack("<q", n) * (100 + n % 100)
    store.write([(key, blob) for key in range(-4, 5)], [(n, n * 8)], n * 8)
    os.write(1, struct.pack("<q", n))
"""

# Reads while another process writes; prints how many snapshots it saw, or fails.
READER = """
import struct, sys, time
from featurizer.store_lmdb import LmdbStore

store = LmdbStore(sys.argv[1], schema="one", map_bytes=64 << 20, read_only=True)
until = time.monotonic() + float(sys.argv[2])
seen = set()
while time.monotonic() < until:
    snapshot = store.snapshot()
    n = snapshot.position // 8
    expected = struct.pack("<q", n) * (100 + n % 100)
    assert all(bytes(state) == expected for state in snapshot.get_many(range(-4, 5))), n
    assert snapshot.find_many([n, n + 1]) == [n * 8, None], n
    snapshot.close()
    seen.add(n)
print(len(seen))
"""


def start(script: str, *arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def open_store(path: Path, boot: str = "boot 1", **settings: object) -> LmdbStore:
    options = {"schema": "one", "map_bytes": MAP_BYTES, "boot_id": lambda: boot, **settings}
    return LmdbStore(path, **options)  # type: ignore[arg-type]


def check_batch(store: LmdbStore) -> int:
    """Return the number of the last batch, after checking that it is whole."""
    snapshot = store.snapshot()
    n = snapshot.position // 8
    states = snapshot.get_many(KEYS)
    assert [bytes(s) for s in states if s] == [struct.pack("<q", n) * (100 + n % 100)] * len(KEYS)
    assert snapshot.find_many(list(range(1, n + 2))) == [*(i * 8 for i in range(1, n + 1)), None]
    snapshot.close()
    return n


def test_a_kill_between_any_two_writes_leaves_a_whole_batch(tmp_path: Path) -> None:
    seed = 30
    print(f"seed {seed}")
    source = random.Random(seed)
    for _ in range(8):
        child = start(WRITER, tmp_path, "none")
        assert child.stdout is not None
        output = child.stdout.read(8)
        time.sleep(source.uniform(0, 0.05))
        child.kill()
        output += child.stdout.read()
        child.communicate()

        store = LmdbStore(tmp_path, schema="one", map_bytes=MAP_BYTES)
        last = check_batch(store)
        store.close()
        acknowledged = struct.unpack_from("<q", output, len(output) // 8 * 8 - 8)[0]
        assert acknowledged <= last <= acknowledged + 1


def test_readers_in_other_processes_see_whole_batches(tmp_path: Path) -> None:
    writer = start(WRITER, tmp_path, "none")
    assert writer.stdout is not None
    writer.stdout.read(8)
    drain = threading.Thread(target=writer.stdout.read)
    drain.start()
    readers = [start(READER, tmp_path, 1.0) for _ in range(2)]
    outputs = [reader.communicate(timeout=60)[0] for reader in readers]
    writer.kill()
    drain.join(timeout=10)
    writer.communicate()

    assert [reader.returncode for reader in readers] == [0, 0]
    assert all(int(output) > 1 for output in outputs)


def test_a_dead_reader_does_not_pin_old_pages(tmp_path: Path) -> None:
    script = (
        "import sys, time; from featurizer.store_lmdb import LmdbStore\n"
        "store = LmdbStore(sys.argv[1], schema='one', map_bytes=64 << 20, read_only=True)\n"
        "snapshot = store.snapshot(); print(snapshot.position, flush=True); time.sleep(60)"
    )
    store = LmdbStore(tmp_path, schema="one", map_bytes=4 << 20)
    store.write([(1, b"x")], [], 8)
    reader = start(script, tmp_path)
    assert reader.stdout is not None
    assert int(reader.stdout.readline()) == 8
    reader.kill()
    reader.communicate()

    store.sweep(0, 0, 1)
    for n in range(300):
        store.write([(key, bytes(2000)) for key in range(100)], [], n + 8)

    snapshot = store.snapshot()
    assert snapshot.position == 307
    snapshot.close()
    store.close()


def test_one_writer(tmp_path: Path) -> None:
    child = start(WRITER, tmp_path, "none")
    assert child.stdout is not None
    child.stdout.read(8)

    with pytest.raises(StoreError, match="another process writes"):
        LmdbStore(tmp_path, schema="one", map_bytes=MAP_BYTES)
    with pytest.raises(StoreError, match="another process writes"):
        LmdbStore.discard(tmp_path)

    child.kill()
    child.communicate()
    store = LmdbStore(tmp_path, schema="one", map_bytes=MAP_BYTES)
    assert check_batch(store) >= 1
    store.close()


def leave_open(path: Path, sync: str) -> None:
    """Leave a store as a killed process does."""
    child = start(WRITER, path, sync)
    assert child.stdout is not None
    child.stdout.read(8)
    child.kill()
    child.communicate()


@pytest.mark.parametrize(
    ("read_only", "sync"), [(False, "none"), (True, "none"), (False, "commit")]
)
def test_a_machine_that_stopped_makes_the_store_stale(
    tmp_path: Path, read_only: bool, sync: str
) -> None:
    leave_open(tmp_path, "none")

    with pytest.raises(StoreStale, match="machine stopped"):
        open_store(tmp_path, "boot 2", read_only=read_only, sync=sync)

    LmdbStore.discard(tmp_path)
    store = open_store(tmp_path, "boot 2")
    snapshot = store.snapshot()
    assert (snapshot.position, snapshot.get_many([1])) == (0, [None])
    snapshot.close()
    store.close()


def test_a_machine_that_stopped_after_a_close_or_a_commit_does_not(tmp_path: Path) -> None:
    closed, committed = tmp_path / "closed", tmp_path / "committed"
    store = open_store(closed, "boot 1")
    store.write([(1, b"kept")], [], 8)
    store.close()
    leave_open(committed, "commit")

    for path in (closed, committed):
        store = open_store(path, "boot 2")
        snapshot = store.snapshot()
        assert snapshot.position >= 8
        snapshot.close()
        store.close()


@pytest.mark.parametrize("read_only", [False, True])
def test_another_schema_is_stale(tmp_path: Path, read_only: bool) -> None:
    open_store(tmp_path).close()

    with pytest.raises(StoreStale, match="schema"):
        open_store(tmp_path, schema="two", read_only=read_only)

    open_store(tmp_path).close()


@pytest.mark.parametrize("content", [b"", b"[]", b'{"version": 2}'])
def test_a_label_that_cannot_be_read_is_stale(tmp_path: Path, content: bytes) -> None:
    open_store(tmp_path).close()
    (tmp_path / "STORE").write_bytes(content)

    with pytest.raises(StoreStale):
        open_store(tmp_path)


def test_a_reader_needs_a_store_and_does_not_write(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no store"):
        open_store(tmp_path / "none", read_only=True)
    assert not (tmp_path / "none").exists()
    open_store(tmp_path).close()
    reader = open_store(tmp_path, read_only=True)

    with pytest.raises(StoreError):
        reader.write([(1, b"x")], [], 8)
    with pytest.raises(StoreError):
        reader.sweep(0, 0, 1)

    reader.close()


def test_a_disk_that_is_nearly_full_is_left_alone(tmp_path: Path) -> None:
    store = open_store(tmp_path, min_free_bytes=1 << 60)

    with pytest.raises(StoreError, match="free"):
        store.write([(1, b"x")], [], 8)

    snapshot = store.snapshot()
    assert snapshot.position == 0
    snapshot.close()
    store.close()


def test_threads_share_a_store(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.write([(key, struct.pack("<q", 0)) for key in KEYS], [], 0)
    torn: list[object] = []

    def read(stop: Callable[[], bool]) -> None:
        while not stop():
            snapshot = store.snapshot()
            found = {bytes(state) for state in snapshot.get_many(KEYS) if state is not None}
            if found != {struct.pack("<q", snapshot.position)}:
                torn.append(found)
            snapshot.close()

    done = threading.Event()
    threads = [threading.Thread(target=read, args=[done.is_set]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for n in range(1, 500):
        store.write([(key, struct.pack("<q", n)) for key in KEYS], [], n)
    done.set()
    for thread in threads:
        thread.join(timeout=10)

    assert torn == []
    store.close()
