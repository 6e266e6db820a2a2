"""Drills of one host of several: Kafka and Redis harmed, and a system broken on purpose there."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from deploy.testing.kafka import KafkaCluster, kafka_missing
from deploy.testing.redis import redis_missing
from featurizer.cluster import create_topics
from featurizer.eventlog import Batch, LogError
from featurizer.eventlog_file import FileEventLog
from featurizer.eventlog_kafka import Message, Producer
from featurizer.kafka_settings import KafkaSettings
from loadgen.drill_command import DrillOptions
from loadgen.drill_run import RunSettings
from loadgen.system import Models
from tests.conftest import Host, Trained, serving
from tests.servers import need
from tests.test_drills import SHORT, missed, run

pytestmark = pytest.mark.timeout(900)  # on a machine that was just set up every kernel is compiled


def options(names: Sequence[str], folder: Path, trained: Trained, settings: RunSettings) -> Any:
    need(kafka_missing() or redis_missing())
    models = Models((trained.bundle_path,) * 2, trained.key_path)
    return DrillOptions(tuple(names), folder, settings, ("kafka",), models=models)


def test_a_host_with_kafka_and_redis_keeps_its_promises_though_both_are_harmed(
    tmp_path: Path, trained: Trained
) -> None:
    names = ("redis-kill", "kafka-leader", "states", "card-number")
    found = run(options(names, tmp_path, trained, SHORT))
    assert found.keys() == set(names)
    for result in found.values():
        assert not result.skipped
        assert not missed(result, "safety"), (result.title, result.figures)
    assert found["redis-kill"].figures["degraded"] > 0
    assert found["states"].figures["states"] > 100
    searched = found["card-number"].figures
    assert searched["card_numbers_sent"] > 50
    assert searched["controls"] > 3, "it is in the journal, and what three brokers and Redis have"


# Broken on purpose.


class Awaited:
    """A log that is a real one, but for this: each append waits until Kafka has it, too."""

    def __init__(self, log: FileEventLog, kafka: KafkaSettings) -> None:
        self._log, self._at = log, (kafka.topic("decisions"), 0)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._producer = Producer(kafka)
        self._wait(self._producer.start())

    def _wait(self, work: Coroutine[Any, Any, Any]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def append(self, frames: Any) -> list[int]:
        self._wait(self._producer.send({self._at: [Message(b"key", b"a decision")]}))
        return self._log.append(frames)

    def read(self, position: int, max_bytes: int) -> Batch:
        return self._log.read(position, max_bytes)

    def ends(self) -> tuple[int, int]:
        return self._log.ends()

    def close(self) -> None:
        with contextlib.suppress(LogError):
            self._wait(self._producer.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._log.close()


@pytest.fixture
def awaiting(tmp_path: Path, host: Host) -> Iterator[str]:
    """Yield the target of a scorer that awaits Kafka, whose broker is in `roles.json`."""
    need(kafka_missing())
    with KafkaCluster(tmp_path / "kafka") as kafka:
        pid = kafka.brokers[0].pid
        settings = KafkaSettings(kafka.bootstrap, event_partitions=1, entity_partitions=1)
        asyncio.run(create_topics(settings))
        roles = {f"kafka-{n}": {"state": "ready", "pid": pid, "restarts": 0} for n in (1, 2, 3)}
        (tmp_path / "roles.json").write_text(json.dumps(roles))
        log = Awaited(host.open_log(), settings)
        host.now_ms = time.time_ns() // 1_000_000 + 600_000
        try:
            with serving(host.scorer(log), wait_ms_max=25.0) as (server, _):
                yield f"127.0.0.1:{server.port}"
        finally:
            log.close()


def test_drills_find_a_scorer_that_awaits_kafka(tmp_path: Path, awaiting: str) -> None:
    host = DrillOptions(("kafka-slow",), tmp_path, SHORT, target=awaiting, data=tmp_path)
    found = run(host)
    assert "in_time" in missed(found["kafka-slow"])
