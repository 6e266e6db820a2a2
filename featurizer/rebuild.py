"""The states made again from the log, beside the live ones, and whether the two are equal.

Owns the comparison. Folds as the fold stage does, into a local replica of its own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from featurizer.adapters import Readable, open_partition
from featurizer.eventlog_kafka import Consumer, Partition
from featurizer.folder import FoldLane
from featurizer.kafka_settings import KafkaSettings
from featurizer.places import StorePlace
from featurizer.splitter import READ_RECORDS, READ_WAIT_MS
from featurizer.state import POSITION
from featurizer.store import Snapshot
from featurizer.updates import PLACE_BITS

COMPARE_KEYS = 512
STATES_BYTES_MAX = 64 << 30  # address space; what is used is what the states need


class Compared(NamedTuple):
    """How many states of a partition were compared, and what was found.

    ``newer`` were written while we looked, which a store without versions cannot hide.
    """

    states: int
    equal: int
    newer: int
    different: tuple[int, ...]  # their keys


Tell = Callable[[int, int], None]  # updates' offsets done, and of how many


async def rebuild_partition(
    number: int, kafka: KafkaSettings, live: Readable, into: StorePlace, schema: int, tell: Tell
) -> Compared:
    """Fold a partition from its beginning up to where ``live`` is, and compare all states.

    ``into`` is where the new ones are kept. Raises LogError, StoreError.
    """
    snapshot = live.snapshot()
    reader = Consumer(kafka)
    lane = FoldLane(
        number, kafka, into.inputs, schema, lambda n: open_partition(into, n), STATES_BYTES_MAX
    )
    await reader.start()
    try:
        start = await lane.start(reader)
        await _fold_up_to(lane, reader, start, snapshot.position, tell)
        return compare(lane.states(), snapshot)
    finally:
        snapshot.close()
        await lane.stop()
        await reader.stop()


async def _fold_up_to(
    lane: FoldLane, reader: Consumer, start: dict[Partition, int], stop: int, tell: Tell
) -> None:
    [(at, first)] = start.items()
    reader.assign(start)
    offset = first
    while offset < stop:
        found = await reader.poll(READ_RECORDS, READ_WAIT_MS)
        wanted = [record for record in found.get(at, ()) if record.offset < stop]
        if wanted:
            await lane.take({at: wanted})
        offset = await reader.position(at)
        tell(min(offset, stop) - first, stop - first)


def compare(rebuilt: Sequence[tuple[int, bytes]], live: Snapshot) -> Compared:
    """Compare states, made up to where ``live`` was, with what is there."""
    states = equal = newer = 0
    different: list[int] = []
    for keys, blobs in _chunks(rebuilt):
        for key, blob, there in zip(keys, blobs, live.get_many(keys), strict=True):
            states += 1
            if there is not None and bytes(there) == blob:
                equal += 1
            elif there is not None and _offset_of(there) >= live.position:
                newer += 1
            else:
                different.append(key)
    return Compared(states, equal, newer, tuple(different))


def _chunks(states: Sequence[tuple[int, bytes]]) -> Iterator[tuple[list[int], list[bytes]]]:
    for start in range(0, len(states), COMPARE_KEYS):
        chunk = states[start : start + COMPARE_KEYS]
        yield [key for key, _ in chunk], [blob for _, blob in chunk]


def _offset_of(blob: memoryview | bytes) -> int:
    words = np.frombuffer(blob, np.int64)
    return int(words[POSITION]) >> PLACE_BITS if len(words) > POSITION else -1


def scratch_place(place: StorePlace) -> tuple[tempfile.TemporaryDirectory[str], StorePlace]:
    """Return a new directory and a place in it for states of the same kind."""
    directory = tempfile.TemporaryDirectory(prefix="rebuild-")
    url = f"lmdb://{Path(directory.name).absolute()}"
    return directory, StorePlace(url, place.partitions, place.inputs)
