"""What the log says should have happened, worked out anew: nothing lost, nothing twice.

Shares no code with relay, split and fold: reads the topics by itself, knows the layout of a packed
array by its own table, and folds one entity at a time with the kernel alone.

A client that had no answer may ask another host, and journals are per host: so a request may stand
on the log more than once, each time with a decision. The first record of it in its partition of
``transactions`` is the event, and the decision written with it is the decision; every later one is
a repeat, and must be in no state. "No decision twice" means that the event has exactly one
decision, and that whatever a client was told bears the id of that one: ids are made of request
and payload, so two hosts give the same.

What a relay sent again, which is not beyond its host's last in the partition, is the same record.

A split that began anew writes updates again. An update names its record's offset; one that is not
beyond the last of its source, a kind of record in one partition of the events, is a repeat. It must
be the same as the first, which must be there, and it must be in no state.

No record of an aborted transaction of the stream counts: the topics are read as committed.
"""

from __future__ import annotations

import asyncio
import hashlib
import struct
from collections import Counter
from collections.abc import ItemsView, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import NamedTuple

import aiokafka
import numpy as np
from fraud.v1 import decision_pb2

from featurizer.fold import fold
from featurizer.records import RECORD
from featurizer.state import ROW_WORDS, length

ORIGIN = struct.Struct("<qqBBHI")
HEAD = struct.Struct("<BBHIq")
ROW = np.dtype(
    [("mask", "<i8"), ("offset", "<i8"), ("host", "<i8"), ("position", "<i8"), ("record", RECORD)]
)
UPDATES = "entity-updates"
TOPICS = (UPDATES, "decisions", "feedback", "transactions")  # what follows from the others first
INPUTS = {1: "transactions", 2: "feedback"}  # by the kind of record
NO_JOURNAL = 0  # the host under whose key a partition keeps the offsets that it met
READ_MS = 200
READS_MAX = 600

At = tuple[int, int]  # host and position of a record


class Raw(NamedTuple):
    """A record of a topic as it was read."""

    partition: int
    offset: int
    headers: Mapping[str, bytes]
    value: bytes


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


class Faults(NamedTuple):
    """What is wrong with a run, each as a sentence."""

    lost: list[str]
    twice: list[str]
    different: list[str]


