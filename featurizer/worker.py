"""The featurizer role: follows the log and keeps the store at most a moment behind it.

Owns the loop of read, fold, write. States, ids and the log position go into the store in one
write, so a crash at any point leaves a store from which the next start simply goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featurizer.arena import Arena
from featurizer.eventlog import Batch, Damage, EventLog, Topic
from featurizer.records import RECORD, Kind
from featurizer.state import EXPIRY_MS, HORIZON_MS
from featurizer.store import Store
from featurizer.telemetry import Telemetry


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """Bounds of the loop: bytes a read, pause when idle, memory of hot states, sweeping."""

    read_bytes: int = 4 << 20
    idle_ms: float = 2.0
    arena_bytes_max: int = 2 << 30
    sweep_every_ms: float = 1_000.0
    sweep_limit: int = 2_000


def records_of(batch: Batch) -> tuple[NDArray[np.void], NDArray[np.int64], NDArray[np.int64]]:
    """Return the records (RECORD[n]) of a batch, their positions and their frames' positions."""
    wanted = (batch.topics == Topic.TRANSACTIONS) | (batch.topics == Topic.FEEDBACK)
    wanted &= batch.lengths == RECORD.itemsize
    data, size = batch.data, RECORD.itemsize
    rows = bytearray().join([data[start : start + size] for start in batch.starts[wanted].tolist()])
    return np.frombuffer(rows, RECORD), batch.positions[wanted], batch.frames[wanted]


class Worker:
    """Folds the log into the store. ``on_damage`` is told of bytes of the log that are lost."""

    def __init__(
        self,
        log: EventLog,
        store: Store,
        settings: WorkerSettings,
        on_damage: Callable[[Damage], None],
        clock: Callable[[], float] = time.monotonic,
        telemetry: Telemetry | None = None,
    ) -> None:
        telemetry = telemetry or Telemetry()
        self._tracer = telemetry.tracer
        self._gauge = telemetry.meters.values
        self._gauge_at = telemetry.meters.slot("fraud_position", "featurizer")
        self._log = log
        self._store = store
        self._settings = settings
        self._on_damage = on_damage
        self._clock = clock
        self._arena = Arena(settings.arena_bytes_max)
        self._sweep_at = 0.0
        self.newest_event_ms = 0
        snapshot = store.snapshot()
        self.position = max(snapshot.position, log.ends()[0])
        snapshot.close()

    def run(self, stopping: Callable[[], bool]) -> None:
        """Follow the log until ``stopping`` says so; what was read by then is written."""
        while not stopping():
            if self.step() == 0:
                self._sweep()
                time.sleep(self._settings.idle_ms / 1000)

    def step(self) -> int:
        """Fold one read of the log into the store; return how many entries it had."""
        batch = self._log.read(self.position, self._settings.read_bytes)
        for damage in batch.damage:
            self._on_damage(damage)
        if batch.next_position == self.position:
            return 0
        start_ns = time.time_ns()
        records, positions, frames = records_of(batch)
        ids = self._new_ids(records, frames)
        keep = np.array([i is not None for i in ids], bool)
        records, positions = records[keep], positions[keep]
        self._load(records)
        if len(records):
            self._arena.run(records, positions)
            self.newest_event_ms = max(self.newest_event_ms, int(records["event_time_ms"].max()))
        pairs = [pair for found in ids if found for pair in found]
        self._store.write(self._arena.states(dirty_only=True), pairs, batch.next_position)
        self._arena.clean()
        self.position = batch.next_position
        self._gauge[self._gauge_at] = self.position
        self._tracer.batch(
            "process", "transactions", start_ns, [*self._tracer.kept_of(batch).values()],
            attributes={"messaging.system": "fraud"},
        )  # fmt: skip
        return len(batch.topics)

    def _new_ids(
        self, records: NDArray[np.void], frames: NDArray[np.int64]
    ) -> list[list[tuple[int, int]] | None]:
        """Return per record the ids it brings (none for feedback), None for a repeated request.

        A record of a history that was loaded was never requested: its request is 0, and only
        the kernel can tell whether its transaction is a repeat.
        """
        requests = records["request"].tolist()
        snapshot = self._store.snapshot()
        known = snapshot.find_many(requests)
        snapshot.close()
        seen: set[int] = set()
        found: list[list[tuple[int, int]] | None] = []
        kinds, transactions = records["kind"].tolist(), records["transaction"].tolist()
        for i, request in enumerate(requests):
            if kinds[i] != Kind.TRANSACTION:
                found.append([])
            elif request == 0:
                found.append([(transactions[i], int(frames[i]))])
            elif request in seen or (known[i] is not None and known[i] != int(frames[i])):
                found.append(None)
            else:
                seen.add(request)
                found.append([(request, int(frames[i])), (transactions[i], int(frames[i]))])
        return found

    def _load(self, records: NDArray[np.void]) -> None:
        """Bring the states that a batch meets into the arena."""
        if self._arena.used_bytes > self._settings.arena_bytes_max // 2:
            self._arena.clear()  # everything in it is in the store
        missing = self._arena.missing(records["entities"].reshape(-1))
        snapshot = self._store.snapshot()
        try:
            blobs = snapshot.get_many(missing)
            known = [key for key, blob in zip(missing, blobs, strict=True) if blob is not None]
            there = [blob for blob in blobs if blob is not None]
            self._arena.put_new(np.array(known, np.int64), there)
        finally:
            snapshot.close()

    def _sweep(self) -> None:
        """Forget, a few at a time, entities long silent and ids whose frames are gone."""
        now = self._clock()
        if now < self._sweep_at or not self.newest_event_ms:
            return
        self._sweep_at = now + self._settings.sweep_every_ms / 1000
        oldest, _ = self._log.ends()
        # No event that is still taken in could see a state older than this.
        expired = self.newest_event_ms - EXPIRY_MS - HORIZON_MS
        dropped = self._store.sweep(expired, oldest, self._settings.sweep_limit)
        if dropped:
            self._arena.clear()
