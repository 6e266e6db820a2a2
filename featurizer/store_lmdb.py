"""The store in LMDB: one environment per host, one writer, readers without locks.

Owns the environment's files and is the only importer of lmdb. Must not know what a state means.

It is a cache of the log and does not wait for the disk: the pages of a process that dies are the
kernel's and stay whole, those of a machine that dies do not. So ``STORE``, a file beside the
environment, names the boot under which it is written, or "whole" once it was closed. After any
other end the environment is not even opened, but StoreStale says that it must be rebuilt. The
file also names the schema, for the same answer. A memory map cannot report a full disk except by
a signal, so a write looks at the free space first.

Keys are the 64-bit hashes of entities and ids in the machine's own byte order.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

import lmdb

from featurizer.store import StoreError, StoreStale

FORMAT_VERSION = 1
DEFAULT_MAP_BYTES = 64 << 30
MAX_READERS = 512
MAX_STATE_BYTES = 64 << 10
MIN_FREE_BYTES = 64 << 20
SPARE_TRANSACTIONS = 32

_WHOLE = "whole"
_KEY = struct.Struct("=q")
_EVENT_TIME = struct.Struct("<q")
_EVENT_TIME_AT = 8
_POSITION_KEY = b"position"
_by_key = itemgetter(0)


def _boot_id() -> str:
    """Return what the kernel calls the time since the machine started."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _read_label(path: Path) -> dict[str, Any]:
    try:
        label = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StoreStale(f"{path} cannot be read: {error}") from error
    if not isinstance(label, dict) or label.get("version") != FORMAT_VERSION:
        raise StoreStale(f"{path} is not of store format {FORMAT_VERSION}")
    return label


def _write_label(path: Path, schema: str, boot: str) -> None:
    draft = path.with_suffix(".new")
    with draft.open("w") as file:
        json.dump({"version": FORMAT_VERSION, "schema": schema, "boot": boot}, file)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _in_key_order(pairs: Sequence[tuple[int, Any]]) -> list[tuple[int, Any]]:
    """Sort by key as LMDB does, which takes the bits of a key as unsigned; stable."""
    ordered = sorted(pairs, key=_by_key)
    middle = next((i for i, pair in enumerate(ordered) if pair[0] >= 0), len(ordered))
    return ordered[middle:] + ordered[:middle]


@contextlib.contextmanager
def _store_errors(action: str) -> Iterator[None]:
    try:
        yield
    except (lmdb.Error, struct.error, OSError) as error:
        raise StoreError(f"cannot {action}: {error}") from error


class LmdbSnapshot:
    """A read transaction. For one thread at a time; its buffers end with it."""

    __slots__ = ("_ids", "_meta", "_states", "_transaction")

    def __init__(self, transaction: Any, states: Any, ids: Any, meta: Any) -> None:
        self._transaction = transaction
        self._states = states
        self._ids = ids
        self._meta = meta

    @property
    def position(self) -> int:
        """Every log record before this position is in the states, none after it is."""
        return int.from_bytes(self._transaction.get(_POSITION_KEY, b"", self._meta), "little")

    def get_many(self, keys: Sequence[int]) -> list[memoryview | None]:
        """Return the state of each entity key (int64), in order; None where there is none."""
        get, pack, states = self._transaction.get, _KEY.pack, self._states
        return [get(pack(key), None, states) for key in keys]

    def find_many(self, ids: Sequence[int]) -> list[int | None]:
        """Return for each id hash (int64) the position of its frame, or None."""
        get, pack, database = self._transaction.get, _KEY.pack, self._ids
        found = [get(pack(id_), None, database) for id_ in ids]
        return [None if value is None else _KEY.unpack(value)[0] for value in found]

    def close(self) -> None:
        """Give the snapshot back. Its buffers must not be used any more."""
        self._transaction.abort()


