"""The split's lanes on a real broker: what a lane wrote is what the next one goes on from."""

from __future__ import annotations

import asyncio

import numpy as np

from deploy.testing.kafka import KafkaCluster
from featurizer.cluster import create_topics, schema_number
from featurizer.eventlog_kafka import Consumer, Message, Partition, Producer, key_bytes
from featurizer.kafka_settings import KafkaSettings, kafka_settings
from featurizer.records import RECORD, RECORD_VERSION, Kind
from featurizer.splitter import SplitLane, SplitSettings
from tests.servers import kafka_fixture, prefix_fixture  # noqa: F401 - fixtures

RECORDS = 20


def lane_of(kafka: KafkaSettings, number: int) -> SplitLane:
    return SplitLane(number, kafka, SplitSettings(2, schema_number()))


async def split_some(kafka: KafkaSettings, reader: Consumer) -> None:
    """Send records to partition 0, and let a lane split them."""
    at: Partition = (kafka.topic("transactions"), 0)
    records = np.zeros(RECORDS, RECORD)
    records["version"], records["kind"] = RECORD_VERSION, Kind.TRANSACTION
    records["request"] = np.arange(1, RECORDS + 1)
    records["entities"][:, 0] = 2
    producer = Producer(kafka)
    await producer.start()
    await producer.send({at: [Message(key_bytes(2), each.tobytes()) for each in records]})
    await producer.stop()
    lane = lane_of(kafka, 0)
    await lane.start(reader)
    reader.assign({at: 0})
    found = await reader.poll(RECORDS, 5_000)
    assert await lane.take(found) == RECORDS
    await lane.stop()


async def offset_beside_an_open_transaction(kafka: KafkaSettings) -> int:
    """Return where a lane goes on while another lane's transaction has been open for long."""
    await create_topics(kafka)
    reader = Consumer(kafka)
    await reader.start()
    other = lane_of(kafka, 1)
    await other.start(reader)
    stuck = other._transactions._producers[0]._live()
    await stuck.begin_transaction()  # as one has that was stopped in the middle
    await stuck.send_and_wait(kafka.topic("split-progress"), b"{}", key=b"1", partition=1)
    await split_some(kafka, reader)
    again = lane_of(kafka, 0)
    offsets = await again.start(reader)
    await again.stop()
    await stuck.abort_transaction()
    await other.stop()
    await reader.stop()
    return offsets[kafka.topic("transactions"), 0]


def test_a_lane_that_is_stuck_hides_nothing_of_another(kafka: KafkaCluster, prefix: str) -> None:
    url = f"kafka://{kafka.bootstrap}/{prefix}?event_partitions=2&entity_partitions=2"
    assert asyncio.run(offset_beside_an_open_transaction(kafka_settings(url))) == RECORDS
