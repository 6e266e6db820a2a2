"""Which adapter a URL names. The only place that knows them all."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from featurizer.eventlog_file import FileEventLog
from featurizer.places import StorePlace
from featurizer.segments import read_format
from featurizer.store import Snapshot, Store, StoreError
from featurizer.store_lmdb import LmdbStore
from featurizer.store_redis import RedisStates, RedisStore


def _directory(url: str, scheme: str, what: str) -> Path:
    if urlsplit(url).scheme != scheme or url == f"{scheme}://":
        raise ValueError(f"{what} wants a URL such as {scheme}://DIR, not {url!r}")
    parts = urlsplit(url)
    return Path(parts.netloc + parts.path)  # a relative directory stands where a host would


def directory_of(url: str) -> Path:
    """Return the directory of a log's or a store's URL. Raises ValueError for one without."""
    return _directory(url, urlsplit(url).scheme, "a directory")


def open_log(
    url: str,
    *,
    read_only: bool = False,
    sync_interval_ms: int = 50,
    retain_bytes: int | None = None,
    retain_ms: int | None = None,
    bytes_max: int | None = None,
) -> FileEventLog:
    """Open the event log that ``url`` names: ``file://DIR``.

    Raises ValueError for a URL of no known adapter, LogError where it cannot be opened.
    """
    return FileEventLog(
        _directory(url, "file", "the log"), read_only=read_only,
        sync_interval_ms=sync_interval_ms, retain_bytes=retain_bytes, retain_ms=retain_ms,
        bytes_max=bytes_max,
    )  # fmt: skip


def open_store(url: str, *, schema: str, read_only: bool = False) -> Store:
    """Open the store that ``url`` names: ``lmdb://DIR``.

    Raises ValueError for a URL of no known adapter, StoreError where it cannot be opened.
    """
    return LmdbStore(_directory(url, "lmdb", "the store"), schema=schema, read_only=read_only)


def discard_store(url: str) -> None:
    """Delete a store that is stale, so that it can be made anew from the log."""
    LmdbStore.discard(_directory(url, "lmdb", "the store"))


def journal_number(url: str) -> int:
    """Return 64 bits that name the journal in a directory, and no other that is ever there.

    Raises LogError where there is none yet.
    """
    salt = read_format(directory_of(url)).salt
    digest = hashlib.sha256(f"journal {socket.gethostname()} {salt}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True) or 1


INDEX_SCHEMA = "index/1"


def open_index(url: str) -> Store:
    """Open for writing the index of a journal, in which the relay keeps ids and its position."""
    return LmdbStore(_directory(url, "lmdb", "the index"), schema=INDEX_SCHEMA)


def open_partition(place: StorePlace, partition: int) -> Store:
    """Open one partition of the states for writing, alone. Raises StoreError, StoreStale."""
    if place.redis is not None:
        return RedisStore(place.redis, partition, place.schema)
    return LmdbStore(_partition_directory(place, partition), schema=place.schema)


def discard_partition(place: StorePlace, partition: int) -> None:
    """Delete one partition of the states, to be made anew from the log."""
    if place.redis is not None:
        RedisStore.discard(place.redis, partition)
    else:
        LmdbStore.discard(_partition_directory(place, partition))


def read_partition(place: StorePlace, partition: int) -> Readable:
    """Open one partition of the states for reading. Raises StoreError, StoreStale."""
    if place.redis is not None:
        patient = replace(place.redis, socket_timeout_ms=place.redis.write_timeout_ms)
        return _RedisPartition(RedisStates(patient, place.partitions, place.schema), partition)
    directory = _partition_directory(place, partition)
    return LmdbStore(directory, schema=place.schema, read_only=True)


def _partition_directory(place: StorePlace, partition: int) -> Path:
    return _directory(place.url, "lmdb", "the store") / f"{partition:04}"


class Readable(Protocol):
    """What can be looked at. Raises StoreError."""

    def snapshot(self) -> Snapshot:
        """Return a view of the newest write."""
        ...

    def close(self) -> None:
        """Let go of files and connections."""
        ...


class FollowedStates(Protocol):
    """The states of all partitions, as a scorer reads them. Raises StoreError."""

    def read(self, keys: Sequence[int], homes: Sequence[int]) -> Sequence[bytes | None]:
        """Return the state of each key of a partition (``homes``), in order; None where none is."""
        ...

    def poll(self) -> None:
        """Look whether something was replaced. Another thread may read meanwhile."""
        ...

    def close(self) -> None:
        """Let go of files and connections."""
        ...


def follow_states(place: StorePlace) -> FollowedStates:
    """Return a reader of shared states."""
    if place.redis is not None:
        return _RedisFollowed(place.redis, place.partitions, place.schema)
    return PartitionedStates(place)


class _RedisPartition:
    """One partition of the states in Redis, for who only reads. Its own snapshot."""

    def __init__(self, states: RedisStates, partition: int, position: int = 0) -> None:
        self._states = states
        self._partition = partition
        self.position = position

    def snapshot(self) -> Snapshot:
        """Return a view of the newest write; its states may be newer, its position is not."""
        _, positions = self._states.read_at([0], [self._partition])
        return _RedisPartition(self._states, self._partition, positions[self._partition])

    def get_many(self, keys: Sequence[int]) -> list[memoryview | None]:
        """Return the state of each entity key, in order; None where there is none."""
        found = self._states.read(keys, [self._partition] * len(keys))
        return [None if blob is None else memoryview(blob) for blob in found]

    def find_many(self, ids: Sequence[int]) -> list[int | None]:
        """Return nothing: shared states have no ids, the journals' indexes do."""
        return [None] * len(ids)

    def close(self) -> None:
        """Let go of the connections; they are made again when needed."""
        self._states.close()


