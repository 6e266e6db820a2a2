"""The split stage: from records of one customer at a time to updates of one entity at a time.

Owns what is a repeat, and that every record reaches the partition of each of its entities exactly
once. One lane reads one partition of the events and writes in Kafka transactions of its own:
packed updates and how far it got, all or nothing. Whoever gets the partition next goes on from
what is written there, and its first act fences the one before.

A record is a repeat if its host's last one here is not before it, or if one of the last
``repeats_max`` of this partition had the same request. Both are functions of the log alone, so
every run over it says the same.
"""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurizer.eventlog import LogError
from featurizer.eventlog_kafka import (
    Consumer,
    Message,
    Partition,
    Received,
    key_bytes,
    origins_of,
)
from featurizer.kafka_settings import KafkaSettings
from featurizer.records import RECORD, Kind
from featurizer.spans import Context
from featurizer.tracing import LINKS_MAX, Tracer, new_context, traces_of
from featurizer.transactions import Transactions
from featurizer.updates import pack

_log = logging.getLogger(__name__)

INPUTS = ("transactions", "feedback")
READ_RECORDS = 20_000
READ_WAIT_MS = 500


@dataclass(frozen=True, slots=True)
class SplitSettings:
    """Partitions of the entities, and how many requests a partition remembers."""

    entity_partitions: int
    schema: int
    repeats_max: int = 1 << 18


