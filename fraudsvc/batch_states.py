"""The shared states that a batch of records meets, read at once, and which update each is as of.

Owns the arena that the batch is folded in. Must not know which of our own records a state lacks,
nor how a decision is made.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from featurizer.arena import Arena
from featurizer.state import POSITION
from featurizer.updates import UPDATE

AFTER_ALL = 1 << 62  # beyond every position of the states: ours are another log's
_POSITION = struct.Struct("<q")


def keys_of(records: NDArray[np.void]) -> NDArray[np.int64]:
    """Return the distinct entities of ``records`` (RECORD[n]), int64[m] in order."""
    keys = np.unique(records["entities"])
    found: NDArray[np.int64] = keys[keys != 0]
    return found


class BatchStates:
    """States of one batch after another, in ``arena``."""

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        self._keys = np.zeros(0, np.int64)  # of the batch, in order, and their states' positions
        self._versions = np.zeros(0, np.int64)

    def put(
        self, keys: NDArray[np.int64], blobs: Sequence[bytes | None], as_of: NDArray[np.int64]
    ) -> None:
        """Take in the states of ``keys`` int64[n], in order, in place of all that are here.

        A state is as of the later of its own position and ``as_of`` int64[n]: up to there it is
        the same. Raises ValueError for what is no state, MemoryError where there is no room.
        """
        self.arena.clear()
        known = [blob for blob in blobs if blob is not None]
        there = np.array([blob is not None for blob in blobs], bool)
        self.arena.put_new(keys[there], known)
        self._keys, self._versions = keys, np.zeros(len(keys), np.int64)
        self._versions[there] = [_POSITION.unpack_from(blob, 8 * POSITION)[0] for blob in known]
        self._versions = np.maximum(self._versions, as_of)

    def catch_up(
        self, records: NDArray[np.void], positions: NDArray[np.int64], masks: NDArray[np.int64]
    ) -> None:
        """Fold our own ``records`` (RECORD[n]), each into those of its entities in its mask.

        ``positions`` int64[n] are those of our log. Raises MemoryError.
        """
        rows = np.zeros(len(records), UPDATE)
        rows["record"], rows["mask"] = records, masks
        self.arena.apply(rows, positions + AFTER_ALL)

    def stored(self, records: NDArray[np.void]) -> NDArray[np.int64]:
        """Return int64[n, entities]: the positions that the states of records are as of."""
        keys = records["entities"]
        places = np.searchsorted(self._keys, keys)
        places[places == len(self._keys)] = 0
        if not len(self._keys):
            return np.zeros(keys.shape, np.int64)
        return np.where(self._keys[places] == keys, self._versions[places], 0)
