"""Owns the rate of the stream on a real broker, with the stages that keep its states up beside it.

Run with ``python -m tests.bench stream``. The payments are on their topic before; broker, split,
folds and the stream's lanes, a process each, have the same two cores. The rate is taken from the
first decisions that are seen to the last ones; a lane's CPU is that of its process meanwhile.
"""

from __future__ import annotations

import asyncio
import signal
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fraud.v1 import fraud_service_pb2 as pb

from deploy.testing.kafka import KafkaCluster
from featurizer.cluster import create_topics
from featurizer.eventlog_kafka import Message, Partition, key_bytes, partition_of
from featurizer.hashing import IdHasher
from featurizer.records import Entity
from tests.bench.bench_cluster import PATIENT_MS, ends, rate, send
from tests.bench.bench_score import live_requests, prepare
from tests.bench.claims import SEED, claim
from tests.bench.serving import cpu_s
from tests.clusters import PARTITIONS, Cluster, stopping
from tests.conftest import Trained, until

STREAM_S_MIN = 25_000.0
ENDS_S = 0.2  # asking Kafka takes time from what is measured
JOIN_S = 10.0


class Streamed(NamedTuple):
    """Payments decided a second, and the CPU time of a lane for each, µs."""

    rate_s: float
    lane_us: float


def stream_rate(cluster: Cluster, payments: Sequence[tuple[int, bytes]]) -> Streamed:
    """Decide payments (the hash of the customer, and the bytes) by a lane for each partition."""
    asyncio.run(create_topics(cluster.kafka))
    topic = cluster.kafka.topic("payments")
    lanes: dict[Partition, list[Message]] = {}
    for customer, data in payments:
        at = (topic, partition_of(customer, cluster.partitions))
        lanes.setdefault(at, []).append(Message(key_bytes(customer), data))
    stages = ["split-0", *[f"fold-{n}" for n in range(cluster.partitions)]]
    streams = [f"stream-{n}" for n in range(cluster.partitions)]
    with stopping(cluster):
        cluster.start(*stages)
        until(lambda: all(cluster.has_states(n) for n in range(cluster.partitions)), "states")
        cluster.start(*streams)
        time.sleep(JOIN_S)  # until each has its partition
        for role in (*stages, *streams):
            cluster.signal(role, signal.SIGSTOP)
        asyncio.run(send(cluster, iter([{at: lane} for at, lane in lanes.items()])))
        before_s = _cpu_s(cluster, streams)
        for role in (*stages, *streams):
            cluster.signal(role, signal.SIGCONT)
        found = rate(lambda: _decided(cluster), len(payments), len(payments), ENDS_S)
        lane_us = 1e6 * (_cpu_s(cluster, streams) - before_s) / len(payments)
        return Streamed(found, lane_us)


def _decided(cluster: Cluster) -> float:
    """Return how many decisions are on the log, about: markers of transactions count, too."""
    return float(sum(asyncio.run(ends(cluster, "decisions"))))


def _cpu_s(cluster: Cluster, roles: Sequence[str]) -> float:
    """Return the CPU time of roles, user and system."""
    return sum(cpu_s(cluster.processes[role].popen.pid) for role in roles)


def _keyed(requests: Sequence[pb.ScoreRequest]) -> list[tuple[int, bytes]]:
    hasher = IdHasher()
    return [
        (
            hasher.one(Entity.CUSTOMER, each.transaction.customer_id),
            each.transaction.SerializeToString(deterministic=True),
        )
        for each in requests
    ]


def rows() -> list[dict[str, Any]]:
    """Return one row per claim: name, value, unit, baseline, ratio, target, met."""
    with tempfile.TemporaryDirectory() as directory:
        where = Path(directory)
        payments = _keyed(live_requests(where / "world.parquet", prepare(where)))
        trained = Trained(where, where / "bundle", where / "key", b"", None)  # type: ignore[arg-type]  # its path is enough
        with KafkaCluster(where / "kafka") as kafka:
            store = f"lmdb://{where}/states"
            cluster = Cluster(where, kafka.bootstrap, "stream", store, trained, PATIENT_MS)
            found = stream_rate(cluster, payments)
    lane_s = 1e6 / found.lane_us
    return [
        claim(
            f"stream, {PARTITIONS} lanes, with split and folds on the same cores, against what a "
            "core could do with a lane alone",
            round(found.rate_s), "payments/s", baseline=round(lane_s),
            ratio=round(found.rate_s / lane_s, 2), at_least=STREAM_S_MIN,
        ),
        claim("of that: CPU of a lane", round(found.lane_us, 1), "µs a payment"),
    ]  # fmt: skip


if __name__ == "__main__":
    print(f"seed {SEED}")
    for row in rows():
        print(row)
