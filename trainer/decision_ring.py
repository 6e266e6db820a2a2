"""Owns the newest decisions in memory, found by transaction, and what each source said of them.

Bounded: a decision beyond the capacity takes the place of the oldest, and of that only the id is
kept, in a longer queue, so that a late label is told from one that nobody knows. Must not know
the rules by which labels count.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from fraud.v1 import decision_pb2
from numpy.typing import NDArray

# One decision as the trainer reads it from the log; ids are hashes, 0 for absent. ``score`` is
# the probability served, ``model`` the version's text, ``outcome`` the contract's number.
APPROVED = int(decision_pb2.OUTCOME_APPROVE)
DECISION = np.dtype(
    [
        ("transaction", "<i8"),
        ("event_time_ms", "<i8"),
        ("customer", "<i8"),
        ("merchant", "<i8"),
        ("logit", "<f8"),
        ("score", "<f8"),
        ("model", "S64"),
        ("outcome", "u1"),
    ]
)
SOURCES = 5  # the contract's LabelSource, 0 for none
# What one source said of one transaction.
SAID = np.dtype([("reporter", "<i8"), ("label_time_ms", "<i8"), ("verdict", "u1")])

ABSENT, PASSED = -1, -2


class DecisionRing:
    """Decisions in the order in which they were read.

    ``rows`` DECISION[capacity], ``vectors`` float32[capacity, n], ``said`` SAID[capacity,
    SOURCES], ``read_ms`` int64[capacity] and ``shared`` bool[capacity]: whether the id was met
    again with another customer. Memory is taken at once, 4 * n + 300 bytes a decision, and about
    100 bytes for each of ``passed_max`` ids. Raises ValueError for no capacity.
    """

    def __init__(self, capacity: int, passed_max: int, n_features: int) -> None:
        if capacity < 1 or passed_max < 0 or n_features < 1:
            raise ValueError("capacity and features must be positive, passed_max not negative")
        self.rows: NDArray[Any] = np.zeros(capacity, DECISION)
        self.vectors = np.zeros((capacity, n_features), np.float32)
        self.said: NDArray[Any] = np.zeros((capacity, SOURCES), SAID)
        self.read_ms = np.zeros(capacity, np.int64)
        self.shared = np.zeros(capacity, np.bool_)
        self._slots: dict[int, int] = {}
        self._passed: dict[int, None] = {}
        self._passed_max = passed_max
        self._next = 0

    def __len__(self) -> int:
        """Return how many decisions are kept."""
        return len(self._slots)

    def find(self, transaction: int) -> int:
        """Return the slot of a transaction, PASSED where it left the ring, else ABSENT."""
        return self._slots.get(transaction, PASSED if transaction in self._passed else ABSENT)

    def put(self, row: np.void, vector: NDArray[np.float32], read_ms: int) -> int:
        """Keep a decision whose transaction is not kept; return its slot."""
        slot, self._next = self._next, (self._next + 1) % len(self.rows)
        if len(self._slots) == len(self.rows):
            self._pass(int(self.rows["transaction"][slot]))
        transaction = int(row["transaction"])
        self._passed.pop(transaction, None)
        self._slots[transaction] = slot
        self.rows[slot] = row
        self.vectors[slot] = vector
        self.said[slot] = np.zeros((), SAID)
        self.read_ms[slot], self.shared[slot] = read_ms, False
        return slot

    def newest(self) -> int:
        """Return the transaction that was put last, 0 before the first."""
        return int(self.rows["transaction"][self._next - 1]) if self._slots else 0

    def kept(self) -> NDArray[np.int64]:
        """Return the slots in use, int64[k], oldest first."""
        count, capacity = len(self._slots), len(self.rows)
        return (self._next - count + np.arange(count, dtype=np.int64)) % capacity

    def transactions(self) -> Iterator[int]:
        """Yield the kept transactions, oldest first."""
        return iter(self._slots)

    def _pass(self, transaction: int) -> None:
        del self._slots[transaction]
        self._passed[transaction] = None
        if len(self._passed) > self._passed_max:
            del self._passed[next(iter(self._passed))]
