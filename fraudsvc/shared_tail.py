"""The state of now where several hosts share the states: those, and what of our own they lack.

Owns which records of this host's journal are still to be folded into a state that was read. Others'
records come with the states, as fast as relay, split and fold bring them. Must not know how a
decision is made, nor which store it is.

A state is read anew for each decision, or at once for those that are made together, with a row
that says how much of our journal its partition has. The records after that are folded into the
copy; where one of a decision's lacks some that are pending no more, all are stale and stay as they
were stored. The index of the journal, written by the relay, has the ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numba import njit
from numpy.typing import NDArray

from featurizer.arena import Arena
from featurizer.eventlog import EventLog, LogError
from featurizer.fold import fold
from featurizer.progress import NONE, SHIPPED_KEY, Reached, progress_key, read_progress
from featurizer.records import RECORD, Entity, Kind
from featurizer.state import HEADER, POSITION, ROW_WORDS
from featurizer.store import Snapshot, StoreError
from featurizer.updates import KINDS, home_of, homes_of
from fraudsvc.batch_states import AFTER_ALL, BatchStates, keys_of
from fraudsvc.journal_tail import (
    CATCH_UP_READS_MAX,
    READ_BYTES,
    JournalTail,
    Prepared,
    Snapshots,
)

_ENTITIES = len(Entity)
_BATCH_BYTES_MAX = 1 << 28  # of the states that decisions made together meet
_BATCH_STATES = 1 << 10  # for so many their index has room from the start
GAP_MAX = CATCH_UP_READS_MAX * READ_BYTES  # of the journal, which one call can read


class States(Protocol):
    """The states of all partitions. Raises StoreError while they are not to be had."""

    def read(self, keys: Sequence[int], homes: Sequence[int]) -> Sequence[bytes | None]:
        """Return the state of each key of a partition (``homes``); None where there is none."""
        ...


@njit(cache=True)
def _source_of(rec, inputs):  # type: ignore[no-untyped-def]
    partition = home_of(rec.entities[Entity.CUSTOMER], inputs)
    return partition * KINDS + rec.kind - Kind.TRANSACTION


@njit(cache=True)
def _note_dropped(pending, positions, first, stop, dropped):  # type: ignore[no-untyped-def]
    """Take into ``dropped`` int64[partitions, sources] what is pending no more."""
    for i in range(first, stop):
        source = _source_of(pending[i], dropped.shape[1] // KINDS)
        for entity in range(_ENTITIES):
            key = pending[i].entities[entity]
            if key != 0:
                dropped[home_of(key, dropped.shape[0]), source] = positions[i]


@njit(cache=True)
def _find_lacking(keys, progress, pending, positions, first, stop, masks):  # type: ignore[no-untyped-def]
    """Fill ``masks`` int64[stop - first]: of each pending record a bit for each state lacking it.

    ``keys`` int64[n], in order, are those of the states that were read.
    """
    partitions, sources = progress.shape
    for i in range(first, stop):
        source = _source_of(pending[i], sources // KINDS)
        for entity in range(_ENTITIES):
            key = pending[i].entities[entity]
            if key == 0 or positions[i] <= progress[home_of(key, partitions), source]:
                continue
            place = np.searchsorted(keys, key)
            if place < len(keys) and keys[place] == key:
                masks[i - first] |= 1 << entity


@njit(cache=True)
def _catch_up(records, rows, progress, as_of, pending, positions, first, stop, dropped):  # type: ignore[no-untyped-def]
    """Fold what is pending into the rows that lack it; return False where they lack more.

    ``progress`` int64[entities, sources] is how much of our journal each row has, and ``as_of``
    int64[entities] the update that told it. A row gets the later position of that update and its
    own last one: up to there it is the same state, and what it had of our journal can be told
    later, also of a record that no update is of, as another host's came first. With a gap in it,
    nobody could say later what a state was made of: where one lacks what is pending no more, all
    stay as they were stored.
    """
    rec = records[0]
    for entity in range(_ENTITIES):
        key = rec.entities[entity]
        if key == 0:
            continue
        home = home_of(key, dropped.shape[0])
        for source in range(dropped.shape[1]):
            if dropped[home, source] > progress[entity, source]:
                return False
    for entity in range(_ENTITIES):
        key = rec.entities[entity]
        if key == 0:
            continue
        stored = rows[entity, POSITION]
        for i in range(first, stop):
            if pending[i].entities[entity] != key:
                continue
            source = _source_of(pending[i], dropped.shape[1] // KINDS)
            if positions[i] > progress[entity, source]:
                fold(rows[entity], entity, pending[i], positions[i] + AFTER_ALL)
        rows[entity, POSITION] = max(stored, as_of[entity])
    return True


class _Read(NamedTuple):
    """States by their keys, and by partition how much of our journal they have."""

    blobs: dict[int, bytes | None]
    reached: dict[int, Reached]


_NOTHING = _Read({}, {})


class SharedTail(JournalTail):
    """Follows this host's journal past the shared states.

    ``index`` is the journal's, ``host`` its number. ``partitions`` and ``inputs`` are those of the
    entities and of the events.
    """

    def __init__(
        self,
        log: EventLog,
        index: Snapshots,
        states: States,
        host: int,
        partitions: int,
        inputs: int,
        capacity: int = 4_096,
    ) -> None:
        super().__init__(log, index, capacity)
        self._states = states
        self._partitions = partitions
        self._row_key = progress_key(host)
        self._sources = inputs * KINDS
        self._lost = np.full((partitions, self._sources), NONE, np.int64)
        self._progress = np.full((_ENTITIES, self._sources), NONE, np.int64)
        self._as_of = np.zeros(_ENTITIES, np.int64)
        self._batch = BatchStates(Arena(_BATCH_BYTES_MAX, _BATCH_STATES))
        self._ahead: _Read | StoreError = _NOTHING  # read for decisions that are made together

    def prepare(self, _: Snapshot, records: NDArray[np.void]) -> Prepared | None:
        """Read the states that ``records`` (RECORD[n]) meet, at once; return them where whole.

        Until the journal is followed again ``load`` has what was read here, or the same error.
        """
        keys = keys_of(records)
        try:
            self._ahead = read = self._read(keys.tolist())
        except StoreError as error:
            self._ahead = error
            raise
        homes = [*read.reached]
        progress = np.full((self._partitions, self._sources), NONE, np.int64)
        progress[homes] = [each.positions for each in read.reached.values()]
        if self.behind or (self._lost[homes] > progress[homes]).any():
            return None
        as_of = np.zeros(self._partitions, np.int64)
        as_of[homes] = [each.as_of for each in read.reached.values()]
        try:
            self._batch.put(keys, [*read.blobs.values()], as_of[homes_of(keys, self._partitions)])
            self._catch_up_batch(keys, progress)
        except (MemoryError, ValueError):  # too many, or one is no state
            return None
        positions = self.positions(len(records)) + AFTER_ALL
        return Prepared(self._batch.arena, positions, self._batch.stored(records))

    def load(self, _: Snapshot, record: NDArray[np.void], rows: NDArray[np.int64]) -> bool:
        """Fill ``rows`` with the states that ``record`` meets; return if all are whole.

        Raises StoreError where they cannot be read.
        """
        keys = record["entities"][0].tolist()
        present = [entity for entity, key in enumerate(keys) if key]
        read = self._read_for([keys[entity] for entity in present])
        rows[:, :HEADER] = 0
        for entity in present:
            home = int(keys[entity]) % (1 << 64) % self._partitions
            self._as_of[entity], self._progress[entity] = read.reached[home]
            blob = read.blobs[keys[entity]]
            if blob is not None:
                rows[entity].view(np.uint8)[: len(blob)] = np.frombuffer(blob, np.uint8)
        if self.behind:
            return False
        whole: bool = _catch_up(
            record, rows, self._progress, self._as_of, self._records, self._positions,
            self._first, self._stop, self._lost,
        )  # fmt: skip
        return whole

    def roll_back(self, _: NDArray[np.int64]) -> None:
        """Forget what was staged."""
        self._stop -= len(self._staged)
        self._first = min(self._first, self._stop)
        self._staged.clear()

    def follow(self, snapshot: Snapshot | None = None) -> None:
        """Read what the log has got since the last call, or begin where that is kept no more."""
        self._ahead = _NOTHING
        try:
            super().follow(snapshot)
        except LogError:
            if snapshot is None or snapshot.position <= self.position:
                raise
            self._begin_at(snapshot)
            super().follow(snapshot)

    def _read_for(self, keys: Sequence[int]) -> _Read:
        """Return what was read ahead if it has these states, else read them."""
        if isinstance(self._ahead, StoreError):
            raise self._ahead
        if all(key in self._ahead.blobs for key in keys):
            return self._ahead
        return self._read(keys)

    def _read(self, keys: Sequence[int]) -> _Read:
        """Read states, and of their partitions how much of our journal is in them, at once."""
        homes = [key % (1 << 64) % self._partitions for key in keys]
        distinct = sorted(set(homes))
        asked = [*keys, *[self._row_key] * len(distinct)]
        blobs = self._states.read(asked, homes + distinct)
        rows = zip(distinct, blobs[len(keys) :], strict=True)
        return _Read(
            dict(zip(keys, blobs, strict=False)),
            {home: read_progress(row, self._sources) for home, row in rows},
        )

    def _catch_up_batch(self, keys: NDArray[np.int64], progress: NDArray[np.int64]) -> None:
        """Fold what is pending into the batch's states that lack it."""
        first, stop = self._first, self._stop
        masks = np.zeros(stop - first, np.int64)
        _find_lacking(keys, progress, self._records, self._positions, first, stop, masks)
        lacked = np.flatnonzero(masks)
        at = lacked + first
        self._batch.catch_up(self._records[at], self._positions[at], masks[lacked])

    def _look_at(self, snapshot: Snapshot) -> None:
        """Take in what the relay has shipped: those ids are in the index.

        What others of this host appended is read though it was shipped: the states lack it yet.
        """
        if snapshot.position - self.position > GAP_MAX:
            self._begin_at(snapshot)
        self._forget_ids(snapshot.position)

    def _begin_at(self, snapshot: Snapshot) -> None:
        """Go to where the relay is; all before that is lost until the states have it."""
        [row] = snapshot.get_many([SHIPPED_KEY])
        shipped = read_progress(row, self._lost.size).positions
        self._lost = np.maximum(self._lost, shipped.reshape(self._lost.shape))
        self._forget_all(snapshot.position)

    def _skip(self, records: NDArray[np.void], positions: NDArray[np.int64]) -> None:
        """Do without all that is pending and these."""
        _note_dropped(self._records, self._positions, self._first, self._stop, self._lost)
        _note_dropped(records, positions, 0, len(records), self._lost)

    def _take_in(self, stop: int) -> None:
        """Count the records up to ``stop`` as pending; the oldest go where there are too many."""
        self._stop = stop
        first = max(self._first, stop - self._capacity)
        _note_dropped(self._records, self._positions, self._first, first, self._lost)
        self._first = first


def compile_kernels() -> None:
    """Compile what a first call would have to wait for."""
    records, positions = np.zeros(1, RECORD), np.zeros(1, np.int64)
    rows = np.zeros((_ENTITIES, ROW_WORDS), np.int64)
    progress = np.zeros((_ENTITIES, KINDS), np.int64)
    lost = np.zeros((1, KINDS), np.int64)
    _note_dropped(records, positions, 0, 1, lost)
    as_of = np.zeros(_ENTITIES, np.int64)
    keys, masks = np.zeros(1, np.int64), np.zeros(1, np.int64)
    _find_lacking(keys, lost, records, positions, 0, 1, masks)
    _catch_up(records, rows, progress, as_of, records, positions, 0, 1, lost)
