"""The relay role: ships a host's journal to Kafka, in order, and says how far it is.

Owns the loop of read, send, note. Records go out before their position is noted, so after a crash
or an answer that never came some go out twice, with the same host and position: whoever reads
drops what is not beyond the last one of that host. Must not know what a value means, but for the
ids that a scorer looks up, which are kept in the index with the position.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featurizer.eventlog import Batch, EventLog, LogError, Topic
from featurizer.eventlog_kafka import Message, Partition, Producer, key_bytes, partition_of
from featurizer.kafka_settings import KafkaSettings
from featurizer.lags import Lags
from featurizer.progress import SHIPPED_KEY, pack_progress, read_progress
from featurizer.records import Entity, Kind
from featurizer.spans import Context
from featurizer.store import Store
from featurizer.topics import ORIGIN, TOPIC_OF
from featurizer.tracing import Tracer
from featurizer.updates import KINDS, homes_of, source_of
from featurizer.worker import records_of

_log = logging.getLogger(__name__)
LOOKS_MAX = 1 << 16


@dataclass(frozen=True, slots=True)
class RelaySettings:
    """Bounds of the loop: bytes a batch, pauses when idle and after an error, how often to tell."""

    read_bytes: int = 4 << 20
    idle_ms: float = 1.0
    retry_ms: float = 500.0
    tell_ms: float = 1_000.0


@dataclass(frozen=True, slots=True)
class RelayStatus:
    """How far the relay is: what is not shipped yet, and how fast it goes."""

    shipped_position: int
    backlog_bytes: int
    oldest_age_ms: int
    records_per_s: float
    errors: int


def messages_of(
    batch: Batch, host: int, settings: KafkaSettings, kept: Mapping[int, Context]
) -> dict[Partition, list[Message]]:
    """Return what a batch of the journal is in Kafka: a record for each entry, in order.

    ``kept`` are the calls of kept decisions, by their entries; transaction and decision name them.
    """
    origins = np.zeros(len(batch.topics), ORIGIN)
    origins["host"], origins["position"] = host, batch.positions
    origins["kind"] = batch.topics
    origins["place"] = batch.positions - batch.frames - 1
    headers, width = origins.tobytes(), ORIGIN.itemsize
    names = {topic: settings.topic(name) for topic, name in TOPIC_OF.items()}
    found: dict[Partition, list[Message]] = {}
    for i, (topic, key) in enumerate(zip(batch.topics.tolist(), batch.keys.tolist(), strict=True)):
        alone = topic in (Topic.MODELS, Topic.DEAD_LETTERS, Topic.AUDIT)
        at = (names[Topic(topic)], 0 if alone else partition_of(key, settings.event_partitions))
        header = headers[i * width : (i + 1) * width]
        traced = kept.get(i + 1 if topic == Topic.TRANSACTIONS else i) if kept else None
        traces = () if traced is None else (traced,)
        found.setdefault(at, []).append(Message(key_bytes(key), batch.value(i), header, traces))
    return found


def note_sources(
    records: NDArray[np.void], positions: NDArray[np.int64], shipped: NDArray[np.int64], inputs: int
) -> None:
    """Take into ``shipped`` int64[partitions, sources] the last position that each is to get."""
    partitions = shipped.shape[0]
    keys = records["entities"]
    events = homes_of(keys[:, Entity.CUSTOMER], inputs)
    sources = source_of(events, records["kind"].astype(np.int64))
    homes = homes_of(keys, partitions)
    for entity in range(keys.shape[1]):
        there = keys[:, entity] != 0
        at = (homes[there, entity], sources[there])
        np.maximum.at(shipped, at, positions[there])


def ids_of(batch: Batch) -> list[tuple[int, int]]:
    """Return request and transaction ids of a batch with the position of their frame."""
    records, _, frames = records_of(batch)
    fresh = records["kind"] == Kind.TRANSACTION
    requests, transactions = records["request"][fresh], records["transaction"][fresh]
    places = frames[fresh].tolist()
    pairs = [*zip(requests.tolist(), places, strict=True)]
    pairs += zip(transactions.tolist(), places, strict=True)
    return [pair for pair in pairs if pair[0]]


class Relay:
    """Ships one journal. ``index`` keeps the ids and how far it got; ``host`` is its own hash.

    ``drop`` is called now and then with a position before which everything is shipped.
    """

    def __init__(
        self,
        journal: EventLog,
        index: Store,
        kafka: KafkaSettings,
        host: int,
        settings: RelaySettings,
        tell: Callable[[RelayStatus], None],
        drop: Callable[[int], object] = lambda _: None,
        clock_ms: Callable[[], float] = lambda: time.time_ns() / 1e6,
        tracer: Tracer | None = None,
    ) -> None:
        self._tracer = tracer or Tracer("fraud-relay")
        self._journal = journal
        self._index = index
        self._kafka = kafka
        self._host = host
        self._settings = settings
        self._tell = tell
        self._drop = drop
        self._clock_ms = clock_ms
        self._producer = Producer(kafka)
        self._errors = 0
        self._shipped = 0
        self._lags = Lags(LOOKS_MAX)
        snapshot = index.snapshot()
        shape = (kafka.entity_partitions, kafka.event_partitions * KINDS)
        [row] = snapshot.get_many([SHIPPED_KEY])
        self._sources = read_progress(row, shape[0] * shape[1]).positions.reshape(shape)
        self.position = max(snapshot.position, journal.ends()[0])
        snapshot.close()

    async def run(self, stopping: Callable[[], bool]) -> None:
        """Ship until ``stopping`` says so; an error is told, and tried again without end."""
        told_ms, shipped = self._clock_ms(), 0
        await self._connect(stopping)
        try:
            while not stopping():
                if not await self._try_step():
                    await asyncio.sleep(self._settings.idle_ms / 1000)
                now_ms = self._clock_ms()
                if now_ms - told_ms >= self._settings.tell_ms:
                    rate = (self._shipped - shipped) / (now_ms - told_ms) * 1000
                    told_ms, shipped = now_ms, self._shipped
                    self._tell(self._status(rate, now_ms))
                    self._drop(self.position)
        finally:
            await self._producer.stop()

    async def step(self) -> int:
        """Ship one read of the journal; return how many records it had. Raises LogError."""
        batch = self._journal.read(self.position, self._settings.read_bytes)
        if batch.next_position == self.position:
            return 0
        for damage in batch.damage:
            _log.error("the journal is damaged at %d: %s", damage.position, damage.cause)
        start_ns, kept = time.time_ns(), self._tracer.kept_of(batch)
        await self._producer.send(messages_of(batch, self._host, self._kafka, kept))
        records, positions, _ = records_of(batch)
        note_sources(records, positions, self._sources, self._kafka.event_partitions)
        rows = [(SHIPPED_KEY, pack_progress(self._sources))]
        self._index.write(rows, ids_of(batch), batch.next_position)
        self.position = batch.next_position
        self._shipped += len(batch.topics)
        self._tracer.batch(
            "send", self._kafka.topic(TOPIC_OF[Topic.TRANSACTIONS]), start_ns, [*kept.values()],
            attributes={"messaging.system": "kafka"},
        )  # fmt: skip
        return len(batch.topics)

    async def start(self) -> None:
        """Connect. Raises LogError."""
        await self._producer.start()

    async def _try_step(self) -> int:
        try:
            return await self.step()
        except LogError as error:
            self._errors += 1
            _log.warning("not shipped, tried again: %s", error)
            await asyncio.sleep(self._settings.retry_ms / 1000)
            # What is in doubt is sent again by a new producer, with the same origins.
            await self._producer.stop()
            with contextlib.suppress(LogError):
                await self._producer.start()
            return 0

    async def _connect(self, stopping: Callable[[], bool]) -> None:
        while not stopping():
            try:
                await self._producer.start()
            except LogError as error:
                _log.warning("no broker yet: %s", error)
                await self._producer.stop()
                await asyncio.sleep(self._settings.retry_ms / 1000)
            else:
                return

    def _status(self, rate: float, now_ms: float) -> RelayStatus:
        """Say how far it is; the backlog is as old as the first look that saw its first byte."""
        end = self._journal.ends()[1]
        self._lags.forget(self.position)
        self._lags.look(now_ms / 1000, end)
        _, age_s = self._lags.of(self.position, now_ms / 1000)
        age_ms = round(age_s * 1000)
        return RelayStatus(self.position, end - self.position, age_ms, rate, self._errors)