@dataclass
class Found:
    """What a run left on the log, and what the states ought to be by it.

    Grows with ``take``; what is wrong for good is kept.
    """

    partitions: int
    transactions: list[Sent] = field(default_factory=list)
    feedback: list[Sent] = field(default_factory=list)
    decisions: dict[At, list[str]] = field(default_factory=dict)
    updates: list[Update] = field(default_factory=list)
    first: dict[int, At] = field(default_factory=dict)  # of each request: its event
    ends: dict[int, int] = field(default_factory=dict)  # the offset of the last in each partition
    repeats: int = 0  # of requests, at another host
    resent: int = 0  # by relays
    repeated: int = 0  # updates, by splits that began anew
    wrong: Faults = field(default_factory=lambda: Faults([], [], []))
    _records: dict[At, bytes] = field(default_factory=dict)
    _places: dict[tuple[str, int, int], At] = field(default_factory=dict)
    _rows: dict[tuple[int, int, int, int], bytes] = field(default_factory=dict)
    _waiting: dict[At, int] = field(default_factory=dict)  # events: the entities not updated yet
    _met: Counter[tuple[int, int, int]] = field(default_factory=Counter)
    _last: dict[tuple[object, ...], int] = field(default_factory=dict)
    _words: dict[int, np.ndarray] = field(default_factory=dict)
    _progress: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)

    @property
    def states(self) -> dict[int, bytes]:
        """Every state, by its key."""
        return {key: words[: int(length(words))].tobytes() for key, words in self._words.items()}

    @property
    def progress(self) -> dict[tuple[int, int], bytes]:
        """What each partition is to say of each host: key and row.

        A row: the format, a time that is never, as of which update, the last of each source.
        """
        lead = np.array([2, np.iinfo(np.int64).max], np.int64).tobytes()
        return {at: lead + row.tobytes() for at, row in self._progress.items()}

    @property
    def waiting(self) -> Set[At]:
        """Which events have entities that no update on the log is for."""
        return self._waiting.keys()

    def left(self) -> ItemsView[At, int]:
        """Return those with the bits of the entities."""
        return self._waiting.items()

    def take(self, raw: Mapping[str, Sequence[Raw]]) -> None:
        """Take in what was read of each topic, each in order."""
        for sent in self._fresh("transactions", raw["transactions"]):
            request = int(np.frombuffer(sent.value, RECORD)["request"][0])
            self.transactions.append(sent)
            if self.first.setdefault(request, (sent.host, sent.position)) == sent[2:4]:
                self._wait_for(sent)
            else:
                self.repeats += 1
        for sent in self._fresh("feedback", raw["feedback"]):
            self.feedback.append(sent)
            self._wait_for(sent)
        for sent in self._fresh("decisions", raw["decisions"]):
            decision = decision_pb2.Decision.FromString(sent.value)
            at = (sent.host, sent.position - 1)
            self.decisions.setdefault(at, []).append(decision.assessment.decision_id)
        for each in raw[UPDATES]:
            self.ends[each.partition] = each.offset
            self._update(each)

    def _fresh(self, topic: str, raw: Sequence[Raw]) -> list[Sent]:
        """Drop what a relay sent again, which must be the same; note what was overtaken."""
        found = []
        for partition, offset, headers, value in raw:
            host, position, *_ = ORIGIN.unpack(headers["o"])
            last = (topic, partition, host)
            known = self._records.get((host, position))
            if position > self._last.get(last, -1):
                self._last[last] = position
                self._places[topic, partition, offset] = (host, position)
                self._records[host, position] = b"" if topic == "decisions" else value
                found.append(Sent(partition, offset, host, position, value))
                continue
            self.resent += 1
            if known is None:
                self.wrong.lost.append(f"{topic} {host} {position} was overtaken")
            elif topic != "decisions" and known != value:
                self.wrong.different.append(f"{topic} {host} {position} was sent in two forms")
        return found

    def _wait_for(self, sent: Sent) -> None:
        keys = np.frombuffer(sent.value, RECORD)["entities"][0].tolist()
        mask = sum(1 << entity for entity, key in enumerate(keys) if key)
        self._waiting[sent.host, sent.position] = mask

    def _update(self, raw: Raw) -> None:
        partition, offset, _, value = raw
        rows = np.frombuffer(value, ROW, offset=HEAD.size)
        _, _, source, count, _ = HEAD.unpack_from(value)
        if len(rows) != count:
            self.wrong.different.append(f"updates at {partition}/{offset} are cut")
        for place, row in enumerate(rows, 1):
            kind, split_at = int(row["record"]["kind"]), int(row["offset"])
            if self._is_repeat((partition, source, kind, split_at), row.tobytes()):
                continue
            at = (int(row["host"]), int(row["position"]))
            if self._places.get((INPUTS.get(kind, ""), source, split_at)) != at:
                self.wrong.different.append(f"an update of {at} is not of {source}/{split_at}")
            update = Update(partition, offset, place, int(row["mask"]), *at)
            self.updates.append(update)
            self._judge(update, at, row["record"])
            self._fold(update, row["record"], split_at)

    def _is_repeat(self, row: tuple[int, int, int, int], data: bytes) -> bool:
        """Whether a row, by partition, source, kind and offset, does not count."""
        last = ("update", *row[:3])
        if row[3] > self._last.get(last, -1):
            self._last[last] = row[3]
            self._rows[row] = data
            return False
        self.repeated += 1
        if row not in self._rows:
            self.wrong.lost.append(f"the update {row} was overtaken")
        elif self._rows[row] != data:
            self.wrong.different.append(f"the update {row} was written in two forms")
        return True

    def _judge(self, update: Update, at: At, record: np.void) -> None:
        """Find what is wrong with an update by itself and by those before it."""
        if self._records.get(at) != record.tobytes():
            self.wrong.different.append(f"an update of {at} is not what was sent")
        if record["kind"] == 1 and self.first.get(int(record["request"])) != at:
            self.wrong.twice.append(f"{at} was updated, and is a repeat")
        keys = record["entities"].tolist()
        for entity in (entity for entity in range(9) if update.mask >> entity & 1):
            self._met[(*at, entity)] += 1
            if self._met[(*at, entity)] > 1 or not keys[entity]:
                self.wrong.twice.append(f"entity {entity} of {at} was updated once too often")
            if keys[entity] % (1 << 64) % self.partitions != update.partition:
                self.wrong.different.append(f"entity {entity} of {at} is in a wrong partition")
        left = self._waiting.pop(at, 0) & ~update.mask
        if left:
            self._waiting[at] = left
        if update.mask & 1:
            self._order(at, (keys[0], at[0], int(record["kind"])))

    def _order(self, at: At, customer: tuple[int, int, int]) -> None:
        """Take in that a record of a customer, by host and kind, was updated next."""
        if at[1] <= self._last.get(customer, -1):
            self.wrong.different.append(f"{at} is out of its customer's order")
        self._last[customer] = at[1]

    def _fold(self, update: Update, record: np.void, split_at: int) -> None:
        place = (update.offset << 20) + update.place
        for entity, key in enumerate(record["entities"].tolist()):
            if update.mask >> entity & 1:
                words = self._words.setdefault(key, np.zeros(ROW_WORDS, np.int64))
                fold(words, entity, record, place)
        source = int(record["entities"][0]) % (1 << 64) % self.partitions * 2
        source += int(record["kind"]) - 1
        for host, reached in ((update.host, update.position), (NO_JOURNAL, split_at)):
            digest = hashlib.sha256(b"progress" + host.to_bytes(8, "little", signed=True))
            row_key = int.from_bytes(digest.digest()[:8], "little", signed=True)
            none = np.full(1 + 2 * self.partitions, -1, np.int64)
            row = self._progress.setdefault((update.partition, row_key), none)
            row[0], row[1 + source] = place, max(row[1 + source], reached)


