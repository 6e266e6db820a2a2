"""Kafka: producing, consuming, topics. The only importer of aiokafka.

Owns what a record looks like, which errors mean what, and that nothing waits without a bound.
Must not know what a value means. Every method raises LogError for what the cluster refuses or
does not do in time; after one of a transaction, only a new Producer knows where it stands.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import aiokafka
import numpy as np
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import (
    IllegalStateError,
    KafkaError,
    ProducerFenced,
    TopicAlreadyExistsError,
)
from numpy.typing import NDArray

from featurizer.eventlog import LogError
from featurizer.kafka_settings import KafkaSettings
from featurizer.spans import TRACE_HEADER, Context
from featurizer.topics import ORIGIN, TopicRow

ORIGIN_HEADER = "o"
_NO_ORIGIN = bytes(ORIGIN.itemsize)
_HEARTBEAT_MS_MAX = 3_000  # a member hears of a rebalance by it, and others wait meanwhile
_LOOKS_MAX = 100
_LOOK_S = 0.1

Partition = tuple[str, int]  # full name of the topic, number of the partition


class Fenced(LogError):  # noqa: N818 - it names what happened to the caller
    """Another producer has taken over; this one's transaction does not exist."""


class Message(NamedTuple):
    """What one record is to hold; ``origin`` is an ORIGIN row's bytes, ``traces`` whose it is."""

    key: bytes
    value: bytes
    origin: bytes = _NO_ORIGIN
    traces: Sequence[Context] = ()


