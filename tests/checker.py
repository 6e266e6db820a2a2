"""What the log says should have happened, worked out anew: nothing lost, nothing twice.

Shares no code with relay, split and fold: reads the topics by itself, knows the layout of a packed
array by its own table, and folds one entity at a time with the kernel alone.
"""

from __future__ import annotations

import asyncio
import hashlib
import struct
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import aiokafka
import numpy as np

from featurizer.fold import fold
from featurizer.records import RECORD
from featurizer.state import ROW_WORDS, length

ORIGIN = struct.Struct("<qqBBHI")
HEAD = struct.Struct("<BBHIq")
ROW = np.dtype([("mask", "<i8"), ("host", "<i8"), ("position", "<i8"), ("record", RECORD)])
QUIET_MS = 1_500


class Sent(NamedTuple):
    """A record of a topic: where it was written first, and what it holds."""

    partition: int
    offset: int
    host: int
    position: int
    value: bytes


class Update(NamedTuple):
    """A row of a packed array, and where it stands."""

    partition: int
    offset: int
    place: int
    mask: int
    host: int
    position: int
    record: bytes


class Found(NamedTuple):
    """What a run left on the log, and what the states ought to be by it (key to bytes)."""

    transactions: list[Sent]
    feedback: list[Sent]
    decisions: list[Sent]
    updates: list[Update]
    states: dict[int, bytes]


async def _read(
    bootstrap: str, topic: str, partitions: int
) -> list[tuple[int, int, dict[str, bytes], bytes]]:
    consumer = aiokafka.AIOKafkaConsumer(
        bootstrap_servers=bootstrap, isolation_level="read_committed", enable_auto_commit=False
    )
    await consumer.start()
    try:
        at = [aiokafka.TopicPartition(topic, number) for number in range(partitions)]
        consumer.assign(at)
        await consumer.seek_to_beginning(*at)
        found = []
        while batch := await consumer.getmany(timeout_ms=QUIET_MS):
            for place, records in batch.items():
                found += [(place.partition, r.offset, dict(r.headers), r.value) for r in records]
        return found
    finally:
        await consumer.stop()


def _sent(raw: list[tuple[int, int, dict[str, bytes], bytes]]) -> list[Sent]:
    """Drop what a relay sent again: what is not beyond its host's last in the partition."""
    last: dict[tuple[int, int], int] = {}
    found = []
    for partition, offset, headers, value in raw:
        host, position, *_ = ORIGIN.unpack(headers["o"])
        if position > last.get((partition, host), -1):
            last[partition, host] = position
            found.append(Sent(partition, offset, host, position, value))
    return found


def _updates(raw: list[tuple[int, int, dict[str, bytes], bytes]]) -> list[Update]:
    found = []
    for partition, offset, _, value in raw:
        rows = np.frombuffer(value, ROW, offset=HEAD.size)
        assert len(rows) == HEAD.unpack_from(value)[3]
        for place, row in enumerate(rows):
            found.append(
                Update(
                    partition,
                    offset,
                    place + 1,
                    int(row["mask"]),
                    int(row["host"]),
                    int(row["position"]),
                    row["record"].tobytes(),
                )
            )
    return found


def _folded(updates: list[Update]) -> dict[int, bytes]:
    states: dict[int, np.ndarray] = {}
    for update in updates:
        record = np.frombuffer(update.record, RECORD)[0]
        for entity, key in enumerate(record["entities"].tolist()):
            if update.mask >> entity & 1:
                words = states.setdefault(key, np.zeros(ROW_WORDS, np.int64))
                fold(words, entity, record, (update.offset << 20) + update.place)
    return {key: words[: int(length(words))].tobytes() for key, words in states.items()}


def _progress(updates: list[Update], inputs: int) -> dict[tuple[int, int], bytes]:
    """Return what each partition is to say of each host: key and row."""
    rows: dict[tuple[int, int], np.ndarray] = {}
    for update in updates:
        record = np.frombuffer(update.record, RECORD)[0]
        source = int(record["entities"][0]) % (1 << 64) % inputs * 2 + int(record["kind"]) - 1
        digest = hashlib.sha256(b"progress" + update.host.to_bytes(8, "little", signed=True))
        key = int.from_bytes(digest.digest()[:8], "little", signed=True)
        row = rows.setdefault((update.partition, key), np.full(2 * inputs, -1, np.int64))
        row[source] = max(row[source], update.position)
    lead = np.array([1, np.iinfo(np.int64).max], np.int64).tobytes()
    return {at: lead + row.tobytes() for at, row in rows.items()}


async def _gather(bootstrap: str, prefix: str, partitions: int) -> Found:
    names = ("transactions", "feedback", "decisions", "entity-updates")
    raw = [await _read(bootstrap, f"{prefix}.{name}", partitions) for name in names]
    updates = _updates(raw[3])
    return Found(_sent(raw[0]), _sent(raw[1]), _sent(raw[2]), updates, _folded(updates))


def gather(bootstrap: str, prefix: str, partitions: int) -> Found:
    """Read the log of a run and work out the states."""
    return asyncio.run(_gather(bootstrap, prefix, partitions))


def check(found: Found, acknowledged: Sequence[int], partitions: int) -> list[str]:
    """Return what is wrong with a run; ``acknowledged`` are the hashes of its requests."""
    wrong: list[str] = []
    records = {
        (sent.host, sent.position): sent.value for sent in (*found.transactions, *found.feedback)
    }
    requests = Counter(
        int(np.frombuffer(sent.value, RECORD)["request"][0]) for sent in found.transactions
    )
    wrong += [f"request {request} is lost" for request in acknowledged if not requests[request]]
    first: dict[int, tuple[int, int]] = {}
    for sent in found.transactions:
        first.setdefault(
            int(np.frombuffer(sent.value, RECORD)["request"][0]), (sent.host, sent.position)
        )
    counted = {*first.values(), *((sent.host, sent.position) for sent in found.feedback)}
    decided = Counter((sent.host, sent.position - 1) for sent in found.decisions)
    wrong += [f"{at} is decided {decided[at]} times" for at in first.values() if decided[at] != 1]
    met: Counter[tuple[int, int, int]] = Counter()
    for update in found.updates:
        at = (update.host, update.position)
        if records.get(at) != update.record:
            wrong.append(f"an update of {at} is not what was sent")
        for entity in range(9):
            if update.mask >> entity & 1:
                met[(*at, entity)] += 1
                key = int(np.frombuffer(update.record, RECORD)["entities"][0][entity])
                if key % (1 << 64) % partitions != update.partition:
                    wrong.append(f"entity {entity} of {at} is in partition {update.partition}")
    for at in counted:
        keys = np.frombuffer(records[at], RECORD)["entities"][0].tolist()
        for entity, key in enumerate(keys):
            if met.pop((*at, entity), 0) != (key != 0):
                wrong.append(f"entity {entity} of {at} was not updated once")
    wrong += [f"{at} was updated and does not count" for at in met]
    return wrong + _disorder(found)


def _disorder(found: Found) -> list[str]:
    """Return the customers whose records stand in another order than they were written in."""
    wrong = []
    last: dict[tuple[int, int], int] = {}
    for update in found.updates:
        if not update.mask & 1:
            continue
        record = np.frombuffer(update.record, RECORD)[0]
        at = (update.host, int(record["entities"][0]) * 4 + int(record["kind"]))
        if update.position < last.get(at, -1):
            wrong.append(f"customer {at} is out of order at {update.position}")
        last[at] = update.position
    return wrong
