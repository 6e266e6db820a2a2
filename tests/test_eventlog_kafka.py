"""The event log on Kafka where it differs from one on files: a broker that dies, transactions,
other programs' records, retention, and who may come in.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiokafka
import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, RecordsToDelete

from deploy.testing.kafka import PASSWORD, USER, KafkaCluster, kafka_missing
from featurizer.eventlog import Batch, Entry, LogError, Topic
from featurizer.eventlog_kafka import TopicSize, ensure_topics
from featurizer.eventlog_partition import OFFSET_STEP, KafkaEventLog, messages_of
from featurizer.kafka_settings import KafkaSettings
from featurizer.topics import DAY_MS, TopicRow
from tests.servers import kafka_fixture, need, prefix_fixture  # noqa: F401 - fixtures

ROW = TopicRow("log", "-", "one", DAY_MS, False, "tests")
ONE = TopicSize(partitions=1, replication=1)
QUICK_MS = 2_000  # enough for a broker that runs
REOPEN_S = 60.0


@pytest.fixture
def settings(kafka: KafkaCluster, prefix: str) -> KafkaSettings:
    return KafkaSettings(kafka.bootstrap, prefix=prefix)


@pytest.fixture
def log(settings: KafkaSettings) -> Iterator[KafkaEventLog]:
    log = KafkaEventLog(settings, ROW, ONE)
    yield log
    log.close()


@pytest.fixture
def fragile(tmp_path: Path) -> Iterator[KafkaCluster]:
    """A broker that the test may break."""
    need(kafka_missing())
    with KafkaCluster(tmp_path / "cluster") as cluster:
        yield cluster


def frame(*values: bytes) -> list[Entry]:
    return [Entry(Topic.LABELS, 7, value) for value in values]


def read_all(log: KafkaEventLog, position: int = 0) -> list[Batch]:
    batches = []
    while (batch := log.read(position, 1 << 20)).next_position > position:
        batches.append(batch)
        position = batch.next_position
    assert position == log.ends()[1]
    return batches


def values_of(batches: Sequence[Batch]) -> list[bytes]:
    return [batch.value(i) for batch in batches for i in range(len(batch.topics))]


class Transaction:
    """A transaction of another program, which leaves it open until told."""

    def __init__(self, settings: KafkaSettings, name: str = "other") -> None:
        self._topic = settings.topic(ROW.name)
        self._producer = aiokafka.AIOKafkaProducer(
            bootstrap_servers=settings.bootstrap, transactional_id=f"{settings.prefix}-{name}"
        )

    async def __aenter__(self) -> Transaction:
        await self._producer.start()
        await self._producer.begin_transaction()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._producer.stop()

    async def send(self, entries: Sequence[Entry]) -> None:
        for key, value, origin, _ in messages_of([entries], 1 << 20):
            headers = [("o", origin)]
            await self._producer.send_and_wait(self._topic, value, key, 0, headers=headers)

    async def commit(self) -> None:
        await self._producer.commit_transaction()

    async def abort(self) -> None:
        await self._producer.abort_transaction()


def until_end_moves(log: KafkaEventLog, end: int) -> int:
    """Return the end once it is another: a mark of a transaction follows the answer."""
    deadline = time.monotonic() + REOPEN_S
    while (found := log.ends()[1]) == end:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def test_aborted_transactions_are_not_read(settings: KafkaSettings, log: KafkaEventLog) -> None:
    log.append([frame(b"before")])

    async def abort() -> None:
        async with Transaction(settings) as other:
            await other.send(frame(b"a", b"b"))
            await other.abort()

    end = log.ends()[1]
    asyncio.run(abort())
    assert until_end_moves(log, end) == 4 * OFFSET_STEP
    assert values_of(read_all(log)) == [b"before"]
    [position, _] = log.append([frame(b"after")])

    batches = read_all(log)
    assert position == 4 * OFFSET_STEP
    assert values_of(batches) == [b"before", b"after"]
    assert all(batch.damage == () for batch in batches)
    assert values_of(read_all(log, 1 * OFFSET_STEP)) == [b"after"]


def test_an_open_transaction_is_the_end_until_it_commits(
    settings: KafkaSettings, log: KafkaEventLog
) -> None:
    log.append([frame(b"before")])
    end = log.ends()[1]

    async def hold() -> None:
        async with Transaction(settings) as other:
            await other.send(frame(b"held", b"too"))
            await asyncio.to_thread(meanwhile)
            await other.commit()

    def meanwhile() -> None:
        log.append([frame(b"behind it")])
        assert log.ends()[1] == end
        batch = log.read(end, 1000)
        assert (len(batch.topics), batch.next_position) == (0, end)

    asyncio.run(hold())
    until_end_moves(log, end)
    assert values_of(read_all(log)) == [b"before", b"held", b"too", b"behind it"]


def test_records_of_other_programs_are_damage(settings: KafkaSettings, log: KafkaEventLog) -> None:
    topic = settings.topic(ROW.name)
    messages = messages_of([frame(b"0", b"1", b"2")], 1 << 20)

    async def send() -> None:
        async with aiokafka.AIOKafkaProducer(bootstrap_servers=settings.bootstrap) as other:
            await other.send_and_wait(topic, b"no header", b"k", 0)
            for key, value, origin, _ in messages[:2]:  # the third never comes
                await other.send_and_wait(topic, value, key, 0, headers=[("o", origin)])
            key, _, origin, _ = messages[0]
            await other.send_and_wait(topic, None, key, 0, headers=[("o", origin)])
            await other.send_and_wait(topic, b"v", None, 0, headers=[("o", origin)])

    log.append([frame(b"good")])
    asyncio.run(send())
    log.append([frame(b"good", b"again")])

    batches = read_all(log)
    assert values_of(batches) == [b"good", b"good", b"again"]
    damaged = [(d.position, d.length) for batch in batches for d in batch.damage]
    assert damaged == [
        (n * OFFSET_STEP, k * OFFSET_STEP) for n, k in ((1, 1), (2, 2), (4, 1), (5, 1))
    ]


def test_a_frame_that_never_ends_is_damage_at_the_end(
    settings: KafkaSettings, log: KafkaEventLog
) -> None:
    [key, value, origin, _], _ = messages_of([frame(b"0", b"1")], 1 << 20)

    async def send() -> None:
        async with aiokafka.AIOKafkaProducer(bootstrap_servers=settings.bootstrap) as other:
            topic = settings.topic(ROW.name)
            await other.send_and_wait(topic, value, key, 0, headers=[("o", origin)])

    asyncio.run(send())

    [batch] = read_all(log)
    assert len(batch.topics) == 0
    assert [damage.length for damage in batch.damage] == [OFFSET_STEP]


def test_the_largest_frame_comes_back_whole(log: KafkaEventLog) -> None:
    entries = [Entry(Topic.LABELS, n, b"") for n in range(65_535)]
    positions = log.append([frame(b"first"), entries])

    batches = read_all(log, positions[1])

    assert [len(batch.topics) for batch in batches] == [65_535]
    assert batches[0].keys.tolist() == list(range(65_535))
    assert (batches[0].frames == positions[1]).all()
    assert batches[0].positions[-1] == positions[1] + 65_535
    assert batches[0].next_position == positions[2] == log.ends()[1]


def test_what_is_not_kept_any_more_is_refused(settings: KafkaSettings, log: KafkaEventLog) -> None:
    positions = [log.append([frame(b"%d" % n)])[0] for n in range(5)]
    at = aiokafka.TopicPartition(settings.topic(ROW.name), 0)
    log.read(positions[1], 1)

    async def drop() -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=settings.bootstrap)
        await admin.start()
        await admin.delete_records({at: RecordsToDelete(before_offset=3)})
        await admin.close()

    asyncio.run(drop())

    assert log.ends() == (positions[3], 5 * OFFSET_STEP)
    for position in positions[:3]:
        with pytest.raises(LogError, match="is not on the log"):
            log.read(position, 1000)
    assert values_of(read_all(log, positions[3])) == [b"3", b"4"]


def test_threads_share_a_log(log: KafkaEventLog) -> None:
    def append(thread: int) -> None:
        for n in range(40):
            log.append([frame(b"%d %d" % (thread, n), b"%d %d more" % (thread, n))])

    threads = [threading.Thread(target=append, args=(t,)) for t in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    values = values_of(read_all(log))
    assert values[1::2] == [value + b" more" for value in values[::2]]
    for t in range(4):
        mine = [value for value in values[::2] if value.startswith(b"%d " % t)]
        assert mine == [b"%d %d" % (t, n) for n in range(40)]


def append_until(
    log: KafkaEventLog, stopping: threading.Event, tried: list[bytes], stored: dict[int, bytes]
) -> None:
    """Append frames of two entries, each once; note those that were acknowledged."""
    while not stopping.is_set():
        value = b"%d" % len(tried)
        tried.append(value)
        try:
            stored[log.append([frame(value, value)])[0]] = value
        except LogError:
            time.sleep(0.05)


@pytest.mark.parametrize("way", ["killed", "paused"])
def test_nothing_acknowledged_is_lost_when_a_broker_fails(
    fragile: KafkaCluster, prefix: str, way: str
) -> None:
    quick = KafkaSettings(fragile.bootstrap, prefix=prefix, request_ms=QUICK_MS)
    [broker] = fragile.brokers
    log = KafkaEventLog(quick, ROW, ONE)
    tried: list[bytes] = []
    stored: dict[int, bytes] = {}
    stopping = threading.Event()
    writer = threading.Thread(target=append_until, args=(log, stopping, tried, stored))
    writer.start()
    wait_for(lambda: len(stored) > 20)

    if way == "killed":
        broker.kill()
        time.sleep(QUICK_MS / 1000)
        broker.restart()
    else:
        broker.pause()
        time.sleep(3 * QUICK_MS / 1000)
        broker.resume()
    before = len(stored)
    wait_for(lambda: len(stored) > before + 20)
    stopping.set()
    writer.join()

    batches = read_all(log)
    found = dict(
        zip(
            [int(f) for batch in batches for f in batch.frames][::2],
            values_of(batches)[::2],
            strict=True,
        )
    )
    assert all(batch.damage == () for batch in batches)
    assert stored.items() <= found.items()
    assert set(found.values()) <= set(tried)
    assert len(set(found.values())) == len(found), "an append was stored twice"
    log.close()


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + REOPEN_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_broker_that_does_not_answer_is_an_error_in_time(
    fragile: KafkaCluster, prefix: str
) -> None:
    quick = KafkaSettings(fragile.bootstrap, prefix=prefix, request_ms=QUICK_MS)
    log = KafkaEventLog(quick, ROW, ONE)
    log.append([frame(b"x")])
    fragile.brokers[0].pause()
    started = time.monotonic()

    with pytest.raises(LogError, match="may be on the log"):
        log.append([frame(b"y")])
    with pytest.raises(LogError):
        log.ends()
    with pytest.raises(LogError):
        log.read(OFFSET_STEP, 1000)
    log.close()

    assert time.monotonic() - started < 20 * QUICK_MS / 1000


def test_another_count_of_partitions_is_refused_with_what_to_do(settings: KafkaSettings) -> None:
    two = TopicSize(partitions=2, replication=1)
    assert asyncio.run(ensure_topics(settings, {ROW: ONE})) == [settings.topic(ROW.name)]
    assert asyncio.run(ensure_topics(settings, {ROW: ONE})) == []

    async def grow() -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=settings.bootstrap)
        await admin.start()
        await admin.create_partitions({settings.topic(ROW.name): NewPartitions(total_count=2)})
        await admin.close()

    with pytest.raises(LogError, match=r"has 1 partitions, not 2: .* a new prefix"):
        asyncio.run(ensure_topics(settings, {ROW: two}))
    asyncio.run(grow())
    with pytest.raises(LogError, match=r"has 2 partitions, not 1: .* a new prefix"):
        KafkaEventLog(settings, ROW, ONE)
    KafkaEventLog(settings, ROW, two, partition=1).close()
    with pytest.raises(ValueError, match="partition 2 of 2"):
        KafkaEventLog(settings, ROW, two, partition=2)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    """A broker with TLS and passwords."""
    need(kafka_missing())
    with KafkaCluster(tmp_path_factory.mktemp("guarded") / "cluster", tls=True) as cluster:
        yield cluster


@pytest.fixture
def by_password(guarded: KafkaCluster, tmp_path: Path, prefix: str) -> KafkaSettings:
    assert guarded.certificates is not None
    (tmp_path / "password").write_text(f"{PASSWORD}\n")
    return KafkaSettings(
        guarded.bootstrap_sasl,
        prefix=prefix,
        security="SASL_SSL",
        ca_file=str(guarded.certificates.authority),
        mechanism="SCRAM-SHA-512",
        user=USER,
        password_file=str(tmp_path / "password"),
    )


def test_tls_and_a_password_let_in(guarded: KafkaCluster, by_password: KafkaSettings) -> None:
    by_tls = replace(by_password, bootstrap=guarded.bootstrap_ssl, security="SSL")
    for given in (by_password, by_tls):
        log = KafkaEventLog(given, ROW, ONE)
        log.append([frame(given.security.encode())])
        found = values_of(read_all(log))
        log.close()

    assert found == [b"SASL_SSL", b"SSL"]


def test_who_may_not_come_in_is_told(
    by_password: KafkaSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "wrong").write_text("wrong")
    refused = {
        "invalid credentials": replace(by_password, password_file=str(tmp_path / "wrong")),
        "certificate verify failed": replace(by_password, ca_file=""),
    }
    for why, given in refused.items():
        caplog.clear()
        with pytest.raises(LogError, match=r"cannot look at the topics.*bootstrap"):
            KafkaEventLog(given, ROW, ONE)
        assert why in caplog.text  # aiokafka tells it only so
