"""Lanes of the split over logs in memory, whose sends arrive in part, late or never.

Owns what a broker may do to a lane that dies, or is taken for dead. Must not know what is right.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurizer.cluster import schema_number
from featurizer.eventlog import LogError
from featurizer.eventlog_kafka import ORIGIN_HEADER, Message, Partition
from featurizer.kafka_settings import KafkaSettings
from featurizer.records import RECORD, RECORD_VERSION, Kind
from featurizer.splitter import INPUTS, SplitLane, SplitSettings
from featurizer.topics import ORIGIN
from featurizer.updates import KINDS, take_new
from tests.checker import Raw

PARTITIONS = 2  # of the entities, and of the events, of which the first is used
KAFKA = KafkaSettings(
    "nowhere:1", "lanes", event_partitions=PARTITIONS, entity_partitions=PARTITIONS
)
SETTINGS = SplitSettings(PARTITIONS, schema_number(), repeats_max=3, progress_records=2)
WRITTEN = [(KAFKA.topic("entity-updates"), number) for number in range(PARTITIONS)]
WRITTEN.append((KAFKA.topic("split-progress"), 0))
Batches = Mapping[Partition, Sequence[Message]]


@dataclass
class Entry:
    """A record of a log."""

    offset: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]
    timestamp: int = 0


@dataclass
class Logs:
    """Partitions; it reads them, too, as far as a lane wants a reader at its start."""

    records: dict[Partition, list[Entry]] = field(default_factory=lambda: defaultdict(list))
    late: list[tuple[Partition, Sequence[Message]]] = field(default_factory=list)
    _at: dict[Partition, int] = field(default_factory=dict)

    def append(self, at: Partition, messages: Sequence[Message]) -> None:
        log = self.records[at]
        for each in messages:
            log.append(Entry(len(log), each.key, each.value, [(ORIGIN_HEADER, each.origin)]))

    async def ends(self, places: Sequence[Partition]) -> dict[Partition, tuple[int, int]]:
        return {at: (0, len(self.records[at])) for at in places}

    def assign(self, offsets: Mapping[Partition, int]) -> None:
        self._at = dict(offsets)

    async def poll(self, most: int, _wait_ms: int) -> dict[Partition, list[Entry]]:
        found = {at: self.records[at][offset:][:most] for at, offset in self._at.items()}
        self._at = {at: offset + len(found[at]) for at, offset in self._at.items()}
        return found

    async def position(self, at: Partition) -> int:
        return self._at[at]

    def updates(self, partition: int) -> list[Entry]:
        return self.records[KAFKA.topic("entity-updates"), partition]


@dataclass
class Sender:
    """Stands for a producer. ``arriving`` is all that the next send gets to; None is for all."""

    logs: Logs
    arriving: set[Partition] | None = None

    async def start(self) -> None:
        pass

    async def send(self, batches: Batches) -> None:
        for at, messages in batches.items():
            if self.arriving is None or at in self.arriving:
                self.logs.append(at, messages)
            else:
                self.logs.late.append((at, messages))
        if self.arriving is not None:
            raise LogError("no answer")


class Lane:
    """A lane, and where it is. ``sender`` is what it writes by."""

    def __init__(self, logs: Logs, settings: SplitSettings = SETTINGS) -> None:
        self._logs = logs
        self.sender = Sender(logs)
        self._lane = SplitLane(0, KAFKA, settings)
        self._lane._producer = self.sender  # type: ignore[assignment]
        self._offsets: dict[Partition, int] = {}

    async def start(self) -> None:
        self._offsets = await self._lane.start(self._logs)  # type: ignore[arg-type]

    async def take(self, most: int) -> int:
        """Split at most so many records of each input; return how many were there."""
        found: dict[Partition, Sequence[Any]] = {}
        for at, offset in self._offsets.items():
            if some := self._logs.records[at][offset:][:most]:
                found[at] = some
                self._offsets[at] += len(some)
        if found:
            await self._lane.take(found)
        return sum(len(each) for each in found.values())

    async def settle(self) -> None:
        await self._lane.settle()


def record_of(kind: Kind, request: int, keys: Sequence[int]) -> NDArray[np.void]:
    record = np.zeros(1, RECORD)
    record["version"], record["kind"], record["request"] = RECORD_VERSION, kind, request
    record["transaction"] = request
    record["entities"][0, : len(keys)] = keys
    return record


def send_event(logs: Logs, host: int, position: int, record: NDArray[np.void]) -> None:
    """Append a record as a relay sends it."""
    name = {kind: name for name, kind in INPUTS.items()}[Kind(record["kind"][0])]
    origin = np.zeros(1, ORIGIN)
    origin["host"], origin["position"] = host, position
    logs.append((KAFKA.topic(name), 0), [Message(b"", record.tobytes(), origin.tobytes())])


def kept_rows(logs: Logs) -> dict[tuple[int, int], list[bytes]]:
    """Return what counts, in order, of each partition and kind of record."""
    found: dict[tuple[int, int], list[bytes]] = defaultdict(list)
    for partition in range(PARTITIONS):
        met = np.full(KINDS, -1, np.int64)
        for entry in logs.updates(partition):
            new = take_new(entry.value or b"", entry.offset, schema_number(), met)
            for row in new.rows:
                found[partition, int(row["record"]["kind"])].append(row.tobytes())
    return found


def raw_of(logs: Logs) -> dict[str, list[Raw]]:
    """Return the logs as the checker reads them."""
    found: dict[str, list[Raw]] = {name: [] for name in ("transactions", "feedback", "decisions")}
    found["entity-updates"] = []
    for (topic, partition), entries in logs.records.items():
        name = topic.removeprefix("lanes.")
        if name in found:
            found[name] += [
                Raw(partition, each.offset, dict(each.headers), each.value or b"")
                for each in entries
            ]
    return found