@dataclass(slots=True)
class Progress:
    """How far a lane is: the next offset of each input, the last position of each host in it."""

    offsets: dict[str, int] = field(default_factory=dict)
    hosts: dict[str, dict[int, int]] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Return it as JSON."""
        return json.dumps({"offsets": self.offsets, "hosts": self.hosts}).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Progress:
        """Read what ``to_bytes`` gave. Raises LogError for anything else."""
        try:
            fields: dict[str, Any] = json.loads(data)
            hosts = {
                name: {int(host): int(last) for host, last in each.items()}
                for name, each in fields["hosts"].items()
            }
            return cls({name: int(n) for name, n in fields["offsets"].items()}, hosts)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LogError(f"the progress of a split cannot be read: {error!r}") from error


class Repeats:
    """The requests of the last ``maximum`` records of a partition."""

    def __init__(self, maximum: int) -> None:
        self._order: deque[int] = deque()
        self._seen: set[int] = set()
        self._maximum = maximum

    def is_new(self, request: int) -> bool:
        """Return whether none of them had this request, and remember it; 0 is always new."""
        if request in self._seen:
            return False
        if request:
            self._seen.add(request)
            self._order.append(request)
            if len(self._order) > self._maximum:
                self._seen.discard(self._order.popleft())
        return True


def well_formed(
    records: Sequence[Received],
) -> tuple[NDArray[np.void], NDArray[np.void], list[Received]]:
    """Return the records (RECORD[n]) that the values hold, their ORIGIN rows, and the n received.

    What is no record of this version is left out.
    """
    size = RECORD.itemsize
    fit = [each for each in records if each.value is not None and len(each.value) == size]
    rows = np.frombuffer(b"".join([each.value or b"" for each in fit]), RECORD)
    return rows, origins_of(fit), fit


def fresh(
    rows: NDArray[np.void],
    origins: NDArray[np.void],
    last: dict[int, int],
    repeats: Repeats,
) -> NDArray[np.bool_]:
    """Return which records count, and take them into ``last`` and ``repeats``.

    An origin without a host is one that somebody else sent: there its request alone can tell.
    """
    keep = np.zeros(len(rows), np.bool_)
    requests = rows["request"].tolist()
    kinds = rows["kind"].tolist()
    pairs = zip(origins["host"].tolist(), origins["position"].tolist(), strict=True)
    for i, (host, position) in enumerate(pairs):
        if host:
            if position <= last.get(host, -1):
                continue
            last[host] = position
        keep[i] = kinds[i] != Kind.TRANSACTION or repeats.is_new(requests[i])
    return keep


class SplitLane:
    """Splits one partition of the events. Call ``start`` once, then ``take`` what was read."""

    def __init__(
        self,
        number: int,
        kafka: KafkaSettings,
        settings: SplitSettings,
        tracer: Tracer | None = None,
    ) -> None:
        self._tracer = tracer or Tracer("fraud-split")
        self._number = number
        self._kafka = kafka
        self._settings = settings
        self._transactions = Transactions(kafka, f"split-{number}")
        self._progress = Progress()
        self._repeats = Repeats(settings.repeats_max)

    async def start(self, reader: Consumer) -> dict[Partition, int]:
        """Fence the lane before, and return where to read on. ``reader`` is free for use."""
        await self._transactions.start()
        self._progress = await self._read_progress(reader)
        ends = await reader.ends([self._at(name) for name in INPUTS])
        for name in INPUTS:
            oldest, _ = ends[self._at(name)]
            self._progress.offsets[name] = max(self._progress.offsets.get(name, 0), oldest)
            self._progress.hosts.setdefault(name, {})
        await self._remember(reader, ends[self._at("transactions")][0])
        return {self._at(name): self._progress.offsets[name] for name in INPUTS}

    async def stop(self) -> None:
        """Let go of the connections."""
        await self._transactions.stop()

    async def settle(self) -> None:
        """Nothing is left under way."""

    async def take(self, found: Mapping[Partition, Sequence[Received]]) -> int:
        """Split what was read of each input; return how many records counted.

        Raises LogError: nothing of it is written then, or all of it is, and only a new lane
        can tell.
        """
        batches: dict[Partition, list[Message]] = {}
        counted, start_ns, span = 0, time.time_ns(), new_context()
        links: list[Context] = []
        for name in INPUTS:
            received = found.get(self._at(name))
            if not received:
                continue
            rows, origins, fit = well_formed(received)
            if len(rows) < len(received):
                _log.error("%s: %d values are no records", name, len(received) - len(rows))
            keep = fresh(rows, origins, self._progress.hosts[name], self._repeats)
            traced = self._traced(fit, keep)
            rows, origins = rows[keep], origins[keep]
            counted += len(rows)
            self._progress.offsets[name] = received[-1].offset + 1
            if len(rows):
                self._pack(rows, origins, traced, span, batches)
                links += traced.values()
        batches[self._at("split-progress")] = [
            Message(key_bytes(self._number), self._progress.to_bytes())
        ]
        await self._transactions.commit(batches)
        self._tracer.batch(
            "process", self._kafka.topic("transactions"), start_ns, links, context=span,
            attributes={
                "messaging.system": "kafka",
                "messaging.destination.partition.id": str(self._number),
            },
        )  # fmt: skip
        return counted

    def _traced(self, records: Sequence[Received], keep: NDArray[np.bool_]) -> dict[int, Context]:
        """Return the calls of kept traces by the row that each has among the records to keep."""
        if not self._tracer.is_on:
            return {}
        kept = [record for record, is_kept in zip(records, keep, strict=True) if is_kept]
        found = {
            i: traces_of(record.headers) for i, record in enumerate(kept) if len(record.headers) > 1
        }
        return {i: traces[0] for i, traces in found.items() if traces}

    def _pack(
        self,
        rows: NDArray[np.void],
        origins: NDArray[np.void],
        traced: Mapping[int, Context],
        span: Context,
        batches: dict[Partition, list[Message]],
    ) -> None:
        """Add an array for each partition; it names the span, and the calls that it has rows of."""
        named: dict[int, list[Context]] = {}
        for row, context in traced.items():
            for home in self._homes(rows[row]):
                named.setdefault(home, [span]).append(context)
        packed = pack(
            rows,
            np.ascontiguousarray(origins["host"]),
            np.ascontiguousarray(origins["position"]),
            self._settings.entity_partitions,
            (self._number, self._settings.schema),
        )
        for partition, value in packed.items():
            at = (self._kafka.topic("entity-updates"), partition)
            traces = named.get(partition, ())[: LINKS_MAX + 1]
            message = Message(key_bytes(partition), value, traces=traces)
            batches.setdefault(at, []).append(message)

    def _homes(self, record: np.void) -> set[int]:
        """Return the partitions of a record's entities."""
        keys = record["entities"]
        homes = keys[keys != 0].view(np.uint64) % np.uint64(self._settings.entity_partitions)
        return {int(home) for home in homes}

    def _at(self, name: str) -> Partition:
        return self._kafka.topic(name), self._number

    async def _read_progress(self, reader: Consumer) -> Progress:
        """Return what the last transaction of this lane wrote; its producer is fenced by now.

        The partition is this lane's alone: an open transaction of another lane would hide from us
        what was committed after it began.
        """
        found = Progress()
        async for record in read_all(reader, self._at("split-progress"), 0):
            if record.value is not None:
                found = Progress.from_bytes(record.value)
        return found

    async def _remember(self, reader: Consumer, oldest: int) -> None:
        """Fill the repeats from the records before the place to read on."""
        stop = self._progress.offsets["transactions"]
        start = max(oldest, stop - self._settings.repeats_max)
        if start >= stop:
            return
        async for record in read_all(reader, self._at("transactions"), start, stop):
            if record.value is not None and len(record.value) == RECORD.itemsize:
                self._repeats.is_new(int(np.frombuffer(record.value, RECORD)["request"][0]))


async def read_all(reader: Consumer, at: Partition, start: int, stop: int | None = None) -> Any:
    """Yield the committed records of a partition from ``start`` to ``stop`` or its end."""
    oldest, end = (await reader.ends([at]))[at]
    stop = end if stop is None else min(stop, end)
    offset = max(start, oldest)
    reader.assign({at: offset})
    while offset < stop:
        found = await reader.poll(READ_RECORDS, READ_WAIT_MS)
        for record in found.get(at, ()):
            if record.offset >= stop:
                return
            yield record
        offset = await reader.position(at)
