"""The event log on one partition of a Kafka topic: appending, following, recognising frames.

Owns how a frame lies in a partition and what an offset means as a position. Knows Kafka only
through ``featurizer.eventlog_kafka`` and an entry's value not at all.

A frame is a run of records with consecutive offsets, one an entry, whose header says the entry's
topic, its place in the frame and how many entries that has. All frames of one append are one
record batch, which a broker stores whole or not at all. A frame's position is the offset of its
first record times OFFSET_STEP. Offsets have gaps: Kafka's marks of transactions, and what those
aborted. Records that are no whole frame, such as another program's, are damage.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from itertools import accumulate
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from featurizer.eventlog import Batch, Damage, Entry, LogError
from featurizer.eventlog_kafka import (
    Consumer,
    Message,
    Partition,
    Producer,
    TopicSize,
    ensure_topics,
    key_bytes,
    origins_of,
)
from featurizer.frames import MAX_FRAME_ENTRIES, no_entries
from featurizer.kafka_settings import KafkaSettings
from featurizer.topics import ORIGIN, TopicRow

OFFSET_STEP = 1 << 16
RECORDS_MAX = 4096  # what one poll hands over
KEY_BYTES = 8
_SHIFT = 16
_ENTRY_BYTES = 16  # what an entry counts beside its value towards a read's max_bytes
# At most what a record needs beside its value, and a batch beside its records (Kafka's format 2).
_RECORD_BYTES, _BATCH_BYTES = 56, 64
_POLL_MS = 100
_GUARD_S = 5.0

_T = TypeVar("_T")


def messages_of(frames: Sequence[Sequence[Entry]], batch_bytes_max: int) -> list[Message]:
    """Return the records of frames, in order. Raises LogError for what the log cannot hold."""
    found: list[Message] = []
    size = _BATCH_BYTES
    for entries in frames:
        size += sum(len(entry[2]) + _RECORD_BYTES for entry in entries)
        if size > batch_bytes_max:
            raise LogError(f"an append has at most {batch_bytes_max} bytes as records, not {size}")
        found += _frame_messages(entries)
    return found


def _frame_messages(entries: Sequence[Entry]) -> Iterator[Message]:
    count = len(entries)
    if not 0 < count <= MAX_FRAME_ENTRIES:
        raise LogError(f"a frame has 1 to {MAX_FRAME_ENTRIES} entries, not {count}")
    origins = np.zeros(count, ORIGIN)
    try:
        origins["kind"] = [entry[0] for entry in entries]
        keys = [key_bytes(entry[1]) for entry in entries]
    except OverflowError as error:
        raise LogError(f"a topic is a byte and a key an int64: {error}") from error
    origins["place"], origins["count"] = np.arange(count), count
    headers, width = origins.tobytes(), ORIGIN.itemsize
    for i, (_, _, value) in enumerate(entries):
        yield Message(keys[i], value, headers[i * width : (i + 1) * width])


class Run(NamedTuple):
    """Records ``start`` to ``stop`` of a list: a whole frame, or what is none."""

    start: int
    stop: int
    whole: bool


def runs_of(origins: NDArray[np.void], final: bool) -> list[Run]:
    """Divide records into runs, up to a frame that the next records may complete.

    ``origins`` is ORIGIN[n], n > 0, with offsets as ``position``; ``final`` says none are next.
    """
    places, counts = origins["place"].astype(np.int64), origins["count"]
    joined = (np.diff(places) == 1) & (np.diff(origins["position"]) == 1)
    joined &= counts[1:] == counts[:-1]
    starts = [0, *(np.flatnonzero(~joined) + 1).tolist()]
    stops = [*starts[1:], len(origins)]
    found = [
        Run(start, stop, whole=bool(places[start] == 0 and stop - start == counts[start]))
        for start, stop in zip(starts, stops, strict=True)
    ]
    last = found[-1]
    if not final and places[last.start] == 0 and last.stop - last.start < counts[last.start]:
        found.pop()
    return found


def batch_of(
    values: Sequence[bytes], keys: bytearray, origins: NDArray[np.void], runs: Sequence[Run]
) -> Batch:
    """Return the entries of runs that are whole, and the damage of those that are not.

    ``keys`` are 8 bytes a record. ``next_position`` is after all of them.
    """
    picked = np.array([i for run in runs if run.whole for i in range(run.start, run.stop)], int)
    data = [values[i] for i in picked.tolist()]
    lengths = np.array([len(value) for value in data], np.int64)
    places, offsets = origins["place"].astype(np.int64), origins["position"]
    broken = [offsets[[run.start, run.stop - 1]].tolist() for run in runs if not run.whole]
    frames = ((offsets - places) << _SHIFT)[picked]
    return Batch(
        b"".join(data),
        origins["kind"][picked],
        np.frombuffer(bytes(keys), ">i8").astype(np.int64)[picked],
        np.cumsum(lengths) - lengths,
        lengths,
        frames + 1 + places[picked],
        frames,
        int(offsets[runs[-1].stop - 1] + 1) << _SHIFT,
        tuple(Damage(a << _SHIFT, (b + 1 - a) << _SHIFT, "no whole frame") for a, b in broken),
    )


class _Thread:
    """An event loop in a thread of its own, for callers that have none."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._lock = threading.Lock()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def call(self, action: Coroutine[Any, Any, _T], timeout_s: float) -> _T:
        """Return what ``action`` returns. Raises LogError when it takes too long."""
        try:
            return self._begin(action).result(timeout_s)
        except TimeoutError as error:
            raise LogError(f"no answer within {timeout_s} s") from error
        except CancelledError as error:
            raise LogError("the log was closed meanwhile") from error

    def end(self) -> None:
        with self._lock:
            self._ended = True
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def _begin(self, action: Coroutine[Any, Any, _T]) -> Future[_T]:
        with self._lock:
            if self._ended:
                action.close()
                raise LogError("the log is closed")
            return asyncio.run_coroutine_threadsafe(action, self._loop)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._stopping.wait())  # its end cancels whatever else runs


