"""A history's events on the log: how a new system learns what happened before it was there.

Owns which events of a backfill go to the log, and how. Must not know what a column means
(``history``), in which order events come (``backfill``) or how a state is kept (``arena``).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from featurizer.arena import Arena
from featurizer.eventlog import Entry, EventLog, LogError, Topic
from featurizer.records import Entity, Kind

APPEND_FRAMES = 512
_TOPICS = {Kind.TRANSACTION: Topic.TRANSACTIONS, Kind.FEEDBACK: Topic.FEEDBACK}


class LoggedArena(Arena):
    """An arena that also appends what it ran to a log, marks included, as the scorer would.

    Give it to ``backfill`` in place of a plain one. An event counts from when it happened, a
    label from when it became known; those from ``until_ms`` on stay off the log, None for none.
    A frame holds one event, because a label is joined to the transaction of its frame. Raises
    LogError for a log that holds something already: a history comes first.
    """

    def __init__(self, log: EventLog, until_ms: int | None, bytes_max: int) -> None:
        super().__init__(bytes_max)
        oldest, end = log.ends()
        if end > oldest:
            raise LogError("the log is not empty: a history can only be loaded first")
        self._log = log
        self._until_ms = until_ms
        self.appended = 0

    def run(
        self,
        records: NDArray[np.void],
        positions: NDArray[np.int64],
        out: NDArray[np.float32] | None = None,
        marks_of: NDArray[np.int64] | None = None,
    ) -> None:
        """Run a batch as ``Arena`` does, then append it. Raises LogError where it cannot."""
        super().run(records, positions, out, marks_of)
        frames = [[_entry(record)] for record in self._chosen(records)]
        for start in range(0, len(frames), APPEND_FRAMES):
            self._log.append(frames[start : start + APPEND_FRAMES])
        self.appended += len(frames)

    def _chosen(self, records: NDArray[np.void]) -> NDArray[np.void]:
        if self._until_ms is None:
            return records
        is_feedback = records["kind"] == Kind.FEEDBACK
        times = np.where(is_feedback, records["known_time_ms"], records["event_time_ms"])
        chosen: NDArray[np.void] = records[times < self._until_ms]
        return chosen


def _entry(record: np.void) -> Entry:
    customer = int(record["entities"][Entity.CUSTOMER])
    return Entry(_TOPICS[Kind(int(record["kind"]))], customer, record.tobytes())
