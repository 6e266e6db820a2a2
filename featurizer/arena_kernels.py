"""Kernels over the memory of an arena: view and fold records where their states lie.

Owns how a record meets its states. Must not know why they are in memory, nor which are kept.
"""

from __future__ import annotations

from numba import njit

from featurizer.arena_memory import (
    CHANGED,
    DIRTY,
    EMPTY,
    KEY,
    PLACE,
    SIZE,
    SIZES_WORDS,
    find,
    first_row,
    reserve,
)
from featurizer.fold import fold
from featurizer.memory import LINE_WORDS, move, prefetch
from featurizer.records import Kind
from featurizer.state import HEADER, META, length, length_of
from featurizer.view import view

ALL = -1  # every entity
GROWTH_WORDS = 16  # more than one fold can add: an event, a bucket, a day and a label


@njit(cache=True, nogil=True)
def hint(words, index, rec, mask, ahead):  # type: ignore[no-untyped-def]
    """Ask for what a record meets that comes ``ahead`` records from now: the nearer, the more.

    Of the entities in ``mask``: 3 records ahead where the index says where their states lie, 2
    ahead their beginnings, 1 ahead all of them. With a million states this halves a fold's time.
    """
    for entity in range(len(rec.entities)):
        key = rec.entities[entity]
        if key == 0 or not mask >> entity & 1:
            continue
        if ahead == 3:
            prefetch(index.reshape(index.size), index.shape[1] * first_row(index, key))
            continue
        row = find(index, key)
        if index[row, KEY] == EMPTY:
            continue
        place = index[row, PLACE]
        stop = place + (length_of(words[place + META]) if ahead == 1 else 1)
        for at in range(place, stop, LINE_WORDS):
            prefetch(words, at)


@njit(cache=True, nogil=True)
def hint_all(words, index, records, at):  # type: ignore[no-untyped-def]
    """Ask for what the records after ``at`` meet."""
    for ahead in range(1, 4):
        if at + ahead < len(records):
            hint(words, index, records[at + ahead], ALL, ahead)


@njit(cache=True, nogil=True)
def reserve_all(words, index, counters, rec):  # type: ignore[no-untyped-def]
    """Make room for one more fold into each state of a record; return whether there is any."""
    for key in rec.entities:
        if key == 0:
            continue
        row = find(index, key)
        used = 0
        if index[row, KEY] != EMPTY:
            used = length_of(words[index[row, PLACE] + META])
        if reserve(words, index, counters, key, used + GROWTH_WORDS) < 0:
            return False
    return True


@njit(cache=True, nogil=True)
def gather(words, index, rec, rows):  # type: ignore[no-untyped-def]
    """Copy the states that a record meets into ``rows``; an unknown one is all zeros."""
    for entity in range(len(rec.entities)):
        rows[entity, 0] = 0
        key = rec.entities[entity]
        if key == 0:
            continue
        row = find(index, key)
        used = 0
        if index[row, KEY] != EMPTY:
            place = index[row, PLACE]
            used = length_of(words[place + META])
            move(rows[entity], 0, words, place, used)
        if used == 0:
            rows[entity, :32] = 0


@njit(cache=True, nogil=True)
def fold_all(words, index, counters, changed, rec, position):  # type: ignore[no-untyped-def]
    """Fold a record into each of its states, for which there is room."""
    for entity in range(len(rec.entities)):
        key = rec.entities[entity]
        if key != 0:
            row = find(index, key)
            place = index[row, PLACE]
            fold(words[place : place + SIZES_WORDS[index[row, SIZE]]], entity, rec, position)
            if index[row, DIRTY] == 0:
                index[row, DIRTY] = 1
                changed[counters[CHANGED]] = key
                counters[CHANGED] += 1


@njit(cache=True, nogil=True)
def run_all(words, index, counters, changed, records, positions, marks, at, ops, rows, lines, out):  # type: ignore[no-untyped-def]
    """View (where ``out`` has rows) and fold each record from ``at`` on; return where it ended."""
    for i in range(at, len(records)):
        if len(marks) > 0 and marks[i] >= 0:
            records[i].flags = records[marks[i]].flags
        rec = records[i]
        hint_all(words, index, records, i)
        if not reserve_all(words, index, counters, rec):
            return i
        if len(out) > 0 and rec.kind == Kind.TRANSACTION:
            gather(words, index, rec, rows)
            records[i].flags |= view(rows, rec, ops, lines, out[i])
        fold_all(words, index, counters, changed, records[i], positions[i])
    return len(records)


@njit(cache=True)
def _meets(keys, key):  # type: ignore[no-untyped-def]
    """Return whether a key is among ``keys`` int64[n]."""
    found = 0  # without a way out of the loop, so that several are compared in one step
    for each in keys:
        found |= each == key
    return found != 0


@njit(cache=True)
def lend_all(words, index, records, rows):  # type: ignore[no-untyped-def]
    """Copy the states that ``records[0]`` meets into ``rows``; return bits of those not here.

    Holds the GIL, as ``admit`` and ``absorb_all`` do: their callers answer calls, and giving it
    up for a microsecond invites a wait that is a thousand times as long.
    """
    rec = records[0]
    missing = 0
    for entity in range(len(rec.entities)):
        key = rec.entities[entity]
        rows[entity, :HEADER] = 0
        if key == 0:
            continue
        row = find(index, key)
        if index[row, KEY] == EMPTY:
            missing |= 1 << entity
            continue
        place = index[row, PLACE]
        used = length_of(words[place + META])
        move(rows[entity], 0, words, place, used)
    return missing


