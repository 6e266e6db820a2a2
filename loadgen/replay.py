"""A history sent again, in its own order, with labels when they became known.

Owns the order: what may be in flight together, and when a label comes before a transaction. Must
not know file formats nor how figures are shown.
"""

from __future__ import annotations

import heapq
import queue
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple

import grpc
from fraud.v1 import decision_pb2, fraud_service_pb2, label_pb2, transaction_pb2

from loadgen.client import TargetUnreachableError, report_labels_method, score_method
from loadgen.rows import BadRow, HistoryRow, request_id, timestamp, to_label
from loadgen.tally import Money, Snapshot, Tally

LABELS_MAX: Final = 1_024
# A repeat is safe, because a row's request_id is always the same. A shed call is only early.
_TRY_AGAIN = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED})
_BACKOFF_S = 0.05
_PROBLEMS_MAX = 1_000
_LABEL_STATUSES = {
    fraud_service_pb2.LABEL_STATUS_APPLIED: "APPLIED",
    fraud_service_pb2.LABEL_STATUS_UNMATCHED: "UNMATCHED",
    fraud_service_pb2.LABEL_STATUS_REJECTED: "REJECTED",
}


@dataclass(frozen=True, slots=True)
class ReplaySettings:
    """How to replay.

    Rows before ``from_ms`` are not sent. ``speed`` is a multiple of the stream's own, None as
    fast as possible; ``shift_ms`` is added to all times that are sent. With ``labels``, verdicts
    are reported; at most ``pending_labels_max`` wait. With ``earlier_labels``, so are those of
    rows before ``from_ms`` that become known after it, for a server that was given those rows in
    another way. Raises ValueError for numbers out of range.
    """

    from_ms: int | None = None
    speed: float | None = None
    shift_ms: int = 0
    labels: bool = False
    earlier_labels: bool = False
    in_flight: int = 1
    deadline_s: float = 5.0
    tries: int = 6
    pending_labels_max: int = 5_000_000
    snapshot_s: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.in_flight <= 1_024:
            raise ValueError("in_flight must be 1 to 1024")
        if self.speed is not None and not self.speed > 0:
            raise ValueError("speed must be above 0")
        if self.tries < 1 or not self.deadline_s > 0 or not self.snapshot_s > 0:
            raise ValueError("tries, deadline_s and snapshot_s must be above 0")


class Answer(NamedTuple):
    """What came back for one row."""

    row: HistoryRow
    assessment: decision_pb2.Assessment
    latency_us: int


class Problem(NamedTuple):
    """A row that was not scored: its line, and why (never its values)."""

    line: int
    reason: str


@dataclass(slots=True)
class _Flight:
    row: HistoryRow
    body: bytes
    entities: frozenset[tuple[str, str]]
    first_sent_ns: int
    tries: int = 0
    status: grpc.StatusCode = grpc.StatusCode.UNKNOWN
    details: str | None = None
    response: fraud_service_pb2.ScoreResponse | None = None
    ended_ns: int = 0


def entities_of(transaction: transaction_pb2.Transaction) -> frozenset[tuple[str, str]]:
    """Return everything of the transaction whose state its answer may read or change.

    A network is an IPv4 address without its last number; of an IPv6 address everything but its
    first part is ignored, which may hold back a call too many but never one too few.
    """
    address = transaction.ip_address
    network = address.split(":")[0] + ":" if ":" in address else address.rpartition(".")[0]
    named = {
        "customer": transaction.customer_id,
        "card": transaction.card.token,
        "bin": transaction.card.bin,
        "merchant": transaction.merchant.merchant_id,
        "terminal": transaction.terminal_id,
        "device": transaction.device_id,
        "network": network,
        "email": transaction.email.address_hash,
    }
    return frozenset((kind, value) for kind, value in named.items() if value)


