"""States as of a decision, made from the log alone, on one way through it.

``Walk`` looks at each decision just before what it had not seen is folded: a range costs little
more than its folds. Where a decision had states older than the log it had read, see
``fraudsvc.replay.rebuilt``. Must not know what a decision makes of its vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from fraud.v1 import decision_pb2
from numpy.typing import NDArray

from featurizer.arena import Arena
from featurizer.features import FEATURES
from featurizer.records import RECORD, Entity, Flag
from featurizer.slots import LINES, SLOTS
from featurizer.state import ROW_WORDS
from fraudsvc.replay.cases import Cases, Rows, joined
from fraudsvc.replay.kernel import walk
from fraudsvc.replay.log import Piece, Records
from fraudsvc.replay.told import Told

_ENTITIES = len(Entity)
_MARKS = int(Flag.UNUSUAL) | int(Flag.HAS_NORM)
# How far behind the end of what was read folding stays, so that a decision that was appended late
# still finds the states it had seen.
LOOK_BACK_BYTES = 1 << 20


class Views(NamedTuple):
    """What was seen of cases: their records RECORD[n] with marks, vectors and versions.

    vectors float32[n, features], versions int64[n, entities].
    """

    cases: Cases
    records: NDArray[np.void]
    vectors: NDArray[np.float32]
    versions: NDArray[np.int64]

    @property
    def are_as_logged(self) -> NDArray[np.bool_]:
        """Whose states have the logged versions, bool[n]."""
        same: NDArray[np.bool_] = np.all(
            self.cases.told[:, Told.FIRST_VERSION :] == self.versions, axis=1
        )
        return same

    def rows(self, rows: Rows) -> Views:
        """Return some of them."""
        return Views(
            self.cases.rows(rows), self.records[rows], self.vectors[rows], self.versions[rows],
        )  # fmt: skip

    def split(self) -> tuple[Views, Views]:
        """Return those whose states have the logged versions, and those that have others."""
        same = self.are_as_logged
        if same.all():
            return self, self.rows(slice(0))
        return self.rows(np.flatnonzero(same)), self.rows(np.flatnonzero(~same))


def shown(cases: Cases) -> NDArray[np.void]:
    """Return the records of cases as the kernel was to see them, RECORD[n]."""
    records = cases.records.copy()
    records["flags"] &= ~np.uint16(_MARKS)
    blind = cases.told[:, Told.CAUSE] == decision_pb2.RUNG_CAUSE_STATE_UNAVAILABLE
    records["entities"][blind] = 0
    return records


def views_of(cases: Cases) -> Views:
    """Return room for what is to be seen of cases, and their records as they were to be seen."""
    vectors = np.zeros((len(cases), len(FEATURES)), np.float32)
    return Views(cases, shown(cases), vectors, np.zeros((len(cases), _ENTITIES), np.int64))


def _space() -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    return np.zeros((_ENTITIES, ROW_WORDS), np.int64), np.zeros((LINES, SLOTS))


@dataclass(slots=True, eq=False)
class _Waiting(Records):
    """Records that are not folded yet, and cases that were not looked at, sorted by ``due``."""

    cases: Cases
    due: NDArray[np.int64]

    def add(self, piece: Piece, cases: Cases, dues: NDArray[np.int64]) -> None:
        self.records = np.concatenate([self.records, piece.records])
        self.positions = np.concatenate([self.positions, piece.positions])
        self.frames = np.concatenate([self.frames, piece.frames])
        self.counts = np.concatenate([self.counts, piece.counts])
        self.cases, due = joined([self.cases, cases]), np.concatenate([self.due, dues])
        if np.all(due[1:] >= due[:-1]):
            self.due = due
            return
        order = np.argsort(due, kind="stable")
        self.cases, self.due = self.cases.rows(order), due[order]

    def drop(self, records: int, cases: int) -> None:
        self.records, self.positions = self.records[records:], self.positions[records:]
        self.frames, self.counts = self.frames[records:], self.counts[records:]
        self.cases, self.due = self.cases.rows(slice(cases, None)), self.due[cases:]


def _dues(piece: Piece, cases: Cases) -> NDArray[np.int64]:
    """Return int64[n]: each case is to be looked at before what stands there is folded.

    That is the position that it had seen; or, where its frame stands there, as it was thought to,
    and nothing in it is a repeat, its own record's, so that none of the frame is folded twice.
    """
    seen, positions, frames = cases.told[:, Told.LOG_POSITION], cases.positions, cases.frames
    repeats = np.concatenate([[0], np.cumsum(~piece.counts)])
    own, first = np.searchsorted(piece.positions, positions), np.searchsorted(piece.frames, frames)
    return np.where((seen == frames) & (repeats[own] == repeats[first]), positions, seen)


class Walk:
    """Folds a log, piece by piece, and looks at cases on the way."""

    def __init__(self, bytes_max: int = 64 << 30) -> None:
        self._arena = Arena(bytes_max)
        self._space = _space()
        none = np.zeros(0, np.int64)
        self._waiting = _Waiting(
            np.zeros(0, RECORD), none, none, np.zeros(0, bool), Cases.none(), none
        )
        self._folded = -1  # position of the last record that is in the states

    def take(self, piece: Piece, cases: Cases) -> tuple[Views, Cases]:
        """Take in a piece and its cases; return what was seen of those that are due.

        And those cases that had seen less than what was folded when they came.
        """
        dues = _dues(piece, cases)
        is_early = dues > self._folded
        late, early = Cases.none(), cases
        if not is_early.all():
            late, early, dues = cases.rows(~is_early), cases.rows(is_early), dues[is_early]
        self._waiting.add(piece, early, dues)
        return self._go_to(piece.end - LOOK_BACK_BYTES), late

    def finish(self) -> Views:
        """Return what was seen of the cases that are left."""
        return self._go_to(1 << 62)

    def _go_to(self, horizon: int) -> Views:
        waiting = self._waiting
        stop = int(np.searchsorted(waiting.positions, horizon))
        limit = int(waiting.positions[stop]) if stop < len(waiting.positions) else horizon
        due = int(np.searchsorted(waiting.due, limit, side="right"))
        views, dues = views_of(waiting.cases.rows(slice(due))), waiting.due[:due]
        positions = views.cases.positions
        own = np.searchsorted(waiting.positions, positions)
        first = np.searchsorted(waiting.frames, views.cases.frames)
        first = np.where(dues == positions, own, first)  # its frame's are folded by then
        log = (waiting.records, waiting.positions, waiting.frames, waiting.counts)
        cursor = np.zeros(1, np.int64)
        more = (log, (own, first, dues), limit, cursor, self._space, views[1:4])
        self._arena.run_by(walk, waiting.records[:stop], waiting.positions[:stop], *more)
        if stop:
            self._folded = int(waiting.positions[stop - 1])
        waiting.drop(stop, due)
        return views
