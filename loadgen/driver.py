"""Load on a scorer: open-loop at a rate, or closed with so many calls in flight.

Owns sending and receiving. In an open loop a call's latency starts when it was due, so a server
that stalls shows the stall in every call that should have been sent meanwhile (no coordinated
omission; Tene, 2013). Must not know how payments are made up nor how figures are shown.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import grpc
from fraud.v1 import fraud_service_pb2, transaction_pb2

from loadgen.client import score_method
from loadgen.pacing import NS, Arrivals, due_times_ns, wait_until
from loadgen.rows import BadRow, HistoryRow, timestamp
from loadgen.tally import Snapshot, Tally


class Prepared(NamedTuple):
    """A serialised ScoreRequest without ids and time, which are appended when it is sent."""

    body: bytes
    is_fraud: bool | None


@dataclass(frozen=True, slots=True)
class DriveSettings:
    """How to drive. ``closed`` above 0 keeps that many calls in flight and ignores the rate.

    Calls of the first ``warmup_s`` are sent on top of ``seconds`` and not counted. A call has
    ``deadline_s``. At ``in_flight_max`` sending waits, which the figures show as lateness.
    ``snapshot_s`` is the time between snapshots. Raises ValueError for numbers out of range.
    """

    rate_per_s: float = 1_000.0
    seconds: float = 10.0
    warmup_s: float = 0.0
    arrivals: Arrivals = "poisson"
    closed: int = 0
    deadline_s: float = 5.0
    in_flight_max: int = 20_000
    snapshot_s: float = 1.0
    seed: int = 1
    run_id: uuid.UUID = field(default_factory=uuid.uuid4)

    def __post_init__(self) -> None:
        for name in ("rate_per_s", "seconds", "deadline_s", "in_flight_max", "snapshot_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0")
        if self.closed < 0 or self.warmup_s < 0:
            raise ValueError("closed and warmup_s must not be negative")


def prepare(rows: Iterable[HistoryRow | BadRow]) -> list[Prepared]:
    """Serialise rows for `Driver`; bad ones are left out."""
    out = []
    for row in rows:
        if isinstance(row, HistoryRow):
            transaction = transaction_pb2.Transaction()
            transaction.CopyFrom(row.transaction)
            transaction.ClearField("event_time")
            transaction.ClearField("transaction_id")
            body = fraud_service_pb2.ScoreRequest(transaction=transaction).SerializeToString()
            out.append(Prepared(body, row.is_fraud))
    return out


def patch(body: bytes, run: str, number: int, time_ms: int) -> bytes:
    """Return the request with ids of its own.

    Serialised messages that follow one another merge (protobuf encoding, "last one wins"), so a
    few bytes are appended where a whole request would have to be built. ``run`` is 32
    hexadecimal digits; ``number`` counts the run's calls.
    """
    transaction = transaction_pb2.Transaction(
        request_id=f"{run[:8]}-{run[8:12]}-4{run[12:15]}-8{run[15:18]}-{number:012x}",
        transaction_id=f"drv_{run[:8]}_{number:x}",
        event_time=timestamp(time_ms),
    )
    return body + fraud_service_pb2.ScoreRequest(transaction=transaction).SerializeToString()


class Driver:
    """One run against open channels; ``run`` may be called once.

    >>> with connect("127.0.0.1:50051", 4, 5.0) as channels:        # doctest: +SKIP
    ...     for snapshot in Driver(channels, requests, settings).run():
    ...         print(snapshot.rate_per_s, snapshot.latency_us)
    """

    def __init__(
        self,
        channels: Sequence[grpc.Channel],
        requests: Sequence[Prepared],
        settings: DriveSettings,
    ) -> None:
        if not requests:
            raise ValueError("there is nothing to send")
        self._methods = [score_method(channel) for channel in channels]
        self._requests = requests
        self._settings = settings
        self._tally = Tally()
        self._slots = threading.Semaphore(settings.closed or settings.in_flight_max)
        self._stop = threading.Event()
        self._finished = threading.Event()
        self._counted_from_ns = 0

    def run(self) -> Iterator[Snapshot]:
        """Yield a snapshot each ``snapshot_s`` and a last one when every call has ended."""
        settings = self._settings
        begin_ns = time.perf_counter_ns()
        self._counted_from_ns = begin_ns + int(settings.warmup_s * NS)
        send = self._send_closed if settings.closed else self._send_open
        sender = threading.Thread(target=self._send, args=(send, begin_ns), name="loadgen-sender")
        sender.start()
        try:
            while not self._finished.wait(settings.snapshot_s):
                if time.perf_counter_ns() > self._counted_from_ns:
                    yield self._tally.snapshot(self._elapsed_s())
        finally:
            self._stop.set()
            sender.join()
        yield self._tally.snapshot(self._elapsed_s())

    def _elapsed_s(self) -> float:
        return (time.perf_counter_ns() - self._counted_from_ns) / NS

    def _send(self, send: Callable[[int], None], begin_ns: int) -> None:
        try:
            send(begin_ns)
            # Every call has a deadline, so every slot comes back.
            for _ in range(self._settings.closed or self._settings.in_flight_max):
                self._slots.acquire()
        finally:
            self._finished.set()

    def _send_open(self, begin_ns: int) -> None:
        settings = self._settings
        seconds = settings.warmup_s + settings.seconds
        due = due_times_ns(settings.rate_per_s, seconds, settings.arrivals, settings.seed)
        for number, offset_ns in enumerate(due.tolist()):
            wait_until(begin_ns + offset_ns, self._stop)
            self._slots.acquire()
            if self._stop.is_set():
                self._slots.release()
                return
            self._call(number, begin_ns + offset_ns)

    def _send_closed(self, begin_ns: int) -> None:
        seconds = self._settings.warmup_s + self._settings.seconds
        end_ns = begin_ns + int(seconds * NS)
        number = 0
        while not self._stop.is_set():
            self._slots.acquire()
            now_ns = time.perf_counter_ns()
            if now_ns >= end_ns:
                self._slots.release()
                return
            self._call(number, now_ns)
            number += 1

    def _call(self, number: int, due_ns: int) -> None:
        prepared = self._requests[number % len(self._requests)]
        body = patch(prepared.body, self._settings.run_id.hex, number, time.time_ns() // 1_000_000)
        counted = due_ns >= self._counted_from_ns
        sent_ns = time.perf_counter_ns()
        call = self._methods[number % len(self._methods)].future(
            body, timeout=self._settings.deadline_s
        )
        if counted:
            self._tally.sent((sent_ns - due_ns) // 1000)
        call.add_done_callback(partial(self._done, due_ns, counted, prepared.is_fraud))

    def _done(self, due_ns: int, counted: bool, is_fraud: bool | None, call: Any) -> None:
        latency_us = (time.perf_counter_ns() - due_ns) // 1000
        try:
            if not counted:
                return
            if call.code() is grpc.StatusCode.OK:
                self._tally.scored(latency_us, call.result().assessment, is_fraud)
            else:
                self._tally.failed(latency_us, call.code())
        finally:
            self._slots.release()