class Replayer:
    """One replay over one channel; ``run`` may be called once.

    ``on_answer`` is called for every answer, in the order in which they arrive. Afterwards
    ``problems`` tells which rows were not scored (the first 1,000; ``problem_count`` counts all),
    ``label_statuses`` how labels fared, ``labels_left`` how many were never due.
    """

    def __init__(
        self,
        channel: grpc.Channel,
        settings: ReplaySettings,
        on_answer: Callable[[Answer], None] | None = None,
    ) -> None:
        self._score = score_method(channel)
        self._report = report_labels_method(channel)
        self._settings = settings
        self._on_answer = on_answer
        self._tally = Tally()
        # Holds at most ``in_flight`` entries.
        self._landed: queue.SimpleQueue[_Flight] = queue.SimpleQueue()
        self._flying = 0
        self._busy: set[tuple[str, str]] = set()
        self._pending: list[tuple[int, int, label_pb2.Label]] = []
        self.problems: list[Problem] = []
        self.problem_count = 0
        self.label_statuses: Counter[str] = Counter()

    @property
    def labels_left(self) -> int:
        """How many labels wait for the stream to reach their time."""
        return len(self._pending)

    def run(self, rows: Iterable[HistoryRow | BadRow]) -> Iterator[Snapshot]:
        """Send the rows; yield a snapshot each ``snapshot_s`` and a last one at the end.

        Raises TargetUnreachableError when the server stays away for all tries of a call.
        """
        begin = shown = time.perf_counter()
        first_ms: int | None = None
        for row in rows:
            if isinstance(row, BadRow):
                self._problem(row.line, row.reason)
            elif self._is_earlier(row):
                self._remember_earlier_label(row)
            else:
                if first_ms is None:  # the rows passed over took time that is not the stream's
                    first_ms, begin = row.event_ms, time.perf_counter()
                self._report_until(row.event_ms)
                self._pace(begin, row.event_ms - first_ms)
                self._send(row)
            now = time.perf_counter()
            if now - shown >= self._settings.snapshot_s:
                shown = now
                yield self._tally.snapshot(now - begin)
        self._land_all()
        yield self._tally.snapshot(time.perf_counter() - begin)

    def _is_earlier(self, row: HistoryRow) -> bool:
        return self._settings.from_ms is not None and row.event_ms < self._settings.from_ms

    def _pace(self, begin: float, stream_ms: int) -> None:
        if self._settings.speed is not None:
            due = begin + stream_ms / 1000 / self._settings.speed
            time.sleep(max(due - time.perf_counter(), 0))

    def _problem(self, line: int, reason: str) -> None:
        self.problem_count += 1
        if len(self.problems) < _PROBLEMS_MAX:
            self.problems.append(Problem(line, reason))

    # Transactions.

    def _send(self, row: HistoryRow) -> None:
        transaction = row.transaction
        transaction.request_id = request_id(transaction.transaction_id)
        if self._settings.shift_ms:
            shift_times(transaction, self._settings.shift_ms)
        entities = entities_of(transaction)
        while self._flying >= self._settings.in_flight or not self._busy.isdisjoint(entities):
            self._land()
        body = fraud_service_pb2.ScoreRequest(transaction=transaction).SerializeToString()
        self._flying += 1
        self._busy |= entities
        flight = _Flight(row, body, entities, time.perf_counter_ns())
        self._tally.sent(0)
        self._start(flight)
        self._remember_label(row)

    def _start(self, flight: _Flight) -> None:
        flight.tries += 1
        timeout_s = self._settings.deadline_s
        if self._settings.in_flight > 1:
            call = self._score.future(flight.body, timeout=timeout_s)
            call.add_done_callback(partial(self._ended, flight))
            return
        # Alone, a call that waits costs half of one that does not.
        try:
            flight.response = self._score(flight.body, timeout=timeout_s)
            self._end(flight, grpc.StatusCode.OK, None)
        except grpc.RpcError as error:
            self._end(flight, error.code(), error.details())

    def _ended(self, flight: _Flight, call: Any) -> None:
        if call.code() is grpc.StatusCode.OK:
            flight.response = call.result()
        self._end(flight, call.code(), call.details())

    def _end(self, flight: _Flight, status: grpc.StatusCode, details: str | None) -> None:
        flight.ended_ns = time.perf_counter_ns()
        flight.status, flight.details = status, details
        self._landed.put(flight)

    def _land_all(self) -> None:
        while self._flying:
            self._land()

    def _land(self) -> None:
        """Wait for one call to end, and for its repeats where it must be tried again."""
        flight = self._landed.get()
        status = flight.status
        if status in _TRY_AGAIN and flight.tries < self._settings.tries:
            time.sleep(_BACKOFF_S * 2 ** (flight.tries - 1))
            self._start(flight)
            return
        self._flying -= 1
        self._busy -= flight.entities
        latency_us = (flight.ended_ns - flight.first_sent_ns) // 1000
        if flight.response is not None:
            assessment = flight.response.assessment
            transaction = flight.row.transaction
            money = Money(transaction.currency_code, transaction.amount_minor)
            self._tally.scored(latency_us, assessment, flight.row.is_fraud, money)
            if self._on_answer is not None:
                self._on_answer(Answer(flight.row, assessment, latency_us))
            return
        self._tally.failed(latency_us, status)
        if status is grpc.StatusCode.UNAVAILABLE:
            raise TargetUnreachableError(f"the server went away at line {flight.row.line}")
        self._problem(flight.row.line, f"{status.name}: {flight.details}")

    # Labels.

    def _remember_label(self, row: HistoryRow) -> None:
        if not self._settings.labels or row.is_fraud is None or row.label_ms is None:
            return
        if len(self._pending) >= self._settings.pending_labels_max:
            raise ValueError(f"more than {self._settings.pending_labels_max} labels wait")
        label = to_label(row, self._settings.shift_ms)
        heapq.heappush(self._pending, (row.label_ms, row.line, label))

    def _remember_earlier_label(self, row: HistoryRow) -> None:
        known_before = (self._settings.from_ms or 0) > (row.label_ms or 0)
        if self._settings.earlier_labels and not known_before:
            self._remember_label(row)

    def _report_until(self, time_ms: int) -> None:
        """Report every label known at ``time_ms``, after all transactions sent before."""
        while self._pending and self._pending[0][0] <= time_ms:
            self._land_all()
            batch: list[label_pb2.Label] = []
            while self._pending and self._pending[0][0] <= time_ms and len(batch) < LABELS_MAX:
                batch.append(heapq.heappop(self._pending)[2])
            self._report_batch(batch)

    def _report_batch(self, batch: list[label_pb2.Label]) -> None:
        request = fraud_service_pb2.ReportLabelsRequest(labels=batch)
        for tried in range(self._settings.tries):
            try:
                response = self._report(request, timeout=self._settings.deadline_s)
            except grpc.RpcError as error:
                if error.code() not in _TRY_AGAIN:
                    raise ConnectionError(f"labels refused: {error.details()}") from None
                time.sleep(_BACKOFF_S * 2**tried)
            else:
                names = (_LABEL_STATUSES.get(r.status, "UNSPECIFIED") for r in response.results)
                self.label_statuses.update(names)
                return
        raise TargetUnreachableError("the server went away while labels were reported")


def shift_times(transaction: transaction_pb2.Transaction, shift_ms: int) -> None:
    """Move the transaction's times."""
    moved = transaction.event_time.ToMilliseconds() + shift_ms
    transaction.event_time.CopyFrom(timestamp(moved))
    if transaction.HasField("account_created_time"):
        opened = transaction.account_created_time.ToMilliseconds() + shift_ms
        transaction.account_created_time.CopyFrom(timestamp(opened))
