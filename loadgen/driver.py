"""Load on a scorer: open-loop at a rate, or closed with so many calls in flight.

Owns sending and receiving. In an open loop a call's latency starts when it was due, so a server
that stalls shows the stall in every call that should have been sent meanwhile (no coordinated
omission; Tene, 2013). Must not know how payments are made up nor how figures are shown.
"""

from __future__ import annotations

import itertools
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import grpc
from fraud.v1 import decision_pb2, fraud_service_pb2, transaction_pb2

from loadgen.client import SCORE
from loadgen.in_flight import InFlight
from loadgen.pacing import NS, Arrivals, due_times_ns, wait_until
from loadgen.rows import BadRow, HistoryRow, timestamp
from loadgen.tally import Snapshot, Tally


class Prepared(NamedTuple):
    """A serialised Transaction without ids and time, which it gets when it is sent.

    Its time is ``event_ms`` where that is not 0.
    """

    rest: bytes
    is_fraud: bool | None
    event_ms: int = 0


class Landed(NamedTuple):
    """One call that ended: when it was due (s after the start), and what came of it.

    ``latency_us`` starts when it was due; ``assessment`` is None where ``status`` is not OK.
    """

    due_s: float
    latency_us: int
    status: grpc.StatusCode
    assessment: decision_pb2.Assessment | None


@dataclass(frozen=True, slots=True)
class DriveSettings:
    """How to drive. ``closed`` above 0 keeps that many calls in flight and ignores the rate.

    Calls of the first ``warmup_s`` are sent on top of ``seconds`` and not counted. A call has
    ``deadline_s``. Up to ``in_flight_max`` calls are sent without waiting, and then sending waits,
    which the figures show as lateness.
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
        for name in (
            "rate_per_s",
            "seconds",
            "deadline_s",
            "in_flight_max",
            "snapshot_s",
        ):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0")
        if self.closed < 0 or self.warmup_s < 0:
            raise ValueError("closed and warmup_s must not be negative")


def prepare(rows: Iterable[HistoryRow | BadRow], *, keep_times: bool = False) -> list[Prepared]:
    """Serialise rows for `Driver`, with their own times if told to; bad ones are left out."""
    out = []
    for row in rows:
        if isinstance(row, HistoryRow):
            transaction = transaction_pb2.Transaction()
            transaction.CopyFrom(row.transaction)
            for name in ("request_id", "transaction_id", "event_time"):
                transaction.ClearField(name)
            event_ms = row.event_ms if keep_times else 0
            out.append(Prepared(transaction.SerializeToString(), row.is_fraud, event_ms))
    return out


def request(rest: bytes, run: str, number: int, time_ms: int) -> bytes:
    """Return a ScoreRequest's bytes: a prepared transaction with ids and a time of its own.

    Request id, transaction id and event time are a Transaction's fields 1 to 3, so that what was
    serialised before can follow them as it is, in the form any client would send. ``run`` is 32
    hexadecimal digits; ``number`` counts the run's calls.
    """
    first = transaction_pb2.Transaction(
        request_id=f"{run[:8]}-{run[8:12]}-4{run[12:15]}-8{run[15:18]}-{number:012x}",
        transaction_id=f"drv_{run[:8]}_{number:x}",
        event_time=timestamp(time_ms),
    ).SerializeToString()
    size = len(first) + len(rest)
    return b"\x0a" + _varint(size) + first + rest


def _varint(value: int) -> bytes:
    """Return a number in protobuf's variable length."""
    groups = bytearray()
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    return bytes((*groups, value))


