"""States as of a decision, made from the log alone, on one way through it.

``Walk`` looks at each decision just before what it had not seen is folded: a range costs little
more than its folds. Where a decision had states older than the log it had read, see
``fraudsvc.replay.rebuilt``. Must not know what a decision makes of its vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
from fraud.v1 import decision_pb2
from numpy.typing import NDArray

from featurizer.arena import Arena
from featurizer.features import FEATURES
from featurizer.records import RECORD, Entity, Flag
from featurizer.slots import LINES, SLOTS
from featurizer.state import ROW_WORDS
from fraudsvc.replay.kernel import walk
from fraudsvc.replay.log import Piece
from fraudsvc.replay.told import Told, decided_by

_ENTITIES = len(Entity)
_MARKS = int(Flag.UNUSUAL) | int(Flag.HAS_NORM)
# How far behind the end of what was read folding stays, so that a decision that was appended late
# still finds the states it had seen.
LOOK_BACK_BYTES = 1 << 20


class Case(NamedTuple):
    """A decision of the log that is to be made again.

    ``value`` are its bytes, ``told`` int64[Told.COLUMNS] what they say, ``record`` the bytes of its
    record; ``frame`` and ``position`` where both stand. ``number`` counts the cases of a run.
    """

    number: int
    value: bytes
    told: NDArray[np.int64]
    record: bytes
    frame: int
    position: int

    @property
    def decision(self) -> decision_pb2.Decision:
        """The decision as a message, parsed anew each time."""
        return decision_pb2.Decision.FromString(self.value)

    @property
    def log_position(self) -> int:
        """Where the log ended that it had read."""
        return int(self.told[Told.LOG_POSITION])

    @property
    def rung(self) -> int:
        """The rung that it was decided on."""
        return int(self.told[Told.RUNG])

    @property
    def cause(self) -> decision_pb2.RungCause:
        """Why it was not decided on a higher rung."""
        return cast(decision_pb2.RungCause, int(self.told[Told.CAUSE]))

    @property
    def by(self) -> tuple[str, str, str]:
        """The versions of schema, model and policy."""
        start, end = self.told[Told.BY : Told.BY_END + 1].tolist()
        return decided_by(self.value[start:end])

    @property
    def is_blind(self) -> bool:
        """Whether no states were to be had, so that it was decided as if no entity were known."""
        return self.cause == decision_pb2.RUNG_CAUSE_STATE_UNAVAILABLE

    @property
    def versions(self) -> tuple[int, ...]:
        """The positions of its states, as logged; zeros where it has none."""
        return tuple(self.told[Told.FIRST_VERSION : Told.COLUMNS].tolist())


class Views(NamedTuple):
    """What was seen of cases: their records RECORD[n] with marks, vectors and versions.

    vectors float32[n, features], versions int64[n, entities]; ``told`` int64[n, Told.COLUMNS] is
    what the decisions say.
    """

    cases: Sequence[Case]
    records: NDArray[np.void]
    vectors: NDArray[np.float32]
    versions: NDArray[np.int64]
    told: NDArray[np.int64]

    @property
    def are_as_logged(self) -> NDArray[np.bool_]:
        """Whose states have the logged versions, bool[n]."""
        same: NDArray[np.bool_] = np.all(
            self.told[:, Told.FIRST_VERSION :] == self.versions, axis=1
        )
        return same

    def rows(self, rows: Sequence[int]) -> Views:
        """Return some of them."""
        if len(rows) == len(self.cases):
            return self
        chosen = list(rows)
        return Views(
            [self.cases[row] for row in chosen], self.records[chosen], self.vectors[chosen],
            self.versions[chosen], self.told[chosen],
        )  # fmt: skip

    def split(self) -> tuple[Views, Views]:
        """Return those whose states have the logged versions, and those that have others."""
        same = self.are_as_logged
        if same.all():
            return self, self.rows([])
        return self.rows(np.flatnonzero(same).tolist()), self.rows(np.flatnonzero(~same).tolist())


def told_of_all(cases: Sequence[Case]) -> NDArray[np.int64]:
    """Return what the decisions of cases say, int64[n, Told.COLUMNS]."""
    none = np.zeros(0, np.int64)
    return np.concatenate([none, *(case.told for case in cases)]).reshape(-1, Told.COLUMNS)


def shown(cases: Sequence[Case], told: NDArray[np.int64] | None = None) -> NDArray[np.void]:
    """Return the records of cases as the kernel was to see them, RECORD[n].

    ``told`` is what their decisions say, where that is at hand.
    """
    records = np.frombuffer(b"".join([case.record for case in cases]), RECORD).copy()
    records["flags"] &= ~np.uint16(_MARKS)
    causes = (told_of_all(cases) if told is None else told)[:, Told.CAUSE]
    records["entities"][causes == decision_pb2.RUNG_CAUSE_STATE_UNAVAILABLE] = 0
    return records


def views_of(cases: Sequence[Case]) -> Views:
    """Return room for what is to be seen of cases, and their records as they were to be seen."""
    vectors = np.zeros((len(cases), len(FEATURES)), np.float32)
    versions, told = np.zeros((len(cases), _ENTITIES), np.int64), told_of_all(cases)
    return Views(cases, shown(cases, told), vectors, versions, told)


def _space() -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    return np.zeros((_ENTITIES, ROW_WORDS), np.int64), np.zeros((LINES, SLOTS))


@dataclass(slots=True, eq=False)
class _Waiting:
    """Records that are not folded yet, and cases that were not looked at, sorted by ``due``."""

    records: NDArray[np.void]
    positions: NDArray[np.int64]
    frames: NDArray[np.int64]
    counts: NDArray[np.bool_]
    cases: list[Case]
    due: NDArray[np.int64]

    def add(self, piece: Piece, cases: Sequence[Case], dues: NDArray[np.int64]) -> None:
        self.records = np.concatenate([self.records, piece.records])
        self.positions = np.concatenate([self.positions, piece.positions])
        self.frames = np.concatenate([self.frames, piece.frames])
        self.counts = np.concatenate([self.counts, piece.counts])
        every = [*self.cases, *cases]
        due = np.concatenate([self.due, dues])
        order = np.argsort(due, kind="stable")
        self.cases, self.due = [every[i] for i in order.tolist()], due[order]

    def drop(self, records: int, cases: int) -> None:
        self.records, self.positions = self.records[records:], self.positions[records:]
        self.frames, self.counts = self.frames[records:], self.counts[records:]
        self.cases, self.due = self.cases[cases:], self.due[cases:]


def _dues(piece: Piece, cases: Sequence[Case]) -> NDArray[np.int64]:
    """Return int64[n]: each case is to be looked at before what stands there is folded.

    That is the position that it had seen; or, where its frame stands there, as it was thought to,
    and nothing in it is a repeat, its own record's, so that none of the frame is folded twice.
    """
    seen = told_of_all(cases)[:, Told.LOG_POSITION]
    positions, frames = places_of(cases)
    repeats = np.concatenate([[0], np.cumsum(~piece.counts)])
    own, first = np.searchsorted(piece.positions, positions), np.searchsorted(piece.frames, frames)
    return np.where((seen == frames) & (repeats[own] == repeats[first]), positions, seen)


def places_of(cases: Sequence[Case]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the positions of cases' records and of their frames, int64[n] each."""
    positions = np.array([case.position for case in cases], np.int64)
    return positions, np.array([case.frame for case in cases], np.int64)


