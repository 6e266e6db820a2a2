"""The state of now: a snapshot of the store plus the records of the log that it lacks yet.

Owns which records are pending and where ids are found. Must not know how a decision is made.
Not for use by several threads at once: the scorer calls it under its own lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from featurizer.eventlog import Batch, EventLog
from featurizer.records import RECORD, Kind
from featurizer.state import HEADER
from featurizer.store import Snapshot, Store
from featurizer.worker import records_of

READ_BYTES = 1 << 20
CATCH_UP_READS_MAX = 8  # at most so many reads a call; further behind is stale
_HEADER_BYTES = HEADER * 8
_NO_STATE = bytes(_HEADER_BYTES)


class Tail:
    """Follows the log past the store.

    ``records`` RECORD[capacity] and ``positions`` int64[capacity] hold the pending records in log
    order from ``first`` to ``stop``. With more pending than ``capacity``, or too far behind to
    catch up in one call, ``stale`` is true and the oldest are missing.
    """

    def __init__(self, log: EventLog, store: Store, capacity: int = 4_096) -> None:
        self._log = log
        self._store = store
        self._capacity = capacity
        self.records = np.zeros(2 * capacity, RECORD)
        self.positions = np.zeros(2 * capacity, np.int64)
        self.first = 0
        self.stop = 0
        self.position = 0
        self.stale = False
        self._frames: dict[int, int] = {}  # request or transaction id: its first frame pending
        self._ids: deque[tuple[int, int, int]] = deque()  # position and both ids of each

    def refresh(self) -> Snapshot:
        """Read the log to its end and return a snapshot, which the caller closes.

        Raises StoreError or LogError; the pending records are then as they were.
        """
        snapshot = self._store.snapshot()
        try:
            self._forget(snapshot.position)
            self.follow()
        except BaseException:
            snapshot.close()
            raise
        return snapshot

    def follow(self) -> None:
        """Read what the log has got since the last call."""
        for _ in range(CATCH_UP_READS_MAX):
            batch = self._log.read(self.position, READ_BYTES)
            if batch.next_position == self.position:
                return
            if len(batch.topics):
                self._take(batch)
            self.position = batch.next_position
        self.stale = True

    def find(self, identity: int, snapshot: Snapshot) -> int | None:
        """Return the position of the first frame with a request or transaction id, or None."""
        found = snapshot.find_many((identity,))[0]
        return self._frames.get(identity) if found is None else found

    def first_frame(self, identity: int) -> int | None:
        """Return the first pending frame with an id, or None."""
        return self._frames.get(identity)

    def load(self, snapshot: Snapshot, keys: Sequence[int], rows: Sequence[memoryview]) -> None:
        """Copy the states of ``keys`` (0 absent) as of the snapshot into ``rows`` (bytes)."""
        for row, blob in zip(rows, snapshot.get_many(keys), strict=True):
            if blob is None:
                row[:_HEADER_BYTES] = _NO_STATE
            else:
                row[: len(blob)] = blob

    def _take(self, batch: Batch) -> None:
        records, positions, frames = records_of(batch)
        for i in range(len(records)):
            record = records[i]
            position, frame = int(positions[i]), int(frames[i])
            request, transaction = int(record["request"]), int(record["transaction"])
            if record["kind"] == Kind.TRANSACTION:
                if request in self._frames:
                    continue  # a second append of the same request: the first one counts
                self._frames[request] = frame
                self._frames.setdefault(transaction, frame)
                self._ids.append((position, request, transaction))
            self._append(records[i : i + 1], position)

    def _append(self, record: NDArray[np.void], position: int) -> None:
        if self.stop - self.first >= self._capacity:
            self.first += 1
            self.stale = True
        if self.stop == len(self.records):
            count = self.stop - self.first
            self.records[:count] = self.records[self.first : self.stop]
            self.positions[:count] = self.positions[self.first : self.stop]
            self.first, self.stop = 0, count
        self.records[self.stop : self.stop + 1] = record
        self.positions[self.stop] = position
        self.stop += 1

    def _forget(self, applied: int) -> None:
        """Drop what a snapshot at log position ``applied`` holds."""
        if applied > self.position:  # far behind: nothing between here and there is needed
            self.position = applied
            self.first = self.stop = 0
            self.stale = False
            self._frames.clear()
            self._ids.clear()
            return
        while self.first < self.stop and self.positions[self.first] < applied:
            self.first += 1
            self.stale = False
        while self._ids and self._ids[0][0] < applied:
            _, request, transaction = self._ids.popleft()
            self._frames.pop(request, None)
            self._frames.pop(transaction, None)
