"""A worker on partitions of a group: what it holds, what is read, and starting anew after trouble.

Owns when a lane starts, is fed and stops. A lane is the work on one partition number; where it
reads on is its own knowledge, not the group's. Must not know what a lane does.

    held ──start──▶ FED ──take fails──▶ WAITING ──back-off──▶ start ...
     any ──the group takes it away──▶ stopped
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from featurizer.eventlog import LogError
from featurizer.eventlog_kafka import Consumer, Member, Partition, Received
from featurizer.kafka_settings import KafkaSettings
from featurizer.store import StoreError

_log = logging.getLogger(__name__)
FAILURES_MAX = 8  # reads in a row; then the role ends, for its supervisor to start it anew


class Lane(Protocol):
    """The work on one partition number of each topic. Raises LogError or StoreError."""

    async def start(self, reader: Consumer) -> Mapping[Partition, int]:
        """Take over, and return the offset to read each partition from."""
        ...

    async def take(self, found: Mapping[Partition, Sequence[Received]]) -> int:
        """Do the work on what was read; return how many records counted.

        Where it fails, the lane that is started next knows how far this one came.
        """
        ...

    async def settle(self) -> None:
        """Wait for what ``take`` left under way; it may leave one batch. Asked when none came."""
        ...

    async def stop(self) -> None:
        """Let go of everything, in whatever state."""
        ...


@dataclass(frozen=True, slots=True)
class StageSettings:
    """Who we are in which group, how much a read brings, and the back-off after trouble.

    ``instance`` makes the membership a static one: a restart within the session's time moves no
    partition. "" is for none. ``records_max`` bounds how long the work on a read may take: what the
    group wants of us has to wait for it, and with little CPU it takes ten times as long.
    """

    group: str
    topics: Sequence[str]
    instance: str = ""
    records_max: int = 4_000
    wait_ms: int = 200
    retry_ms: float = 500.0


@dataclass(slots=True)
class _Held:
    """A lane, whether it is fed, and when it is to be started again."""

    lane: Lane
    fed: bool = False
    start_at_s: float = 0.0


class Stage:
    """Runs a lane for each partition number that the group gives. ``lane`` makes one.

    ``lags`` is told after each read how old its oldest record was, in s; 0 where there was none.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        settings: StageSettings,
        lane: Callable[[int], Lane],
        lags: Callable[[float], object] | None = None,
    ) -> None:
        self._lags = lags
        self._kafka = kafka
        self._settings = settings
        self._make = lane
        self._held: dict[int, _Held] = {}
        self._lock = asyncio.Lock()  # a lane is fed, or the group changes
        self._epoch = 0  # what was read before a lane's start must not reach it
        topics = [kafka.topic(name) for name in settings.topics]
        member = Member(
            settings.group, settings.instance, topics, self._assigned, self._revoked
        )  # fmt: skip
        self._consumer = Consumer(kafka, member)
        self._reader = Consumer(kafka)
        self.counted = 0
        self._failures = 0  # reads in a row

    @property
    def partitions(self) -> tuple[int, ...]:
        """The partition numbers that are fed now."""
        return tuple(number for number, held in self._held.items() if held.fed)

    async def run(self, stopping: Callable[[], bool]) -> None:
        """Work until ``stopping`` says so.

        Raises LogError where the cluster is not to be had at the start, or reads keep failing.
        """
        try:
            await self._reader.start()
            await self._consumer.start()
            while not stopping():
                await self.step()
        finally:
            await self._consumer.stop()
            await self._revoked()
            await self._reader.stop()

    async def step(self) -> int:
        """Start what is due, read once and feed the lanes; return how many records counted."""
        await self._start_due()
        epoch = self._epoch
        try:
            found = await self._consumer.poll(self._settings.records_max, self._settings.wait_ms)
        except LogError as error:
            await self._read_failed(error)
            return 0
        self._failures = 0
        if self._lags is not None:
            self._lags(_age_s(found))
        async with self._lock:
            if epoch != self._epoch:
                return 0
            if not found:
                await asyncio.gather(*[self._settle(number) for number in self.partitions])
                return 0
            of: dict[int, dict[Partition, Sequence[Received]]] = {}
            for at, records in found.items():
                of.setdefault(at[1], {})[at] = records
            counts = await asyncio.gather(*[self._feed(n, each) for n, each in of.items()])
        self.counted += sum(counts)
        return sum(counts)

    async def _feed(self, number: int, found: Mapping[Partition, Sequence[Received]]) -> int:
        held = self._held.get(number)
        if held is None or not held.fed:
            return 0
        try:
            return await held.lane.take(found)
        except (LogError, StoreError) as error:
            await self._put_off(number, held, error)
            return 0

    async def _settle(self, number: int) -> None:
        held = self._held[number]
        try:
            await held.lane.settle()
        except (LogError, StoreError) as error:
            await self._put_off(number, held, error)

    async def _read_failed(self, error: LogError) -> None:
        """Begin all lanes anew: what was read may be lost with the read that failed.

        One that was stopped for a while meets this, as the time for its read is over.
        """
        self._failures += 1
        if self._failures > FAILURES_MAX:
            raise error
        async with self._lock:
            for number, held in list(self._held.items()):
                if held.fed:
                    await self._put_off(number, held, error)
        await asyncio.sleep(self._settings.retry_ms / 1000)

    async def _put_off(self, number: int, held: _Held, error: Exception) -> None:
        """Begin a lane anew, later: it alone knows what of the last batch counts."""
        _log.warning("partition %d begins anew: %s", number, error)
        await held.lane.stop()
        self._consumer.pause(self._places(number))
        again_s = time.monotonic() + self._settings.retry_ms / 1000
        self._held[number] = _Held(self._make(number), start_at_s=again_s)
        self._epoch += 1

    async def _start_due(self) -> None:
        now_s = time.monotonic()
        for number, held in list(self._held.items()):
            if held.fed or held.start_at_s > now_s:
                continue
            async with self._lock:
                if self._held.get(number) is held:
                    await self._start(number, held)

    async def _start(self, number: int, held: _Held) -> None:
        try:
            offsets = await held.lane.start(self._reader)
            for at, offset in offsets.items():
                self._consumer.seek(at, offset)
        except (LogError, StoreError) as error:
            await self._put_off(number, held, error)
            return
        self._consumer.resume(self._places(number))
        held.fed = True
        self._epoch += 1
        _log.info("partition %d is read from %s", number, dict(offsets))

    async def _assigned(self, partitions: Sequence[Partition]) -> None:
        """Hold what the group gives; nothing of it is read until the lane has started."""
        async with self._lock:
            self._epoch += 1
            for number in sorted({at[1] for at in partitions}):
                self._held[number] = _Held(self._make(number))

    async def _revoked(self) -> None:
        """Stop all lanes, after what they are at."""
        async with self._lock:
            self._epoch += 1
            held, self._held = self._held, {}
            for each in held.values():
                await each.lane.stop()

    def _places(self, number: int) -> list[Partition]:
        return [(self._kafka.topic(name), number) for name in self._settings.topics]


def _age_s(found: Mapping[Partition, Sequence[Received]]) -> float:
    """Return how long ago the oldest of what was read was written."""
    oldest_ms = min((each[0].timestamp for each in found.values()), default=None)
    return 0.0 if oldest_ms is None else max(0.0, time.time_ns() / 1e9 - oldest_ms / 1000)
