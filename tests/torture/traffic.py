"""Clients that ask at a steady rate and do not give up, and what they were told.

Owns what a client does without an answer: it sends the same request again, to the same host or to
the other. Must not know what is done to the hosts.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import grpc
from fraud.v1 import decision_pb2, fraud_service_pb2_grpc, transaction_pb2
from fraud.v1 import fraud_service_pb2 as pb

from featurizer.hashing import SPACE_REQUEST, IdHasher
from tests.conftest import Payments

THREADS = 4
TIMEOUT_S = 3.0
PAUSE_S = (0.05, 0.4)  # before a request is sent again
BEHIND_S = 1.0  # then the missed calls are let be
BATCH = 12
CUSTOMERS = 40  # of all clients: some in every partition, and each met again soon
LETTERS = str.maketrans("0123456789", "ghijklmnop")  # digits might look like a card number
# How often a call is a batch, an answered request is sent again to the same host or to the other,
# and a label follows.
BATCHES, AGAIN, ELSEWHERE, LABELS = 0.04, 0.03, 0.02, 0.03
OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
)
TRY_AGAIN = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,  # the connection broke in the middle of an answer
    }
)
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class Told(NamedTuple):
    """An answer to a request: from which host, after how many attempts."""

    host: int
    attempts: int
    assessment: decision_pb2.Assessment


@dataclass
class Book:
    """What the clients know. Threads share it; each has its own requests."""

    decisions: dict[int, str] = field(default_factory=dict)  # of each acknowledged request
    labels: int = 0  # acknowledged, and joined to a transaction
    statuses: Counter[str] = field(default_factory=Counter)
    rungs: Counter[str] = field(default_factory=Counter)
    moved: int = 0  # answered by another host than the first that was asked
    wrong: list[str] = field(default_factory=list)


class _Client(threading.Thread):
    """One client, whose home is one of the hosts."""

    def __init__(self, traffic: Traffic, number: int, seed: int) -> None:
        super().__init__(name=f"client-{number}", daemon=True)
        self._traffic = traffic
        self._home = number % len(traffic.targets)
        self._payments = Payments(seed)
        self._rng = self._payments.rng
        self._hasher = IdHasher()
        self._channels = [grpc.insecure_channel(target, OPTIONS) for target in traffic.targets]
        self._stubs = [
            fraud_service_pb2_grpc.FraudServiceStub(channel)  # type: ignore[no-untyped-call]
            for channel in self._channels
        ]
        self.idle = threading.Event()

    def run(self) -> None:
        traffic, due_s = self._traffic, time.monotonic()
        try:
            while not traffic.stopping.is_set():
                if not traffic.flowing.is_set():
                    self.idle.set()
                    traffic.flowing.wait(0.1)
                    due_s = time.monotonic()
                    continue
                self.idle.clear()
                count = BATCH if self._rng.random() < BATCHES else 1
                self._ask([self._payment() for _ in range(count)])
                due_s = max(due_s + count * traffic.period_s, time.monotonic() - BEHIND_S)
                time.sleep(max(0.0, due_s - time.monotonic()))
        finally:
            self.idle.set()
            for channel in self._channels:
                channel.close()

    def _payment(self) -> transaction_pb2.Transaction:
        identity = self._rng.bytes(12).hex().translate(LETTERS)
        customer = f"customer-{self._rng.integers(CUSTOMERS)}"
        return self._payments.one(customer_id=customer, transaction_id=identity)

    def _ask(self, payments: Sequence[transaction_pb2.Transaction]) -> None:
        """Ask until each is answered, or the traffic is stopped for good."""
        waiting, host, attempts = list(payments), self._home, 0
        while waiting and not self._traffic.stopping.is_set():
            attempts += 1
            told = self._send(waiting, host)
            for payment, answer in zip(waiting, told, strict=True):
                if answer is not None:
                    self._note(payment, Told(host, attempts, answer))
            waiting = [p for p, answer in zip(waiting, told, strict=True) if answer is None]
            if waiting:
                time.sleep(self._rng.uniform(*PAUSE_S))
                if self._rng.random() < 0.5:
                    host = (host + 1) % len(self._stubs)

    def _send(
        self, payments: Sequence[transaction_pb2.Transaction], host: int
    ) -> list[decision_pb2.Assessment | None]:
        stub = self._stubs[host]
        try:
            if len(payments) == 1:
                request = pb.ScoreRequest(transaction=payments[0])
                return [stub.Score(request, timeout=TIMEOUT_S).assessment]
            batch = pb.ScoreBatchRequest(transactions=payments)
            results = stub.ScoreBatch(batch, timeout=TIMEOUT_S).results
        except grpc.RpcError as error:
            self._refused(error.code(), str(error.details()))
            return [None] * len(payments)
        for result in results:
            if result.HasField("error"):
                self._refused(_CODES[result.error.code], result.error.reason)
        return [None if r.HasField("error") else r.assessment for r in results]

    def _refused(self, code: grpc.StatusCode, details: str) -> None:
        with self._traffic.lock:
            self._traffic.book.statuses[code.name] += 1
            if code not in TRY_AGAIN:
                self._traffic.book.wrong.append(f"{code.name}: {details}")

    def _note(self, payment: transaction_pb2.Transaction, told: Told) -> None:
        request = self._hasher.one(SPACE_REQUEST, payment.request_id)
        with self._traffic.lock:
            book = self._traffic.book
            book.decisions[request] = told.assessment.decision_id
            book.rungs[_rung_of(told)] += 1
            book.moved += told.host != self._home
        chance = self._rng.random()
        if chance < AGAIN:
            self._again(payment, told)
        elif chance < AGAIN + ELSEWHERE:
            self._elsewhere(payment, told)
        elif chance < AGAIN + ELSEWHERE + LABELS:
            self._label(payment, told.host)

    def _again(self, payment: transaction_pb2.Transaction, told: Told) -> None:
        """Ask the host that answered once more: it must say the same."""
        [answer] = self._send([payment], told.host)
        if answer is None:
            return
        first = decision_pb2.Assessment()
        first.CopyFrom(told.assessment)
        for each in (first, answer):
            each.ClearField("time_used")
        if first != answer:
            self._complain(f"{payment.request_id} was told {first} and then {answer}")

    def _elsewhere(self, payment: transaction_pb2.Transaction, told: Told) -> None:
        """Ask another host, too, which does not know: its decision has the same id."""
        [answer] = self._send([payment], (told.host + 1) % len(self._stubs))
        if answer is not None and answer.decision_id != told.assessment.decision_id:
            self._complain(f"{payment.request_id} has two decision ids")

    def _label(self, payment: transaction_pb2.Transaction, host: int) -> None:
        """Report what became of a payment to the host that decided it."""
        request = pb.ReportLabelsRequest(labels=[self._payments.label(payment.transaction_id)])
        try:
            [result] = self._stubs[host].ReportLabels(request, timeout=TIMEOUT_S).results
        except grpc.RpcError as error:
            self._refused(error.code(), str(error.details()))
            return
        if result.status != pb.LABEL_STATUS_APPLIED:
            self._complain(f"a label of {payment.request_id} is {result.status}")
            return
        with self._traffic.lock:
            self._traffic.book.labels += 1

    def _complain(self, what: str) -> None:
        with self._traffic.lock:
            self._traffic.book.wrong.append(what)


def _rung_of(told: Told) -> str:
    """Return host, rung and cause of an answer, without what all names begin with."""
    assessment = told.assessment
    rung = decision_pb2.Rung.Name(assessment.rung).removeprefix("RUNG_")
    if not assessment.rung_cause:
        return f"{told.host} {rung}"
    cause = decision_pb2.RungCause.Name(assessment.rung_cause).removeprefix("RUNG_CAUSE_")
    return f"{told.host} {rung} {cause}"


class Traffic:
    """Calls at ``rate`` a second to the hosts at ``targets``, spread over THREADS clients."""

    def __init__(self, targets: Sequence[str], rate: float, seed: int) -> None:
        self.targets = targets
        self.period_s = THREADS / rate
        self.book = Book()
        self.lock = threading.Lock()
        self.flowing = threading.Event()
        self.stopping = threading.Event()
        self._clients = [_Client(self, n, seed * 1_000 + n) for n in range(THREADS)]
        for client in self._clients:
            client.start()

    def acknowledged(self) -> dict[int, str]:
        """Return the decision of each request that was acknowledged so far."""
        with self.lock:
            return dict(self.book.decisions)

    def rungs(self) -> Counter[str]:
        """Return how often each rung was answered so far, by host and cause."""
        with self.lock:
            return Counter(self.book.rungs)

    def pause(self, wait_s: float) -> bool:
        """Start no new request; return whether every one was answered in time."""
        self.flowing.clear()
        end_s = time.monotonic() + wait_s
        return all(c.idle.wait(max(0.0, end_s - time.monotonic())) for c in self._clients)

    def resume(self) -> None:
        """Go on."""
        for client in self._clients:
            client.idle.clear()
        self.flowing.set()

    def stop(self) -> None:
        """End the clients."""
        self.stopping.set()
        self.flowing.set()
        for client in self._clients:
            client.join(2 * TIMEOUT_S)