class _Writer:
    """Appends batches. After an error only a new producer knows the order of what it sends."""

    def __init__(self, settings: KafkaSettings, at: Partition) -> None:
        self._settings = settings
        self._at = at
        self._starting = asyncio.Lock()
        self._producer: Producer | None = None
        self._left: set[asyncio.Task[None]] = set()

    async def append(self, messages: Sequence[Message]) -> int:
        """Store the messages as one batch; return the offset of the first."""
        producer = await self._started()
        try:
            first = (await producer.send({self._at: messages}))[self._at]
        except LogError as error:
            self._leave(producer)
            raise LogError(f"{error}; the frames may be on the log all the same") from error
        except asyncio.CancelledError:
            self._leave(producer)
            raise
        if first < 0:  # a broker's answer to a repeat that it has forgotten the place of
            raise LogError("the frames are on the log, but nobody knows where")
        return first

    async def stop(self) -> None:
        if self._producer is not None:
            self._leave(self._producer)
        await asyncio.gather(*self._left)

    async def _started(self) -> Producer:
        async with self._starting:
            if self._producer is None:
                producer = Producer(self._settings)
                try:
                    await producer.start()
                except BaseException:
                    await producer.stop()
                    raise
                self._producer = producer
            return self._producer

    def _leave(self, producer: Producer) -> None:
        if self._producer is producer:
            self._producer = None
        task = asyncio.create_task(producer.stop())
        self._left.add(task)
        task.add_done_callback(self._left.discard)


class _Reader:
    """Follows the partition. Looks at the ends with a consumer of their own.

    The one that reads has a fetch waiting at the broker, and a connection's answers come in order.
    """

    def __init__(self, settings: KafkaSettings, at: Partition) -> None:
        self._settings = settings
        self._at = at
        self._consumer = Consumer(settings)
        self._looker = Consumer(settings)
        self._reading = asyncio.Lock()
        self._next = -1  # the offset that a caller reads next, -1 after an error
        self._fetched = -1  # the offset that the consumer reads next
        self._end = 0  # at most the end, as it was when looked at
        self._forget()

    def _forget(self) -> None:
        """Drop what was fetched and not handed out: values, keys and origins from _next on."""
        self._values: list[bytes] = []
        self._keys = bytearray()
        self._origins = np.empty(0, ORIGIN)

    async def start(self) -> None:
        await self._looker.start()
        await self._consumer.start()
        begin, _ = await self.ends()
        self._consumer.assign({self._at: begin})

    async def stop(self) -> None:
        await asyncio.gather(self._consumer.stop(), self._looker.stop())

    async def ends(self) -> tuple[int, int]:
        begin, self._end = (await self._looker.ends([self._at]))[self._at]
        return begin, self._end

    async def read(self, offset: int, max_bytes: int) -> Batch:
        async with self._reading:
            try:
                await self._go_to(offset)
                return await self._read(max_bytes)
            except BaseException:
                self._next = -1
                raise

    async def _go_to(self, offset: int) -> None:
        if offset == self._next:
            return
        begin, end = await self.ends()
        if not begin <= offset <= end:
            found = f"which has {begin << _SHIFT} to {end << _SHIFT}"
            raise LogError(f"position {offset << _SHIFT} is not on the log, {found}")
        self._consumer.seek(self._at, offset)
        self._forget()
        self._next = self._fetched = offset

    async def _read(self, max_bytes: int) -> Batch:
        """Return what is there from ``_next`` on, waiting only for what the broker says it has."""
        wait_s = self._settings.request_ms / 1000
        until_s = time.monotonic() + wait_s
        while True:
            final = self._fetched >= self._end and self._fetched >= (await self.ends())[1]
            if self._values and (runs := runs_of(self._origins, final)):
                return self._take(runs, max_bytes)
            if final:
                self._next = self._fetched
                return no_entries(self._fetched << _SHIFT)
            if await self._fetch():
                until_s = time.monotonic() + wait_s
            elif time.monotonic() > until_s:
                raise LogError(f"no records came within {wait_s} s")

    async def _fetch(self) -> bool:
        """Take in what came; return whether anything did."""
        records = (await self._consumer.poll(RECORDS_MAX, _POLL_MS)).get(self._at)
        if not records:
            before, self._fetched = self._fetched, await self._consumer.position(self._at)
            return self._fetched > before
        origins = origins_of(records).copy()
        origins["position"] = [record.offset for record in records]
        for i, record in enumerate(records):
            key, value = record.key, record.value
            if key is None or len(key) != KEY_BYTES or value is None:
                key, value = bytes(KEY_BYTES), b""
                origins["count"][i] = 0  # no entry, so it is in no frame
            self._keys += key
            self._values.append(value)
        self._origins = np.concatenate((self._origins, origins))
        self._fetched = records[-1].offset + 1
        return True

    def _take(self, runs: Sequence[Run], max_bytes: int) -> Batch:
        """Hand out runs up to ``max_bytes``, at least one."""
        sizes = accumulate(
            sum(len(value) + _ENTRY_BYTES for value in self._values[run.start : run.stop])
            for run in runs
        )
        taken = runs[: max(1, sum(size <= max_bytes for size in sizes))]
        stop = taken[-1].stop
        batch = batch_of(self._values, self._keys, self._origins, taken)
        self._next = batch.next_position >> _SHIFT
        del self._values[:stop], self._keys[: stop * KEY_BYTES]
        self._origins = self._origins[stop:]
        return batch


