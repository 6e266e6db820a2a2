"""Decides the payments of one frame together, in a few kernel calls instead of a few each.

Owns which of them can be decided so: those that repeat no request, where all states are whole. The
bytes are those of one decision at a time, each payment seeing those before it, but for the time
used. Must not know a log.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from featurizer.entries import Packed
from featurizer.records import RECORD, REQUEST_WORD
from featurizer.store import Snapshot, StoreError
from fraudsvc.answers import Stamp
from fraudsvc.assess import Sheet
from fraudsvc.batch_writer import BatchWriter
from fraudsvc.decide import Drafts, decide_all
from fraudsvc.errors import ServiceError
from fraudsvc.intake import Intake
from fraudsvc.journal_tail import JournalTail
from fraudsvc.payment import Payment
from fraudsvc.policy import Policy
from fraudsvc.shared_steps import StepsOfMany
from trainer.bundle import Bundle

Taken = list[Payment | ServiceError]


class BatchDecider:
    """Takes in and decides at most ``capacity`` payments at once, with the states of ``tail``.

    ``key`` and ``seed`` as for ``BatchWriter``.
    """

    def __init__(
        self, intake: Intake, tail: JournalTail, key: NDArray[np.uint64], seed: int, capacity: int
    ) -> None:
        self._intake = intake
        self._tail = tail
        self._writer = BatchWriter(key, seed)
        self._sheet = Sheet(capacity)
        self._taken = 0
        self._records = np.zeros(capacity, RECORD)
        self._words = self._records.view(np.int64).reshape(capacity, -1)

    def take(self, datas: Sequence[bytes], now_ms: int) -> Taken:
        """Take transactions in, up to one that repeats a request of those before it.

        Their records hold until the next call.
        """
        count = self._taken = len(datas)
        taken = self._intake.take_all(datas, now_ms, self._records[:count], self._words[:count])
        requests = self._words[:count, REQUEST_WORD].tolist()
        if len(set(requests)) == count:  # nearly always
            return taken
        seen: set[int] = set()
        for place, (each, request) in enumerate(zip(taken, requests, strict=True)):
            if isinstance(each, Payment):
                if request in seen:
                    return taken[:place]
                seen.add(request)
        return taken

    def assess(
        self,
        payments: Sequence[Payment],
        snapshot: Snapshot,
        bundle: Bundle,
        policy: Policy,
        steps: StepsOfMany,
    ) -> bool:
        """Let the model see payments that were taken in, and stage them; return if that could be.

        Where it could not, as one needs a look of its own, nothing has changed.
        """
        self._close_up(payments)
        records, words = self._records[: len(payments)], self._words[: len(payments)]
        known = self._tail.find_all(words[:, REQUEST_WORD].tolist(), snapshot)
        if any(frame is not None for frame in known):
            return False
        try:
            prepared = self._tail.prepare(snapshot, records)
        except StoreError:
            return False
        if prepared is None:
            return False
        loaded_ns, (arena, positions, stored) = steps.now_ns(), prepared
        try:
            self._sheet.fill(arena, records, positions, stored, bundle, policy.table)
        except MemoryError:
            arena.clear()  # full: start anew from the store
            return False
        self._tail.stage_folded(words)
        steps.end(loaded_ns)
        steps.end()
        return True

    def decide(self, payments: Sequence[Payment], bundle: Bundle, policy: Policy) -> Drafts:
        """Return the decisions on the payments that were assessed."""
        datas = [each.data for each in payments]
        return decide_all(payments.__getitem__, datas, self._sheet, bundle, policy)

    def write(
        self,
        drafts: Drafts,
        payments: Sequence[Payment],
        stamp: Stamp,
        callers: Sequence[tuple[bytes, bytes]],
        own: NDArray[np.int64] | None,
    ) -> tuple[Packed, list[bytes]]:
        """Return the entries of what was decided, and the bytes of each Assessment.

        ``stamp`` is all of theirs, whichever request it names; ``callers`` and ``own`` as in
        ``BatchWriter.entries``.
        """
        sheet = self._sheet
        return self._writer.entries(
            drafts, stamp, self._words[: len(payments)], [each.data for each in payments],
            (sheet.bodies, sheet.reasons, sheet.figures), callers, own,
        )  # fmt: skip

    def _close_up(self, payments: Sequence[Payment]) -> None:
        """Let the records stand one after another, where some of those taken in were refused."""
        if len(payments) == self._taken:
            return
        for place, payment in enumerate(payments):
            self._words[place] = payment.ids[0]
            payment.record = self._records[place : place + 1]
            payment.ids = self._words[place : place + 1]