class Received(Protocol):
    """What one record holds."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


def key_bytes(key: int) -> bytes:
    """Return a 64-bit key as it stands in a record."""
    return key.to_bytes(8, "big", signed=True)


def partition_of(key: int, partitions: int) -> int:
    """Return the partition of a key, the same for every writer and reader."""
    return (key & 0xFFFFFFFFFFFFFFFF) % partitions


def origins_of(records: Sequence[Received]) -> NDArray[np.void]:
    """Return ORIGIN[n]; all zeros for a record that somebody else sent."""
    found = [_origin(record.headers) for record in records]
    return np.frombuffer(b"".join(found), ORIGIN)


def _origin(headers: Sequence[tuple[str, bytes]]) -> bytes:
    for name, value in headers:
        if name == ORIGIN_HEADER and len(value) == ORIGIN.itemsize:
            return value
    return _NO_ORIGIN


def _client(settings: KafkaSettings) -> dict[str, Any]:
    """Return the arguments that every client of aiokafka takes."""
    context = None
    if settings.security.endswith("SSL"):
        context = ssl.create_default_context(cafile=settings.ca_file or None)
        if settings.cert_file:
            context.load_cert_chain(settings.cert_file, settings.key_file or None)
    return {
        "bootstrap_servers": settings.bootstrap,
        "client_id": "fraudsvc",
        "request_timeout_ms": settings.request_ms,
        "security_protocol": settings.security,
        "ssl_context": context,
        "sasl_mechanism": settings.mechanism,
        "sasl_plain_username": settings.user or None,
        "sasl_plain_password": settings.password(),
    }


@contextlib.asynccontextmanager
async def _bounded(action: str, timeout_ms: int) -> AsyncIterator[None]:
    """Turn what may go wrong into a LogError that says what was tried."""
    try:
        async with asyncio.timeout(timeout_ms / 1000):
            yield
    except ProducerFenced as error:
        raise Fenced(f"cannot {action}: another producer took over") from error
    except TimeoutError as error:
        raise LogError(f"cannot {action}: no answer within {timeout_ms} ms") from error
    except (KafkaError, OSError, AssertionError, ValueError) as error:
        # aiokafka asserts and raises ValueError for what a broker answers out of turn.
        raise LogError(f"cannot {action}: {error!r}") from error


class Producer:
    """Sends records in batches of its own making, each acknowledged by all replicas in sync.

    With ``transactional_id`` everything goes through ``transaction``. A batch is stored whole or
    not at all.
    """

    def __init__(self, settings: KafkaSettings, transactional_id: str | None = None) -> None:
        self._settings = settings
        self._transactional_id = transactional_id
        self._producer: Any = None

    async def start(self) -> None:
        """Connect; a transactional one fences its predecessor."""
        settings = self._settings
        async with _bounded("start a producer", 3 * settings.request_ms):
            self._producer = aiokafka.AIOKafkaProducer(
                **_client(settings),
                acks="all",
                enable_idempotence=True,
                max_batch_size=settings.batch_bytes_max,
                max_request_size=2 * settings.batch_bytes_max,
                linger_ms=settings.linger_ms,
                transactional_id=self._transactional_id,
                transaction_timeout_ms=settings.transaction_ms,
            )
            await self._producer.start()

    async def stop(self) -> None:
        """Let go of the connections; what is not acknowledged yet is not tried again."""
        producer, self._producer = self._producer, None
        if producer is not None:
            with contextlib.suppress(LogError):
                async with _bounded("stop", self._settings.request_ms):
                    # Otherwise aiokafka goes on for ever: idempotent batches never expire.
                    if producer._sender is not None and producer._sender.sender_task is not None:
                        producer._sender.sender_task.cancel()
                    await producer.client.close()
                    await producer.stop()

    async def send(self, batches: Mapping[Partition, Sequence[Message]]) -> dict[Partition, int]:
        """Send each partition's messages, in order; return the offset of the first of each.

        What fits into ``batch_bytes_max`` is one batch. Returns when all are acknowledged. After
        a LogError some may be stored: sending again is for who can tell a repeat.
        """
        async with _bounded("send", 2 * self._settings.request_ms):
            waiting = {at: await self._add(at, messages) for at, messages in batches.items()}
            await asyncio.gather(*(future for futures in waiting.values() for future in futures))
            return {at: futures[0].result().offset for at, futures in waiting.items()}

    async def transaction(self, batches: Mapping[Partition, Sequence[Message]]) -> None:
        """Send messages, all of them or none."""
        producer = self._live()
        async with _bounded("commit a transaction", self._settings.transaction_ms):
            await producer.begin_transaction()
            waiting = [await self._add(at, messages) for at, messages in batches.items()]
            await producer.commit_transaction()
            for future in (future for futures in waiting for future in futures):
                await future  # a batch that failed makes the commit fail, too

    def _live(self) -> Any:
        if self._producer is None:
            raise LogError("the producer is not connected")
        return self._producer

    async def _add(self, at: Partition, messages: Sequence[Message]) -> list[Any]:
        """Hand messages over in as few batches as they fit into."""
        producer = self._live()
        now_ms = time.time_ns() // 1_000_000
        batch, futures = producer.create_batch(), []
        for message in messages:
            headers = [(ORIGIN_HEADER, message.origin)]
            headers += [(TRACE_HEADER, each.traceparent().encode()) for each in message.traces]
            while (
                batch.append(
                    timestamp=now_ms, key=message.key, value=message.value, headers=headers
                )
                is None
            ):
                if not batch.record_count():
                    raise ValueError(f"a record of {len(message.value)} bytes does not fit")
                futures.append(await producer.send_batch(batch, at[0], partition=at[1]))
                batch = producer.create_batch()
        futures.append(await producer.send_batch(batch, at[0], partition=at[1]))
        return futures


class Member(NamedTuple):
    """A place in a consumer group: who it is, and what to do when its partitions change.

    ``assigned`` gets all partitions held now. They are paused: ``seek`` and ``resume`` begin.
    """

    group: str
    instance: str
    topics: Sequence[str]
    assigned: Callable[[Sequence[Partition]], Awaitable[None]]
    revoked: Callable[[], Awaitable[None]]


class _Listener(aiokafka.ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka is untyped
    """Tells a member what it holds, before anything of it is read."""

    def __init__(self, consumer: Any, member: Member) -> None:
        self._consumer = consumer
        self._member = member

    async def on_partitions_revoked(self, _: Any) -> None:
        await self._member.revoked()

    async def on_partitions_assigned(self, assigned: Any) -> None:
        for each in assigned:  # at once: without a place it would ask for the group's offsets
            self._consumer.seek(each, 0)
            self._consumer.pause(each)
        await self._member.assigned(sorted((each.topic, each.partition) for each in assigned))


class Consumer:
    """Reads committed records, from offsets that the caller keeps; Kafka's own count for nothing.

    Either ``assign`` or, as a ``member`` of a group, what the group gives.
    """

    def __init__(self, settings: KafkaSettings, member: Member | None = None) -> None:
        self._settings = settings
        self._member = member
        self._consumer: Any = None

    async def start(self) -> None:
        """Connect, and join the group."""
        settings, member = self._settings, self._member
        group: dict[str, Any] = {}
        if member is not None:
            group = {"group_id": member.group, "group_instance_id": member.instance or None}
        async with _bounded("start a consumer", 3 * settings.request_ms):
            self._consumer = aiokafka.AIOKafkaConsumer(
                **_client(settings),
                **group,
                enable_auto_commit=False,
                auto_offset_reset="none",
                isolation_level="read_committed",
                fetch_max_wait_ms=settings.fetch_wait_ms,
                fetch_max_bytes=settings.fetch_bytes_max,
                max_partition_fetch_bytes=settings.fetch_bytes_max,
                session_timeout_ms=settings.session_ms,
                heartbeat_interval_ms=min(settings.session_ms // 4, _HEARTBEAT_MS_MAX),
                # One member holds the same partition of each of its topics.
                partition_assignment_strategy=[RangePartitionAssignor],
            )
            if member is not None:
                self._consumer.subscribe(
                    list(member.topics), listener=_Listener(self._consumer, member)
                )
            await self._consumer.start()

    async def stop(self) -> None:
        """Leave the group and let go of the connections."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            with contextlib.suppress(LogError):
                async with _bounded("stop", self._settings.request_ms):
                    # aiokafka hands on the cancellation of a fetch of its own: a result, here.
                    await asyncio.gather(consumer.stop(), return_exceptions=True)

    def assign(self, offsets: Mapping[Partition, int]) -> None:
        """Read these partitions from these offsets, and no others."""
        places = {aiokafka.TopicPartition(*at): offset for at, offset in offsets.items()}
        self._consumer.assign(list(places))
        for at, offset in places.items():
            self._consumer.seek(at, offset)

    def seek(self, at: Partition, offset: int) -> None:
        """Go on from another offset. Raises LogError for a partition that is not held."""
        try:
            self._consumer.seek(aiokafka.TopicPartition(*at), offset)
        except IllegalStateError as error:
            raise LogError(f"{at} is not held") from error

    async def poll(self, records_max: int, wait_ms: int) -> dict[Partition, list[Received]]:
        """Return what came within ``wait_ms``, in order of offset in each partition.

        Raises LogError for an offset that is kept no more.
        """
        async with _bounded("read", self._settings.request_ms + wait_ms):
            found = await self._consumer.getmany(timeout_ms=wait_ms, max_records=records_max)
        return {(at.topic, at.partition): records for at, records in found.items() if records}

    async def position(self, at: Partition) -> int:
        """Return the offset that is read next, past markers and aborted records."""
        async with _bounded("tell the position", self._settings.request_ms):
            return int(await self._consumer.position(aiokafka.TopicPartition(*at)))

    async def ends(self, partitions: Sequence[Partition]) -> dict[Partition, tuple[int, int]]:
        """Return the oldest offset kept and the one after the last committed record."""
        places = [aiokafka.TopicPartition(*at) for at in partitions]
        async with _bounded("tell the ends", self._settings.request_ms):
            oldest = await self._consumer.beginning_offsets(places)
            newest = await self._consumer.end_offsets(places)
        return {(at.topic, at.partition): (oldest[at], newest[at]) for at in places}

    def pause(self, partitions: Sequence[Partition]) -> None:
        """Fetch no more of these until ``resume``."""
        self._consumer.pause(*[aiokafka.TopicPartition(*at) for at in partitions])

    def resume(self, partitions: Sequence[Partition]) -> None:
        """Fetch these again."""
        self._consumer.resume(*[aiokafka.TopicPartition(*at) for at in partitions])


