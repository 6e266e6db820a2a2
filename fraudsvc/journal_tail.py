"""The journal past the index: which records and ids have come since, and what is on its way.

Owns which records are pending and where ids are found. Must not know how states are kept up with
them: that is what the two tails add. Not for use by several threads at once: the scorer has a lock.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from featurizer.arena import Arena
from featurizer.eventlog import Batch, EventLog
from featurizer.records import RECORD, REQUEST_WORD, TRANSACTION_WORD, Kind
from featurizer.store import Snapshot, StoreError
from featurizer.worker import records_of

READ_BYTES = 1 << 20
CATCH_UP_READS_MAX = 8  # at most so many reads a call; further behind is stale
IDS_MAX = 1 << 20  # pending; with a featurizer so far behind the oldest repeats go unnoticed


class Snapshots(Protocol):
    """What a reader needs of a store. Raises StoreError while there is none."""

    def snapshot(self) -> Snapshot:
        """Return a consistent view of the newest write."""
        ...


class Prepared(NamedTuple):
    """Whole states, and how n records are folded into them.

    ``positions`` int64[n] are what each is folded as. ``stored`` int64[n, entities] are the
    positions that the states are as of, int64[0, entities] where those in the arena are.
    """

    arena: Arena
    positions: NDArray[np.int64]
    stored: NDArray[np.int64]


class JournalTail:
    """Follows the journal past ``index``, which has the ids of what is before its position.

    At most ``capacity`` records are pending. ``behind`` is true while the journal is too far ahead
    to be read in one call. A tail of states overrides ``prepare``, ``load``, ``roll_back`` and the
    steps with a line under them.
    """

    def __init__(self, log: EventLog, index: Snapshots, capacity: int) -> None:
        self._log = log
        self._index = index
        self._capacity = capacity
        self._records = np.zeros(2 * capacity, RECORD)
        self._words = self._records.view(np.int64).reshape(2 * capacity, -1)
        self._positions = np.zeros(2 * capacity, np.int64)
        self._first = 0
        self._stop = 0
        self.position = 0
        self.behind = False
        self._staged: dict[int, int] = {}  # request and transaction id of each, in order
        self._frames: dict[int, int] = {}  # request or transaction id: its first frame pending
        self._ids: deque[tuple[int, int, int]] = deque()  # position and both ids of each

    def refresh(self) -> Snapshot:
        """Read the log to its end and return a snapshot of the index, which the caller closes.

        Raises LogError; the pending records are then as they were. Raises StoreError, with the
        log read all the same.
        """
        try:
            snapshot = self._index.snapshot()
        except StoreError:
            self._forget_ids(-1)
            self.follow()
            raise
        try:
            self._look_at(snapshot)
            self.follow(snapshot)
            self._look_back()
        except BaseException:
            snapshot.close()
            raise
        return snapshot

    def follow(self, snapshot: Snapshot | None = None) -> None:
        """Read what the log has got since the last call.

        A request that ``snapshot`` knows is a repeat, though its first append is pending no more.
        """
        for _ in range(CATCH_UP_READS_MAX):
            batch = self._log.read(self.position, READ_BYTES)
            self.behind = batch.next_position != self.position
            if not self.behind:
                return
            if len(batch.topics):
                self._take(batch, snapshot)
            self.position = batch.next_position

    def stage(self, ids: NDArray[np.int64]) -> None:
        """Take in a transaction before it is appended, as if it stood where it is going to.

        ``ids`` int64[1, n] are the words of its record. Its frame will begin at ``position``, and
        has it behind the transactions that were staged before, each with its decision.
        """
        position = self.position + 1 + 2 * len(self._staged)
        stop = self._stop if self._stop < len(self._positions) else self._make_room(1)
        self._words[stop] = ids
        self._positions[stop] = position
        self._take_in(stop + 1)
        self._staged[ids.item(REQUEST_WORD)] = ids.item(TRANSACTION_WORD)

    def positions(self, count: int) -> NDArray[np.int64]:
        """Return where the next ``count`` transactions are going to stand, each with a decision."""
        first = self.position + 1 + 2 * len(self._staged)
        return np.arange(first, first + 2 * count, 2)

    @property
    def staged(self) -> int:
        """How many transactions are staged."""
        return len(self._staged)

    def commit(self, frame: int, end: int) -> None:
        """Keep what was staged, now that its frame stands from ``frame`` to ``end``.

        ``frame`` is ``position``: where others appended in between, ``roll_back`` and ``follow``.
        """
        position = frame + 1
        for request, transaction in self._staged.items():
            self._frames[request] = frame
            self._frames.setdefault(transaction, frame)
            self._ids.append((position, request, transaction))
            position += 2
        self._staged.clear()
        self.position = end

    def prepare(self, snapshot: Snapshot, records: NDArray[np.void], /) -> Prepared | None:
        """Have all states that records (RECORD[n]) meet, to be folded there in order.

        The records then go to ``stage_folded``. None where not all are whole, so each record has
        to ``load`` its own. Raises StoreError.
        """
        raise NotImplementedError

    def stage_folded(self, ids: NDArray[np.int64]) -> None:
        """Take in transactions (words int64[n, m]) that were folded in what ``prepare`` gave."""
        stop = self._make_room(len(ids))
        self._words[stop : stop + len(ids)] = ids
        self._positions[stop : stop + len(ids)] = self.positions(len(ids))
        self._count(stop + len(ids))
        words = (REQUEST_WORD, TRANSACTION_WORD)
        self._staged.update(zip(*(ids[:, word].tolist() for word in words), strict=True))

    def load(
        self, snapshot: Snapshot, record: NDArray[np.void], rows: NDArray[np.int64], /
    ) -> bool:
        """Fill ``rows`` with the states that ``record`` (RECORD[1]) meets; return if all are whole.

        ``rows`` int64[len(Entity), ROW_WORDS]; the row of an entity never seen is empty. Raises
        StoreError where states cannot be read.
        """
        raise NotImplementedError

    def roll_back(self, rows: NDArray[np.int64], /) -> None:
        """Forget what was staged. ``rows`` is scratch, as for ``load``."""
        raise NotImplementedError

    def _look_at(self, snapshot: Snapshot) -> None:
        """Take in how far a snapshot is, before the log is read."""
        raise NotImplementedError

    def _look_back(self) -> None:
        """Take in what reading the log changed."""

    def _take_in(self, stop: int) -> None:
        """Count the records up to ``stop`` as pending; the oldest go where there are too many."""
        raise NotImplementedError

    def _count(self, stop: int) -> None:
        """Count the records up to ``stop`` as pending, which are in the states that were met."""
        self._take_in(stop)

    def _skip(self, records: NDArray[np.void], positions: NDArray[np.int64], /) -> None:
        """Do without all that is pending and these, which are too many to be pending."""
        raise NotImplementedError

    def find_all(self, identities: list[int], snapshot: Snapshot) -> list[int | None]:
        """Return what ``find`` does, for each."""
        found = snapshot.find_many(identities)
        pairs = zip(identities, found, strict=True)
        return [self._frames.get(each) if frame is None else frame for each, frame in pairs]

    def find(self, identity: int, snapshot: Snapshot) -> int | None:
        """Return the position of the first frame with a request or transaction id, or None."""
        # The store first: what it knows came before whatever is pending.
        found = snapshot.find_many((identity,))[0]
        return self._frames.get(identity) if found is None else found

    def first_frame(self, identity: int) -> int | None:
        """Return the first pending frame with an id, or None."""
        return self._frames.get(identity)

    def _take(self, batch: Batch, snapshot: Snapshot | None) -> None:
        records, positions, frames = records_of(batch)
        keep = np.ones(len(records), bool)
        requests, transactions = records["request"].tolist(), records["transaction"].tolist()
        folded = snapshot.find_many(requests) if snapshot else [None] * len(requests)
        kinds = records["kind"].tolist()
        for i, request in enumerate(requests):
            if kinds[i] != Kind.TRANSACTION or not request:
                continue
            frame = int(frames[i])
            if request in self._frames or folded[i] not in (None, frame):
                keep[i] = False  # a second append of the same request: the first one counts
                continue
            self._frames[request] = frame
            self._frames.setdefault(transactions[i], frame)
            self._ids.append((int(positions[i]), request, transactions[i]))
        if not keep.all():
            records, positions = records[keep], positions[keep]
        if len(records) > self._capacity:
            over = len(records) - self._capacity
            self._skip(records[:over], positions[:over])
            records, positions = records[over:], positions[over:]
            self._first = self._stop
        stop = self._make_room(len(records))
        self._records[stop : stop + len(records)] = records
        self._positions[stop : stop + len(records)] = positions
        self._take_in(stop + len(records))

    def _make_room(self, count: int) -> int:
        """Return where ``count`` more pending records go."""
        if self._stop + count > len(self._records):
            kept = self._stop - self._first
            self._records[:kept] = self._records[self._first : self._stop]
            self._positions[:kept] = self._positions[self._first : self._stop]
            self._first, self._stop = 0, kept
        return self._stop

    def _forget_ids(self, applied: int) -> None:
        while self._ids and (self._ids[0][0] < applied or len(self._ids) > IDS_MAX):
            _, request, transaction = self._ids.popleft()
            self._frames.pop(request, None)
            self._frames.pop(transaction, None)

    def _forget_all(self, position: int) -> None:
        """Begin at a position, with nothing pending."""
        self.position = position
        self._first = self._stop = 0
        self._frames.clear()
        self._ids.clear()
