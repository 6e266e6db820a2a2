"""Many states in one block of memory: a hash index and rows of five sizes.

Owns the memory; knows of a state only how long it is and how much one fold may add. The featurizer
keeps its hot states here, backfill all of them, and one kernel call runs a whole batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from featurizer.features import FEATURES, OPS
from featurizer.fold import fold
from featurizer.records import RECORD, Entity, Kind
from featurizer.slots import LINES, SLOTS
from featurizer.state import HEADER, META, ROW_WORDS, check_blob, length
from featurizer.view import view

SIZES_WORDS = np.array([64, 128, 256, 512, ROW_WORDS], np.int64)
GROWTH_WORDS = 16  # more than one fold can add: an event, a bucket, a day and a label
_EMPTY = 0

# Columns of the index, one row a state.
_KEY = 0
_PLACE = 1
_SIZE = 2
_DIRTY = 3

# Entries of the counters.
_STATES = 0
_USED_WORDS = 1
_CHANGED = 2  # keys in the list of those that are dirty
_FREE = 3  # first free row of each size, -1 for none; a free row's first word names the next


@njit(cache=True, nogil=True)
def _find(index, key):  # type: ignore[no-untyped-def]
    """Return the index row of a key, or of the empty row where it belongs."""
    mask = index.shape[0] - 1
    row = (key ^ (key >> 32)) & mask
    while index[row, _KEY] != key and index[row, _KEY] != _EMPTY:
        row = (row + 1) & mask
    return row


@njit(cache=True, nogil=True)
def _allocate(words, counters, size):  # type: ignore[no-untyped-def]
    """Return the place of an empty row of a size, or -1 where the memory is used up."""
    place = counters[_FREE + size]
    if place >= 0:
        counters[_FREE + size] = words[place]
    else:
        place = counters[_USED_WORDS]
        if place + SIZES_WORDS[size] > len(words):
            return -1
        counters[_USED_WORDS] = place + SIZES_WORDS[size]
    words[place : place + SIZES_WORDS[size]] = 0
    return place


@njit(cache=True, nogil=True)
def _reserve(words, index, counters, key, needed_words):  # type: ignore[no-untyped-def]
    """Return the index row of a key with room for ``needed_words``, made or moved where needed.

    Returns -1 where the memory is used up; nothing has changed then.
    """
    row = _find(index, key)
    known = index[row, _KEY] != _EMPTY
    if known and needed_words <= SIZES_WORDS[index[row, _SIZE]]:
        return row
    if not known and 4 * (counters[_STATES] + 1) > 3 * index.shape[0]:
        return -1
    size = 0
    while size < len(SIZES_WORDS) - 1 and SIZES_WORDS[size] < needed_words:
        size += 1
    if known and size <= index[row, _SIZE]:
        return row  # the largest size already
    place = _allocate(words, counters, size)
    if place < 0:
        return -1
    if known:
        old = index[row, _PLACE]
        used = length(words[old:])
        words[place : place + used] = words[old : old + used]
        words[old] = counters[_FREE + index[row, _SIZE]]
        counters[_FREE + index[row, _SIZE]] = old
    else:
        counters[_STATES] += 1
        index[row, _KEY] = key
        index[row, _DIRTY] = 0
    index[row, _PLACE] = place
    index[row, _SIZE] = size
    return row


@njit(cache=True, nogil=True)
def _reserve_all(words, index, counters, rec):  # type: ignore[no-untyped-def]
    for key in rec.entities:
        if key == 0:
            continue
        row = _find(index, key)
        used = 0
        if index[row, _KEY] != _EMPTY:
            used = length(words[index[row, _PLACE] :])
        if _reserve(words, index, counters, key, used + GROWTH_WORDS) < 0:
            return False
    return True


@njit(cache=True, nogil=True)
def _gather(words, index, rec, rows):  # type: ignore[no-untyped-def]
    """Copy the states that a record meets into ``rows``; an unknown one is all zeros."""
    for entity in range(len(rec.entities)):
        rows[entity, 0] = 0
        key = rec.entities[entity]
        if key == 0:
            continue
        row = _find(index, key)
        used = 0
        if index[row, _KEY] != _EMPTY:
            place = index[row, _PLACE]
            used = length(words[place:])
            rows[entity, :used] = words[place : place + used]
        if used == 0:
            rows[entity, :32] = 0


@njit(cache=True, nogil=True)
def _fold_all(words, index, counters, changed, rec, position):  # type: ignore[no-untyped-def]
    for entity in range(len(rec.entities)):
        key = rec.entities[entity]
        if key != 0:
            row = _find(index, key)
            place = index[row, _PLACE]
            fold(words[place : place + SIZES_WORDS[index[row, _SIZE]]], entity, rec, position)
            if index[row, _DIRTY] == 0:
                index[row, _DIRTY] = 1
                changed[counters[_CHANGED]] = key
                counters[_CHANGED] += 1


@njit(cache=True, nogil=True)
def _run(words, index, counters, changed, records, positions, marks_of, at, ops, rows, lines, out):  # type: ignore[no-untyped-def]
    """View (where ``out`` has rows) and fold each record from ``at`` on; return where it ended."""
    for i in range(at, len(records)):
        if len(marks_of) > 0 and marks_of[i] >= 0:
            records[i].flags = records[marks_of[i]].flags
        rec = records[i]
        if not _reserve_all(words, index, counters, rec):
            return i
        if len(out) > 0 and rec.kind == Kind.TRANSACTION:
            _gather(words, index, rec, rows)
            records[i].flags |= view(rows, rec, ops, lines, out[i])
        _fold_all(words, index, counters, changed, records[i], positions[i])
    return len(records)


@njit(cache=True)
def _lend(words, index, records, rows):  # type: ignore[no-untyped-def]
    """Copy the states that ``records[0]`` meets into ``rows``; return bits of those not here.

    Holds the GIL, and so does ``_absorb``: their callers answer calls, and giving the GIL up for
    a microsecond invites a wait that is a thousand times as long.
    """
    rec = records[0]
    missing = 0
    for entity in range(len(rec.entities)):
        key = rec.entities[entity]
        rows[entity, :HEADER] = 0
        if key == 0:
            continue
        row = _find(index, key)
        if index[row, _KEY] == _EMPTY:
            missing |= 1 << entity
            continue
        place = index[row, _PLACE]
        used = length(words[place:])
        rows[entity, :used] = words[place : place + used]
    return missing


@njit(cache=True)
def _absorb(words, index, counters, records, positions, first, stop):  # type: ignore[no-untyped-def]
    """Fold the records from ``first`` on into the states that are here; return where it ended."""
    for i in range(first, stop):
        rec = records[i]
        for entity in range(len(rec.entities)):
            key = rec.entities[entity]
            row = _find(index, key) if key != 0 else 0
            if key == 0 or index[row, _KEY] == _EMPTY:
                continue
            used = length(words[index[row, _PLACE] :])
            row = _reserve(words, index, counters, key, used + GROWTH_WORDS)
            if row < 0:
                return i
            place = index[row, _PLACE]
            fold(words[place : place + SIZES_WORDS[index[row, _SIZE]]], entity, rec, positions[i])
    return stop


@njit(cache=True, nogil=True)
def _rows_of(index, keys):  # type: ignore[no-untyped-def]
    """Return int64[n]: the index row of each key, all of which are here."""
    rows = np.empty(len(keys), np.int64)
    for i in range(len(keys)):
        rows[i] = _find(index, keys[i])
    return rows


@njit(cache=True, nogil=True)
def _rehash(old, new):  # type: ignore[no-untyped-def]
    for i in range(old.shape[0]):
        if old[i, _KEY] != _EMPTY:
            new[_find(new, old[i, _KEY])] = old[i]


class Arena:
    """States by entity key, in memory that grows up to ``bytes_max``.

    Raises MemoryError when a batch needs more than that; the records before it are applied.
    """

    def __init__(self, bytes_max: int = 8 << 30, states: int = 1 << 12) -> None:
        self._words_max = bytes_max // 8
        self._states_start = states
        self._rows = np.zeros((len(Entity), ROW_WORDS), np.int64)
        self._lines = np.zeros((LINES, SLOTS))
        self.clear()

    def clear(self) -> None:
        """Forget every state."""
        self._words = np.zeros(min(self._states_start * 128, self._words_max), np.int64)
        self._index = np.zeros((2 * self._states_start, 4), np.int64)
        self._counters = np.full(_FREE + len(SIZES_WORDS), -1, np.int64)
        self._counters[:_FREE] = 0
        # As long as the index, which is never full. With a million states, looking for the dirty
        # ones in the index took 11 ms a write of the store, however few they were.
        self._changed = np.zeros(len(self._index), np.int64)

    def __len__(self) -> int:
        return int(self._counters[_STATES])

    @property
    def used_bytes(self) -> int:
        """Memory given to states so far, freed rows included."""
        return 8 * int(self._counters[_USED_WORDS])

    def run(
        self,
        records: NDArray[np.void],
        positions: NDArray[np.int64],
        out: NDArray[np.float32] | None = None,
        marks_of: NDArray[np.int64] | None = None,
    ) -> None:
        """Fold ``records`` (RECORD[n]) in order; with ``out`` (float32[n, features]) view first.

        A view sets its marks in the record's flags, and the fold sees them. FEEDBACK records
        leave their row of ``out`` as it is. ``marks_of`` int64[n] names, for a FEEDBACK record
        whose transaction is in this batch, the row to take the flags from; -1 for none.
        """
        if records.dtype != RECORD:
            raise ValueError("records must have the dtype RECORD")
        if out is None:
            out = np.empty((0, len(FEATURES)), np.float32)
        if marks_of is None:
            marks_of = np.empty(0, np.int64)
        done = 0
        while True:
            done = _run(
                self._words, self._index, self._counters, self._changed, records, positions,
                marks_of, done, OPS, self._rows, self._lines, out,
            )  # fmt: skip
            if done == len(records):
                return
            self._grow()

    def put(self, key: int, blob: bytes | memoryview) -> None:
        """Load a state that was stored; it counts as clean. Raises ValueError for no state."""
        if why := check_blob(blob):
            raise ValueError(why)
        words = np.frombuffer(blob, np.int64)
        row = _reserve(self._words, self._index, self._counters, key, len(words) + GROWTH_WORDS)
        while row < 0:
            self._grow()
            row = _reserve(self._words, self._index, self._counters, key, len(words) + GROWTH_WORDS)
        place = self._index[row, _PLACE]
        self._words[place : place + len(words)] = words
        if self._index[row, _DIRTY]:
            others = self._dirty_keys()[self._dirty_keys() != key]
            self._changed[: len(others)] = others
            self._counters[_CHANGED] = len(others)
        self._index[row, _DIRTY] = 0

    def lend(self, record: NDArray[np.void], rows: NDArray[np.int64]) -> int:
        """Copy the states that ``record`` (RECORD[1]) meets into ``rows``.

        ``rows`` int64[len(Entity), ROW_WORDS]. Returns a bit for each entity whose state is not
        here; its row is empty then.
        """
        missing: int = _lend(self._words, self._index, record, rows)
        return missing

    def absorb(
        self, records: NDArray[np.void], positions: NDArray[np.int64], first: int, stop: int
    ) -> None:
        """Fold ``records[first:stop]`` (RECORD) into those of their states that are here."""
        while first < stop:
            first = _absorb(
                self._words, self._index, self._counters, records, positions, first, stop
            )
            if first < stop:
                self._grow()

    def __contains__(self, key: int) -> bool:
        row = self._index[_find(self._index, key)]
        # A batch that ran out of memory may leave room for a state without the state.
        return bool(row[_KEY] == key and self._words[row[_PLACE] + META] != 0)

    def missing(self, keys: NDArray[np.int64]) -> list[int]:
        """Return the distinct keys (0 excepted) that are not here."""
        distinct = np.unique(keys)
        return [int(k) for k in distinct if k and int(k) not in self]

    def states(self, *, dirty_only: bool = False) -> list[tuple[int, bytes]]:
        """Return key and blob of each state, sorted by key as unsigned numbers."""
        if dirty_only:
            rows = self._index[_rows_of(self._index, self._dirty_keys())]
        else:
            rows = self._index[self._index[:, _KEY] != _EMPTY]
        rows = rows[np.argsort(rows[:, _KEY].view(np.uint64))]
        found = []
        for key, place, size, _ in rows.tolist():
            words = self._words[place : place + int(SIZES_WORDS[size])]
            if words[META] != 0:
                found.append((key, words[: int(length(words))].tobytes()))
        return found

    def clean(self) -> None:
        """Mark every state as written."""
        self._index[_rows_of(self._index, self._dirty_keys()), _DIRTY] = 0
        self._counters[_CHANGED] = 0

    def _dirty_keys(self) -> NDArray[np.int64]:
        return self._changed[: self._counters[_CHANGED]]

    def _grow(self) -> None:
        if 4 * (len(self) + len(Entity)) > 3 * len(self._index):
            larger: NDArray[Any] = np.zeros((2 * len(self._index), 4), np.int64)
            _rehash(self._index, larger)
            self._index = larger
            self._changed = np.concatenate([self._changed, np.zeros_like(self._changed)])
            return
        if len(self._words) >= self._words_max:
            raise MemoryError(f"the states need more than {8 * self._words_max} bytes")
        words = np.zeros(min(2 * len(self._words), self._words_max), np.int64)
        words[: len(self._words)] = self._words
        self._words = words
