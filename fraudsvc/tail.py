"""The state of now on one host: what the store has, and what the log has got since.

Owns the states caught up with the pending records. Must not know how a decision is made.

States that were asked for stay in an arena and get every record of the log folded in as it comes,
so a decision about entities met before reads no store, and costs the same however far the
featurizer is behind. A state that is not there is read from the store and caught up with the
pending records.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from featurizer.arena import Arena
from featurizer.eventlog import EventLog
from featurizer.records import ENTITIES_WORD, Entity
from featurizer.store import Snapshot, StoreError
from fraudsvc.calls import ScorerSettings
from fraudsvc.journal_tail import JournalTail, Prepared, Snapshots

_ENTITIES = len(Entity)
_AS_IN_THE_ARENA = np.zeros((0, _ENTITIES), np.int64)
STATE_BYTES_USUAL = 2_048  # the arena's index has room for as many states from the start


def _present(record: NDArray[np.void]) -> int:
    """Return a bit for each entity that ``record`` (RECORD[1]) names."""
    keys = record["entities"][0].tolist()
    return sum(1 << entity for entity, key in enumerate(keys) if key)


class Tail(JournalTail):
    """Follows the log past the store, which is the index too.

    When more records were pending than may be, ``stale`` is true until the store has those that
    had to go: a state read from it may lack events, and is not caught up then. ``arena`` bounds
    the memory of the states.
    """

    def __init__(
        self, log: EventLog, store: Snapshots, arena: Arena, capacity: int = 4_096
    ) -> None:
        super().__init__(log, store, capacity)
        self._arena = arena
        # Of the pending records: to look for one among records takes a line of memory for each.
        self._keys = np.zeros((_ENTITIES, 2 * capacity), np.int64)
        self._applied = -1  # of the last snapshot
        self._dropped = -1  # position of the last record that is pending no more
        self.stale = False

    def load(self, snapshot: Snapshot, record: NDArray[np.void], rows: NDArray[np.int64]) -> bool:
        """Fill ``rows`` with the states that ``record`` (RECORD[1]) meets; return if all are whole.

        ``rows`` int64[len(Entity), ROW_WORDS]; the row of an entity never seen is empty.
        """
        missing = self._arena.lend(record, rows)
        if missing:
            self._fetch(snapshot, record, rows, missing)
            return not self.stale and not self.behind
        return not self.behind

    def prepare(self, snapshot: Snapshot, records: NDArray[np.void]) -> Prepared | None:
        """Have the states that ``records`` (RECORD[n]) meet in the arena, all of them whole."""
        if self.behind:
            return None
        prepared = Prepared(self._arena, self.positions(len(records)), _AS_IN_THE_ARENA)
        keys, entities = self._arena.lacking(records)
        if not len(keys):
            return prepared
        if self.stale:
            return None
        blobs = snapshot.get_many(keys.tolist())
        pending = (self._records, self._positions, self._keys, self._first, self._stop)
        try:
            self._arena.admit_all(keys, entities, blobs, pending)
        except MemoryError:
            self._arena.clear()  # full: start anew from the store
            return None
        return prepared

    def roll_back(self, rows: NDArray[np.int64]) -> None:
        """Forget what was staged: the states that it was folded into are made anew.

        ``rows`` is scratch, as for ``load``.
        """
        undone = self._records[self._stop - len(self._staged) : self._stop].copy()
        self._stop -= len(undone)
        self._first = min(self._first, self._stop)
        self._staged.clear()
        if not len(undone):
            return
        try:
            snapshot = self._index.snapshot()
        except StoreError:
            self._arena.clear()
            return
        try:
            self._look_at(snapshot)
            if self.stale:
                self._arena.clear()
                return
            for i in range(len(undone)):
                record = undone[i : i + 1]
                self._arena.lend(record, rows)  # leaves the rows of absent entities empty
                self._fetch(snapshot, record, rows, _present(record))
        finally:
            snapshot.close()

    def _look_at(self, snapshot: Snapshot) -> None:
        """Take in how far a snapshot is."""
        applied = snapshot.position
        if applied != self._applied:
            self._forget(applied)
            self._applied = applied
        self._look_back()

    def _look_back(self) -> None:
        """Take in what reading the log changed."""
        self.stale = self._applied <= self._dropped

    def _fetch(
        self, snapshot: Snapshot, record: NDArray[np.void], rows: NDArray[np.int64], missing: int
    ) -> None:
        """Read the missing states from the store and catch them up."""
        keys = record.view(np.int64)[ENTITIES_WORD : ENTITIES_WORD + _ENTITIES].tolist()
        blobs = snapshot.get_many([key for e, key in enumerate(keys) if missing >> e & 1])
        # With a gap in it, nobody could say later what a state was made of: a stale one stays as it
        # was stored.
        first = self._stop if self.stale else self._first
        pending = (self._records, self._positions, self._keys, first, self._stop)
        try:
            self._arena.admit(record, rows, missing, blobs, pending, keep=not self.stale)
        except MemoryError:
            self._arena.clear()  # full: start anew from the store

    def _take_in(self, stop: int) -> None:
        """Count the records up to ``stop`` as pending; the oldest go where there are too many."""
        try:
            self._arena.absorb(self._records, self._positions, self._stop, stop)
        except MemoryError:
            self._arena.clear()  # full: start anew from the store
        self._count(stop)

    def _count(self, stop: int) -> None:
        """Count the records up to ``stop`` as pending, which are in the states."""
        self._note_keys(self._stop, stop)
        self._stop = stop
        if stop - self._first > self._capacity:
            self._first = stop - self._capacity
            self._dropped = int(self._positions[self._first - 1])

    def _make_room(self, count: int) -> int:
        """Return where ``count`` more pending records go."""
        first, stop = self._first, super()._make_room(count)
        if self._first != first:
            self._note_keys(0, stop)
        return stop

    def _note_keys(self, first: int, stop: int) -> None:
        keys = self._words[first:stop, ENTITIES_WORD : ENTITIES_WORD + _ENTITIES]
        self._keys[:, first:stop] = keys.T

    def _skip(self, _: NDArray[np.void], positions: NDArray[np.int64]) -> None:
        """Do without what ends at these positions."""
        self._dropped = int(positions[-1])
        self._arena.clear()  # its states would lack what is left out

    def _forget(self, applied: int) -> None:
        """Drop what a snapshot at log position ``applied`` holds."""
        if applied > self.position:  # far behind: nothing between here and there is needed
            self._forget_all(applied)
            self._dropped = applied - 1
            self._arena.clear()  # its states lack what was skipped
            return
        count = self._stop - self._first
        if count and self._positions[self._first] < applied:
            pending = self._positions[self._first : self._stop]
            self._first += int(np.searchsorted(pending, applied))
            self._dropped = int(self._positions[self._first - 1])
        self._forget_ids(applied)


def local_tail(log: EventLog, store: Snapshots, settings: ScorerSettings) -> Tail:
    """Return the tail of embedded mode, within a scorer's bounds."""
    states = Arena(settings.states_bytes_max, settings.states_bytes_max // STATE_BYTES_USUAL)
    return Tail(log, store, states, settings.pending_max)
