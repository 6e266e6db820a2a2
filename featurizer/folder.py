"""The fold stage: applies packed updates to the states of one partition of the entities.

Owns that states, what each host has in them, which updates were met and the offset to read on from
are written together, so a crash at any point leaves a store from which the next start simply goes
on. Must not know which store it is.

A split that begins anew writes some updates again. The last offset that was met of each source is
kept with the states, and what is not beyond it is left out. What a scorer has to know, namely how
much of its own journal is in here, is kept as a state too: one row per host, under a key made of
the host's.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from featurizer.arena import Arena
from featurizer.eventlog_kafka import Consumer, Partition, Received
from featurizer.kafka_settings import KafkaSettings
from featurizer.progress import MET_KEY, Reached, pack_progress, progress_key, read_progress
from featurizer.store import Store
from featurizer.tracing import Tracer, traces_of
from featurizer.updates import KINDS, Updates, sources_of, take_new

_log = logging.getLogger(__name__)

UPDATES = "entity-updates"
PART_BYTES = 1 << 20  # of updates, about 4,000 of them; then the loop has its turn


class FoldLane:
    """Folds one partition. ``open_store`` takes the partition's number, and the write lock."""

    def __init__(
        self,
        number: int,
        kafka: KafkaSettings,
        inputs: int,
        schema: int,
        open_store: Callable[[int], Store],
        arena_bytes_max: int = 2 << 30,
        tracer: Tracer | None = None,
    ) -> None:
        self._tracer = tracer or Tracer("fraud-fold")
        self._number = number
        self._at: Partition = (kafka.topic(UPDATES), number)
        self._sources = inputs * KINDS
        self._schema = schema
        self._open_store = open_store
        self._arena = Arena(arena_bytes_max)
        self._arena_bytes_max = arena_bytes_max
        self._store: Store | None = None
        self._hosts: dict[int, Reached] = {}
        self._met = read_progress(None, self._sources)
        self.offset = 0

    async def start(self, reader: Consumer) -> dict[Partition, int]:
        """Take the store over, and return the offset that is stored with the states."""
        self._store = self._open_store(self._number)
        snapshot = self._store.snapshot()
        self.offset = snapshot.position
        self._met = read_progress(snapshot.get_many([MET_KEY])[0], self._sources)
        snapshot.close()
        oldest, _ = (await reader.ends([self._at]))[self._at]
        if self.offset < oldest:
            _log.warning(
                "partition %d: states begin at offset %d, as older updates are gone",
                self._number,
                oldest,
            )
            self.offset = oldest
        return {self._at: self.offset}

    def states(self) -> list[tuple[int, bytes]]:
        """Return every state in memory, what each host has in them, and what was met."""
        return self._arena.states() + self._rows(self._hosts)

    async def stop(self) -> None:
        """Close the store."""
        store, self._store = self._store, None
        if store is not None:
            store.close()

    async def settle(self) -> None:
        """Nothing is left under way."""

    async def take(self, found: Mapping[Partition, Sequence[Received]]) -> int:
        """Fold what was read and write it, with the offset after it; return how many updates.

        In parts, so that the group hears of us in between, and what is written stays so if a part
        cannot be: with much to catch up and little CPU, all at once took longer than a session, and
        whoever took the partition over began at the same place.
        """
        folded = 0
        for part in _parts(found[self._at]):
            folded += self._fold(part)
            await asyncio.sleep(0)
        return folded

    def _fold(self, received: Sequence[Received]) -> int:
        start_ns = time.time_ns()
        arrays, positions = [], []
        changed: set[int] = set()
        for record in received:
            new = take_new(record.value or b"", record.offset, self._schema, self._met.positions)
            if len(new.rows):
                self._met = self._met._replace(as_of=int(new.positions[-1]))
            arrays.append(new.rows)
            positions.append(new.positions)
            changed |= self._note(new)
        updates = np.concatenate(arrays)
        self._load(updates)
        self._arena.apply(updates, np.concatenate(positions))
        self._write(changed, received[-1].offset + 1)
        if self._tracer.is_on:
            links = [each for record in received for each in traces_of(record.headers)]
            self._tracer.batch(
                "process", self._at[0], start_ns, [*dict.fromkeys(links)],
                attributes={
                    "messaging.system": "kafka",
                    "messaging.destination.partition.id": str(self._number),
                },
            )  # fmt: skip
        return len(updates)

    def _write(self, changed: set[int], offset: int) -> None:
        states = self._arena.states(dirty_only=True)
        self._live().write(states + self._rows(sorted(changed)), [], offset)
        self._arena.clean()
        self.offset = offset

    def _live(self) -> Store:
        assert self._store is not None  # noqa: S101 - a lane is fed only after its start
        return self._store

    def _rows(self, hosts: Iterable[int]) -> list[tuple[int, bytes]]:
        """Return key and row of what is in the states of each host, and of what was met."""
        reached = [(progress_key(host), self._hosts[host]) for host in hosts]
        if self._met.as_of:
            reached.append((MET_KEY, self._met))
        return [(key, pack_progress(at.positions, at.as_of)) for key, at in reached]

    def _note(self, new: Updates) -> set[int]:
        """Take in how far each host is; return which ones moved."""
        moved = set()
        for host, source, last in sources_of(new.rows, new.partition):
            if not host:
                continue  # from no journal that anybody follows
            if host not in self._hosts:
                self._hosts[host] = self._read_progress(host)
            reached = self._hosts[host].positions
            reached[source] = max(int(reached[source]), last)
            moved.add(host)
        for host in moved:
            as_of = int(new.positions[new.rows["host"] == host][-1])
            self._hosts[host] = self._hosts[host]._replace(as_of=as_of)
        return moved

    def _read_progress(self, host: int) -> Reached:
        snapshot = self._live().snapshot()
        try:
            return read_progress(snapshot.get_many([progress_key(host)])[0], self._sources)
        finally:
            snapshot.close()

    def _load(self, updates: NDArray[np.void]) -> None:
        """Bring the states that the updates touch into the arena."""
        if self._arena.used_bytes > self._arena_bytes_max // 2:
            self._arena.clear()  # everything in it is in the store
        masks = updates["mask"][:, None] >> np.arange(updates["record"]["entities"].shape[1]) & 1
        missing = self._arena.missing(updates["record"]["entities"][masks.astype(bool)])
        if not missing:
            return
        snapshot = self._live().snapshot()
        try:
            blobs = snapshot.get_many(missing)
            known = [key for key, blob in zip(missing, blobs, strict=True) if blob is not None]
            there = [blob for blob in blobs if blob is not None]
            self._arena.put_new(np.array(known, np.int64), there)
        finally:
            snapshot.close()


def _parts(received: Sequence[Received]) -> Iterator[Sequence[Received]]:
    """Cut what was read into parts that end where they have PART_BYTES."""
    first = size = 0
    for place, record in enumerate(received):
        size += len(record.value or b"")
        if size >= PART_BYTES or place == len(received) - 1:
            yield received[first : place + 1]
            first, size = place + 1, 0