class LmdbStore:
    """A Store in a directory of a local file system.

    ``schema`` is what the states are made by; StoreStale where the directory's is another, or
    where the machine stopped before ``close`` (then call ``discard`` and rebuild from the log).
    ``map_bytes`` bounds the file, which is sparse. ``read_only`` is for every process but the one
    writer. ``sync`` "none" leaves writing to the kernel; "commit" waits for the disk at each
    write and survives a power cut. ``min_free_bytes`` of the disk are left to others.

    One object serves all threads of a process and a process opens a directory once. Raises
    StoreError where another process writes.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        schema: str,
        map_bytes: int = DEFAULT_MAP_BYTES,
        read_only: bool = False,
        sync: Literal["none", "commit"] = "none",
        min_free_bytes: int = MIN_FREE_BYTES,
        boot_id: Callable[[], str] = _boot_id,
    ) -> None:
        self._directory = Path(directory)
        self._label = self._directory / "STORE"
        self._schema = schema
        self._sync = sync
        self._min_free_bytes = min_free_bytes
        self._writer_lock = -1
        self._state_cursor = self._id_cursor = b""
        with _store_errors(f"open {directory}"), contextlib.ExitStack() as undo:
            if not read_only:
                self._directory.mkdir(parents=True, exist_ok=True)
                self._writer_lock = _lock_writer(self._directory / "WRITER")
                undo.callback(os.close, self._writer_lock)
            self._check_label(boot_id(), read_only)
            self._open(map_bytes, read_only, undo)
            undo.pop_all()

    def _check_label(self, boot: str, read_only: bool) -> None:
        exists = self._label.exists() or (self._directory / "data.mdb").exists()
        if read_only and not exists:
            raise StoreError(f"there is no store in {self._directory}")
        if exists:
            label = _read_label(self._label)
            if label.get("schema") != self._schema:
                raise StoreStale(f"the store has schema {label.get('schema')}, not {self._schema}")
            if label.get("boot") not in (boot, _WHOLE):
                raise StoreStale("the machine stopped while the store was open")
        if not read_only:
            _write_label(self._label, self._schema, boot if self._sync == "none" else _WHOLE)

    def _open(self, map_bytes: int, read_only: bool, undo: contextlib.ExitStack) -> None:
        durable = self._sync == "commit"
        self._environment = lmdb.open(
            str(self._directory),
            map_size=map_bytes,
            max_dbs=3,
            max_readers=MAX_READERS,
            max_spare_txns=SPARE_TRANSACTIONS,
            readonly=read_only,
            create=not read_only,
            writemap=not read_only,
            sync=durable,
            metasync=durable,
            readahead=False,
            meminit=False,
        )
        undo.callback(self._environment.close)
        create = not read_only
        self._states = self._environment.open_db(b"states", integerkey=True, create=create)
        self._ids = self._environment.open_db(b"ids", integerkey=True, create=create)
        self._meta = self._environment.open_db(b"meta", create=create)
        if not read_only:
            self._environment.reader_check()

    @staticmethod
    def discard(directory: str | os.PathLike[str]) -> None:
        """Delete the store in ``directory``, so that the next open makes an empty one.

        Raises StoreError where a process writes it. Processes that read it keep the old one.
        """
        path = Path(directory)
        with _store_errors(f"discard {directory}"):
            path.mkdir(parents=True, exist_ok=True)
            lock = _lock_writer(path / "WRITER")
            try:
                for name in ("data.mdb", "lock.mdb", "STORE"):
                    (path / name).unlink(missing_ok=True)
            finally:
                os.close(lock)

    def snapshot(self) -> LmdbSnapshot:
        """Return a consistent view of the newest write. Raises StoreError when it cannot."""
        try:
            transaction = self._environment.begin(buffers=True)
        except lmdb.Error as error:
            raise StoreError(f"cannot read: {error}") from error
        return LmdbSnapshot(transaction, self._states, self._ids, self._meta)

    def write(
        self,
        states: Sequence[tuple[int, bytes]],
        ids: Sequence[tuple[int, int]],
        position: int,
    ) -> None:
        """Replace states, add ids and set the position, all or nothing.

        The last blob given for a state and the first position given for an id stay. Raises
        StoreError, with nothing changed, when it cannot, and for a position that goes back.
        """
        pack = _KEY.pack
        with _store_errors("write"):
            blobs = [(pack(key), blob) for key, blob in _in_key_order(states)]
            places = [(pack(key), pack(place)) for key, place in _in_key_order(ids)]
            self._check_space(blobs)
            with self._environment.begin(write=True) as transaction:
                before = transaction.get(_POSITION_KEY, b"", self._meta)
                if position < int.from_bytes(before, "little"):
                    raise StoreError(f"position {position} goes back")
                transaction.cursor(self._states).putmulti(blobs)
                transaction.cursor(self._ids).putmulti(places, overwrite=False)
                transaction.put(_POSITION_KEY, pack(position), db=self._meta)

    def _check_space(self, blobs: Sequence[tuple[bytes, bytes]]) -> None:
        sizes = [len(blob) for _, blob in blobs]
        if sizes and max(sizes) > MAX_STATE_BYTES:
            raise StoreError(f"a state has at most {MAX_STATE_BYTES} bytes, not {max(sizes)}")
        disk = os.statvfs(self._directory)
        if disk.f_bavail * disk.f_frsize < self._min_free_bytes + 2 * sum(sizes):
            raise StoreError(f"cannot write: less than {self._min_free_bytes} bytes are free")

    def sweep(self, oldest_event_time_ms: int, oldest_position: int, limit: int) -> int:
        """Look at the next ``limit`` states and ids, drop the old ones, return how many.

        Old is a state whose last event is before ``oldest_event_time_ms``, and an id whose
        position is below ``oldest_position``. At the end it begins again. Also gives back what
        dead readers held. Raises StoreError.
        """
        with _store_errors("sweep"):
            self._environment.reader_check()
            with self._environment.begin(write=True, buffers=True) as transaction:
                states, state_cursor = _find_old(
                    transaction.cursor(self._states),
                    (self._state_cursor, limit),
                    (_EVENT_TIME_AT, oldest_event_time_ms),
                )
                ids, id_cursor = _find_old(
                    transaction.cursor(self._ids), (self._id_cursor, limit), (0, oldest_position)
                )
                for key in states:
                    transaction.delete(key, db=self._states)
                for key in ids:
                    transaction.delete(key, db=self._ids)
        self._state_cursor, self._id_cursor = state_cursor, id_cursor
        return len(states) + len(ids)

    def close(self) -> None:
        """Let go of all files; the writer waits for the disk first."""
        if self._writer_lock >= 0:
            with _store_errors("sync"):
                self._environment.sync(True)
            self._environment.close()
            _write_label(self._label, self._schema, _WHOLE)
            os.close(self._writer_lock)
            self._writer_lock = -1
        self._environment.close()


def _lock_writer(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise StoreError(f"another process writes {path.parent}") from error
    return descriptor


def _find_old(
    cursor: Any, walk: tuple[bytes, int], bound: tuple[int, int]
) -> tuple[list[bytes], bytes]:
    """Return the keys whose number at ``bound[0]`` is below ``bound[1]``, and where to go on.

    ``walk`` is the key to begin at and how many to look at; the key to go on is b"" at the end.
    """
    start, limit = walk
    offset, oldest = bound
    old: list[bytes] = []
    if not (cursor.set_range(start) if start else cursor.first()):
        return old, b""
    for looked_at, (key, value) in enumerate(cursor.iternext()):
        if looked_at == limit:
            return old, bytes(key)
        if len(value) >= offset + 8 and _EVENT_TIME.unpack_from(value, offset)[0] < oldest:
            old.append(bytes(key))
    return old, b""