class _RedisFollowed(RedisStates):
    """States in Redis, which nobody replaces as files are."""

    def poll(self) -> None:
        """Do nothing: each read sees what is there."""


class PartitionedStates:
    """The states of all partitions of a local replica, each written by a fold.

    Not for use by several threads at once, but for ``poll``.
    """

    def __init__(self, place: StorePlace) -> None:
        self._stores = [
            FollowedStore(f"lmdb://{_partition_directory(place, n)}", schema=place.schema)
            for n in range(place.partitions)
        ]

    def poll(self) -> None:
        """Look whether a partition was replaced."""
        for store in self._stores:
            store.poll()

    def read(self, keys: Sequence[int], homes: Sequence[int]) -> list[bytes | None]:
        """Return the state of each key of a partition (``homes``), in order; None where none is.

        What comes from one partition is of one moment. Raises StoreError.
        """
        found: list[bytes | None] = [None] * len(keys)
        for home in set(homes):
            places = [i for i, each in enumerate(homes) if each == home]
            snapshot = self._stores[home].snapshot()
            try:
                blobs = snapshot.get_many([keys[i] for i in places])
                for i, blob in zip(places, blobs, strict=True):
                    found[i] = None if blob is None else bytes(blob)
            finally:
                snapshot.close()
        return found

    def close(self) -> None:
        """Let go of the files."""
        for store in self._stores:
            store.close()


class FollowedStore:
    """A store that another process writes: opened once it is there, and anew once it was rebuilt.

    ``snapshot`` raises StoreError while there is none. A snapshot must be closed before the next
    one is asked for. Raises ValueError for a URL of no known adapter.
    """

    def __init__(self, url: str, *, schema: str) -> None:
        self._url = url
        self._schema = schema
        self._file = _directory(url, "lmdb", "the store") / "data.mdb"
        self._store: Store | None = None
        self._seen: tuple[int, int] | None = None
        self._due = True
        self._why = "there is no store yet"

    def poll(self) -> bool:
        """Look whether the store was replaced; return whether one was open at the last look.

        Another thread may take a snapshot meanwhile; the next one after this opens what is new.
        """
        self._due = self._store is None or self._identity() != self._seen
        return self._store is not None

    def snapshot(self) -> Snapshot:
        """Return a consistent view of the newest write."""
        if self._due:
            self._due = False
            self._open()
        if self._store is None:
            raise StoreError(self._why)
        return self._store.snapshot()

    def close(self) -> None:
        """Let go of the files."""
        store, self._store = self._store, None
        if store is not None:
            store.close()

    def _open(self) -> None:
        """Open what is there now. While the old one is open its file's number is not used again."""
        seen = self._identity()
        if seen is None and self._store is not None:
            return  # being rebuilt: the old one serves until there is a new one
        self.close()
        try:
            self._store = open_store(self._url, schema=self._schema, read_only=True)
            self._seen = seen
        except StoreError as error:
            self._why = str(error)

    def _identity(self) -> tuple[int, int] | None:
        try:
            status = self._file.stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino
