"""Owns the rates of the stages on a real broker of this machine, and how fresh the states are.

Run with ``python -m tests.bench cluster``. Topics are filled before; a stage runs as its own
process, with the broker on the same two cores. An event is a payment with its nine entities. Folds
are started before and stand still while the topic is filled; the clock runs from when they go on.
"""

from __future__ import annotations

import asyncio
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.testing.kafka import KafkaCluster
from deploy.testing.redis import RedisServer
from featurizer.adapters import journal_number, read_partition
from featurizer.cluster import create_topics, schema_number
from featurizer.eventlog import Entry, Topic
from featurizer.eventlog_file import FileEventLog
from featurizer.eventlog_kafka import (
    Consumer,
    Message,
    Partition,
    Producer,
    key_bytes,
)
from featurizer.progress import progress_key, read_progress
from featurizer.records import Entity
from featurizer.updates import KINDS, pack
from tests.bench.claims import SEED, claim, make_world, read_world
from tests.clusters import Cluster, stopping
from tests.conftest import Trained, until

DAYS = 40
CORE_EVENTS_S_MIN = 25_000.0
TWO_CORES_EVENTS_S_MIN = 50_000.0
FRESH_P99_MS_MAX = 20.0
FRESH_RATE = 2_000
FRESH_S = 20.0
ARRAY_RECORDS = 4_000
POLL_S = 0.02
LOOK_S = 0.001  # what freshness is exact to
STALL_S = 30.0
FOLDED_S = 120.0
PATIENT_MS = 30_000  # a session that outlives what is stopped while a topic is filled

Fill = Mapping[Partition, Sequence[Message]]


async def send(cluster: Cluster, parts: Iterator[Fill]) -> None:
    """Send each part in a transaction of its own."""
    producer = Producer(cluster.kafka, f"{cluster.prefix}-fill")
    await producer.start()
    for part in parts:
        await producer.transaction(part)
    await producer.stop()


def updates_of(cluster: Cluster, records: NDArray[np.void]) -> Iterator[Fill]:
    """Yield packed updates, as a split would send them."""
    for start in range(0, len(records), ARRAY_RECORDS):
        part = records[start : start + ARRAY_RECORDS]
        positions = np.arange(start, start + len(part), dtype=np.int64)
        places = np.stack([positions, np.full_like(positions, 7), positions], axis=1)
        packed = pack(part, places, cluster.partitions, (0, schema_number()))
        topic = cluster.kafka.topic("entity-updates")
        yield {(topic, n): [Message(key_bytes(n), value)] for n, value in packed.items()}


def offsets(cluster: Cluster) -> list[int]:
    """Return how far the states of each partition are; 0 where there are none yet."""
    return [cluster.position(number) for number in range(cluster.partitions)]


def rate(progress: Callable[[], float], total: float, events: int, poll_s: float = POLL_S) -> float:
    """Return events a second, from the first step of ``progress`` to ``total``."""
    seen: list[tuple[float, float]] = []
    end_s = time.perf_counter() + STALL_S
    while not seen or seen[-1][1] < total:
        now = progress()
        if now and (not seen or now > seen[-1][1]):
            seen.append((time.perf_counter(), now))
            end_s = time.perf_counter() + STALL_S
        if time.perf_counter() > end_s:
            raise TimeoutError(f"{progress()} of {total} after {STALL_S} s without progress")
        time.sleep(poll_s)
    (start_s, first), (stop_s, last) = seen[0], seen[-1]
    return (last - first) / total * events / (stop_s - start_s)


def fold_rate(cluster: Cluster, records: NDArray[np.void], folds: int) -> float:
    """Return how many events a second ``folds`` processes fold from a topic filled before."""
    asyncio.run(create_topics(cluster.kafka))
    names = [f"fold-{n}" for n in range(folds)]
    with stopping(cluster):
        cluster.start(*names)
        return backlog_rate(cluster, names, updates_of(cluster, records), len(records))


def backlog_rate(cluster: Cluster, names: list[str], parts: Iterator[Fill], events: int) -> float:
    """Return how many events a second folds that run take of ``events`` that waited for them.

    They stand still meanwhile, so that neither their start nor the filling is measured.
    """
    for name in names:
        cluster.signal(name, signal.SIGSTOP)
    asyncio.run(send(cluster, parts))
    lasts = asyncio.run(ends(cluster, "entity-updates"))
    start_s = time.perf_counter()
    for name in names:
        cluster.signal(name, signal.SIGCONT)
    until_folded(cluster, lasts, FOLDED_S)
    return events / (time.perf_counter() - start_s)


def until_folded(cluster: Cluster, lasts: list[int], seconds: float) -> None:
    """Wait until folds have met all before ``lasts``, the ends of their partitions."""
    # The offset after the last array is one before that after its transaction's marker.
    until(lambda: sum(offsets(cluster)) >= sum(lasts) - len(lasts), "the events", seconds)


async def ends(cluster: Cluster, name: str) -> list[int]:
    """Return the offset after the last committed record of each partition of a topic."""
    reader = Consumer(cluster.kafka)
    await reader.start()
    places = [(cluster.kafka.topic(name), n) for n in range(cluster.partitions)]
    found = await reader.ends(places)
    await reader.stop()
    return [found[at][1] for at in places]


async def _transform(cluster: Cluster, records: NDArray[np.void]) -> float:
    """Return how many records a second a plain loop reads, and writes in transactions."""
    topic = cluster.kafka.topic("transactions")
    data = [(int(each["entities"][Entity.CUSTOMER]), each.tobytes()) for each in records]
    messages = [Message(key_bytes(key), value) for key, value in data]
    chunks = [messages[i : i + ARRAY_RECORDS] for i in range(0, len(messages), ARRAY_RECORDS)]
    await send(cluster, iter([{(topic, 0): chunk} for chunk in chunks]))
    reader, producer = Consumer(cluster.kafka), Producer(cluster.kafka, f"{cluster.prefix}-plain")
    await reader.start()
    await producer.start()
    reader.assign({(topic, 0): 0})
    out, done = (cluster.kafka.topic("labels"), 0), 0
    start_s = time.perf_counter()
    while done < len(records):
        found = (await reader.poll(ARRAY_RECORDS, 200)).get((topic, 0), [])
        if found:
            await producer.transaction(
                {out: [Message(each.key or b"", each.value or b"") for each in found]}
            )
            done += len(found)
    took_s = time.perf_counter() - start_s
    await reader.stop()
    await producer.stop()
    return done / took_s


def plain_rate(cluster: Cluster, records: NDArray[np.void]) -> float:
    """Return the ceiling: a consume-transform-produce loop that does nothing."""
    asyncio.run(create_topics(cluster.kafka))
    return asyncio.run(_transform(cluster, records))


def freshness_ms(cluster: Cluster, records: NDArray[np.void]) -> NDArray[np.float64]:
    """Return, for each of the events appended at FRESH_RATE, when all its states had it, in ms."""
    asyncio.run(create_topics(cluster.kafka))
    journal = FileEventLog(cluster.folder / "0" / "journal")
    host = journal_number(cluster.journal("0"))
    with stopping(cluster):
        cluster.start("split-0", *[f"fold-{n}" for n in range(cluster.partitions)])
        cluster.start("relay-0")
        appended = np.zeros(int(FRESH_RATE * FRESH_S))
        seen = np.zeros(len(appended))
        positions = np.zeros(len(appended), np.int64)
        first, sent = 0, 0
        stores = [None] * cluster.partitions
        begin_s = time.perf_counter()
        while first < len(appended):
            now_s = time.perf_counter()
            due = min(len(appended), int((now_s - begin_s) * FRESH_RATE))
            while sent < due:
                record = records[sent]
                key = int(record["entities"][Entity.CUSTOMER])
                frame, _ = journal.append([[Entry(Topic.TRANSACTIONS, key, record.tobytes())]])
                positions[sent], appended[sent] = frame + 1, time.perf_counter()
                sent += 1
            reached = _reached(cluster, host, stores, records[first:sent], positions[first:sent])
            seen[first : first + reached] = time.perf_counter()
            first += reached
            time.sleep(LOOK_S)
            if time.perf_counter() - begin_s > FRESH_S + STALL_S:
                raise TimeoutError(f"{first} of {len(appended)} were seen")
        journal.close()
    skip = FRESH_RATE * 5  # what the stages need to get going
    result: NDArray[np.float64] = (seen - appended)[skip:] * 1000
    return result


def _reached(
    cluster: Cluster,
    host: int,
    stores: list[Any],
    records: NDArray[np.void],
    positions: NDArray[np.int64],
) -> int:
    """Return how many of the records, in order, are in the states of all their entities."""
    if not len(records):
        return 0
    count = cluster.partitions
    progress = np.zeros((count, count * KINDS), np.int64)
    for number in range(count):
        if stores[number] is None:
            stores[number] = read_partition(cluster.place, number)
        snapshot = stores[number].snapshot()
        [row] = snapshot.get_many([progress_key(host)])
        progress[number] = read_progress(row, count * KINDS).positions
        snapshot.close()
    keys = np.ascontiguousarray(records["entities"])
    homes = (keys.view(np.uint64) % np.uint64(count)).astype(np.int64)
    sources = (homes[:, Entity.CUSTOMER] * KINDS)[:, None]
    lacking = ((positions[:, None] > progress[homes, sources]) & (keys != 0)).any(axis=1)
    return int(np.argmax(lacking)) if lacking.any() else len(records)


class _Runs:
    """Clusters of stages, one after another, on one broker and, for some, one Redis."""

    def __init__(self, where: Path, kafka: KafkaCluster, redis: RedisServer) -> None:
        self._where = where
        self._kafka = kafka
        self._redis = redis
        self._count = 0

    def cluster(self, partitions: int, kind: str = "lmdb") -> Cluster:
        """Return a new cluster, whose roles have not started."""
        self._count += 1
        name = f"run{self._count}"
        folder = self._where / name
        folder.mkdir()
        store = f"lmdb://{folder}/states" if kind == "lmdb" else f"{self._redis.url}/{name}"
        nothing = Trained(folder, folder, folder, b"", None)  # type: ignore[arg-type]  # no scorer
        return Cluster(
            folder, self._kafka.bootstrap, name, store, nothing, PATIENT_MS, partitions=partitions
        )


def _rows(runs: _Runs, records: NDArray[np.void]) -> list[dict[str, Any]]:
    plain = plain_rate(runs.cluster(1), records[:200_000])
    one = fold_rate(runs.cluster(1), records, 1)
    two = fold_rate(runs.cluster(2), records, 2)
    redis = fold_rate(runs.cluster(1, "redis"), records[:200_000], 1)
    fresh = freshness_ms(runs.cluster(2), records)
    p50, p99 = (float(np.percentile(fresh, at)) for at in (50, 99))
    rate_row = "events/s"
    return [
        claim("a plain loop: read, write in transactions", round(plain), "records/s"),
        claim(
            "fold into LMDB, one partition and process", round(one), rate_row,
            baseline=round(plain), ratio=round(one / plain, 2), at_least=CORE_EVENTS_S_MIN,
        ),
        claim(
            "fold into LMDB, two partitions and processes", round(two), rate_row,
            baseline=round(plain), ratio=round(two / plain, 2), at_least=TWO_CORES_EVENTS_S_MIN,
        ),
        claim("fold into Redis, one partition and process", round(redis), rate_row),
        claim(f"freshness at {FRESH_RATE}/s, p50", round(p50, 1), "ms"),
        claim(
            f"freshness at {FRESH_RATE}/s, p99", round(p99, 1), "ms", at_most=FRESH_P99_MS_MAX
        ),
    ]  # fmt: skip


def rows() -> list[dict[str, Any]]:
    """Return one row per claim: name, value, unit, baseline, ratio, target, met."""
    with tempfile.TemporaryDirectory() as directory:
        where = Path(directory)
        make_world(where / "world.parquet", DAYS)
        records = read_world(where / "world.parquet").records
        records = records[np.argsort(records["event_time_ms"], kind="stable")]
        with (
            KafkaCluster(where / "kafka", measured=True) as kafka,
            RedisServer(where / "redis") as redis,
        ):
            return _rows(_Runs(where, kafka, redis), records)


if __name__ == "__main__":
    print(f"seed {SEED}")
    for row in rows():
        print(row)