class TopicSize(NamedTuple):
    """How a topic is to be created."""

    partitions: int
    replication: int


async def ensure_topics(settings: KafkaSettings, rows: Mapping[TopicRow, TopicSize]) -> list[str]:
    """Create the topics that are missing; return their names.

    Raises LogError for one that is there with another count of partitions: keys would go to other
    places than the states were made from.
    """
    async with _bounded("look at the topics", 6 * settings.request_ms):
        admin = AIOKafkaAdminClient(**_client(settings))
        try:
            await admin.start()
            there = set(await admin.list_topics())
            missing = {r: n for r, n in rows.items() if settings.topic(r.name) not in there}
            if missing:
                new = [_new_topic(settings, row, size) for row, size in missing.items()]
                await _create(admin, new, settings.request_ms)
            found = {row: await _partitions(admin, settings.topic(row.name)) for row in rows}
        finally:
            await admin.close()
    for row, size in rows.items():
        if found[row] != size.partitions:
            raise LogError(
                f"topic {settings.topic(row.name)} has {found[row]} partitions, not"
                f" {size.partitions}: keys would go elsewhere than before. Start with a new prefix"
                " and load the log into it, or give the count that the topic has"
            )
    return [settings.topic(row.name) for row in missing]


def _new_topic(settings: KafkaSettings, row: TopicRow, size: TopicSize) -> Any:
    configs = {
        "cleanup.policy": "compact" if row.compacted else "delete",
        "retention.ms": str(row.retention_ms),
        "max.message.bytes": str(settings.batch_bytes_max + (1 << 16)),
        "min.insync.replicas": str(max(1, size.replication - 1)),
        "message.timestamp.type": "CreateTime",
    }
    return NewTopic(
        settings.topic(row.name), size.partitions, size.replication, topic_configs=configs
    )


async def _create(admin: Any, topics: Sequence[Any], timeout_ms: int) -> None:
    answer = await admin.create_topics(topics, timeout_ms=timeout_ms)
    for name, code, *why in answer.topic_errors:
        if code not in (0, TopicAlreadyExistsError.errno):
            raise LogError(f"cannot create topic {name}: {why[0] if why else ''} ({code})")


async def _partitions(admin: Any, topic: str) -> int:
    """Count a topic's partitions, once the brokers know of it."""
    for _ in range(_LOOKS_MAX):
        [described] = await admin.describe_topics([topic])
        if described["error_code"] == 0 and described["partitions"]:
            return len(described["partitions"])
        await asyncio.sleep(_LOOK_S)
    raise LogError(f"topic {topic} is not there {_LOOKS_MAX * _LOOK_S:.0f} s after its creation")