class Reader:
    """Reads the topics of a run further each time. ``partitions`` is how many each has."""

    def __init__(self, bootstrap: str, prefix: str, partitions: int) -> None:
        self._bootstrap = bootstrap
        self._prefix = prefix
        self._positions: dict[aiokafka.TopicPartition, int] = {}
        self.found = Found(partitions)

    def read(self) -> Found:
        """Take in what came since. Raises KafkaError, TimeoutError, with nothing taken in."""
        return asyncio.run(self._read())

    async def _read(self) -> Found:
        read: dict[str, Sequence[Raw]] = {}
        positions: dict[aiokafka.TopicPartition, int] = {}
        for name in TOPICS:
            places = self._places(name)
            starts = {at: self._positions.get(at, 0) for at in places}
            read[name], after = await self._collect(places, starts)
            positions |= after
        self._positions |= positions
        self.found.take(read)
        return self.found

    def _places(self, name: str) -> list[aiokafka.TopicPartition]:
        topic = f"{self._prefix}.{name}"
        return [aiokafka.TopicPartition(topic, n) for n in range(self.found.partitions)]

    async def _collect(
        self,
        places: list[aiokafka.TopicPartition],
        starts: Mapping[aiokafka.TopicPartition, int],
    ) -> tuple[list[Raw], dict[aiokafka.TopicPartition, int]]:
        """Return the records up to what the ends are now, and where to read on."""
        consumer = aiokafka.AIOKafkaConsumer(
            bootstrap_servers=self._bootstrap, isolation_level="read_committed",
            enable_auto_commit=False,
        )  # fmt: skip
        await consumer.start()
        try:
            consumer.assign(places)
            for at, offset in starts.items():
                consumer.seek(at, offset)
            found: list[Raw] = []
            ends = await consumer.end_offsets(places)
            for _ in range(READS_MAX):
                after = {at: await consumer.position(at) for at in places}
                if all(after[at] >= ends[at] for at in places):
                    return found, after
                for at, records in (await consumer.getmany(timeout_ms=READ_MS)).items():
                    found += [
                        Raw(at.partition, r.offset, dict(r.headers), r.value) for r in records
                    ]
            raise TimeoutError(f"{after} after {READS_MAX} reads, and not {ends}")
        finally:
            await consumer.stop()


def gather(bootstrap: str, prefix: str, partitions: int) -> Found:
    """Read the log of a run and work out the states."""
    return Reader(bootstrap, prefix, partitions).read()


def faults(found: Found, acknowledged: Mapping[int, str]) -> Faults:
    """Return what is wrong once all is folded; ``acknowledged`` has the decision of each request.

    "" is for a decision whose id the client did not keep.
    """
    lost, twice, different = (list(each) for each in found.wrong)
    for request, told in acknowledged.items():
        at = found.first.get(request)
        if at is None:
            lost.append(f"request {request} is lost")
        elif told and found.decisions.get(at, [""])[0] != told:
            different.append(f"request {request} was told {told}: {found.decisions.get(at)}")
    for at in found.first.values():
        count = len(found.decisions.get(at, []))
        if count != 1:
            (twice if count else lost).append(f"{at} is decided {count} times")
    lost += [f"entities {mask:b} of {at} were not updated" for at, mask in found.left()]
    return Faults(lost, twice, different)


def check(found: Found, acknowledged: Sequence[int], partitions: int) -> list[str]:
    """Return what is wrong with a run; ``acknowledged`` are the hashes of its requests."""
    assert found.partitions == partitions
    lost, twice, different = faults(found, dict.fromkeys(acknowledged, ""))
    return lost + twice + different
