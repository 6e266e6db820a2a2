"""Kernels of replay: a decision's states as they were, and what its record was seen as.

Owns the order in which folds and looks take turns. Must not know what is made of a vector.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from featurizer.arena_kernels import fold_all, gather, hint_all, reserve_all
from featurizer.features import OPS
from featurizer.fold import fold
from featurizer.records import Entity
from featurizer.state import HEADER, META, POSITION, length
from featurizer.view import view

_ENTITIES = len(Entity)


@njit(cache=True, nogil=True)
def _see(rows, past, seen, limits, lines, shown, vector, versions):  # type: ignore[no-untyped-def]
    """Stage what stands before a record in its own frame; fill vector, versions and marks.

    ``past`` are the frame's records before it, their positions and the frame's own, of a frame
    that was thought to begin at ``seen``; of an entity up to ``limits`` int64[entities]. ``shown``
    RECORD[1] gets its marks.
    """
    records, positions, frame = past
    rec = shown[0]
    for i in range(len(records)):
        position = positions[i] - frame + seen
        for entity in range(_ENTITIES):
            key = rec.entities[entity]
            if key != 0 and records[i].entities[entity] == key and position <= limits[entity]:
                fold(rows[entity], entity, records[i], position)
    for entity in range(_ENTITIES):
        versions[entity] = 0
        if rec.entities[entity] != 0 and rows[entity, META] != 0:
            versions[entity] = rows[entity, POSITION]
    shown[0].flags |= view(rows, rec, OPS, lines, vector)


@njit(cache=True, nogil=True)
def _look(words, index, log, cases, at, rows, limits, lines, out):  # type: ignore[no-untyped-def]
    """Look at the case ``at`` with the states as they are."""
    records, positions, frames, _ = log
    own, first, seen = cases
    shown, vectors, versions = out
    gather(words, index, shown[at], rows)
    start, stop = first[at], own[at]
    past = (records[start:stop], positions[start:stop], frames[stop])
    _see(rows, past, seen[at], limits, lines, shown[at : at + 1], vectors[at], versions[at])


@njit(cache=True, nogil=True)
def walk(memory, records, positions, at, log, cases, limit, cursor, space, out):  # type: ignore[no-untyped-def]
    """Fold each record from ``at`` on, and look at a case before what it had not seen is folded.

    ``records`` are those of ``log`` that are to be folded now: records RECORD[m], positions and
    frames int64[m], and which count, bool[m]. ``cases``, sorted by ``seen``: the places of its
    own record and of the first in the log that is to be staged before it, and the position that
    it had seen, int64[n] each. ``cursor`` int64[1] is the next case; beyond ``limit`` none is
    looked at. Returns where there was no room, or how many.
    """
    words, index, counters, changed = memory
    counts, seen = log[3], cases[2]
    rows, lines = space
    limits = np.full(_ENTITIES, np.iinfo(np.int64).max)
    for i in range(at, len(records)):
        hint_all(words, index, records, i)
        while cursor[0] < len(seen) and seen[cursor[0]] <= positions[i]:
            _look(words, index, log, cases, cursor[0], rows, limits, lines, out)
            cursor[0] += 1
        if counts[i]:
            if not reserve_all(words, index, counters, records[i]):
                return i
            fold_all(words, index, counters, changed, records[i], positions[i])
    while cursor[0] < len(seen) and seen[cursor[0]] <= limit:
        _look(words, index, log, cases, cursor[0], rows, limits, lines, out)
        cursor[0] += 1
    return len(records)


@njit(cache=True, nogil=True)
def _copy(state, to):  # type: ignore[no-untyped-def]
    """Copy a state; where nothing is known of the entity, its header tells that."""
    used = max(length(state), HEADER)
    to[:used] = state[:used]


@njit(cache=True, nogil=True)
def rebuild(needs, records, positions, by_key, rows):  # type: ignore[no-untyped-def]
    """Fold the records of each needed state up to its position.

    ``needs`` int64[n, 4]: the number of its key, its entity, its position and whose case it is,
    sorted by key and position. ``by_key`` is where the records of each key stand, in order, and
    the states that busy keys had last, from which it goes on. ``rows`` int64[cases, entities,
    ROW_WORDS] gets the states.
    """
    starts, places, slots, kept, done = by_key
    state = np.zeros(rows.shape[2], np.int64)
    key, at = np.int64(-1), np.int64(0)
    for i in range(len(needs)):
        if needs[i, 0] != key:
            if key >= 0 and slots[key] >= 0:
                _copy(state, kept[slots[key] :])
                done[key] = at
            key = needs[i, 0]
            at = starts[key]
            state[:HEADER] = 0
            if done[key] > at and positions[places[done[key] - 1]] <= needs[i, 2]:
                _copy(kept[slots[key] :], state)
                at = done[key]
        while at < starts[key + 1] and positions[places[at]] <= needs[i, 2]:
            fold(state, needs[i, 1], records[places[at]], positions[places[at]])
            at += 1
        _copy(state, rows[needs[i, 3], needs[i, 1]])
    if key >= 0 and slots[key] >= 0:
        _copy(state, kept[slots[key] :])
        done[key] = at


@njit(cache=True, nogil=True)
def place_all(numbers, starts):  # type: ignore[no-untyped-def]
    """Return int64[p]: the rows in which each number stands, in order, from ``starts`` of it on.

    ``numbers`` int32[n, entities], -1 for none.
    """
    places = np.zeros(starts[-1], np.int64)
    at = starts.copy()
    for row in range(len(numbers)):
        for number in numbers[row]:
            if number >= 0:
                places[at[number]] = row
                at[number] += 1
    return places


@njit(cache=True, nogil=True)
def look_at_all(rows, mates, cases, lines, out):  # type: ignore[no-untyped-def]
    """Look at cases with their states in ``rows`` int64[n, entities, ROW_WORDS], as ``walk``.

    ``mates`` are the records and positions of their frames. Of each case: the places among them of
    its own record and of its frame's first, its frame, and the position that it had seen, int64[n]
    each; up to where each entity is to be folded, int64[n, entities].
    """
    records, positions = mates
    own, first, frames, seen, limits = cases
    shown, vectors, versions = out
    for i in range(len(shown)):
        start, stop = first[i], own[i]
        past = (records[start:stop], positions[start:stop], frames[i])
        _see(
            rows[i], past, seen[i], limits[i], lines, shown[i : i + 1], vectors[i], versions[i]
        )  # fmt: skip
