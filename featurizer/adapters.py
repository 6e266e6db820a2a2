"""Which adapter a URL names. The only place that knows them all."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from featurizer.eventlog import EventLog
from featurizer.eventlog_file import FileEventLog
from featurizer.store import Store
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
