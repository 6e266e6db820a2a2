"""The featurizer as a process: opens the log and the store, follows, and stops in good order."""

from __future__ import annotations

import gc
import logging
import signal
import threading
from dataclasses import dataclass, field
from pathlib import Path

from featurizer.adapters import discard_store, open_log, open_store
from featurizer.eventlog import Damage
from featurizer.features import SCHEMA_VERSION
from featurizer.store import Store, StoreStale
from featurizer.telemetry import Telemetry
from featurizer.worker import Worker, WorkerSettings

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RoleOptions:
    """Where things are, and the bounds of the log and the loop."""

    log: str
    store: str
    retain_bytes: int | None = None
    retain_days: float | None = None
    ready_file: Path | None = None
    worker: WorkerSettings = field(default_factory=WorkerSettings)
    telemetry: Telemetry = field(default_factory=Telemetry)


def open_or_rebuild(url: str) -> Store:
    """Open the store for writing; one that is stale is thrown away, to be filled from the log."""
    try:
        return open_store(url, schema=SCHEMA_VERSION)
    except StoreStale as error:
        _log.warning("the store is rebuilt from the log: %s", error)
        discard_store(url)
        return open_store(url, schema=SCHEMA_VERSION)


def _report(damage: Damage) -> None:
    _log.error(
        "the log is damaged: %d bytes at %d: %s", damage.length, damage.position, damage.cause
    )


def run(options: RoleOptions) -> int:
    """Follow the log until SIGTERM or SIGINT; return the exit status."""
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    days = options.retain_days
    log = open_log(
        options.log, retain_bytes=options.retain_bytes,
        retain_ms=None if days is None else round(days * 86_400_000),
    )  # fmt: skip
    store = open_or_rebuild(options.store)
    try:
        worker = Worker(log, store, options.worker, _report, telemetry=options.telemetry)
        gc.collect()
        gc.freeze()  # to look through all that was imported took 0.2 s, in which nothing is folded
        while worker.step() and not stopping.is_set():
            pass  # be up to date before anyone is told that the role is ready
        if options.ready_file is not None:
            options.ready_file.write_text(str(worker.position))
        worker.run(stopping.is_set)
    finally:
        store.close()
        log.close()
    return 0
