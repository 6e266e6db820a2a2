"""Kernels of replay where hosts share states: those as they were stored, and what was on top.

Owns in which order updates and a journal's own records are folded. Must not know where either was
read, nor what is made of a vector.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from featurizer.arena_kernels import apply_all
from featurizer.arena_memory import EMPTY, KEY, PLACE, find
from featurizer.features import OPS
from featurizer.fold import fold
from featurizer.records import Entity
from featurizer.state import HEADER, META, POSITION, length
from featurizer.view import view
from fraudsvc.shared_tail import AFTER_ALL

_ENTITIES = len(Entity)
NEVER = np.iinfo(np.int64).max  # where no update is of a record
NONE = -1


@njit(cache=True, nogil=True)
def link(keys, order, updated, before, newest):  # type: ignore[no-untyped-def]
    """Link each record to the one before it with the same key.

    ``keys`` int64[n] are an entity's, ``order`` sorts them and leaves each key's records in order;
    ``updated`` int64[n] is where in the updates each is. Fills ``before``, the number of the one
    before or NONE, and ``newest``, the largest of ``updated`` up to and with each.
    """
    for k in range(len(order)):
        i = order[k]
        before[i] = NONE
        newest[i] = updated[i]
        if keys[i] != 0 and k > 0 and keys[order[k - 1]] == keys[i]:
            before[i] = order[k - 1]
            newest[i] = max(updated[i], newest[order[k - 1]])


@njit(cache=True, nogil=True)
def serve(memory, updates, positions, at, needs, keys, cursor, rows):  # type: ignore[no-untyped-def]
    """Apply updates from ``at`` on, and copy each needed state as of its position.

    ``needs`` int64[n, 3], sorted: position, and the place in ``rows`` int64[cases, entities,
    ROW_WORDS] that gets the state; ``keys`` int64[n] its key. ``cursor`` int64[1] is the next need.
    A state that is past its position already is copied as it is. Returns as ``apply_all``.
    """
    words, index, counters, changed = memory
    while cursor[0] < len(needs):
        n = cursor[0]
        stop = np.searchsorted(positions, needs[n, 0], side="right")
        if stop > at:
            some = updates[:stop]
            at = apply_all(words, index, counters, changed, some, positions[:stop], at)
            if at < stop:
                return at
        row = rows[needs[n, 1], needs[n, 2]]
        row[:HEADER] = 0
        found = find(index, keys[n])
        if index[found, KEY] != EMPTY:
            place = index[found, PLACE]
            used = length(words[place:])
            row[:used] = words[place : place + used]
        cursor[0] += 1
    return apply_all(words, index, counters, changed, updates, positions, at)


@njit(cache=True, nogil=True)
def _catch_up(row, entity, own, journal, seen, version, told):  # type: ignore[no-untyped-def]
    """Fold into a state those of the journal's records that had come and that it lacks.

    It lacks what came to the updates after ``version``, though none of them may be its own.
    """
    records, positions, frames, updated, before, newest = journal
    stored = row[POSITION]
    lacking = 0
    for turn in range(2):
        found = np.empty(lacking, np.int64)  # none in the first turn, which counts
        lacking = 0
        i = before[own, entity]
        while i >= 0 and newest[i, entity] > version:
            if updated[i, entity] > version and (positions[i] < seen or frames[i] == frames[own]):
                if turn == 1:
                    found[lacking] = i
                lacking += 1
            i = before[i, entity]
    for k in range(lacking - 1, -1, -1):
        i = found[k]
        fold(row, entity, records[i], positions[i] + AFTER_ALL)
    row[POSITION] = max(stored, told)


@njit(cache=True, nogil=True)
def look_shared(rows, cases, journal, lines, out):  # type: ignore[no-untyped-def]
    """Look at each case with its stored states in ``rows`` int64[cases, entities, ROW_WORDS].

    ``cases``: the place of its own record in the journal and the position that it had seen,
    int64[n] each; whether the journal's records were folded on top, bool[n]; the version of each
    state, and the last of the journal's updates up to there, int64[n, entities] each. ``journal``
    are its records, positions and frames, and what ``link`` made, int64[n, entities] each. ``out``:
    the records as shown, which get their marks, vectors and versions.
    """
    own, seen, caught_up, logged, told = cases
    shown, vectors, versions = out
    for n in range(len(own)):
        rec = shown[n]
        for entity in range(_ENTITIES):
            versions[n, entity] = 0
            row = rows[n, entity]
            if rec.entities[entity] == 0:
                row[META] = 0
                continue
            if caught_up[n]:
                of_state = logged[n, entity], told[n, entity]
                _catch_up(row, entity, own[n], journal, seen[n], *of_state)
            if row[META] != 0:
                versions[n, entity] = row[POSITION]
        shown[n].flags |= view(rows[n], rec, OPS, lines, vectors[n])
