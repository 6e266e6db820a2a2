"""States as of a decision, made from the log alone.

Two ways to the same states. ``Walk`` goes through the log once and looks at each decision just
before what it had not seen is folded: a range costs little more than its folds. ``Rebuilt`` folds
the records of given entities up to given positions: for one decision, and for those that had
states older than the log they had read. Must not know what a decision makes of its vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple, cast

import numpy as np
from fraud.v1 import decision_pb2
from numpy.typing import NDArray

from featurizer.arena import Arena
from featurizer.features import FEATURES
from featurizer.records import RECORD, Entity, Flag
from featurizer.slots import LINES, SLOTS
from featurizer.state import META, ROW_WORDS
from fraudsvc.replay.kernel import look_at, rebuild, walk
from fraudsvc.replay.log import Piece
from fraudsvc.replay.told import Told, decided_by

_ENTITIES = len(Entity)
_NO_MATES = np.zeros(0, RECORD), np.zeros(0, np.int64)
_MARKS = int(Flag.UNUSUAL) | int(Flag.HAS_NORM)
# How far behind the end of what was read folding stays, so that a decision that was appended late
# still finds the states it had seen.
LOOK_BACK_BYTES = 1 << 20
REBUILT_AT_ONCE = 1_024
BUSY_RECORDS = 64  # from so many on a key's state is kept for the next cases


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


def _views(cases: Sequence[Case]) -> Views:
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
    positions, frames = _places(cases)
    repeats = np.concatenate([[0], np.cumsum(~piece.counts)])
    own, first = np.searchsorted(piece.positions, positions), np.searchsorted(piece.frames, frames)
    return np.where((seen == frames) & (repeats[own] == repeats[first]), positions, seen)


def _places(cases: Sequence[Case]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
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
        views, dues = _views(waiting.cases[:due]), waiting.due[:due]
        positions, frames = _places(views.cases)
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


class _Places(NamedTuple):
    """Where the records of each key are: ``starts`` int64[k + 1] into ``places`` int64[p].

    Busy keys have a row of ``kept`` int64[busy, ROW_WORDS], which ``slots`` int64[k] name (-1 for
    none): the state that was made last, of the records up to ``done`` int64[busy] in ``places``.
    """

    starts: NDArray[np.int64]
    places: NDArray[np.int64]
    slots: NDArray[np.int64]
    kept: NDArray[np.int64]
    done: NDArray[np.int64]


class _Need(NamedTuple):
    """A state that a case wants: of which key and entity, as of which position."""

    case: int
    entity: int
    key: int
    position: int


class Rebuilt:
    """The states of the entities of given cases, each as of its version, from their records.

    ``add`` takes the log; ``views`` what was seen.
    """

    def __init__(self, cases: Sequence[Case]) -> None:
        self._cases = cases
        self._shown = shown(cases)
        keys = np.unique(self._shown["entities"])
        self._keys = keys[keys != 0]
        self._frames = np.unique(np.array([case.frame for case in cases], np.int64))
        self._mates: dict[int, tuple[NDArray[np.void], NDArray[np.int64]]] = {}
        self._parts: list[tuple[NDArray[np.void], NDArray[np.int64]]] = []
        self._space = _space()
        # Where the records of each key are, and what busy ones were last, once the log is in.
        self._places: _Places | None = None

    @property
    def lines(self) -> NDArray[np.float64]:
        """What was read for the case that was looked at last, float64[LINES, SLOTS]."""
        return self._space[1]

    def add(self, piece: Piece) -> None:
        """Keep of a piece what the cases' states are made of."""
        met = np.isin(piece.records["entities"], self._keys).any(axis=1) & piece.counts
        if met.any():
            self._parts.append((piece.records[met], piece.positions[met]))
        own = self._frames[np.isin(self._frames, piece.frames)]
        starts, stops = (np.searchsorted(piece.frames, own, side) for side in ("left", "right"))
        for frame, start, stop in zip(own.tolist(), starts.tolist(), stops.tolist(), strict=True):
            of_frame = slice(start, stop)
            self._mates[frame] = piece.records[of_frame].copy(), piece.positions[of_frame].copy()

    def views(self, first: int = 0, stop: int | None = None) -> Views:
        """Return what was seen of the cases ``first`` to ``stop``."""
        cases = self._cases[first:stop]
        views = _views(cases)
        states = self.states(first, stop)
        rows, lines = self._space
        for i, case in enumerate(cases):
            rows[:, META] = 0
            for entity, state in states[i].items():
                rows[entity] = state
            past = (*self._past(case), case.frame)
            limits = np.array(case.versions, np.int64)
            out = views.records[i : i + 1], views.vectors[i], views.versions[i]
            look_at(rows, past, case.log_position, limits, lines, *out)
        return views

    def states(self, first: int = 0, stop: int | None = None) -> list[dict[int, NDArray[np.int64]]]:
        """Return per case the state of each entity, int64[ROW_WORDS], before its own frame."""
        needs = self._needs(first, stop)
        found: list[dict[int, NDArray[np.int64]]] = [{} for _ in self._cases[first:stop]]
        if not needs:
            return found
        records, positions = self.records()
        if self._places is None:
            self._places = _by_key(records, self._keys)
        numbers = np.searchsorted(self._keys, np.array([need.key for need in needs], np.int64))
        table = np.stack(
            [numbers, *(np.array([n[c] for n in needs], np.int64) for c in (1, 3))], axis=1
        )
        order = np.lexsort((table[:, 2], table[:, 0]))
        rows = np.zeros((len(needs), ROW_WORDS), np.int64)
        rebuild(table[order], records, positions, self._places, rows)
        for row, place in zip(rows, order.tolist(), strict=True):
            found[needs[place].case][needs[place].entity] = row
        return found

    def records(self) -> tuple[NDArray[np.void], NDArray[np.int64]]:
        """Return the records kept, RECORD[m] in order, and their positions."""
        if len(self._parts) != 1:
            none = (np.zeros(0, RECORD), np.zeros(0, np.int64))
            records, positions = zip(*(self._parts or [none]), strict=True)
            self._parts = [(np.concatenate(records), np.concatenate(positions))]
        return self._parts[0]

    def _needs(self, first: int, stop: int | None) -> list[_Need]:
        needs = []
        for i, case, record in zip(
            count(), self._cases[first:stop], self._shown[first:stop], strict=False
        ):
            seen = case.log_position
            for entity, key in enumerate(record["entities"].tolist()):
                if key:
                    needs.append(_Need(i, entity, key, min(case.versions[entity], seen - 1)))
        return needs

    def _past(self, case: Case) -> tuple[NDArray[np.void], NDArray[np.int64]]:
        """Return what stands before a case in its own frame: RECORD[n] and positions int64[n]."""
        records, positions = self._mates.get(case.frame, _NO_MATES)
        stop = int(np.searchsorted(positions, case.position))
        return records[:stop], positions[:stop]


def _by_key(records: NDArray[np.void], keys: NDArray[np.int64]) -> _Places:
    """Return where the records of each key are, and room for the states of busy ones."""
    entities = records["entities"]
    rows, columns = np.nonzero(np.isin(entities, keys))
    numbers = np.searchsorted(keys, entities[rows, columns])
    order = np.lexsort((rows, numbers))
    starts = np.searchsorted(numbers[order], np.arange(len(keys) + 1))
    busy = np.diff(starts) >= BUSY_RECORDS
    slots = np.where(busy, np.cumsum(busy) - 1, -1)
    kept = np.zeros((int(busy.sum()), ROW_WORDS), np.int64)
    done = starts[:-1][busy].astype(np.int64)
    return _Places(starts.astype(np.int64), rows[order].astype(np.int64), slots, kept, done)
