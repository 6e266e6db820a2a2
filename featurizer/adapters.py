"""Which adapter a URL names. The only place that knows them all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.parse import parse_qsl, urlsplit

from featurizer.eventlog import EventLog
from featurizer.eventlog_file import FileEventLog
from featurizer.features import SCHEMA_VERSION
from featurizer.store import Snapshot, Store, StoreError
from featurizer.store_lmdb import LmdbStore


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
) -> EventLog:
    """Open the event log that ``url`` names: ``file://DIR``.

    Raises ValueError for a URL of no known adapter, LogError where it cannot be opened.
    """
    return FileEventLog(
        _directory(url, "file", "the log"), read_only=read_only,
        sync_interval_ms=sync_interval_ms, retain_bytes=retain_bytes, retain_ms=retain_ms,
    )  # fmt: skip


def open_store(url: str, *, schema: str, read_only: bool = False) -> Store:
    """Open the store that ``url`` names: ``lmdb://DIR``.

    Raises ValueError for a URL of no known adapter, StoreError where it cannot be opened.
    """
    return LmdbStore(_directory(url, "lmdb", "the store"), schema=schema, read_only=read_only)


def discard_store(url: str) -> None:
    """Delete a store that is stale, so that it can be made anew from the log."""
    LmdbStore.discard(_directory(url, "lmdb", "the store"))


class StorePlace(NamedTuple):
    """What a store's URL says. ``partitions`` is 0 for the one of embedded mode.

    ``inputs`` is how many partitions the events come from; ``shared`` whether other hosts use it.
    """

    url: str
    partitions: int
    inputs: int

    @property
    def shared(self) -> bool:
        """Whether other hosts read and write it, too."""
        return not self.url.startswith("lmdb:")

    @property
    def schema(self) -> str:
        """What states in it are made by: features, and how keys are spread."""
        return f"{SCHEMA_VERSION}/{self.partitions}/{self.inputs}"


def store_place(url: str) -> StorePlace:
    """Read ``lmdb://DIR``, or with ``?partitions=P&inputs=I`` that or ``redis://HOST:PORT/N``.

    Raises ValueError, naming what is wrong.
    """
    base, _, query = url.partition("?")
    given = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
    counts = [int(given.pop(name, "0")) for name in ("partitions", "inputs")]
    scheme = urlsplit(base).scheme
    if given or min(counts) < 0 or (min(counts) == 0) != (max(counts) == 0):
        raise ValueError(f"the store wants ?partitions=P&inputs=I, not {query!r}")
    if scheme not in ("lmdb", "redis", "rediss", "redis+cluster") or (
        scheme != "lmdb" and not counts[0]
    ):
        raise ValueError(
            f"the store wants lmdb://DIR or redis://HOST:PORT/N?partitions=P&inputs=I, not {url!r}"
        )
    return StorePlace(base, *counts)


INDEX_SCHEMA = "index/1"


def open_index(url: str) -> Store:
    """Open for writing the index of a journal, in which the relay keeps ids and its position."""
    return LmdbStore(_directory(url, "lmdb", "the index"), schema=INDEX_SCHEMA)


def open_partition(place: StorePlace, partition: int, *, read_only: bool = False) -> Store:
    """Open one partition of the states. Raises StoreError, StoreStale."""
    directory = _partition_directory(place, partition)
    return LmdbStore(directory, schema=place.schema, read_only=read_only)


def discard_partition(place: StorePlace, partition: int) -> None:
    """Delete one partition of the states, to be made anew from the log."""
    LmdbStore.discard(_partition_directory(place, partition))


def _partition_directory(place: StorePlace, partition: int) -> Path:
    return _directory(place.url, "lmdb", "the store") / f"{partition:04}"


class FollowedStates(Protocol):
    """The states of all partitions, as a scorer reads them. Raises StoreError."""

    def read(self, keys: Sequence[int], homes: Sequence[int]) -> Sequence[bytes | None]:
        """Return the state of each key of a partition (``homes``), in order; None where none is."""
        ...

    def poll(self) -> bool:
        """Look whether something was replaced; return whether all is there."""
        ...

    def close(self) -> None:
        """Let go of files and connections."""
        ...


def follow_states(place: StorePlace) -> FollowedStates:
    """Return a reader of shared states."""
    return PartitionedStates(place)


class PartitionedStates:
    """The states of all partitions of a local replica, each written by a fold.

    Not for use by several threads at once, but for ``poll``.
    """

    def __init__(self, place: StorePlace) -> None:
        self._stores = [
            FollowedStore(f"lmdb://{_partition_directory(place, n)}", schema=place.schema)
            for n in range(place.partitions)
        ]

    def poll(self) -> bool:
        """Look whether a partition was replaced; return whether all were open at the last look."""
        looks = [store.poll() for store in self._stores]
        return all(looks)

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
