"""The event log port: what every stage writes to and reads from.

Owns the names of topics and the shape of a batch. Must not know how an adapter keeps its bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class Topic(IntEnum):
    """The kinds of event on the log; the number is part of the stored format."""

    TRANSACTIONS = 1
    DECISIONS = 2
    LABELS = 3
    FEEDBACK = 4
    MODELS = 5
    DEAD_LETTERS = 6
    AUDIT = 7


class Entry(NamedTuple):
    """One event: its topic, its partitioning key (a 64-bit hash, 0 for none) and its bytes."""

    topic: Topic
    key: int
    value: bytes


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes that could not be read: ``length`` bytes at ``position``, and why."""

    position: int
    length: int
    cause: str


# Not frozen: that costs a microsecond a batch, on a path that every request takes.
@dataclass(slots=True, eq=False)
class Batch:
    """What one read returned, as columns over ``data``; n entries in log order.

    ``topics`` uint8[n], ``keys`` int64[n], ``starts`` and ``lengths`` int64[n] (bytes into
    ``data``), ``positions`` int64[n] (unique and increasing: the frame's position, plus 1, plus the
    entry's place in the frame), ``frames`` int64[n] (position of the frame that holds the entry).
    ``next_position`` is where to read on.
    """

    data: bytes
    topics: NDArray[np.uint8]
    keys: NDArray[np.int64]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    positions: NDArray[np.int64]
    frames: NDArray[np.int64]
    next_position: int
    damage: tuple[Damage, ...] = ()

    def value(self, index: int) -> bytes:
        """Return the bytes of entry ``index``."""
        start = int(self.starts[index])
        return self.data[start : start + int(self.lengths[index])]


class LogError(Exception):
    """The log refused: it is full, closed, or not what its files say."""


class EventLog(Protocol):
    """An append-only sequence of frames, in one total order over all writers of a host.

    A frame is a group of entries that is stored whole or not at all.
    """

    def append(self, frames: Sequence[Sequence[Entry]]) -> list[int]:
        """Append the frames in one write; return each one's position, then that after them all.

        For no frames it returns nothing. When it returns, a crash of this process loses nothing;
        a power cut may lose the last sync interval. Raises LogError when it cannot: then no frame
        of this call will be read.
        """
        ...

    def read(self, position: int, max_bytes: int) -> Batch:
        """Return entries of whole frames from ``position`` on, at most about ``max_bytes``.

        An empty batch with the same ``next_position`` means the end. A position older than the
        oldest kept one raises LogError.
        """
        ...

    def ends(self) -> tuple[int, int]:
        """Return the oldest position kept and the position after the last whole frame."""
        ...

    def close(self) -> None:
        """Sync and let go of all files."""
        ...
