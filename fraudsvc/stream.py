"""The stream: payments from Kafka, decisions to Kafka, exactly once and in order.

Owns a lane: what is taken from one partition of the payments, decided as the scorer decides, and
written in a Kafka transaction together with how far it got. A payment that cannot be decided is
passed over by a dead letter, which says where it stands and why. Must not know gRPC.

The lane's own log is the partition that it reads: its frame for the payment at offset n begins at
position n << FRAME_BITS, as if a scorer had appended it to a journal.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from fraud.v1 import dead_letter_pb2, decision_pb2
from numpy.typing import NDArray

from featurizer.eventlog import LogError, Topic
from featurizer.eventlog_kafka import (
    Consumer,
    Message,
    Partition,
    Received,
    key_bytes,
    partition_of,
)
from featurizer.kafka_settings import KafkaSettings
from featurizer.records import RECORD
from featurizer.splitter import Repeats, read_all
from featurizer.store import StoreError
from featurizer.topics import ORIGIN
from featurizer.transactions import Transactions
from fraudsvc.answers import Stamp, Writer, origin_of
from fraudsvc.calls import Clocks
from fraudsvc.decide import FULL, RULES_ONLY, Workspace, decide
from fraudsvc.errors import ServiceError
from fraudsvc.intake import Intake
from fraudsvc.journal_tail import ENTITIES_WORD, REQUEST_WORD
from fraudsvc.payment import Payment
from fraudsvc.policy import Policy
from fraudsvc.stream_states import StreamStates
from trainer.bundle import Bundle

PAYMENTS = "payments"
PROGRESS = "stream-progress"
FRAME_BITS = 16
_NO_CAUSE = decision_pb2.RUNG_CAUSE_UNSPECIFIED
_NO_MODEL = decision_pb2.RUNG_CAUSE_NO_MODEL


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """Bounds of a lane: requests remembered, records that the states may lack, waits for them."""

    name: str = ""
    repeats_max: int = 1 << 16
    wait_ms: float = 10_000.0
    look_ms: float = 5.0


class Judges(NamedTuple):
    """What decides: asked once a batch, so that a new one takes effect between two."""

    intake: Intake
    writer: Writer
    bundle: Callable[[], Bundle | None]
    policy: Callable[[], Policy]
    clocks: Clocks


class _Batch:
    """What a read of payments becomes."""

    def __init__(self, received: Sequence[Received]) -> None:
        self.received = received
        self.records = np.zeros(len(received), RECORD)
        self.ids = self.records.view(np.int64).reshape(len(received), -1)
        self.payments: list[Payment] = []
        self.places: list[int] = []  # of each payment in ``received``, and so of its record
        self.out: dict[Partition, list[Message]] = {}

    @property
    def positions(self) -> NDArray[np.int64]:
        """Where the record of each payment stands, int64[payments]."""
        offsets = [self.received[place].offset for place in self.places]
        return (np.array(offsets, np.int64) << FRAME_BITS) + 1

    @property
    def taken(self) -> NDArray[np.void]:
        """RECORD[payments]."""
        return self.records[self.places]


def lane_number(prefix: str, partition: int) -> int:
    """Return 64 bits that name a lane as the origin of what it writes."""
    digest = hashlib.sha256(f"stream {prefix} {partition}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True) or 1


class StreamLane:
    """Decides one partition of the payments. ``states`` are the lane's own."""

    def __init__(
        self,
        number: int,
        kafka: KafkaSettings,
        states: StreamStates,
        judges: Judges,
        settings: StreamSettings,
    ) -> None:
        self._at: Partition = (kafka.topic(PAYMENTS), number)
        self._kafka = kafka
        self._host = lane_number(kafka.prefix, number)
        self._states = states
        self._judges = judges
        self._settings = settings
        self._transactions = Transactions(kafka, f"stream-{number}")
        self._repeats = Repeats(settings.repeats_max)
        self._space = Workspace()
        self._origin = origin_of("", settings.name)

    async def start(self, reader: Consumer) -> dict[Partition, int]:
        """Fence the lane before, and return where to read on."""
        await self._transactions.start()
        offset = 0
        async for record in read_all(reader, (self._kafka.topic(PROGRESS), self._at[1]), 0):
            if record.value is not None:
                offset, self._states.sent = _read_progress(record.value, self._states.sent)
        oldest, _ = (await reader.ends([self._at]))[self._at]
        offset = max(offset, oldest)
        start = max(oldest, offset - self._settings.repeats_max)
        async for record in read_all(reader, self._at, start, offset):
            self._remember(record)
        await self._wait_for_states()
        return {self._at: offset}

    async def stop(self) -> None:
        """Let go of the connections."""
        await self._transactions.stop()

    async def take(self, found: Mapping[Partition, Sequence[Received]]) -> int:
        """Decide what was read; return how many payments were. Raises LogError, StoreError."""
        batch = _Batch(found[self._at])
        if not self._states.has_room(len(batch.received)):
            await self._wait_for_states()
        self._accept(batch)
        rung, cause = self._prepare(batch)
        for place, payment in zip(batch.places, batch.payments, strict=True):
            self._decide(payment, batch, place, rung, cause)
        records, positions = batch.taken, batch.positions
        self._states.note(records, positions)
        offset = batch.received[-1].offset + 1
        progress = Message(key_bytes(self._at[1]), _write_progress(offset, self._states.sent))
        batch.out[self._kafka.topic(PROGRESS), self._at[1]] = [progress]
        await self._transactions.commit(batch.out)
        self._states.commit(records, positions)
        return len(batch.payments)

    def _accept(self, batch: _Batch) -> None:
        """Take the payments in; pass over by a dead letter what is none, and repeats in silence."""
        now_ms = self._judges.clocks.now_ms()
        take = self._judges.intake.take
        for place, received in enumerate(batch.received):
            record = batch.records[place : place + 1]
            ids = batch.ids[place : place + 1]
            try:
                payment = take(received.value or b"", now_ms, record, ids)
            except ServiceError as error:
                self._pass_over(batch, received, error, now_ms)
                continue
            if self._repeats.is_new(ids.item(REQUEST_WORD)):
                batch.payments.append(payment)
                batch.places.append(place)

    def _pass_over(
        self, batch: _Batch, received: Received, error: ServiceError, now_ms: int
    ) -> None:
        letter = dead_letter_pb2.DeadLetter(
            topic=self._at[0], partition=self._at[1], offset=received.offset, reason=error.reason,
            detail="; ".join(f"{v.field}: {v.description}" for v in error.violations),
            author=self._settings.name,
        )  # fmt: skip
        letter.letter_time.FromMilliseconds(now_ms)
        key = key_bytes(self._at[1])
        at = (self._kafka.topic("dead-letters"), 0)
        batch.out.setdefault(at, []).append(Message(key, letter.SerializeToString()))

    def _prepare(self, batch: _Batch) -> tuple[decision_pb2.Rung, decision_pb2.RungCause]:
        """Read the states; the stream has time, so where there are none it tries again later."""
        self._states.prepare(batch.taken)
        if self._judges.bundle() is None:
            return RULES_ONLY, _NO_MODEL
        return FULL, _NO_CAUSE

    def _decide(
        self,
        payment: Payment,
        batch: _Batch,
        place: int,
        rung: decision_pb2.Rung,
        cause: decision_pb2.RungCause,
    ) -> None:
        judges, space = self._judges, self._space
        started_ns = judges.clocks.monotonic_ns()
        frame = batch.received[place].offset << FRAME_BITS
        record = payment.record
        if rung != RULES_ONLY:
            self._states.lend(record, space.rows)
        draft = decide(payment, record, space, judges.bundle(), judges.policy(), rung, cause)
        stamp = Stamp(
            payment.ids.item(REQUEST_WORD), b"", frame, payment.received_ms,
            judges.clocks.monotonic_ns() - started_ns, self._origin, True,
        )  # fmt: skip
        decision, _ = judges.writer.write(
            draft, stamp, payment.data, space.body, space.reasons, space.figures
        )
        self._states.fold(record, frame + 1)
        self._add(batch, "transactions", payment, record.tobytes(), (frame, 0))
        self._add(batch, "decisions", payment, decision, (frame, 1))

    def _add(
        self, batch: _Batch, name: str, payment: Payment, value: bytes, at: tuple[int, int]
    ) -> None:
        """Add an entry of a frame to what goes out."""
        frame, place = at
        customer = payment.ids.item(ENTITIES_WORD)
        partition = partition_of(customer, self._kafka.event_partitions)
        kind = Topic.TRANSACTIONS if place == 0 else Topic.DECISIONS
        origin = np.array((self._host, frame + 1 + place, kind, 0, place, 2), ORIGIN).tobytes()
        out = batch.out.setdefault((self._kafka.topic(name), partition), [])
        out.append(Message(key_bytes(customer), value, origin))

    def _remember(self, received: Received) -> None:
        """Take a payment from before into the repeats."""
        batch = _Batch([received])
        try:
            self._judges.intake.take(
                received.value or b"", self._judges.clocks.now_ms(), batch.records, batch.ids
            )
        except ServiceError:
            return
        self._repeats.is_new(batch.ids.item(REQUEST_WORD))

    async def _wait_for_states(self) -> None:
        """Wait until the states have what this lane, or the one before, sent out."""
        deadline_s = time.monotonic() + self._settings.wait_ms / 1000
        while not self._states.look():
            if time.monotonic() > deadline_s:
                raise StoreError(f"the states are {self._settings.wait_ms:.0f} ms behind")
            await asyncio.sleep(self._settings.look_ms / 1000)


def _write_progress(offset: int, sent: NDArray[np.int64]) -> bytes:
    return json.dumps({"offset": offset, "sent": sent.tolist()}).encode()


def _read_progress(data: bytes, like: NDArray[np.int64]) -> tuple[int, NDArray[np.int64]]:
    try:
        fields = json.loads(data)
        sent = np.array(fields["sent"], np.int64)
        if sent.shape != like.shape:
            raise LogError(f"the stream's progress has shape {sent.shape}, not {like.shape}")
        return int(fields["offset"]), sent
    except (ValueError, KeyError, TypeError) as error:
        raise LogError(f"the stream's progress cannot be read: {error!r}") from error
