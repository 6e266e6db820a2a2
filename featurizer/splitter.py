"""The split stage: from records of one customer at a time to updates of one entity at a time.

Owns what is a repeat, and that every record reaches the partition of each of its entities. One lane
reads one partition of the events, in order, writes packed updates, waits until they are
acknowledged, and only then goes on; now and then it writes how far it got. Whoever gets the
partition next goes on from there, and writes again what came after: the same rows, which name the
offset of their record, so that a fold knows them (docs/decisions/0033).

A record is a repeat if its host's last one here is not before it, or if one of the ``repeats_max``
offsets before it had the same request. Both are functions of the log alone, so every run over it,
from whatever progress, says the same.
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
    Producer,
    Received,
    key_bytes,
    origins_of,
)
from featurizer.kafka_settings import KafkaSettings
from featurizer.records import RECORD, Kind
from featurizer.spans import Context
from featurizer.tracing import LINKS_MAX, Tracer, new_context, traces_of
from featurizer.updates import homes_of, pack

_log = logging.getLogger(__name__)

INPUTS = {"transactions": Kind.TRANSACTION, "feedback": Kind.FEEDBACK}  # topics, and what is there
PROGRESS = "split-progress"
READ_RECORDS = 20_000
READ_WAIT_MS = 500
_FIELDS: Mapping[str, tuple[Any, ...]] = RECORD.fields or {}
_KIND_AT: int = _FIELDS["kind"][1]


@dataclass(frozen=True, slots=True)
class SplitSettings:
    """Partitions of the entities, and over how many offsets a partition remembers requests.

    A lane that begins anew writes again what came after the last progress: ``progress_records``,
    and what was read at once.
    """

    entity_partitions: int
    schema: int
    repeats_max: int = 1 << 18
    progress_records: int = 10_000


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
    """The requests at the last ``maximum`` offsets of a partition.

    What it knows at an offset depends on those records alone, wherever it began to look.
    """

    def __init__(self, maximum: int) -> None:
        self._offsets: deque[int] = deque()
        self._requests: deque[int] = deque()
        self._last: dict[int, int] = {}  # where each was last
        self._maximum = maximum

    def is_new(self, request: int, offset: int) -> bool:
        """Return whether none of them had this request, and remember it; 0 is always new."""
        while self._offsets and self._offsets[0] < offset - self._maximum:
            oldest, gone = self._offsets.popleft(), self._requests.popleft()
            if self._last[gone] == oldest:
                del self._last[gone]
        if not request:
            return True
        is_new = request not in self._last
        self._last[request] = offset
        self._offsets.append(offset)
        self._requests.append(request)
        return is_new


def well_formed(
    records: Sequence[Received], kind: Kind
) -> tuple[NDArray[np.void], NDArray[np.void], list[Received]]:
    """Return the records (RECORD[n]) that the values hold, their ORIGIN rows, and the n received.

    What is no record of this kind is left out: its offset would be taken for one of another topic.
    """
    fit = [each for each in records if _is_record(each.value, kind)]
    rows = np.frombuffer(b"".join([each.value or b"" for each in fit]), RECORD)
    return rows, origins_of(fit), fit


def _is_record(value: bytes | None, kind: Kind) -> bool:
    return value is not None and len(value) == RECORD.itemsize and value[_KIND_AT] == kind


def fresh(
    rows: NDArray[np.void],
    places: NDArray[np.int64],
    last: dict[int, int],
    repeats: Repeats | None,
) -> NDArray[np.bool_]:
    """Return which records count, and take all into ``last`` and, of payments, ``repeats``.

    ``places`` are as in ``pack``. An origin without a host is one that somebody else sent: there
    its request alone can tell.
    """
    keep = np.zeros(len(rows), np.bool_)
    requests = rows["request"].tolist()
    for i, (offset, host, position) in enumerate(places.tolist()):
        is_new = repeats is None or repeats.is_new(requests[i], offset)
        if host:
            if position <= last.get(host, -1):
                continue
            last[host] = position
        keep[i] = is_new
    return keep


def places_of(received: Sequence[Received], origins: NDArray[np.void]) -> NDArray[np.int64]:
    """Return int64[n, 3]: the offset of each record, and host and position of its origin."""
    offsets = np.array([each.offset for each in received], np.int64)
    return np.stack([offsets, origins["host"], origins["position"]], axis=1)


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
        self._producer = Producer(kafka)
        self._progress = Progress()
        self._unwritten = 0  # records since progress was written
        self._repeats = Repeats(settings.repeats_max)

    async def start(self, reader: Consumer) -> dict[Partition, int]:
        """Return where to read on. ``reader`` is free for use."""
        await self._producer.start()
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
        await self._producer.stop()

    async def settle(self) -> None:
        """Write how far it is. Raises LogError."""
        if self._unwritten:
            await self._producer.send(self._progress_batch())
            self._unwritten = 0

    async def take(self, found: Mapping[Partition, Sequence[Received]]) -> int:
        """Split what was read of each input; return how many records counted.

        Raises LogError: some of it may be written then, or is to be, and only a new lane may go on.
        """
        batches: dict[Partition, list[Message]] = {}
        if self._unwritten >= self._settings.progress_records:
            # What was acknowledged before; it goes with the rest, as nobody need wait for it.
            batches, self._unwritten = self._progress_batch(), 0
        counted, start_ns, span = 0, time.time_ns(), new_context()
        links: list[Context] = []
        for name, kind in INPUTS.items():
            received = found.get(self._at(name))
            if not received:
                continue
            rows, origins, fit = well_formed(received, kind)
            if len(rows) < len(received):
                _log.error("%s: %d values are no records", name, len(received) - len(rows))
            places = places_of(fit, origins)
            repeats = self._repeats if kind == Kind.TRANSACTION else None
            keep = fresh(rows, places, self._progress.hosts[name], repeats)
            traced = self._traced(fit, keep)
            rows, places = rows[keep], places[keep]
            counted += len(rows)
            self._progress.offsets[name] = received[-1].offset + 1
            self._unwritten += len(received)
            if len(rows):
                self._pack(rows, places, traced, span, batches)
                links += traced.values()
        await self._producer.send(batches)
        self._tracer.batch(
            "process", self._kafka.topic("transactions"), start_ns, links, context=span,
            attributes={
                "messaging.system": "kafka",
                "messaging.destination.partition.id": str(self._number),
            },
        )  # fmt: skip
        return counted

    def _progress_batch(self) -> dict[Partition, list[Message]]:
        message = Message(key_bytes(self._number), self._progress.to_bytes())
        return {self._at(PROGRESS): [message]}

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
        places: NDArray[np.int64],
        traced: Mapping[int, Context],
        span: Context,
        batches: dict[Partition, list[Message]],
    ) -> None:
        """Add an array for each partition; it names the span, and the calls that it has rows of."""
        named: dict[int, list[Context]] = {}
        for row, context in traced.items():
            for home in self._homes(rows[row]):
                named.setdefault(home, [span]).append(context)
        source = (self._number, self._settings.schema)
        packed = pack(rows, places, self._settings.entity_partitions, source)
        for partition, value in packed.items():
            at = (self._kafka.topic("entity-updates"), partition)
            traces = named.get(partition, ())[: LINKS_MAX + 1]
            message = Message(key_bytes(partition), value, traces=traces)
            batches.setdefault(at, []).append(message)

    def _homes(self, record: np.void) -> set[int]:
        """Return the partitions of a record's entities."""
        keys = record["entities"]
        return set(homes_of(keys[keys != 0], self._settings.entity_partitions).tolist())

    def _at(self, name: str) -> Partition:
        return self._kafka.topic(name), self._number

    async def _read_progress(self, reader: Consumer) -> Progress:
        """Return what was written last. A lane that was taken for dead may write older ones."""
        found = Progress()
        async for record in read_all(reader, self._at(PROGRESS), 0):
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
            if _is_record(record.value, Kind.TRANSACTION):
                request = np.frombuffer(record.value, RECORD)["request"][0]
                self._repeats.is_new(int(request), record.offset)


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
