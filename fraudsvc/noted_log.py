"""A log that tells how long its appends took. All else is the log's own."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from featurizer.eventlog import Batch, Entry, EventLog


class NotedLog:
    """``log``, with ``note`` told of each append: where its first frame is, and its time in ns."""

    def __init__(self, log: EventLog, note: Callable[[int, int], object]) -> None:
        self._append = log.append
        self._note = note
        self._log = log

    def append(self, frames: Sequence[Sequence[Entry]]) -> list[int]:
        """Append the frames, and tell."""
        began_ns = time.perf_counter_ns()
        positions = self._append(frames)
        if positions:
            self._note(positions[0], time.perf_counter_ns() - began_ns)
        return positions

    def read(self, position: int, max_bytes: int) -> Batch:
        """Return entries from ``position`` on."""
        return self._log.read(position, max_bytes)

    def ends(self) -> tuple[int, int]:
        """Return the oldest position kept and the position after the last whole frame."""
        return self._log.ends()

    def close(self) -> None:
        """Close the log."""
        self._log.close()