class Walk:
    """Folds a log, piece by piece, and looks at cases on the way."""

    def __init__(self, bytes_max: int = 64 << 30) -> None:
        self._arena = Arena(bytes_max)
        self._space = _space()
        none = np.zeros(0, np.int64)
        self._waiting = _Waiting(np.zeros(0, RECORD), none, none, np.zeros(0, bool), [], none)
        self._folded = -1  # position of the last record that is in the states

    def take(self, piece: Piece, cases: Sequence[Case]) -> tuple[Views, list[Case]]:
        """Take in a piece and its cases; return what was seen of those that are due.

        And those cases that had seen less than what was folded when they came.
        """
        dues = _dues(piece, cases)
        is_early = dues > self._folded
        late = [cases[i] for i in np.flatnonzero(~is_early).tolist()]
        early = [cases[i] for i in np.flatnonzero(is_early).tolist()]
        self._waiting.add(piece, early, dues[is_early])
        return self._go_to(piece.end - LOOK_BACK_BYTES), late

    def finish(self) -> Views:
        """Return what was seen of the cases that are left."""
        return self._go_to(1 << 62)

    def _go_to(self, horizon: int) -> Views:
        waiting = self._waiting
        stop = int(np.searchsorted(waiting.positions, horizon))
        limit = int(waiting.positions[stop]) if stop < len(waiting.positions) else horizon
        due = int(np.searchsorted(waiting.due, limit, side="right"))
        views, dues = views_of(waiting.cases[:due]), waiting.due[:due]
        positions, frames = places_of(views.cases)
        own = np.searchsorted(waiting.positions, positions)
        first = np.searchsorted(waiting.frames, frames)
        first = np.where(dues == positions, own, first)  # its frame's are folded by then
        log = (waiting.records, waiting.positions, waiting.frames, waiting.counts)
        cursor = np.zeros(1, np.int64)
        more = (log, (own, first, dues), limit, cursor, self._space, views[1:4])
        self._arena.run_by(walk, waiting.records[:stop], waiting.positions[:stop], *more)
        if stop:
            self._folded = int(waiting.positions[stop - 1])
        waiting.drop(stop, due)
        return views
