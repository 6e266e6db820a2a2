"""One host's command side: transactions and labels in, answers out, every one an event on the log.

Owns the order of the steps around ``decide`` and what happens when one of them cannot be done.
Must not know gRPC. Threads may share a Scorer: what has to be in one order is under one lock.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from fraud.v1 import decision_pb2, fraud_service_pb2, label_pb2, transaction_pb2
from numpy.typing import NDArray

from featurizer.arena import Arena
from featurizer.eventlog import Entry, EventLog, LogError, Topic
from featurizer.hashing import (
    PAYLOAD_BITS,
    SPACE_TRANSACTION,
    IdHasher,
    decision_id,
    hashes_of,
)
from featurizer.records import RECORD, Entity, Kind
from featurizer.store import Snapshot, StoreError
from fraudsvc.contract import Checker, ContractSettings, payload_hash
from fraudsvc.decide import (
    FULL,
    PARTIAL,
    RULES_ONLY,
    Workspace,
    decide,
)
from fraudsvc.errors import ServiceError, item_error, refusal
from fraudsvc.policy import Policy
from fraudsvc.tail import ENTITIES_WORD, REQUEST_WORD, Snapshots, Tail
from fraudsvc.trace_ids import trace_id_of
from fraudsvc.wire import Acceptor
from trainer.bundle import Bundle

FRAME_READ_BYTES = 1 << 16
MS = 1_000_000
_CAUSE = decision_pb2.RungCause


@dataclass(frozen=True, slots=True)
class ScorerSettings:
    """Bounds of a decision, in ms, and who decides.

    ``budget_ms`` is the time from arrival within which an answer is due; with less than
    ``full_ms`` of it left, rules alone answer. ``name`` stands in every decision.
    """

    budget_ms: float = 50.0
    full_ms: float = 5.0
    pending_max: int = 4_096
    states_bytes_max: int = 512 << 20
    items_max: int = 1_024
    name: str = ""


class Call(NamedTuple):
    """What the transport knows of a call: clock readings in ns (monotonic) and its trace."""

    arrival_ns: int
    deadline_ns: int
    traceparent: str = ""


class Clocks(NamedTuple):
    """The time of day in ms since 1970, and a monotonic clock in ns."""

    now_ms: Callable[[], int] = lambda: time.time_ns() // MS
    monotonic_ns: Callable[[], int] = time.perf_counter_ns


class _Checked(NamedTuple):
    transaction: transaction_pb2.Transaction
    record: NDArray[np.void]
    customer: int
    request: int
    payload: int
    now_ms: int


class Scorer:
    """Decides transactions and takes labels.

    ``bundle`` and ``policy`` are asked once per decision, so a new one takes effect between two.
    """

    def __init__(
        self,
        log: EventLog,
        store: Snapshots,
        hasher: IdHasher,
        bundle: Callable[[], Bundle | None],
        policy: Callable[[], Policy],
        contract: ContractSettings,
        settings: ScorerSettings,
        clocks: Clocks | None = None,
    ) -> None:
        self._log = log
        self._hasher = hasher
        self._bundle = bundle
        self._policy = policy
        self._acceptor = Acceptor(hasher, contract)
        self._checker = Checker(hasher, contract)
        self._settings = settings
        self._clocks = clocks or Clocks()
        self._tail = Tail(log, store, Arena(settings.states_bytes_max), settings.pending_max)
        self._space = Workspace()
        self._lock = threading.Lock()
        self._random = random.Random(os.urandom(16))

    def score(
        self, transaction: transaction_pb2.Transaction, call: Call, *, validate_only: bool = False
    ) -> decision_pb2.Assessment:
        """Decide one transaction; the answer is on the log when this returns.

        A repeat of a request gets its first answer. Raises ServiceError.
        """
        checked = self._check(transaction)
        with self._lock:
            decision = self._decide_in_order(checked, call, validate_only)
        assessment = decision.assessment
        if validate_only:
            assessment.ClearField("decision_id")  # a repeat's first answer has one
        _set_time_used(assessment, self._clocks.monotonic_ns() - call.arrival_ns)
        return assessment

    def score_batch(
        self,
        transactions: Sequence[transaction_pb2.Transaction],
        call: Call,
        *,
        validate_only: bool = False,
    ) -> list[fraud_service_pb2.ScoreResult]:
        """Decide transactions in order, each seeing those before it; a bad one fails alone.

        Each has the time budget of a call of its own, and all have the caller's deadline.
        """
        self._bound(len(transactions))
        results = []
        for transaction in transactions:
            own = call._replace(arrival_ns=self._clocks.monotonic_ns())
            try:
                answer = self.score(transaction, own, validate_only=validate_only)
                results.append(fraud_service_pb2.ScoreResult(assessment=answer))
            except ServiceError as error:
                results.append(fraud_service_pb2.ScoreResult(error=item_error(error)))
        return results

    def report_labels(
        self, labels: Sequence[label_pb2.Label]
    ) -> list[fraud_service_pb2.LabelResult]:
        """Take labels; a bad one fails alone. Raises ServiceError where none can be kept."""
        self._bound(len(labels))
        now_ms = self._clocks.now_ms()
        results: list[fraud_service_pb2.LabelResult] = []
        frames: list[list[Entry]] = []
        with self._lock:
            snapshot = self._refreshed()
            try:
                results.extend(self._label(each, now_ms, snapshot, frames) for each in labels)
            finally:
                snapshot.close()
            if frames:
                self._append(frames)
        return results

    def get_decision(self, wanted: str) -> decision_pb2.Decision:
        """Return a decision as it stands in the log. Raises ServiceError."""
        try:
            request, payload_bits = hashes_of(wanted)
        except ValueError:
            raise ServiceError("INVALID_DECISION_ID") from None
        with self._lock:
            snapshot = self._refreshed()
            try:
                frame = self._tail.find(request, snapshot)
            finally:
                snapshot.close()
        decision = None if frame is None else self._read_decision(frame)
        if decision is None or hashes_of(decision.assessment.decision_id)[1] != payload_bits:
            raise ServiceError("DECISION_NOT_FOUND")
        return decision

    def _bound(self, items: int) -> None:
        if items > self._settings.items_max:
            raise ServiceError("BATCH_TOO_LARGE")

    def _check(self, transaction: transaction_pb2.Transaction) -> _Checked:
        record = np.empty(1, RECORD)
        now_ms = self._clocks.now_ms()
        data = transaction.SerializeToString(deterministic=True)
        if not self._acceptor.accept(data, now_ms, record):
            violations = self._checker.check(transaction, now_ms, record)
            if violations:
                raise refusal("INVALID_TRANSACTION", violations)
        ids = record.view(np.int64)
        payload = payload_hash(data)
        return _Checked(
            transaction, record, int(ids[ENTITIES_WORD]), int(ids[REQUEST_WORD]), payload, now_ms
        )

    def _refreshed(self) -> Snapshot:
        try:
            return self._tail.refresh()
        except (StoreError, LogError):
            raise ServiceError("LOG_UNAVAILABLE") from None

    def _decide_in_order(
        self, checked: _Checked, call: Call, validate_only: bool
    ) -> decision_pb2.Decision:
        """Look for a repeat, decide, append; under the lock."""
        try:
            snapshot = self._tail.refresh()
        except StoreError:
            return self._decide_without_states(checked, call, validate_only)
        except LogError:
            raise ServiceError("LOG_UNAVAILABLE") from None
        try:
            frame = self._tail.find(checked.request, snapshot)
            if frame is not None:
                return self._repeated(frame, checked)
            rung, cause = self._rung(call)
            if rung != RULES_ONLY and not self._tail.load(
                snapshot, checked.record, self._space.rows
            ):
                rung, cause = PARTIAL, _CAUSE.RUNG_CAUSE_STATE_STALE
        finally:
            snapshot.close()
        return self._finish(checked, checked.record, call, rung, cause, validate_only)

    def _decide_without_states(
        self, checked: _Checked, call: Call, validate_only: bool
    ) -> decision_pb2.Decision:
        """Decide as if no entity were known: the store is gone, the log is not."""
        frame = self._tail.first_frame(checked.request)
        if frame is not None:
            return self._repeated(frame, checked)
        blind = checked.record.copy()
        blind["entities"] = 0
        rung, cause = self._rung(call)
        if rung != RULES_ONLY:
            rung, cause = PARTIAL, _CAUSE.RUNG_CAUSE_STATE_UNAVAILABLE
        return self._finish(checked, blind, call, rung, cause, validate_only)

    def _rung(self, call: Call) -> tuple[decision_pb2.Rung, decision_pb2.RungCause]:
        """Choose the rung of the ladder that the time left and the states allow."""
        now_ns = self._clocks.monotonic_ns()
        settings = self._settings
        if now_ns >= call.deadline_ns:
            raise ServiceError("DEADLINE_EXCEEDED")
        due_ns = min(call.deadline_ns, call.arrival_ns + int(settings.budget_ms * MS))
        if due_ns - now_ns < settings.full_ms * MS:
            return RULES_ONLY, _CAUSE.RUNG_CAUSE_DEADLINE
        if self._bundle() is None:
            return RULES_ONLY, _CAUSE.RUNG_CAUSE_NO_MODEL
        return FULL, _CAUSE.RUNG_CAUSE_UNSPECIFIED

    def _finish(
        self,
        checked: _Checked,
        seen: NDArray[np.void],
        call: Call,
        rung: decision_pb2.Rung,
        cause: decision_pb2.RungCause,
        validate_only: bool,
    ) -> decision_pb2.Decision:
        """Decide on the record as ``seen``, name the decision and append it."""
        decision = decide(
            checked.transaction, seen, self._space, self._bundle(), self._policy(), rung, cause,
            checked.now_ms,
        )  # fmt: skip
        assessment = decision.assessment
        assessment.trace_id = trace_id_of(call.traceparent, self._random)
        if validate_only:
            return decision
        checked.record["flags"] = seen["flags"]
        assessment.decision_id = decision_id(checked.request, checked.payload)
        decision.log_position = self._tail.position
        received = decision.receive_time  # FromMilliseconds takes a microsecond for this
        received.seconds, rest_ms = divmod(checked.now_ms, 1_000)
        received.nanos = rest_ms * MS
        decision.traceparent = call.traceparent
        decision.scorer = self._settings.name
        _set_time_used(assessment, self._clocks.monotonic_ns() - call.arrival_ns)
        return self._record(checked, decision)

    def _record(self, checked: _Checked, decision: decision_pb2.Decision) -> decision_pb2.Decision:
        """Append transaction and decision in one frame; the first of a request in the log wins."""
        customer = checked.customer
        entries = [
            Entry(Topic.TRANSACTIONS, customer, checked.record.tobytes()),
            Entry(Topic.DECISIONS, customer, decision.SerializeToString()),
        ]
        own, end = self._append([entries])
        if self._tail.note(checked.record, own, end):
            return decision
        first = self._first_frame(checked.request)
        if first is not None and first != own:
            return self._repeated(first, checked)
        return decision

    def _first_frame(self, request: int) -> int | None:
        """Return where a request first stands, now that others' appends are to be looked at."""
        try:
            snapshot = self._tail.refresh()
        except StoreError:
            return self._tail.first_frame(request)
        except LogError:
            return None
        try:
            return self._tail.find(request, snapshot)
        finally:
            snapshot.close()

    def _append(self, frames: Sequence[Sequence[Entry]]) -> list[int]:
        try:
            return self._log.append(frames)
        except LogError:
            raise ServiceError("LOG_UNAVAILABLE") from None

    def _repeated(self, frame: int, checked: _Checked) -> decision_pb2.Decision:
        """Return the first answer to a request, or refuse another content under its id."""
        decision = self._read_decision(frame)
        if decision is None:
            raise ServiceError("LOG_UNAVAILABLE")
        mask = (1 << PAYLOAD_BITS) - 1
        if hashes_of(decision.assessment.decision_id)[1] != checked.payload & mask:
            raise ServiceError("REQUEST_ID_REUSED")
        return decision

    def _read(self, frame: int, topic: Topic) -> bytes | None:
        """Return the first value of a topic in the frame at a position, or None."""
        try:
            batch = self._log.read(frame, FRAME_READ_BYTES)
        except LogError:
            return None
        for i in range(len(batch.topics)):
            if batch.frames[i] == frame and batch.topics[i] == topic:
                return batch.value(i)
        return None

    def _read_decision(self, frame: int) -> decision_pb2.Decision | None:
        value = self._read(frame, Topic.DECISIONS)
        return None if value is None else decision_pb2.Decision.FromString(value)

    def _label(
        self,
        label: label_pb2.Label,
        now_ms: int,
        snapshot: Snapshot,
        frames: list[list[Entry]],
    ) -> fraud_service_pb2.LabelResult:
        """Check one label, join it to its transaction and add its frame to ``frames``."""
        violations = self._checker.check_label(label, now_ms)
        if violations:
            return fraud_service_pb2.LabelResult(
                status=fraud_service_pb2.LABEL_STATUS_REJECTED,
                error=item_error(refusal("INVALID_LABEL", violations)),
            )
        identity = self._hasher.one(SPACE_TRANSACTION, label.transaction_id)
        entries = [Entry(Topic.LABELS, identity, label.SerializeToString())]
        frames.append(entries)
        frame = self._tail.find(identity, snapshot)
        value = None if frame is None else self._read(frame, Topic.TRANSACTIONS)
        if value is None:
            return fraud_service_pb2.LabelResult(status=fraud_service_pb2.LABEL_STATUS_UNMATCHED)
        feedback = np.frombuffer(value, RECORD).copy()
        feedback["kind"] = Kind.FEEDBACK
        feedback["verdict"] = label.verdict
        feedback["label_source"] = label.source
        feedback["known_time_ms"] = label.label_time.ToMilliseconds()
        customer = int(feedback[0]["entities"][Entity.CUSTOMER])
        entries.append(Entry(Topic.FEEDBACK, customer, feedback.tobytes()))
        return fraud_service_pb2.LabelResult(status=fraud_service_pb2.LABEL_STATUS_APPLIED)


def _set_time_used(assessment: decision_pb2.Assessment, elapsed_ns: int) -> None:
    assessment.time_used.seconds, assessment.time_used.nanos = divmod(elapsed_ns, 1_000_000_000)
