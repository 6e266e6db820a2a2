"""States as of a decision where hosts share them: those of its versions, and its own records since.

A decision says up to which update each state was that it read, be the last one the state's own or
another of the same journal's. So updates are folded in their order and each state is taken at its
version; then those records of the same journal that had come and were not among the updates are
folded on top, as the scorer and the stream do. A decision with stale states met them as they were
stored. Must not know what a decision makes of its vector.
"""

from __future__ import annotations

import numpy as np
from fraud.v1 import decision_pb2
from numpy.typing import NDArray

from featurizer.arena import Arena
from featurizer.records import Entity
from featurizer.slots import LINES, SLOTS
from featurizer.state import HEADER, ROW_WORDS
from fraudsvc.replay.cases import Cases
from fraudsvc.replay.shared_kernel import kept_states, look_shared, serve
from fraudsvc.replay.spool import Journal, Spool
from fraudsvc.replay.states import Views, views_of
from fraudsvc.replay.told import Told

CASES_AT_ONCE = 256  # whose states are in memory: 72 KiB each
_ENTITIES = len(Entity)
_STALE = decision_pb2.RUNG_CAUSE_STATE_STALE


class SharedWalk:
    """Folds the updates of all partitions, each as far as the cases of ``journal`` need.

    It never goes back: cases that come in the order in which they read the states find them.
    """

    def __init__(self, spool: Spool, journal: Journal, bytes_max: int = 64 << 30) -> None:
        self._updates = [spool.updates(n) for n in range(spool.partitions)]
        self._journal = journal
        self._kept = kept_states()
        self._at = [0] * spool.partitions
        self._arena = Arena(bytes_max)
        self._rows = np.zeros((CASES_AT_ONCE, _ENTITIES, ROW_WORDS), np.int64)
        self._lines = np.zeros((LINES, SLOTS))

    def look(self, cases: Cases) -> tuple[Views, NDArray[np.int64]]:
        """Return what was seen of at most CASES_AT_ONCE cases, and the rows of those too late.

        A case is late where one of its states is past its version by now.
        """
        told, journal = cases.told, self._journal
        views = views_of(cases)
        _, records, vectors, versions = views
        logged = np.ascontiguousarray(told[:, Told.FIRST_VERSION :])
        self._serve(records["entities"], logged)
        own = np.searchsorted(journal.positions, cases.positions)
        seen = np.ascontiguousarray(told[:, Told.LOG_POSITION])
        caught_up = told[:, Told.CAUSE] != _STALE  # else they were met as they were stored
        more = (
            journal.records, journal.positions, journal.frames, journal.updated, journal.before,
            journal.newest,
        )  # fmt: skip
        out = records, vectors, versions
        newest = _newest(journal, records["entities"], logged)
        of_cases = own, seen, caught_up, logged, newest
        look_shared(self._rows, of_cases, more, self._kept, self._lines, out)
        late = np.any(versions > logged, axis=1)
        return views.rows(~late), np.flatnonzero(late)

    def _serve(self, keys: NDArray[np.int64], versions: NDArray[np.int64]) -> None:
        """Fill the rows with the states of ``keys`` int64[cases, entities] as of versions."""
        self._rows[: len(keys), :, :HEADER] = 0
        homes = np.ascontiguousarray(keys).view(np.uint64) % np.uint64(len(self._updates))
        for partition, (updates, positions) in enumerate(self._updates):
            cases, entities = np.nonzero((homes == partition) & (keys != 0) & (versions != 0))
            if not len(cases):
                continue
            needs = np.stack([versions[cases, entities], cases, entities], axis=1)
            order = np.argsort(needs[:, 0], kind="stable")
            needs = needs[order]
            wanted = np.ascontiguousarray(keys[cases, entities][order])
            at = self._at[partition]
            stop = max(at, int(np.searchsorted(positions, needs[-1, 0], side="right")))
            cursor = np.zeros(1, np.int64)
            self._arena.run_by(
                serve, updates[at:stop], positions[at:stop], needs, wanted, cursor, self._rows
            )
            self._at[partition] = stop


def _newest(
    journal: Journal, keys: NDArray[np.int64], versions: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return int64[cases, entities]: the journal's last update up to each version, 0 for none."""
    found = np.zeros(versions.shape, np.int64)
    homes = np.ascontiguousarray(keys).view(np.uint64) % np.uint64(len(journal.arrived))
    for partition, arrived in enumerate(journal.arrived):
        here = homes == partition
        count = np.searchsorted(arrived, versions[here], side="right")
        found[here] = np.concatenate([[0], arrived])[count]
    return found
