"""Which adapter a URL names. The only place that knows them all."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from featurizer.eventlog import EventLog
from featurizer.eventlog_file import FileEventLog
from featurizer.store import Snapshot, Store, StoreError
from featurizer.store_lmdb import LmdbStore


def _directory(url: str, scheme: str, what: str) -> Path:
    if urlsplit(url).scheme != scheme or url == f"{scheme}://":
        raise ValueError(f"{what} wants a URL such as {scheme}://DIR, not {url!r}")
    parts = urlsplit(url)
    return Path(parts.netloc + parts.path)  # a relative directory stands where a host would


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