@njit(cache=True)
def _unpack(stored, missing, rows):  # type: ignore[no-untyped-def]
    """Fill the rows of the ``missing`` with their states; where none is stored stands a 0."""
    at = 0
    for entity in range(rows.shape[0]):
        if missing >> entity & 1:
            used = length_of(stored[at + META])
            rows[entity, :HEADER] = 0
            move(rows[entity], 0, stored, at, used)
            at += max(used, 1)


@njit(cache=True)
def admit(words, index, counters, records, rows, missing, stored, pending, keep):  # type: ignore[no-untyped-def]
    """Fold what is pending into the ``missing`` as stored and keep them; return if all fitted.

    Without ``stored`` states the rows have them.
    """
    others, positions, columns, first, stop = pending
    rec = records[0]
    if len(stored) > 0:
        _unpack(stored, missing, rows)
    for entity in range(len(rec.entities)):
        key = rec.entities[entity]
        if missing >> entity & 1 and _meets(columns[entity, first:stop], key):
            for i in range(first, stop):
                if columns[entity, i] == key:
                    fold(rows[entity], entity, others[i], positions[i])
    if not keep:
        return True
    for entity in range(len(rec.entities)):
        if missing >> entity & 1:
            used = max(length(rows[entity]), HEADER)  # an empty one replaces what is here, too
            row = reserve(words, index, counters, rec.entities[entity], used + GROWTH_WORDS)
            if row < 0:
                return False
            place = index[row, PLACE]
            move(words, place, rows[entity], 0, used)
    return True


@njit(cache=True)
def lacking(index, records, keys, entities):  # type: ignore[no-untyped-def]
    """Note each key that ``records`` meet and that is not here, and its entity; return how many.

    One that several of them meet is noted once.
    """
    count = 0
    for i in range(len(records)):
        for entity in range(len(records[i].entities)):
            key = records[i].entities[entity]
            if key == 0 or index[find(index, key), KEY] != EMPTY or _meets(keys[:count], key):
                continue
            keys[count], entities[count] = key, entity
            count += 1
    return count


@njit(cache=True)
def admit_all(words, index, counters, keys, entities, data, ends, pending, at):  # type: ignore[no-untyped-def]
    """Take in the state of each key from ``at`` on, with what is pending; return where it ended."""
    records, positions, columns, first, stop = pending
    for k in range(at, len(keys)):
        start = ends[k - 1] if k > 0 else 0
        used = ends[k] - start
        row = reserve(words, index, counters, keys[k], max(used, HEADER) + GROWTH_WORDS)
        if row < 0:
            return k
        place = index[row, PLACE]
        words[place : place + used] = data[start : ends[k]]
        if not _meets(columns[entities[k], first:stop], keys[k]):
            continue
        for i in range(first, stop):
            if columns[entities[k], i] != keys[k]:
                continue
            used = max(length_of(words[place + META]), HEADER)
            row = reserve(words, index, counters, keys[k], used + GROWTH_WORDS)
            if row < 0:
                return k
            place = index[row, PLACE]
            here = words[place : place + SIZES_WORDS[index[row, SIZE]]]
            fold(here, entities[k], records[i], positions[i])
    return len(keys)


@njit(cache=True)
def absorb_all(words, index, counters, records, positions, first, stop):  # type: ignore[no-untyped-def]
    """Fold the records from ``first`` on into the states that are here; return where it ended."""
    for i in range(first, stop):
        rec = records[i]
        for entity in range(len(rec.entities)):
            key = rec.entities[entity]
            row = find(index, key) if key != 0 else 0
            if key == 0 or index[row, KEY] == EMPTY:
                continue
            used = length_of(words[index[row, PLACE] + META])
            row = reserve(words, index, counters, key, used + GROWTH_WORDS)
            if row < 0:
                return i
            place = index[row, PLACE]
            fold(words[place : place + SIZES_WORDS[index[row, SIZE]]], entity, rec, positions[i])
    return stop


@njit(cache=True, nogil=True)
def apply_all(words, index, counters, changed, updates, positions, at):  # type: ignore[no-untyped-def]
    """Fold each update from ``at`` on into the entities that its mask names; return the end."""
    for i in range(at, len(updates)):
        rec = updates[i].record
        for ahead in range(1, 4):
            if i + ahead < len(updates):
                hint(words, index, updates[i + ahead].record, updates[i + ahead].mask, ahead)
        for entity in range(len(rec.entities)):
            key = rec.entities[entity]
            if not updates[i].mask >> entity & 1:
                continue
            row = find(index, key)
            used = 0
            if index[row, KEY] != EMPTY:
                used = length_of(words[index[row, PLACE] + META])
            row = reserve(words, index, counters, key, used + GROWTH_WORDS)
            if row < 0:
                return i
            place = index[row, PLACE]
            fold(words[place : place + SIZES_WORDS[index[row, SIZE]]], entity, rec, positions[i])
            if index[row, DIRTY] == 0:
                index[row, DIRTY] = 1
                changed[counters[CHANGED]] = key
                counters[CHANGED] += 1
    return len(updates)
