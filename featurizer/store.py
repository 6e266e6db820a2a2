"""The store port: entity states and ids as of one log position; a cache of the log.

Must not know what a state means: here it is bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class StoreError(Exception):
    """The store is gone, full, too slow, or of another schema."""


class StoreStale(StoreError):  # noqa: N818 - it names a state that callers handle, as StopIteration
    """The store cannot be trusted or is of another schema: rebuild it from the log."""


class Snapshot(Protocol):
    """The states as of one log position, or later. Buffers stay valid until ``close``.

    An adapter that keeps versions gives all of them at exactly that position.
    """

    @property
    def position(self) -> int:
        """Every record before it is in the states.

        An adapter that keeps no versions may give newer states than that.
        """
        ...

    def get_many(self, keys: Sequence[int]) -> list[memoryview | None]:
        """Return the state of each entity key, in order; None where there is none."""
        ...

    def find_many(self, ids: Sequence[int]) -> list[int | None]:
        """Return for each request or transaction id hash the position of its frame, or None."""
        ...

    def close(self) -> None:
        """Give the snapshot back."""
        ...


class Store(Protocol):
    """Where the featurizer keeps states and every scorer reads them. One writer."""

    def snapshot(self) -> Snapshot:
        """Return a consistent view of the newest write. Raises StoreError when it cannot."""
        ...

    def write(
        self,
        states: Sequence[tuple[int, bytes]],
        ids: Sequence[tuple[int, int]],
        position: int,
    ) -> None:
        """Replace states, add ids and set the position, all or nothing.

        The last blob given for a state and the first position given for an id stay. Raises
        StoreError, with nothing changed, when it cannot, and for a position that goes back. Where
        a server's answer was lost, all may be changed: the position tells.
        """
        ...

    def sweep(self, oldest_event_time_ms: int, oldest_position: int, limit: int) -> int:
        """Look at the next ``limit`` states and ids, drop the old ones, return how many.

        Old is a state whose last event is before ``oldest_event_time_ms``, and an id whose
        position is below ``oldest_position``. The last event time of a state is its second
        64-bit word (little-endian, milliseconds); a shorter state stays. Raises StoreError.
        """
        ...

    def close(self) -> None:
        """Let go of all files and connections."""
        ...
