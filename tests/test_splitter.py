"""The split's lanes on a real broker: the next one goes on from what was noted, or before that."""

from __future__ import annotations

import asyncio

import numpy as np

from deploy.testing.kafka import KafkaCluster
from featurizer.cluster import create_topics, schema_number
from featurizer.eventlog_kafka import Consumer, Message, Partition, Producer, Received, key_bytes
from featurizer.kafka_settings import KafkaSettings, kafka_settings
from featurizer.records import RECORD, RECORD_VERSION, Kind
from featurizer.splitter import SplitLane, SplitSettings, read_all
from featurizer.updates import KINDS, take_new
from tests.servers import kafka_fixture, prefix_fixture  # noqa: F401 - fixtures

RECORDS, HALF = 20, 8


def lane_of(kafka: KafkaSettings, number: int) -> SplitLane:
    return SplitLane(number, kafka, SplitSettings(2, schema_number()))


async def fill(kafka: KafkaSettings, at: Partition) -> None:
    records = np.zeros(RECORDS, RECORD)
    records["version"], records["kind"] = RECORD_VERSION, Kind.TRANSACTION
    records["request"] = np.arange(1, RECORDS + 1)
    records["entities"][:, 0] = 2
    producer = Producer(kafka)
    await producer.start()
    await producer.send({at: [Message(key_bytes(2), each.tobytes()) for each in records]})
    await producer.stop()


async def split_by_three(kafka: KafkaSettings) -> tuple[list[int], list[Received]]:
    """Split by a lane that is taken for dead and goes on, by another, and by one after both.

    Return where each began, and what they wrote.
    """
    await create_topics(kafka)
    at: Partition = (kafka.topic("transactions"), 0)
    await fill(kafka, at)
    reader = Consumer(kafka)
    await reader.start()
    records = [each async for each in read_all(reader, at, 0)]
    dead, another, last = (lane_of(kafka, 0) for _ in range(3))
    starts = [(await dead.start(reader))[at]]
    assert await dead.take({at: records[:HALF]}) == HALF
    starts.append((await another.start(reader))[at])
    assert await another.take({at: records}) == RECORDS
    await another.settle()
    await dead.take({at: records[HALF:]})
    starts.append((await last.start(reader))[at])
    for lane in (dead, another, last):
        await lane.stop()
    updates = [each async for each in read_all(reader, (kafka.topic("entity-updates"), 0), 0)]
    await reader.stop()
    return starts, updates


def test_lanes_that_write_the_same_begin_at_what_was_noted(
    kafka: KafkaCluster, prefix: str
) -> None:
    url = f"kafka://{kafka.bootstrap}/{prefix}?event_partitions=2&entity_partitions=2"
    starts, updates = asyncio.run(split_by_three(kafka_settings(url)))

    assert starts == [0, 0, RECORDS]
    met, offsets = np.full(2 * KINDS, -1, np.int64), []
    for each in updates:
        new = take_new(each.value or b"", each.offset, schema_number(), met)
        offsets.append(new.rows["offset"].tolist())
    assert offsets == [list(range(HALF)), list(range(HALF, RECORDS)), []]
