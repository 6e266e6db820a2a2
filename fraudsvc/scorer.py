"""One host's command side: transactions and labels in, answers out, every one an event on the log.

Owns the order of the steps around ``decide`` and what happens when one of them cannot be done.
Must not know gRPC. Threads may share a Scorer: what has to be in one order is under one lock.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial

import numpy as np
from fraud.v1 import decision_pb2, fraud_service_pb2, label_pb2
from numpy.typing import NDArray

from featurizer.eventlog import Entry, EventLog, LogError, Topic
from featurizer.hashing import IdHasher, request_hash_of
from featurizer.records import ENTITIES_WORD, RECORD, REQUEST_WORD
from featurizer.store import Snapshot, StoreError
from fraudsvc import rungs
from fraudsvc.answers import Stamp
from fraudsvc.batch_decider import BatchDecider, Taken
from fraudsvc.calls import MS, Call, Clocks, Kept, ScorerSettings, caller_of, result_of
from fraudsvc.contract import Checker, ContractSettings
from fraudsvc.errors import ServiceError
from fraudsvc.intake import Intake
from fraudsvc.journal_tail import JournalTail
from fraudsvc.labels import Labels
from fraudsvc.ledger import Ledger
from fraudsvc.models import Canary
from fraudsvc.payment import Payment
from fraudsvc.policy import Policy
from fraudsvc.shared_steps import OwnSteps, SharedSteps, StepsOfMany
from fraudsvc.single_decider import SingleDecider, Told
from trainer.bundle import Bundle

ITEMS_AT_ONCE = 32
_new_seed = partial(random.SystemRandom().getrandbits, 64)  # for trace ids, where none came


class Scorer:
    """Decides transactions and takes labels.

    ``tail`` follows ``log`` and has the states. ``bundle``, ``canary`` and ``policy`` are asked
    once per decision, so a new one takes effect between two. ``request_now``: see FormerIds.
    """

    def __init__(
        self,
        log: EventLog,
        tail: JournalTail,
        hasher: IdHasher,
        bundle: Callable[[], Bundle | None],
        policy: Callable[[], Policy],
        contract: ContractSettings,
        settings: ScorerSettings,
        clocks: Clocks | None = None,
        canary: Callable[[], Canary | None] = lambda: None,
        request_now: Callable[[int], int] = lambda request: request,
    ) -> None:
        self._log = log
        self._request_now = request_now
        self._bundle = bundle
        self._canary = canary
        self._policy = policy
        self._intake = Intake(hasher, contract)
        self._settings = settings
        self._budget_ns = int(settings.budget_ms * MS)
        self._full_ns = int(settings.full_ms * MS)
        self._clocks = clocks or Clocks()
        self._tail = tail
        key = hasher.key
        self._single = SingleDecider(key, _new_seed(), self._clocks.monotonic_ns)
        self._record = np.zeros(1, RECORD)  # of a call that is no batch, and the same as words
        self._words = self._record.view(np.int64).reshape(1, -1)
        self._entries: Sequence[Entry] = ()  # of the frame that is being made
        self._ledger = Ledger(log)
        self._labels = Labels(Checker(hasher, contract), hasher, self._tail, self._ledger)
        self._lock = threading.Lock()
        self._batches = BatchDecider(self._intake, self._tail, key, _new_seed(), ITEMS_AT_ONCE)

    def score(self, transaction: bytes, call: Call, *, validate_only: bool = False) -> bytes:
        """Decide one serialised Transaction; return the Assessment's bytes, as they are on the log.

        A repeat of a request gets its first answer. Raises ServiceError.
        """
        with self._lock:
            now_ms = self._clocks.now_ms()
            payment = self._intake.take(transaction, now_ms, self._record, self._words)
            snapshot = self._snapshot()
            try:
                answer = self._answer(payment, call, snapshot, validate_only)
            finally:
                if snapshot is not None:
                    snapshot.close()
            if isinstance(answer, bytes):
                return answer
            self._append_all([answer])
            if isinstance(answer.answer, ServiceError):
                raise answer.answer
            return answer.answer

    def score_batch(
        self, transactions: Sequence[bytes], call: Call, *, validate_only: bool = False
    ) -> list[bytes]:
        """Decide transactions in order, each seeing those before it; a bad one fails alone.

        Each has the time budget of a call of its own, and all have the caller's deadline. Returns
        a ScoreResult's bytes for each. ITEMS_AT_ONCE of them are one frame of the log; between
        two frames other calls have their turn.
        """
        self._bound(len(transactions))
        steps = SharedSteps(call, self._clocks, len(transactions))
        results: list[bytes] = []
        while len(results) < len(transactions):
            with self._lock:
                items = transactions[len(results) : len(results) + ITEMS_AT_ONCE]
                results += map(result_of, self._score_some(items, steps, validate_only))
        return results

    def score_several(
        self, transactions: Sequence[bytes], calls: Sequence[Call]
    ) -> list[bytes | ServiceError]:
        """Decide a transaction for each of ``calls``, in order, in as few frames as can be.

        Returns for each what ``score`` would: an Assessment's bytes, or why there is none.
        """
        results: list[bytes | ServiceError] = []
        while len(results) < len(calls):
            some = slice(len(results), len(results) + ITEMS_AT_ONCE)
            with self._lock:
                steps = OwnSteps(calls[some], self._clocks)
                results += self._score_some(transactions[some], steps, validate_only=False)
        return results

    def _score_some(
        self, items: Sequence[bytes], steps: StepsOfMany, validate_only: bool
    ) -> list[bytes | ServiceError]:
        """Decide transactions and append them in one frame; return what each is answered.

        Ends before one that repeats a request of the frame, as its first answer is not on the log.
        """
        steps.begin()
        snapshot = self._snapshot()
        try:
            taken = self._batches.take(items, self._clocks.now_ms())
            steps.accept(len(taken))
            answers = self._answer_all(taken, steps, snapshot, validate_only)
        except BaseException:
            self._discard()
            raise
        finally:
            if snapshot is not None:
                snapshot.close()
        self._append_all([answer for answer in answers if isinstance(answer, Kept)])
        return [answer.answer if isinstance(answer, Kept) else answer for answer in answers]

    def _answer_all(
        self, taken: Taken, steps: StepsOfMany, snapshot: Snapshot | None, validate_only: bool
    ) -> list[bytes | Kept | ServiceError]:
        """Answer what was taken in, at once what can be, else one by one."""
        together: dict[int, Kept] = {}
        if not validate_only and snapshot is not None:
            together = self._answer_together(taken, steps, snapshot)
            if len(together) == len(taken):
                return [*together.values()]
        answers: list[bytes | Kept | ServiceError] = []
        for place, each in enumerate(taken):
            if isinstance(each, ServiceError) or place in together:
                answers.append(each if isinstance(each, ServiceError) else together[place])
                continue
            try:
                [call] = steps.calls([place])
                answers.append(self._answer(each, call, snapshot, validate_only))
            except ServiceError as error:
                answers.append(error)
            if isinstance(answers[-1], Kept):
                self._tail.stage(each.ids)
        if not together:
            self._entries = steps.told(self._entries)
        return answers

    def _answer_together(
        self, taken: Taken, steps: StepsOfMany, snapshot: Snapshot
    ) -> dict[int, Kept]:
        """Decide payments on rung FULL, by their places; none where one needs a look of its own."""
        found = {place: each for place, each in enumerate(taken) if isinstance(each, Payment)}
        calls = dict(zip(found, steps.calls([*found]), strict=True))
        bundle, policy = self._bundle(), self._policy()
        left = self._left_out(found, calls)
        if bundle is None or (left and steps.in_order):
            return {}
        for place in left:  # as nobody counts on an order
            found.pop(place).detach()
            del calls[place]
        payments = [*found.values()]
        if not (payments and self._batches.assess(payments, snapshot, bundle, policy, steps)):
            return {}
        drafts = self._batches.decide(payments, bundle, policy)
        stamp = Stamp(0, b"", self._tail.position, payments[0].received_ms, 0, b"", True)
        told, own = steps.stamp(stamp, [*calls.values()])
        callers = [caller_of(each, self._settings.name) for each in calls.values()]
        self._entries, answers = self._batches.write(drafts, payments, told, callers, own)
        return dict(zip(found, map(Kept, payments, calls.values(), answers), strict=True))

    def _left_out(self, found: Mapping[int, Payment], calls: Mapping[int, Call]) -> list[int]:
        """Return the places of payments that are the canary's or have no time for a model."""
        canary, budget_ns = self._canary(), self._budget_ns
        least_ns = self._clocks.monotonic_ns() + self._full_ns
        return [
            place
            for place, each in found.items()
            if calls[place].due_ns(budget_ns) < least_ns
            or (canary is not None and canary.customers.holds(each.ids.item(ENTITIES_WORD)))
        ]

    def report_labels(
        self, labels: Sequence[label_pb2.Label]
    ) -> list[fraud_service_pb2.LabelResult]:
        """Take labels; a bad one fails alone. Raises ServiceError where none can be kept."""
        self._bound(len(labels))
        now_ms = self._clocks.now_ms()
        results: list[fraud_service_pb2.LabelResult] = []
        frames: list[list[Entry]] = []
        with self._lock:
            with closing(self._refreshed()) as snapshot:
                results.extend(self._labels.take(each, now_ms, snapshot, frames) for each in labels)
            if frames:
                self._append(frames)
        return results

    def get_decision(self, wanted: str) -> decision_pb2.Decision:
        """Return a decision as it stands in the log. Raises ServiceError."""
        try:
            request = self._request_now(request_hash_of(wanted))
        except ValueError:
            raise ServiceError("INVALID_DECISION_ID") from None
        with self._lock, closing(self._refreshed()) as snapshot:
            frame = self._tail.find(request, snapshot)
        decision = None if frame is None else self._ledger.decision(frame, request)
        if decision is None or decision.assessment.decision_id != wanted:
            raise ServiceError("DECISION_NOT_FOUND")
        return decision

    def _bound(self, items: int) -> None:
        if items > self._settings.items_max:
            raise ServiceError("BATCH_TOO_LARGE")

    def _snapshot(self) -> Snapshot | None:
        """Follow the log and return the store's state, None where there is none."""
        try:
            return self._tail.refresh()
        except StoreError:
            return None
        except LogError:
            raise ServiceError("LOG_UNAVAILABLE") from None

    def _refreshed(self) -> Snapshot:
        snapshot = self._snapshot()
        if snapshot is None:
            raise ServiceError("LOG_UNAVAILABLE")
        return snapshot

    def _answer(
        self, payment: Payment, call: Call, snapshot: Snapshot | None, validate_only: bool
    ) -> bytes | Kept:
        """Look for a repeat, or decide and add to the frame that is being made; under the lock."""
        accepted_ns = loaded_ns = self._clocks.monotonic_ns()
        request, tail = payment.ids.item(REQUEST_WORD), self._tail
        frame = tail.first_frame(request) if snapshot is None else tail.find(request, snapshot)
        if frame is not None:
            return self._repeated(frame, payment, call, validate_only)
        rung, cause = self._rung(call)
        seen = payment.record
        if rung != rungs.RULES_ONLY:
            whole = self._load(snapshot, seen)
            if whole is None:  # decide as if no entity were known
                rung, cause, seen = rungs.PARTIAL, rungs.UNAVAILABLE, payment.record.copy()
                seen["entities"] = 0
            elif not whole:
                rung, cause = rungs.PARTIAL, rungs.STALE
            loaded_ns = self._clocks.monotonic_ns()
        steps = (call.steps_ns or call.arrival_ns, accepted_ns, loaded_ns)
        canary = self._canary_of(payment)
        bundle = self._bundle() if canary is None else canary
        caller, named = caller_of(call, self._settings.name), not validate_only
        told = Told(*caller, self._tail.position, call.arrival_ns, steps, named)
        judges = (bundle, self._policy())
        written = self._single.decide(payment, seen, judges, rung, cause, told)
        return self._keep(payment, call, written) if named else written[1]

    def _canary_of(self, payment: Payment) -> Bundle | None:
        """Return the canary where there is one and the customer is one of its own."""
        canary = self._canary()
        if canary is None or not canary.customers.holds(payment.ids.item(ENTITIES_WORD)):
            return None
        return canary.bundle

    def _keep(self, payment: Payment, call: Call, written: tuple[bytes, bytes]) -> Kept:
        """Add a decision, as it was written, to the frame that is being made."""
        decision, assessment = written
        customer = payment.ids.item(ENTITIES_WORD)
        self._entries = (
            *self._entries,
            Entry(Topic.TRANSACTIONS, customer, payment.record.tobytes()),
            Entry(Topic.DECISIONS, customer, decision),
        )
        return Kept(payment, call, assessment)

    def _load(self, snapshot: Snapshot | None, record: NDArray[np.void]) -> bool | None:
        """Load the states that a record meets; return if all are whole, None where none is had."""
        if snapshot is None:
            return None
        try:
            return self._tail.load(snapshot, record, self._single.rows)
        except StoreError:
            return None

    def _rung(self, call: Call) -> tuple[decision_pb2.Rung, decision_pb2.RungCause]:
        """Choose the rung of the ladder that the time left and the states allow."""
        now_ns = self._clocks.monotonic_ns()
        if now_ns >= call.deadline_ns:
            raise ServiceError("DEADLINE_EXCEEDED")
        if call.due_ns(self._budget_ns) - now_ns < self._full_ns:
            return rungs.RULES_ONLY, rungs.NO_TIME
        if self._bundle() is None:
            return rungs.RULES_ONLY, rungs.NO_MODEL
        return rungs.FULL, rungs.NO_CAUSE

    def _append_all(self, kept: Sequence[Kept]) -> None:
        """Append what was decided in one frame, and let each have its last word.

        The first of a request in the log wins: where that is another's, its answer is the answer.
        Where the log takes no more, none is kept and each has that error.
        """
        if not kept:
            return
        try:
            frame, end = self._append([self._entries])
        except ServiceError as error:
            self._discard()
            for each in kept:
                each.answer = error
            return
        except BaseException:
            self._discard()
            raise
        self._entries = ()
        if frame == self._tail.position:
            for each in kept[self._tail.staged :]:  # one alone is folded only now
                self._tail.stage(each.payment.ids)
            self._tail.commit(frame, end)
            return
        self._tail.roll_back(self._single.rows)
        for each in kept:
            self._let_the_first_win(each, frame)

    def _let_the_first_win(self, kept: Kept, frame: int) -> None:
        first = self._first_frame(kept.payment.ids.item(REQUEST_WORD))
        if first is None or first == frame:
            return
        try:
            kept.answer = self._repeated(first, kept.payment, kept.call, validate_only=False)
        except ServiceError as error:
            kept.answer = error

    def _discard(self) -> None:
        """Forget what was decided and not appended."""
        self._entries = ()
        self._tail.roll_back(self._single.rows)

    def _first_frame(self, request: int) -> int | None:
        """Return where a request first stands, now that others' appends are to be looked at."""
        try:
            snapshot = self._snapshot()
        except ServiceError:
            return None
        if snapshot is None:
            return self._tail.first_frame(request)
        with closing(snapshot):
            return self._tail.find(request, snapshot)

    def _append(self, frames: Sequence[Sequence[Entry]]) -> list[int]:
        try:
            return self._log.append(frames)
        except LogError:
            raise ServiceError("LOG_UNAVAILABLE") from None

    def _repeated(self, frame: int, payment: Payment, call: Call, validate_only: bool) -> bytes:
        """Return the first answer to a request, or refuse another content under its id."""
        first = self._ledger.answer(frame, payment.ids.item(REQUEST_WORD), payment.data)
        if validate_only:
            first.ClearField("decision_id")
        first.time_used.FromNanoseconds(self._clocks.monotonic_ns() - call.arrival_ns)
        return first.SerializeToString(deterministic=True)
