"""How much of a journal is in the states: what scorer, relay and fold tell each other.

Owns the rows in which that is kept beside the states and in the index. A row is int64: a version,
a time that is never swept, and then the last position from each source (``updates.source_of``),
-1 for none.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from featurizer.store import StoreError

PROGRESS_VERSION = 1
NONE = -1
SHIPPED_KEY = 1  # in the index: what a relay shipped, for each partition of the entities
_NEVER = np.iinfo(np.int64).max
_LEAD = np.array([PROGRESS_VERSION, _NEVER], np.int64).tobytes()


def progress_key(host: int) -> int:
    """Return the key under which each partition keeps how much of a host's journal it has."""
    digest = hashlib.sha256(b"progress" + host.to_bytes(8, "little", signed=True)).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def pack_progress(positions: NDArray[np.int64]) -> bytes:
    """Return a row of positions, int64 of any shape."""
    return _LEAD + positions.tobytes()


def read_progress(blob: bytes | memoryview | None, count: int) -> NDArray[np.int64]:
    """Return int64[count] from a row, all NONE where there is none. Raises StoreError."""
    if blob is None:
        return np.full(count, NONE, np.int64)
    words = np.frombuffer(blob, np.int64)
    if len(words) != count + 2 or words[0] != PROGRESS_VERSION:
        raise StoreError(f"a row of progress has {len(words)} words, not {count + 2}")
    return words[2:].copy()