class Driver:
    """One run against open channels, which nobody else uses; ``run`` may be called once.

    With ``due_ns``, ascending ns after the start, those are the calls, and not the settings' rate;
    each is asked for when the one before is sent, so it may depend on what happened. ``on_call``
    is called for every call that ended, in whatever thread saw it end.

    One thread sends, without ever waiting for an answer, so that a server that stalls does not
    slow the sending. In a closed loop the end of a call sends the next.

    >>> with connect("127.0.0.1:50051", 4, 5.0) as channels:        # doctest: +SKIP
    ...     for snapshot in Driver(channels, requests, settings).run():
    ...         print(snapshot.rate_per_s, snapshot.latency_us)
    """

    def __init__(
        self,
        channels: Sequence[grpc.Channel],
        requests: Sequence[Prepared],
        settings: DriveSettings,
        due_ns: Iterable[int] | None = None,
        on_call: Callable[[Landed], None] | None = None,
    ) -> None:
        if not requests:
            raise ValueError("there is nothing to send")
        self._calls = InFlight(channels, SCORE)
        self._requests = requests
        self._settings = settings
        self._due_ns = due_ns
        self._on_call = on_call
        self._tally = Tally()
        self._stop = threading.Event()
        self._finished = threading.Event()
        self._lock = threading.Lock()
        self._active = 1  # calls, and who sends them; the run is over when none is left
        # The end of a call may not wait for a slot, and in a closed loop it sends the next.
        self._slots = threading.Semaphore(max(settings.in_flight_max, settings.closed))
        self._begin_ns = self._counted_from_ns = 0
        self._due: Iterator[tuple[int, int]] = iter(())

    def run(self) -> Iterator[Snapshot]:
        """Yield a snapshot each ``snapshot_s`` and a last one when every call has ended."""
        settings = self._settings
        due = [] if settings.closed else self._due_times()
        self._calls.start()
        self._begin_ns = time.perf_counter_ns() + NS // 50
        self._counted_from_ns = self._begin_ns + int(settings.warmup_s * NS)
        self._due = self._closed_times() if settings.closed else self._open_times(due)
        sender = threading.Thread(target=self._send_all)
        sender.start()
        try:
            while not self._finished.wait(settings.snapshot_s):
                if time.perf_counter_ns() > self._counted_from_ns:
                    yield self._tally.snapshot(self._elapsed_s())
        finally:
            self._stop.set()
            self._finished.wait()
            sender.join()
            self._calls.close()
        yield self._tally.snapshot(self._elapsed_s())

    def _elapsed_s(self) -> float:
        return (time.perf_counter_ns() - self._counted_from_ns) / NS

    def _due_times(self) -> Iterable[int]:
        settings = self._settings
        if self._due_ns is not None:
            return self._due_ns
        seconds = settings.warmup_s + settings.seconds
        offsets = due_times_ns(settings.rate_per_s, seconds, settings.arrivals, settings.seed)
        times: list[int] = offsets.tolist()
        return times

    def _open_times(self, offsets_ns: Iterable[int]) -> Iterator[tuple[int, int]]:
        return ((number, self._begin_ns + offset) for number, offset in enumerate(offsets_ns))

    def _closed_times(self) -> Iterator[tuple[int, int]]:
        """Yield calls that are due when they are asked for, until the time is up."""
        seconds = self._settings.warmup_s + self._settings.seconds
        end_ns = self._begin_ns + int(seconds * NS)
        for number in itertools.count():
            now_ns = max(time.perf_counter_ns(), self._begin_ns)
            if now_ns >= end_ns:
                return
            yield number, now_ns

    def _send_all(self) -> None:
        """Send all calls; in a closed loop the first of them, which send the others."""
        try:
            if self._settings.closed:
                for _ in range(self._settings.closed):
                    self._send_next()
                return
            while self._send_next():
                pass
        finally:
            self._leave()

    def _send_next(self) -> bool:
        """Send the next call when it is due; return whether there was one."""
        with self._lock:
            taken = next(self._due, None)
        if taken is None:
            return False
        number, due_ns = taken
        wait_until(due_ns, self._stop)
        if self._stop.is_set():
            return False
        self._slots.acquire()  # every call has a deadline, so a slot comes back
        with self._lock:
            self._active += 1
        body, is_fraud = self._request(number)
        if due_ns >= self._counted_from_ns:
            self._tally.sent((time.perf_counter_ns() - due_ns) // 1000)
        ended = partial(self._landed, due_ns, is_fraud)
        self._calls.send(number, body, self._settings.deadline_s, ended)
        return True

    def _leave(self) -> None:
        with self._lock:
            self._active -= 1
            if self._active == 0:
                self._finished.set()

    def _request(self, number: int) -> tuple[bytes, bool | None]:
        rest, is_fraud, event_ms = self._requests[number % len(self._requests)]
        time_ms = event_ms or time.time_ns() // 1_000_000
        return request(rest, self._settings.run_id.hex, number, time_ms), is_fraud

    def _landed(
        self, due_ns: int, is_fraud: bool | None, status: grpc.StatusCode, answer: bytes
    ) -> None:
        try:
            if status is grpc.StatusCode.OK:
                self._scored(due_ns, fraud_service_pb2.ScoreResponse.FromString(answer), is_fraud)
            else:
                self._failed(due_ns, status)
        finally:
            self._slots.release()
            if self._settings.closed:
                self._send_next()
            self._leave()

    def _scored(
        self, due_ns: int, response: fraud_service_pb2.ScoreResponse, is_fraud: bool | None
    ) -> None:
        if due_ns >= self._counted_from_ns:
            latency_us = (time.perf_counter_ns() - due_ns) // 1000
            self._tally.scored(latency_us, response.assessment, is_fraud)
            self._tell(due_ns, latency_us, grpc.StatusCode.OK, response.assessment)

    def _failed(self, due_ns: int, status: grpc.StatusCode) -> None:
        if due_ns >= self._counted_from_ns:
            latency_us = (time.perf_counter_ns() - due_ns) // 1000
            self._tally.failed(latency_us, status)
            self._tell(due_ns, latency_us, status, None)

    def _tell(
        self,
        due_ns: int,
        latency_us: int,
        status: grpc.StatusCode,
        assessment: decision_pb2.Assessment | None,
    ) -> None:
        if self._on_call is not None:
            due_s = (due_ns - self._begin_ns) / NS
            self._on_call(Landed(due_s, latency_us, status, assessment))
