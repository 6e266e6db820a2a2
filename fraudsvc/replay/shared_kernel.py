"""Kernels of replay where hosts share states: those as they were stored, and what was on top.

Owns in which order updates and a journal's own records are folded. Must not know where either was
read, nor what is made of a vector.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from featurizer.arena_kernels import apply_all
from featurizer.arena_memory import EMPTY, KEY, PLACE, find
from featurizer.features import OPS
from featurizer.fold import fold
from featurizer.records import Entity
from featurizer.state import HEADER, META, POSITION, ROW_WORDS, length
from featurizer.view import view
from fraudsvc.batch_states import AFTER_ALL

_ENTITIES = len(Entity)
NEVER = np.iinfo(np.int64).max  # where no update is of a record
NONE = -1
# What is told of a kept state: its key, the position that it was stored with, and of the case that
# it was made for the version, the position seen and the frame; then of the records folded on top
# the last, the least of where they are in the updates, and whether all after the version are there.
_KEY, _STORED, _VERSION, _SEEN, _FRAME, _LAST, _LEAST, _IS_ALL = range(8)
_KEPT_STATES = 1 << 12  # one for all keys with the same last bits; 8 KiB each, where used
_FEW = 64


def kept_states() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return memory for states as they were for cases before: most have but a record more now."""
    heads = np.zeros((_KEPT_STATES, 8), np.int64)
    return heads, np.zeros((_KEPT_STATES, ROW_WORDS), np.int64)


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
def _goes_on(head, key, stored, case, journal):  # type: ignore[no-untyped-def]
    """Return whether a kept state has of the journal what one for ``case`` has, up to its last."""
    _, positions, frames, _, _, _ = journal
    own, seen, version, _ = case
    last = head[_LAST]
    if head[_KEY] != key or head[_STORED] != stored or head[_IS_ALL] == 0 or last >= own:
        return False
    if not head[_VERSION] <= version < head[_LEAST]:
        return False
    had_come = head[_FRAME] == frames[own] or positions[last] < seen
    return head[_SEEN] <= seen and had_come


@njit(cache=True, nogil=True)
def _find_lacking(case, entity, journal, last, found, head):  # type: ignore[no-untyped-def]
    """Find the records after ``last`` that a state lacks, newest first; return how many.

    They go into ``found`` where it has room. Sets what ``head`` says of them.
    """
    _, positions, frames, updated, before, newest = journal
    own, seen, version, _ = case
    lacking = 0
    i = before[own, entity]
    while i > last and newest[i, entity] > version:
        if updated[i, entity] > version:
            if positions[i] < seen or frames[i] == frames[own]:
                if lacking < len(found):
                    found[lacking] = i
                lacking += 1
                head[_LEAST] = min(head[_LEAST], updated[i, entity])
                head[_LAST] = max(head[_LAST], i)
            else:
                head[_IS_ALL] = 0
        i = before[i, entity]
    return lacking


@njit(cache=True, nogil=True)
def _catch_up(row, entity, case, journal, kept):  # type: ignore[no-untyped-def]
    """Fold into a state those of the journal's records that had come and that it lacks.

    It lacks what came to the updates after the case's version, though none of them may be its own.
    Begins with what was made for a case before, where that is the same up to its last record.
    """
    records, positions, frames, _, _, _ = journal
    own, seen, version, told = case
    heads, rows = kept
    stored = row[POSITION]
    key = records[own].entities[entity]
    slot = key & (len(heads) - 1)
    head, last = heads[slot], np.int64(NONE)
    if _goes_on(head, key, stored, case, journal):
        last = head[_LAST]
        used = length(rows[slot])
        row[:used] = rows[slot, :used]
    made = np.array([key, stored, version, seen, frames[own], NONE, NEVER, 1], np.int64)
    if last != NONE:
        made[_LAST], made[_LEAST] = last, head[_LEAST]
    found = np.empty(_FEW, np.int64)
    lacking = _find_lacking(case, entity, journal, last, found, made)
    if lacking > len(found):
        found = np.empty(lacking, np.int64)
        _find_lacking(case, entity, journal, last, found, made)
    for k in range(lacking - 1, -1, -1):
        i = found[k]
        fold(row, entity, records[i], positions[i] + AFTER_ALL)
    if lacking > 0:
        head[:] = made
        used = length(row)
        rows[slot, :used] = row[:used]
    row[POSITION] = max(stored, told)


@njit(cache=True, nogil=True)
def look_shared(rows, cases, journal, kept, lines, out):  # type: ignore[no-untyped-def]
    """Look at each case with its stored states in ``rows`` int64[cases, entities, ROW_WORDS].

    ``cases``: the place of its own record in the journal and the position that it had seen,
    int64[n] each; whether the journal's records were folded on top, bool[n]; the version of each
    state, and the last of the journal's updates up to there, int64[n, entities] each. ``journal``
    are its records, positions and frames, and what ``link`` made, int64[n, entities] each.
    ``kept`` is what ``kept_states`` gave, and of this journal alone. ``out``: the records as shown,
    which get their marks, vectors and versions.
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
                case = own[n], seen[n], logged[n, entity], told[n, entity]
                _catch_up(row, entity, case, journal, kept)
            if row[META] != 0:
                versions[n, entity] = row[POSITION]
        shown[n].flags |= view(rows[n], rec, OPS, lines, vectors[n])