class KafkaEventLog:
    """An EventLog in one partition of a topic, which is created where it is missing.

    ``size`` is how many partitions and replicas the topic has. What is retained is the topic's
    setting. One object serves all threads of a process; a fork must not share it.

    A broker that stops answering in the middle of an append leaves open whether the frames are on
    the log. The LogError of it says so, and is the only one after which they may be read, whole.

    Raises LogError for a cluster that cannot be reached or does not know us, and for a topic with
    another count of partitions.
    """

    def __init__(
        self, settings: KafkaSettings, row: TopicRow, size: TopicSize, partition: int = 0
    ) -> None:
        if not 0 <= partition < size.partitions:
            raise ValueError(f"partition {partition} of {size.partitions}")
        self._settings = settings
        at = (settings.topic(row.name), partition)
        self._writer = _Writer(settings, at)
        self._reader = _Reader(settings, at)
        # Each step has its own bound; this one guards against a step that forgot it.
        self._call_s = 12 * settings.request_ms / 1000 + _GUARD_S
        self._thread = _Thread(f"eventlog-{at[0]}-{partition}")
        self._closed = False
        try:
            self._thread.call(self._open(row, size), 2 * self._call_s)
        except BaseException:
            self.close()
            raise

    def append(self, frames: Sequence[Sequence[Entry]]) -> list[int]:
        """Append the frames in one batch; return their positions, then that after them all."""
        if self._closed:
            raise LogError("the log is closed")
        if not frames:
            return []
        messages = messages_of(frames, self._settings.batch_bytes_max)
        first = self._thread.call(self._writer.append(messages), self._call_s)
        offsets = accumulate((len(entries) for entries in frames), initial=first)
        return [offset << _SHIFT for offset in offsets]

    def read(self, position: int, max_bytes: int) -> Batch:
        """Return entries from ``position``, which is a frame's or a ``next_position``."""
        if position < 0 or position % OFFSET_STEP:
            raise LogError(f"{position} is no position: those are multiples of {OFFSET_STEP}")
        return self._thread.call(self._reader.read(position >> _SHIFT, max_bytes), self._call_s)

    def ends(self) -> tuple[int, int]:
        """Return the oldest position kept and the position after the last committed frame."""
        begin, end = self._thread.call(self._reader.ends(), self._call_s)
        return begin << _SHIFT, end << _SHIFT

    def close(self) -> None:
        """Let go of all connections."""
        if self._closed:
            return
        self._closed = True
        try:
            self._thread.call(self._stop(), self._call_s)
        finally:
            self._thread.end()

    async def _open(self, row: TopicRow, size: TopicSize) -> None:
        await ensure_topics(self._settings, {row: size})
        await self._reader.start()

    async def _stop(self) -> None:
        await asyncio.gather(self._writer.stop(), self._reader.stop())
