"""The states that a batch of the stream meets: the shared ones, and what of our own they lack.

Owns which of our records are still to be folded into what was read. Must not know how a decision
is made, nor which store it is.

The states of a whole batch are read at once, caught up with our records that they do not have yet,
and then each of the batch's records is folded in as it is decided, so that the next one sees it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from featurizer.arena import Arena
from featurizer.progress import NONE, progress_key, read_progress
from featurizer.records import Entity, Kind
from featurizer.updates import KINDS, UPDATE, homes_of, source_of
from fraudsvc.batch_states import BatchStates, keys_of
from fraudsvc.shared_tail import States

_ENTITIES = len(Entity)
_BITS = 1 << np.arange(_ENTITIES)


class StreamStates:
    """States for one batch after another. ``host`` is the number that our records go out under.

    At most ``pending_max`` records may be pending; ``has_room`` says whether a batch fits.
    """

    def __init__(
        self,
        states: States,
        host: int,
        partitions: int,
        inputs: int,
        pending_max: int,
        arena_bytes_max: int = 2 << 30,
    ) -> None:
        self._states = states
        self._row_key = progress_key(host)
        self._partitions = partitions
        self._inputs = inputs
        self._pending_max = pending_max
        self.batch = BatchStates(Arena(arena_bytes_max, 1 << 15))
        self._pending = np.zeros(0, UPDATE)
        self.sent = np.full((partitions, inputs * KINDS), NONE, np.int64)

    @property
    def pending(self) -> int:
        """How many of our records some state lacks."""
        return len(self._pending)

    def has_room(self, records: int) -> bool:
        """Return whether so many more may be pending."""
        return len(self._pending) + records <= self._pending_max

    def look(self) -> bool:
        """Look how much of our records the states have; return whether it is all.

        Raises StoreError.
        """
        partitions = list(range(self._partitions))
        rows = self._states.read([self._row_key] * self._partitions, partitions)
        progress, _ = self._progress_of(rows)
        self._forget(progress)
        return bool((progress >= self.sent).all())

    def prepare(self, records: NDArray[np.void]) -> None:
        """Read the states that ``records`` (RECORD[n]) meet. Raises StoreError."""
        keys = keys_of(records)
        homes = homes_of(keys, self._partitions)
        # In one read, so that what a partition says it has is what is in its states.
        partitions = list(range(self._partitions))
        asked = keys.tolist() + [self._row_key] * self._partitions
        blobs = self._states.read(asked, homes.tolist() + partitions)
        progress, as_of = self._progress_of(blobs[len(keys) :])
        self._forget(progress)
        self.batch.put(keys, blobs[: len(keys)], as_of[homes])
        self._catch_up(keys)

    def commit(self, records: NDArray[np.void], positions: NDArray[np.int64]) -> None:
        """Keep records (RECORD[n]) as pending, now that they are on the log at ``positions``."""
        rows = np.zeros(len(records), UPDATE)
        rows["record"], rows["position"] = records, positions
        rows["mask"] = (records["entities"] != 0) @ _BITS
        self._pending = np.concatenate([self._pending, rows])

    def note(self, records: NDArray[np.void], positions: NDArray[np.int64]) -> None:
        """Take into ``sent`` what each partition is to get."""
        homes, sources = self._homes(records), self._sources(records)
        for entity in range(_ENTITIES):
            there = records["entities"][:, entity] != 0
            np.maximum.at(self.sent, (homes[there, entity], sources[there]), positions[there])

    def _progress_of(
        self, rows: Sequence[bytes | None]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return how much of our records each partition has, and as of which update.

        int64[partitions, sources] and int64[partitions].
        """
        reached = [read_progress(row, self._inputs * KINDS) for row in rows]
        return np.stack([at.positions for at in reached]), np.array([at.as_of for at in reached])

    def _forget(self, progress: NDArray[np.int64]) -> None:
        """Leave pending only what some state lacks, and of each record those entities."""
        records = self._pending["record"]
        homes, sources = self._homes(records), self._sources(records)
        lacking = self._pending["position"][:, None] > progress[homes, sources[:, None]]
        self._pending["mask"] = (lacking & (records["entities"] != 0)) @ _BITS
        self._pending = self._pending[self._pending["mask"] != 0]

    def _catch_up(self, keys: NDArray[np.int64]) -> None:
        """Fold into the states that were read what is pending."""
        records, masks = self._pending["record"], self._pending["mask"]
        masks = masks & (np.isin(records["entities"], keys) @ _BITS)
        met = masks != 0
        self.batch.catch_up(records[met], self._pending["position"][met], masks[met])

    def _homes(self, records: NDArray[np.void]) -> NDArray[np.int64]:
        return homes_of(records["entities"], self._partitions)

    def _sources(self, records: NDArray[np.void]) -> NDArray[np.int64]:
        events = homes_of(records["entities"][:, Entity.CUSTOMER], self._inputs)
        found: NDArray[np.int64] = source_of(events, np.int64(Kind.TRANSACTION))
        return found
