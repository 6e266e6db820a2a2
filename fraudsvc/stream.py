"""The stream: payments from Kafka, decisions to Kafka, exactly once and in order.

Owns a lane: what is taken from one partition of the payments, decided as the scorer decides, and
written in a Kafka transaction together with how far it got. A payment that cannot be decided is
passed over by a dead letter, which says where it stands and why. Must not know gRPC.

The lane's own log is the partition that it reads: its frame for the payment at offset n begins at
position n << FRAME_BITS, as if a scorer had appended it to a journal.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from fraud.v1 import dead_letter_pb2
from numpy.typing import NDArray

from featurizer.eventlog import LogError, Topic
from featurizer.eventlog_kafka import (
    Consumer,
    Message,
    Partition,
    Received,
    key_bytes,
)
from featurizer.kafka_settings import KafkaSettings
from featurizer.records import RECORD, REQUEST_WORD, Entity
from featurizer.splitter import Repeats, read_all
from featurizer.store import StoreError
from featurizer.topics import ORIGIN
from featurizer.tracing import Tracer
from featurizer.transactions import Transactions
from featurizer.updates import homes_of
from fraudsvc.answers import Stamp, origin_of
from fraudsvc.assess import Sheet
from fraudsvc.batch_states import AFTER_ALL
from fraudsvc.batch_writer import BatchWriter
from fraudsvc.calls import Call, Clocks
from fraudsvc.decide import Drafts, Workspace, decide, decide_all
from fraudsvc.errors import ServiceError
from fraudsvc.intake import Intake
from fraudsvc.payment import Payment
from fraudsvc.policy import Policy
from fraudsvc.rungs import FULL, NO_CAUSE, NO_MODEL, RULES_ONLY
from fraudsvc.shared_steps import SharedSteps
from fraudsvc.stream_spans import Kept, StreamSpans, caller_of
from fraudsvc.stream_states import StreamStates
from trainer.bundle import Bundle

PAYMENTS = "payments"
PROGRESS = "stream-progress"
FRAME_BITS = 16
ROWS_AT_ONCE = 512  # 10 to 20 ms in which nothing is written


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
    writer: BatchWriter
    bundle: Callable[[], Bundle | None]
    policy: Callable[[], Policy]
    clocks: Clocks


class _Batch:
    """What a read of payments becomes. A row is a payment that counts."""

    def __init__(self, received: Sequence[Received], steps: SharedSteps) -> None:
        self.received = received
        self.steps = steps
        self._records = np.zeros(len(received), RECORD)
        self._ids = self._records.view(np.int64).reshape(len(received), -1)
        self.payments: list[Payment] = []
        self._places: list[int] = []  # of each row in ``received``
        self.out: dict[Partition, list[Message]] = {}

    def memory(self) -> tuple[NDArray[np.void], NDArray[np.int64]]:
        """Return a record for each that was received (RECORD[n]), and the same as words."""
        return self._records, self._ids

    def count(self, payment: Payment, place: int) -> None:
        """Take a payment in as the next row."""
        self.payments.append(payment)
        self._places.append(place)

    def close(self) -> None:
        """Lay out the rows: records RECORD[n], the request and the frame of each."""
        self.records = self._records[self._places]
        self.requests = self._ids[self._places, REQUEST_WORD]
        self.offsets = [self.received[place].offset for place in self._places]
        self.frames = np.array(self.offsets, np.int64) << FRAME_BITS
        self.headers = [self.received[place].headers for place in self._places]

    def marked(self, row: int) -> Payment:
        """Return a payment with the marks of its row, which are the policy's, too."""
        payment = self.payments[row]
        payment.record["flags"] = self.records["flags"][row]
        return payment

    def send(self, topic: str, partition: int, message: Message) -> None:
        """Add a record to what goes out."""
        self.out.setdefault((topic, partition), []).append(message)


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
        tracer: Tracer | None = None,
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
        self._sheet = Sheet(0)
        self._spans = StreamSpans(tracer or Tracer("fraud-stream"), self._at)
        self._writing: asyncio.Task[None] | None = None  # of the batch before
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
        """Let go of the connections, once what is under way is written or has failed."""
        with contextlib.suppress(LogError):
            await self.settle()
        await self._transactions.stop()

    async def settle(self) -> None:
        """Wait until the batch before is on the log. Raises LogError."""
        writing, self._writing = self._writing, None
        if writing is not None:
            await writing

    async def take(self, found: Mapping[Partition, Sequence[Received]]) -> int:
        """Decide what was read; return how many payments were. Raises LogError, StoreError.

        While a batch is written the next one is decided. Where the writing fails, both are for
        the lane that begins anew.
        """
        batch = self._batch(found[self._at])
        if not self._states.has_room(len(batch.received)):
            await self._wait_for_states()
        self._accept(batch)
        batch.close()
        await asyncio.sleep(0)
        decisions = await self._decide_all(batch) if batch.payments else []
        kept = self._spans.kept(decisions)
        if decisions:
            self._send(batch, decisions, kept)
        self._states.note(batch.records, batch.frames + 1)
        offset = batch.received[-1].offset + 1
        progress = Message(key_bytes(self._at[1]), _write_progress(offset, self._states.sent))
        batch.send(self._kafka.topic(PROGRESS), self._at[1], progress)
        await self.settle()
        self._writing = asyncio.create_task(self._write(batch, decisions, kept))
        self._states.commit(batch.records, batch.frames + 1)
        return len(batch.payments)

    def _batch(self, received: Sequence[Received]) -> _Batch:
        """Return a batch that begins now."""
        clocks = self._judges.clocks
        return _Batch(received, SharedSteps(Call(clocks.monotonic_ns(), 0), clocks, len(received)))

    async def _write(self, batch: _Batch, decisions: Sequence[bytes], kept: Kept) -> None:
        """Write what goes out, all or nothing, and tell of it. Raises LogError."""
        begun_ns = self._judges.clocks.monotonic_ns()
        await self._transactions.commit(batch.out)
        took_ns = self._judges.clocks.monotonic_ns() - begun_ns
        self._spans.tell(decisions, batch.offsets, kept, took_ns)

    def _accept(self, batch: _Batch) -> None:
        """Take the payments in; pass over by a dead letter what is none, and repeats in silence."""
        now_ms = self._judges.clocks.now_ms()
        batch.steps.begin()
        datas = [received.value or b"" for received in batch.received]
        taken = self._judges.intake.take_all(datas, now_ms, *batch.memory())
        for place, each in enumerate(taken):
            if isinstance(each, ServiceError):
                self._pass_over(batch, batch.received[place], each, now_ms)
            elif self._repeats.is_new(each.ids.item(REQUEST_WORD), batch.received[place].offset):
                batch.count(each, place)
        batch.steps.accept(len(taken))

    def _pass_over(
        self, batch: _Batch, received: Received, error: ServiceError, now_ms: int
    ) -> None:
        letter = dead_letter_pb2.DeadLetter(
            topic=self._at[0], partition=self._at[1], offset=received.offset, reason=error.reason,
            detail="; ".join(f"{v.field}: {v.description}" for v in error.violations),
            author=self._settings.name,
        )  # fmt: skip
        letter.letter_time.FromMilliseconds(now_ms)
        message = Message(key_bytes(self._at[1]), letter.SerializeToString())
        batch.send(self._kafka.topic("dead-letters"), 0, message)

    async def _decide_all(self, batch: _Batch) -> list[bytes]:
        """Decide each payment, seeing those before it; return the decisions' bytes."""
        bundle, policy = self._judges.bundle(), self._judges.policy()
        datas = [each.data for each in batch.payments]
        if bundle is None:
            drafts, sheet = self._decide_by_rules(batch, policy), self._room(batch)
            rung, cause = RULES_ONLY, NO_MODEL
        else:
            sheet = await self._assess(batch, bundle, policy)
            drafts = decide_all(batch.marked, datas, sheet, bundle, policy)
            rung, cause = FULL, NO_CAUSE
        return self._judges.writer.write(
            drafts, self._stamp(batch), batch.requests, batch.frames, datas,
            (sheet.bodies, sheet.reasons, sheet.figures),
            [caller_of(headers, self._origin) for headers in batch.headers],
            rung=rung, cause=cause,
        )  # fmt: skip

    def _decide_by_rules(self, batch: _Batch, policy: Policy) -> Drafts:
        """Decide each payment without a model."""
        drafts = [
            decide(each, each.record, self._space, None, policy, RULES_ONLY, NO_MODEL)
            for each in batch.payments
        ]
        return Drafts(
            np.array([each.outcome for each in drafts], np.int64),
            np.array([each.model_reasons for each in drafts], np.int64),
            {row: each.reasons for row, each in enumerate(drafts)}, drafts[0].versions,
        )  # fmt: skip

    def _room(self, batch: _Batch) -> Sheet:
        """Return a row for each payment."""
        self._sheet = self._sheet.with_room(len(batch.payments))
        return self._sheet

    def _stamp(self, batch: _Batch) -> Stamp:
        """Return what all decisions of a batch say, which are decided now."""
        call, steps = batch.steps.own(), batch.steps
        used_ns = steps.end() - call.steps_ns
        received_ms = batch.payments[0].received_ms
        return Stamp(
            0, b"", 0, received_ms, used_ns, self._origin, True, call.steps_ns,
            shared=steps.field(),
        )  # fmt: skip

    async def _assess(self, batch: _Batch, bundle: Bundle, policy: Policy) -> Sheet:
        """Let the model see the batch. Where there are no states the stream has time to wait.

        Lets the batch before be written in between.
        """
        records, sheet = batch.records, self._room(batch)
        self._states.prepare(records)
        batch.steps.end()
        positions = batch.frames + 1 + AFTER_ALL
        stored = self._states.batch.stored(records)
        for at in range(0, len(records), ROWS_AT_ONCE):
            some = slice(at, at + ROWS_AT_ONCE)
            sheet.fill(
                self._states.batch.arena, records[some], positions[some], stored[some], bundle,
                policy.table, at,
            )  # fmt: skip
            await asyncio.sleep(0)
        batch.steps.end()
        return sheet

    def _send(self, batch: _Batch, decisions: Sequence[bytes], kept: Kept) -> None:
        """Add the frame of each row to what goes out: its record and its decision."""
        origins = np.zeros((len(decisions), 2), ORIGIN)
        origins["host"], origins["count"] = self._host, 2
        origins["position"] = batch.frames[:, None] + [1, 2]
        origins["kind"] = [Topic.TRANSACTIONS, Topic.DECISIONS]
        origins["place"] = [0, 1]
        headers, records = origins.tobytes(), batch.records.tobytes()
        traces = {row: (context,) for row, (context, _) in kept.items()}
        customers = batch.records["entities"][:, Entity.CUSTOMER]
        keys = customers.astype(">i8").tobytes()
        homes = homes_of(customers, self._kafka.event_partitions)
        size, width = RECORD.itemsize, ORIGIN.itemsize
        for home in np.unique(homes).tolist():
            rows = np.flatnonzero(homes == home).tolist()
            batch.out[self._kafka.topic("transactions"), home] = [
                Message(
                    keys[8 * row : 8 * row + 8],
                    records[row * size : (row + 1) * size],
                    headers[2 * row * width : (2 * row + 1) * width],
                    traces.get(row, ()),
                )
                for row in rows
            ]
            batch.out[self._kafka.topic("decisions"), home] = [
                Message(
                    keys[8 * row : 8 * row + 8],
                    decisions[row],
                    headers[(2 * row + 1) * width : (2 * row + 2) * width],
                    traces.get(row, ()),
                )
                for row in rows
            ]

    def _remember(self, received: Received) -> None:
        """Take a payment from before into the repeats."""
        record, ids = self._batch([received]).memory()
        try:
            now_ms = self._judges.clocks.now_ms()
            self._judges.intake.take(received.value or b"", now_ms, record, ids)
        except ServiceError:
            return
        self._repeats.is_new(ids.item(REQUEST_WORD), received.offset)

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
