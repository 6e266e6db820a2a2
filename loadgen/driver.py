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
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import grpc
from fraud.v1 import decision_pb2, fraud_service_pb2, transaction_pb2

from loadgen.in_flight import InFlight
from loadgen.pacing import NS, Arrivals, due_times_ns
from loadgen.rows import BadRow, HistoryRow
from loadgen.tally import Snapshot, Tally

_SENT_A_TURN = 64  # calls that are due are sent, so many before it is looked for answers


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

    Calls of the first ``warmup_s`` are sent on top of ``seconds`` and not counted. Up to
    ``in_flight_max`` calls are sent without waiting, and then sending waits, which the figures show
    as lateness.
    ``snapshot_s`` is the time between snapshots. Raises ValueError for numbers out of range.
    """

    rate_per_s: float = 1_000.0
    seconds: float = 10.0
    warmup_s: float = 0.0
    arrivals: Arrivals = "poisson"
    closed: int = 0
    in_flight_max: int = 20_000
    snapshot_s: float = 1.0
    seed: int = 1
    run_id: uuid.UUID = field(default_factory=uuid.uuid4)

    def __post_init__(self) -> None:
        for name in (
            "rate_per_s",
            "seconds",
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
    request_id = f"{run[:8]}-{run[8:12]}-4{run[12:15]}-8{run[15:18]}-{number:012x}"
    transaction_id = f"drv_{run[:8]}_{number:x}".encode()
    seconds, ms = divmod(time_ms, 1000)
    time_of = b"\x08" + _varint(seconds)
    if ms:
        time_of += b"\x10" + _varint(ms * 1_000_000)
    first = b"\x0a\x24%b\x12%c%b\x1a%c%b" % (
        request_id.encode(), len(transaction_id), transaction_id, len(time_of), time_of,
    )  # fmt: skip
    return b"\x0a%b%b%b" % (_varint(len(first) + len(rest)), first, rest)


def _varint(value: int) -> bytes:
    """Return a number in protobuf's variable length."""
    groups = bytearray()
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    return bytes((*groups, value))


class Driver:
    """One run of calls, by connections that are open; ``run`` may be called once.

    With ``due_ns``, ascending ns after the start, those are the calls, and not the settings' rate;
    each is asked for when the one before is sent, so it may depend on what happened. ``on_call``
    is called for every call that ended, in the thread that makes the calls.

    One thread sends and receives, and never waits for one answer, so that a server that stalls does
    not slow the sending.

    >>> with InFlight(Target("127.0.0.1:50051"), SCORE) as calls:        # doctest: +SKIP
    ...     for snapshot in Driver(calls, requests, settings).run():
    ...         print(snapshot.rate_per_s, snapshot.latency_us)
    """

    def __init__(
        self,
        calls: InFlight,
        requests: Sequence[Prepared],
        settings: DriveSettings,
        due_ns: Iterable[int] | None = None,
        on_call: Callable[[Landed], None] | None = None,
    ) -> None:
        if not requests:
            raise ValueError("there is nothing to send")
        self._calls = calls
        self._requests = requests
        self._settings = settings
        self._due_ns = due_ns
        self._on_call = on_call
        self._tally = Tally()
        self._stop = threading.Event()
        self._active = 0
        self._run_id = settings.run_id.hex
        self._begin_ns = self._counted_from_ns = 0

    def run(self) -> Iterator[Snapshot]:
        """Yield a snapshot each ``snapshot_s`` and a last one when every call has ended."""
        settings = self._settings
        due = [] if settings.closed else self._due_times()
        self._begin_ns = time.perf_counter_ns() + NS // 50
        self._counted_from_ns = self._begin_ns + int(settings.warmup_s * NS)
        coming = self._closed_times() if settings.closed else self._open_times(due)
        with ThreadPoolExecutor(1, thread_name_prefix="calls") as pool:
            made = pool.submit(self._make_calls, coming)
            try:
                while not wait([made], settings.snapshot_s).done:
                    if time.perf_counter_ns() > self._counted_from_ns:
                        yield self._tally.snapshot(self._elapsed_s())
            finally:
                self._stop.set()
        made.result()
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

    def _make_calls(self, coming: Iterator[int]) -> None:
        """Send what is due and hear what ended, until nothing is due and all has ended."""
        number, due_ns = 0, None
        while True:
            now_ns = time.perf_counter_ns()
            for _ in range(_SENT_A_TURN):
                if self._full() or self._stop.is_set():
                    break
                if due_ns is None:
                    due_ns = next(coming, None)
                if due_ns is None or due_ns > time.perf_counter_ns():
                    break
                self._send(number, due_ns)
                number, due_ns = number + 1, None
            if due_ns is None or self._stop.is_set():
                if not self._active:
                    return
                self._calls.turn(now_ns + NS)
            else:
                self._calls.turn(now_ns + NS if self._full() else due_ns)

    def _full(self) -> bool:
        closed = self._settings.closed
        return self._active >= (closed or self._settings.in_flight_max)

    def _open_times(self, offsets_ns: Iterable[int]) -> Iterator[int]:
        return (self._begin_ns + offset for offset in offsets_ns)

    def _closed_times(self) -> Iterator[int]:
        """Yield calls that are due when they are asked for, until the time is up."""
        seconds = self._settings.warmup_s + self._settings.seconds
        end_ns = self._begin_ns + int(seconds * NS)
        while (now_ns := max(time.perf_counter_ns(), self._begin_ns)) < end_ns:
            yield now_ns

    def _send(self, number: int, due_ns: int) -> None:
        rest, is_fraud, event_ms = self._requests[number % len(self._requests)]
        body = request(rest, self._run_id, number, event_ms or time.time_ns() // 1_000_000)
        self._active += 1
        if due_ns >= self._counted_from_ns:
            self._tally.sent((time.perf_counter_ns() - due_ns) // 1000)
        self._calls.send(number, body, partial(self._landed, due_ns, is_fraud))

    def _landed(
        self, due_ns: int, is_fraud: bool | None, status: grpc.StatusCode, answer: bytes
    ) -> None:
        self._active -= 1
        if status is grpc.StatusCode.OK:
            self._scored(due_ns, fraud_service_pb2.ScoreResponse.FromString(answer), is_fraud)
        else:
            self._failed(due_ns, status)

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
