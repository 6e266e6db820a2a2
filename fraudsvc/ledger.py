"""What stands in the log of one id: its transaction, and the decision on it.

Owns how an entry is found in its frame. Must not know where the frame is (``tail``) nor why
somebody asks.
"""

from __future__ import annotations

import numpy as np
from fraud.v1 import decision_pb2
from numpy.typing import NDArray

from featurizer.eventlog import EventLog, LogError, Topic
from featurizer.records import RECORD, REQUEST_WORD, TRANSACTION_WORD
from fraudsvc.errors import ServiceError

FRAME_READ_BYTES = 1 << 16


class Ledger:
    """Reads a log by the frame that an id is in."""

    def __init__(self, log: EventLog) -> None:
        self._log = log

    def transaction(self, frame: int, identity: int) -> NDArray[np.void] | None:
        """Return the first record (RECORD[1], its own memory) with a request or transaction id.

        None where the log no longer has it.
        """
        found = self._entries(frame, identity)
        return None if found is None else np.frombuffer(found[0], RECORD).copy()

    def decision(self, frame: int, request: int) -> decision_pb2.Decision | None:
        """Return the decision on a request, None where the log no longer has one."""
        found = self._entries(frame, request)
        if found is None or found[1] is None:
            return None
        return decision_pb2.Decision.FromString(found[1])

    def answer(self, frame: int, request: int, content: bytes) -> decision_pb2.Assessment:
        """Return the first answer to a request of this content: its transaction's bytes.

        They are compared and not their hash, which may have been made under another secret. Raises
        ServiceError where the log no longer has the answer, and where the content was another.
        """
        decision = self.decision(frame, request)
        if decision is None:
            raise ServiceError("LOG_UNAVAILABLE")
        if decision.transaction.SerializeToString(deterministic=True) != content:
            raise ServiceError("REQUEST_ID_REUSED")
        return decision.assessment

    def _entries(self, frame: int, identity: int) -> tuple[bytes, bytes | None] | None:
        """Return the record with an id in the frame at a position, and the decision after it."""
        try:
            batch = self._log.read(frame, FRAME_READ_BYTES)
        except LogError:
            return None
        topics = batch.topics[batch.frames == frame].tolist()
        for i, topic in enumerate(topics):
            if topic != Topic.TRANSACTIONS:
                continue
            record = batch.value(i)
            ids = np.frombuffer(record, np.int64)
            if identity in (ids.item(REQUEST_WORD), ids.item(TRANSACTION_WORD)):
                decided = topics[i + 1 : i + 2] == [Topic.DECISIONS]
                return record, batch.value(i + 1) if decided else None
        return None
