"""How much of a journal is in the states: what scorer, relay and fold tell each other.

Owns the rows in which that is kept beside the states and in the index. A row is int64: a version,
a time that is never swept, the position of the last update that changed it (a state has its own
in the same place), and then the last position from each source (``updates.source_of``), -1 for
none. One more row has, in place of a journal's positions, the offsets that were met.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from featurizer.store import StoreError

PROGRESS_VERSION = 2
NONE = -1
SHIPPED_KEY = 1  # in the index: what a relay shipped, for each partition of the entities
_NEVER = np.iinfo(np.int64).max
_LEAD_WORDS = 3


class Reached(NamedTuple):
    """What a row says: the last position from each source, int64[count], as of which update."""

    as_of: int
    positions: NDArray[np.int64]


def progress_key(host: int) -> int:
    """Return the key under which each partition keeps how much of a host's journal it has."""
    digest = hashlib.sha256(b"progress" + host.to_bytes(8, "little", signed=True)).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


# Of no journal: each partition's last offset of a record from each source, in a row of that form.
MET_KEY = progress_key(0)


def pack_progress(positions: NDArray[np.int64], as_of: int = 0) -> bytes:
    """Return a row of positions, int64 of any shape; ``as_of`` 0 where no update made it."""
    return np.array([PROGRESS_VERSION, _NEVER, as_of], np.int64).tobytes() + positions.tobytes()


def read_progress(blob: bytes | memoryview | None, count: int) -> Reached:
    """Return what a row of ``count`` says, NONE for all where there is none. Raises StoreError."""
    if blob is None:
        return Reached(0, np.full(count, NONE, np.int64))
    words = np.frombuffer(blob, np.int64)
    if len(words) != count + _LEAD_WORDS or words[0] != PROGRESS_VERSION:
        raise StoreError(
            f"a row of progress has {len(words)} words and version {words[:1].tolist()}, not "
            f"{count + _LEAD_WORDS} and {PROGRESS_VERSION}"
        )
    return Reached(int(words[2]), words[_LEAD_WORDS:].copy())
