"""A stage where reads fail: its lanes begin anew, and it ends only where they keep failing."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from featurizer.eventlog import LogError
from featurizer.eventlog_kafka import Consumer, Partition, Received
from featurizer.kafka_settings import KafkaSettings
from featurizer.stage import FAILURES_MAX, Stage, StageSettings

KAFKA = KafkaSettings("nowhere:1", prefix="p")
AT: Partition = ("p.topic", 3)


@dataclass
class Log:
    """One partition's records 0, 1, 2 ... where the ``failing`` next reads fail."""

    offset: int = 0
    failing: int = 0
    paused: bool = True

    async def poll(self, _records: int, _ms: int) -> dict[Partition, list[Any]]:
        if self.failing:
            self.failing -= 1
            self.offset += 1  # it was read, and nobody got it
            raise LogError("no answer")
        if self.paused:
            return {}
        self.offset += 1
        return {AT: [self.offset - 1]}

    def seek(self, at: Partition, offset: int) -> None:
        assert at == AT
        self.offset = offset

    def pause(self, partitions: Sequence[Partition]) -> None:
        assert list(partitions) == [AT]
        self.paused = True

    def resume(self, partitions: Sequence[Partition]) -> None:
        assert list(partitions) == [AT]
        self.paused = False


@dataclass
class Lane:
    """Keeps what it took, over all its lives."""

    taken: list[Any] = field(default_factory=list)

    async def start(self, _reader: Consumer) -> Mapping[Partition, int]:
        return {AT: len(self.taken)}

    async def take(self, found: Mapping[Partition, Sequence[Received]]) -> int:
        self.taken += found[AT]
        return len(found[AT])

    async def settle(self) -> None:
        pass

    async def stop(self) -> None:
        pass


def stage_on(log: Log, lane: Lane) -> Stage:
    stage = Stage(KAFKA, StageSettings("group", ("topic",), retry_ms=0.0), lambda _: lane)
    stage._consumer = log  # type: ignore[assignment]
    return stage


def test_a_read_that_fails_loses_nothing() -> None:
    """A process that was stopped for a while finds the time for its read over."""
    log, lane = Log(), Lane()

    async def drive() -> None:
        stage = stage_on(log, lane)
        await stage._assigned([AT])
        for _ in range(3):
            await stage.step()
        log.failing = FAILURES_MAX
        for _ in range(FAILURES_MAX + 3):
            await stage.step()

    asyncio.run(drive())

    assert lane.taken == list(range(len(lane.taken)))
    assert len(lane.taken) > 3


def test_reads_that_keep_failing_end_it() -> None:
    async def drive() -> None:
        stage = stage_on(Log(failing=FAILURES_MAX + 1), Lane())
        await stage._assigned([AT])
        for _ in range(FAILURES_MAX + 1):
            await stage.step()

    with pytest.raises(LogError):
        asyncio.run(drive())


def test_a_fetch_that_the_client_cancels_does_not_cancel_the_stop() -> None:
    class Stopped:
        async def stop(self) -> None:
            fetch = asyncio.create_task(asyncio.sleep(60))
            await asyncio.sleep(0)
            fetch.cancel()
            await fetch

    async def drive() -> None:
        consumer = Consumer(KAFKA)
        consumer._consumer = Stopped()
        await consumer.stop()

    asyncio.run(drive())


def test_a_stage_looks_through_what_its_batches_made_alone() -> None:
    code = """
import gc
from featurizer.cluster import run_until_stopped

async def work(_):
    print(gc.get_freeze_count() > 10_000)

run_until_stopped(work)
"""
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert told == "True\n"
