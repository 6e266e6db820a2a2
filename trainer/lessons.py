"""Owns what learners remember: the newest joined rows, one a transaction, and forgetting some.

Memory is bounded and taken at once. What is learnt again from ``all()`` after a ``forget`` has
never seen what was forgotten. Must not know who learns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.labelled import JOINED, STRENGTH, Joined, chosen


class Lessons:
    """Joined rows in the order in which their transactions were first labelled.

    A label that overrules, or one of a source at least as strong, takes the place of what was
    known of its transaction. Beyond ``capacity`` the oldest leave; 4 * n + 150 bytes a row.
    Raises ValueError for no capacity.
    """

    def __init__(self, capacity: int, n_features: int) -> None:
        if capacity < 1:
            raise ValueError("lessons need room for a row")
        self._rows: NDArray[Any] = np.zeros(capacity, JOINED)
        self._vectors = np.zeros((capacity, n_features), np.float32)
        self._slots: dict[int, int] = {}
        self._next = 0

    def __len__(self) -> int:
        """Return how many rows are remembered."""
        return len(self._slots)

    def add(self, joined: Joined) -> None:
        """Remember rows."""
        for row, vector in zip(joined.rows, joined.vectors, strict=True):
            slot = self._slots.get(int(row["transaction"]))
            if slot is None:
                self._rows[slot := self._free(int(row["transaction"]))] = row
                self._vectors[slot] = vector
            elif row["overrules"] or _strength(row) >= _strength(self._rows[slot]):
                self._rows[slot] = row

    def all(self) -> Joined:
        """Return copies of all rows."""
        slots = self._in_order()
        return Joined(self._rows[slots], self._vectors[slots])

    def forget(
        self,
        *,
        reporter: int | None = None,
        from_ms: int | None = None,
        until_ms: int | None = None,
    ) -> int:
        """Drop the rows whose label came from a reporter or in a range of time, or both.

        Returns how many were dropped.
        """
        everything = self.all()
        gone = chosen(everything.rows, reporter, from_ms, until_ms)
        self._fill(everything[~gone])
        return int(gone.sum())

    def unsay(self, pairs: Sequence[tuple[int, int]]) -> int:
        """Drop the rows of (transaction, reporter); return how many there were."""
        told = set(pairs)
        if not any(transaction in self._slots for transaction, _ in told):
            return 0
        everything = self.all()
        rows = everything.rows[["transaction", "reporter"]].tolist()
        gone = np.array([pair in told for pair in rows], np.bool_)
        self._fill(everything[~gone])
        return int(gone.sum())

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return ``rows`` JOINED[m] and ``vectors`` float32[m, n]."""
        everything = self.all()
        return {"rows": everything.rows, "vectors": everything.vectors}

    @classmethod
    def from_arrays(cls, capacity: int, arrays: Mapping[str, NDArray[Any]]) -> Lessons:
        """Return the lessons whose ``to_arrays`` these are. Raises ValueError."""
        rows, vectors = arrays["rows"], arrays["vectors"]
        if rows.dtype != JOINED or vectors.dtype != np.float32 or vectors.ndim != 2:
            raise ValueError(f"lessons are JOINED[m] and float32[m, n], not {rows.dtype.names}")
        lessons = cls(capacity, vectors.shape[1])
        lessons.add(Joined(rows, vectors))
        return lessons

    def _free(self, transaction: int) -> int:
        slot, self._next = self._next, (self._next + 1) % len(self._rows)
        if len(self._slots) == len(self._rows):
            del self._slots[int(self._rows["transaction"][slot])]
        self._slots[transaction] = slot
        return slot

    def _in_order(self) -> NDArray[np.int64]:
        count, capacity = len(self._slots), len(self._rows)
        return (self._next - count + np.arange(count, dtype=np.int64)) % capacity

    def _fill(self, joined: Joined) -> None:
        self._slots, self._next = {}, 0
        self.add(joined)


def _strength(row: np.void) -> int:
    return STRENGTH[int(row["source"])]
