"""Many states in one block of memory, viewed and folded a whole batch in one kernel call.

Owns which states are in memory and which have changed; where each lies is arena_memory's business.
Knows of a state only how long it is and how much one fold may add. The featurizer and the scorer
keep their hot states here, backfill all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurizer.arena_kernels import (
    GROWTH_WORDS,
    absorb_all,
    admit,
    admit_all,
    apply_all,
    lacking,
    lend_all,
    run_all,
)
from featurizer.arena_memory import (
    CHANGED,
    DIRTY,
    EMPTY,
    FREE,
    KEY,
    PLACE,
    SIZES_WORDS,
    STATES,
    USED_WORDS,
    absent,
    collect,
    measure,
    place_all,
    rehash,
    reserve,
    reserve_words,
    rows_of,
)
from featurizer.features import FEATURES, OPS
from featurizer.records import RECORD, Entity
from featurizer.slots import LINES, SLOTS
from featurizer.state import META, ROW_WORDS, are_states, check_blob

_NEVER = bytes(8)  # stands for a state that is not stored
# The RECORDs since states were stored, int64[n] their log positions, int64[entities, n] their keys
# once more, and the first and the stop of those that count.
Pending = tuple[NDArray[np.void], NDArray[np.int64], NDArray[np.int64], int, int]


class Arena:
    """States by entity key, in memory of which ``bytes_max`` are reserved and used as needed.

    Nothing is moved when there are more: to double 64 MiB took 50 ms, in the middle of a call.
    ``states`` is for how many the index has room at first.

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
        self._words = reserve_words(self._words_max)
        rows = 1 << (2 * self._states_start - 1).bit_length()
        self._index = np.zeros((rows, 4), np.int64)
        self._counters = np.full(FREE + len(SIZES_WORDS), -1, np.int64)
        self._counters[:FREE] = 0
        # As long as the index, which is never full. With a million states, looking for the dirty
        # ones in the index took 11 ms a write of the store, however few they were.
        self._changed = np.zeros(len(self._index), np.int64)

    def __len__(self) -> int:
        return int(self._counters[STATES])

    @property
    def used_bytes(self) -> int:
        """Memory given to states so far, freed rows included."""
        return 8 * int(self._counters[USED_WORDS])

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
            done = run_all(
                self._words, self._index, self._counters, self._changed, records, positions,
                marks_of, done, OPS, self._rows, self._lines, out,
            )  # fmt: skip
            if done == len(records):
                return
            self._grow()

    def apply(self, updates: NDArray[np.void], positions: NDArray[np.int64]) -> None:
        """Fold ``updates`` (UPDATE[n]), each into the entities of its mask alone."""
        done = 0
        while done < len(updates):
            # An update that is begun again is harmless: its position is the state's already.
            done = apply_all(
                self._words, self._index, self._counters, self._changed, updates, positions, done
            )
            if done < len(updates):
                self._grow()

    def run_by(
        self, kernel: Any, records: NDArray[np.void], positions: NDArray[np.int64], *more: Any
    ) -> None:
        """Let ``kernel`` have its way with each record (RECORD[n]), and fold it, in order.

        It is called with this arena's memory (words, index, counters, changed), ``records``,
        ``positions``, where to begin, and ``more``; it returns where it had no room, or n.
        """
        done = 0
        while True:
            memory = (self._words, self._index, self._counters, self._changed)
            done = kernel(memory, records, positions, done, *more)
            if done == len(records):
                return
            self._grow()

    def put(self, key: int, blob: bytes | memoryview) -> None:
        """Load a state that was stored; it counts as clean. Raises ValueError for no state."""
        if why := check_blob(blob):
            raise ValueError(why)
        words = np.frombuffer(blob, np.int64)
        row = reserve(self._words, self._index, self._counters, key, len(words) + GROWTH_WORDS)
        while row < 0:
            self._grow()
            row = reserve(self._words, self._index, self._counters, key, len(words) + GROWTH_WORDS)
        place = self._index[row, PLACE]
        self._words[place : place + len(words)] = words
        if self._index[row, DIRTY]:
            others = self._dirty_keys()[self._dirty_keys() != key]
            self._changed[: len(others)] = others
            self._counters[CHANGED] = len(others)
        self._index[row, DIRTY] = 0

    def put_new(self, keys: NDArray[np.int64], blobs: Sequence[bytes | memoryview]) -> None:
        """Load stored states that are not here, as ``put`` one. Raises ValueError for no state."""
        data = np.frombuffer(b"".join(blobs), np.int64)
        stops = np.cumsum([len(blob) >> 3 for blob in blobs], dtype=np.int64)
        if not are_states(data, stops):
            for blob in blobs:
                if why := check_blob(blob):
                    raise ValueError(why)
        done = 0
        while done < len(keys):
            memory = (self._words, self._index, self._counters)
            done = place_all(*memory, keys, data, stops, done, GROWTH_WORDS)
            if done < len(keys):
                self._grow()

    def lend(self, record: NDArray[np.void], rows: NDArray[np.int64]) -> int:
        """Copy the states that ``record`` (RECORD[1]) meets into ``rows``.

        ``rows`` int64[len(Entity), ROW_WORDS]. Returns a bit for each entity whose state is not
        here; its row is empty then.
        """
        missing: int = lend_all(self._words, self._index, record, rows)
        return missing

    def admit(
        self,
        record: NDArray[np.void],
        rows: NDArray[np.int64],
        missing: int,
        blobs: Sequence[bytes | memoryview | None],
        pending: Pending,
        *,
        keep: bool,
    ) -> None:
        """Bring the ``missing`` states, as stored, up to date in ``rows``; take them in.

        ``pending`` is folded in. A state never seen (None) is taken in empty; what is here already
        is replaced. Without ``keep`` none is taken in.
        """
        data = b"".join(_NEVER if blob is None else blob for blob in blobs)
        memory, stored = (self._words, self._index, self._counters), np.frombuffer(data, np.int64)
        while not admit(*memory, record, rows, missing, stored, pending, keep):
            self._grow()
            memory = (self._words, self._index, self._counters)
            stored, pending = stored[:0], (*pending[:3], 0, 0)  # in the rows, and folded, already

    def lacking(self, records: NDArray[np.void]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the distinct keys that ``records`` (RECORD[n]) meet and are not here.

        And the entity of each, int64[m] both.
        """
        keys = np.empty(len(records) * len(Entity), np.int64)
        entities = np.empty(len(keys), np.int64)
        count = lacking(self._index, records, keys, entities)
        return keys[:count], entities[:count]

    def admit_all(
        self,
        keys: NDArray[np.int64],
        entities: NDArray[np.int64],
        blobs: Sequence[bytes | memoryview | None],
        pending: Pending,
    ) -> None:
        """Take in stored states, brought up to date as by ``admit``; None was never seen."""
        data = np.frombuffer(b"".join(blob for blob in blobs if blob is not None), np.int64)
        sizes = (0 if blob is None else len(blob) >> 3 for blob in blobs)
        ends = np.fromiter(sizes, np.int64, len(blobs)).cumsum()
        done = 0
        while done < len(keys):
            memory = (self._words, self._index, self._counters)
            done = admit_all(*memory, keys, entities, data, ends, pending, done)
            if done < len(keys):
                self._grow()

    def absorb(
        self, records: NDArray[np.void], positions: NDArray[np.int64], first: int, stop: int
    ) -> None:
        """Fold ``records[first:stop]`` (RECORD) into those of their states that are here."""
        while first < stop:
            first = absorb_all(
                self._words, self._index, self._counters, records, positions, first, stop
            )
            if first < stop:
                self._grow()

    def __contains__(self, key: int) -> bool:
        return not absent(self._words, self._index, np.array([key], np.int64))[0]

    def missing(self, keys: NDArray[np.int64]) -> list[int]:
        """Return the distinct keys (0 excepted) that are not here."""
        distinct = np.unique(keys)
        distinct = distinct[distinct != 0]
        found: list[int] = distinct[absent(self._words, self._index, distinct)].tolist()
        return found

    def states(self, *, dirty_only: bool = False) -> list[tuple[int, bytes]]:
        """Return key and blob of each state, sorted by key as unsigned numbers."""
        if dirty_only:
            rows = self._index[rows_of(self._index, self._dirty_keys())]
        else:
            rows = self._index[self._index[:, KEY] != EMPTY]
        rows = rows[self._words[rows[:, PLACE] + META] != 0]
        rows = rows[np.argsort(rows[:, KEY].view(np.uint64))]
        places, stops = np.ascontiguousarray(rows[:, PLACE]), np.empty(len(rows), np.int64)
        packed = np.empty(measure(self._words, places, stops), np.int64)
        collect(self._words, places, stops, packed)
        data, ends = packed.tobytes(), (8 * stops).tolist()
        blobs = [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        return list(zip(rows[:, KEY].tolist(), blobs, strict=True))

    def clean(self) -> None:
        """Mark every state as written."""
        self._index[rows_of(self._index, self._dirty_keys()), DIRTY] = 0
        self._counters[CHANGED] = 0

    def _dirty_keys(self) -> NDArray[np.int64]:
        return self._changed[: self._counters[CHANGED]]

    def _grow(self) -> None:
        if 4 * (len(self) + len(Entity)) > 3 * len(self._index):
            larger: NDArray[Any] = np.zeros((2 * len(self._index), 4), np.int64)
            rehash(self._index, larger)
            self._index = larger
            self._changed = np.concatenate([self._changed, np.zeros_like(self._changed)])
            return
        raise MemoryError(f"the states need more than {8 * self._words_max} bytes")
