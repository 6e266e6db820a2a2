"""States as of versions that decisions name, of the entities of given decisions.

Folds the records of each entity up to the position that is asked for: for one decision, and for
those that had states older than the log they had read, as where states lagged behind or the host
had bounded what it had not stored. Must not know what a decision makes of its vector.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from featurizer.arena_kernels import GROWTH_WORDS
from featurizer.records import RECORD, Entity
from featurizer.slots import LINES, SLOTS
from featurizer.state import HEADER, META, ROW_WORDS
from fraudsvc.replay.cases import Cases
from fraudsvc.replay.kernel import look_at_all, place_all, rebuild
from fraudsvc.replay.log import Records
from fraudsvc.replay.states import Views, shown, views_of
from fraudsvc.replay.told import Told

AT_ONCE = 512  # cases whose states are in memory: 45 KiB each
BUSY_RECORDS = 4  # from so many on a key's state is kept for the next cases
_ENTITIES = len(Entity)


class _ByKey(NamedTuple):
    """Where the records of each key are: ``starts`` int64[k + 1] into ``places`` int64[p].

    The state that a busy key had last is in ``kept`` int64[words] from ``slots`` int64[k] on, -1
    for one that is not kept: of its records up to ``done`` int64[k] in ``places``.
    """

    starts: NDArray[np.int64]
    places: NDArray[np.int64]
    slots: NDArray[np.int64]
    kept: NDArray[np.int64]
    done: NDArray[np.int64]


class _Met(NamedTuple):
    """Records that have to do with cases: RECORD[m], their positions int64[m], and more of them.

    That is the frame of each, int64[m], or the numbers of its keys, int32[m, entities], -1 for one
    that no case has.
    """

    records: NDArray[np.void]
    positions: NDArray[np.int64]
    more: NDArray[Any]


class Rebuilt:
    """The states of the entities of given cases, each as of its version, from their records.

    ``add`` takes the log, all of it before ``views`` says what was seen.
    """

    def __init__(self, cases: Cases) -> None:
        self._cases = cases
        keys = np.unique(shown(cases)["entities"])
        self._keys = keys[keys != 0]
        self._frames = np.unique(cases.frames)
        self._parts: list[_Met] = []
        self._mates: list[_Met] = []  # what stands in the cases' own frames
        self._by_key: _ByKey | None = None  # once the log is in
        self._rows = np.zeros((min(len(cases), AT_ONCE), _ENTITIES, ROW_WORDS), np.int64)
        self._lines = np.zeros((LINES, SLOTS))

    @property
    def lines(self) -> NDArray[np.float64]:
        """What was read for the case that was looked at last, float64[LINES, SLOTS]."""
        return self._lines

    def add(self, piece: Records) -> None:
        """Keep of a piece of the log what the cases' states are made of."""
        numbers = _numbers(self._keys, piece.records["entities"])
        met = (numbers >= 0).any(axis=1) & piece.counts
        if met.any():
            self._parts.append(_Met(piece.records[met], piece.positions[met], numbers[met]))
        own = _numbers(self._frames, piece.frames) >= 0
        if own.any():
            self._mates.append(_Met(piece.records[own], piece.positions[own], piece.frames[own]))

    def views(self, first: int = 0) -> Views:
        """Return what was seen of AT_ONCE cases from ``first`` on, or of those that are left."""
        cases = self._cases.rows(slice(first, first + AT_ONCE))
        views = views_of(cases)
        if not len(cases):
            return views
        self._rows[: len(cases), :, META] = 0
        self._fill(views)
        mates = _one(self._mates)
        of_cases = (
            np.searchsorted(mates.positions, cases.positions),
            np.searchsorted(mates.more, cases.frames), cases.frames,
            cases.told[:, Told.LOG_POSITION], cases.told[:, Told.FIRST_VERSION : Told.COLUMNS],
        )  # fmt: skip
        look_at_all(self._rows, mates[:2], of_cases, self._lines, views[1:4])
        return views

    def records(self) -> tuple[NDArray[np.void], NDArray[np.int64]]:
        """Return the records kept, RECORD[m] in order, and their positions."""
        met = _one(self._parts)
        return met.records, met.positions

    def _fill(self, views: Views) -> None:
        """Fill the rows with the state of each entity of cases, before its own frame."""
        entities = views.records["entities"]
        cases, of = np.nonzero(entities)
        if not len(cases):
            return
        told = views.cases.told
        seen = told[:, Told.LOG_POSITION]
        versions = told[:, Told.FIRST_VERSION : Told.COLUMNS]
        until = np.minimum(versions[cases, of], seen[cases] - 1)
        numbers = np.searchsorted(self._keys, entities[cases, of])
        order = np.lexsort((until, numbers))
        needs = np.stack([numbers, of, until, cases], axis=1)[order]
        met = _one(self._parts)
        if self._by_key is None:
            self._by_key = _by_key(met.more, len(self._keys))
        rebuild(needs, met.records, met.positions, self._by_key, self._rows)


def _numbers(known: NDArray[np.int64], values: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return the place of each value among ``known``, which is sorted; -1 for none. int32."""
    if not len(known):
        return np.full(values.shape, -1, np.int32)
    found = np.searchsorted(known, values).astype(np.int32)
    found[found == len(known)] = 0
    found[known[found] != values] = -1
    return found


def _one(parts: list[_Met]) -> _Met:
    """Return what the parts are together, and make them one."""
    if not parts:
        return _Met(np.zeros(0, RECORD), np.zeros(0, np.int64), np.zeros((0, _ENTITIES), np.int32))
    if len(parts) > 1:
        parts[:] = [_Met(*(np.concatenate(column) for column in zip(*parts, strict=True)))]
    return parts[0]


def _by_key(numbers: NDArray[np.int32], keys: int) -> _ByKey:
    """Return where the records of each key are, and room for the states of busy ones."""
    counts = np.bincount(numbers[numbers >= 0], minlength=keys)
    starts = np.concatenate([[0], np.cumsum(counts)])
    busy = counts >= BUSY_RECORDS
    room = np.where(busy, np.minimum(HEADER + GROWTH_WORDS * counts, ROW_WORDS), 0)
    slots = np.where(busy, np.cumsum(room) - room, -1)
    kept = np.zeros(int(room.sum()), np.int64)
    return _ByKey(starts, place_all(numbers, starts), slots, kept, starts[:-1].copy())
