"""The memory of an arena: rows of five sizes, an index over them, and lists of free ones.

Owns where a state lies. Must not know what is in it beyond its length, nor why it is looked for.
"""

from __future__ import annotations

import mmap

import numpy as np
from numba import njit
from numpy.typing import NDArray

from featurizer.state import META, ROW_WORDS, length_of

SIZES_WORDS = np.array([64, 128, 256, 512, ROW_WORDS], np.int64)
EMPTY = 0

# Columns of the index, one row a state.
KEY = 0
PLACE = 1
SIZE = 2
DIRTY = 3

# Entries of the counters.
STATES = 0
USED_WORDS = 1
CHANGED = 2  # keys in the list of those that are dirty
FREE = 3  # first free row of each size, -1 for none; a free row's first word names the next


_NO_RESERVE = 0x4000  # MAP_NORESERVE of Linux, which the mmap module names from 3.12 on


def reserve_words(count: int) -> NDArray[np.int64]:
    """Return int64[count] of zeros whose pages are taken from the system when first touched."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE
    return np.frombuffer(mmap.mmap(-1, max(8 * count, mmap.PAGESIZE), flags), np.int64, count)


@njit(cache=True, nogil=True)
def first_row(index, key):  # type: ignore[no-untyped-def]
    """Return the index row at which the search for a key begins."""
    return (key ^ (key >> 32)) & (index.shape[0] - 1)


@njit(cache=True, nogil=True)
def find(index, key):  # type: ignore[no-untyped-def]
    """Return the index row of a key, or of the empty row where it belongs."""
    mask = index.shape[0] - 1
    row = first_row(index, key)
    while index[row, KEY] != key and index[row, KEY] != EMPTY:
        row = (row + 1) & mask
    return row


@njit(cache=True, nogil=True)
def _allocate(words, counters, size):  # type: ignore[no-untyped-def]
    """Return the place of an empty row of a size, or -1 where the memory is used up."""
    place = counters[FREE + size]
    if place >= 0:
        counters[FREE + size] = words[place]
    else:
        place = counters[USED_WORDS]
        if place + SIZES_WORDS[size] > len(words):
            return -1
        counters[USED_WORDS] = place + SIZES_WORDS[size]
    words[place : place + SIZES_WORDS[size]] = 0
    return place


@njit(cache=True, nogil=True)
def reserve(words, index, counters, key, needed_words):  # type: ignore[no-untyped-def]
    """Return the index row of a key with room for ``needed_words``, made or moved where needed.

    Returns -1 where the memory is used up; nothing has changed then.
    """
    row = find(index, key)
    known = index[row, KEY] != EMPTY
    if known and needed_words <= SIZES_WORDS[index[row, SIZE]]:
        return row
    if not known and 4 * (counters[STATES] + 1) > 3 * index.shape[0]:
        return -1
    size = 0
    while size < len(SIZES_WORDS) - 1 and SIZES_WORDS[size] < needed_words:
        size += 1
    if known and size <= index[row, SIZE]:
        return row  # the largest size already
    place = _allocate(words, counters, size)
    if place < 0:
        return -1
    if known:
        old = index[row, PLACE]
        used = length_of(words[old + META])
        words[place : place + used] = words[old : old + used]
        words[old] = counters[FREE + index[row, SIZE]]
        counters[FREE + index[row, SIZE]] = old
    else:
        counters[STATES] += 1
        index[row, KEY] = key
        index[row, DIRTY] = 0
    index[row, PLACE] = place
    index[row, SIZE] = size
    return row


@njit(cache=True, nogil=True)
def rows_of(index, keys):  # type: ignore[no-untyped-def]
    """Return int64[n]: the index row of each key, all of which are here."""
    rows = np.empty(len(keys), np.int64)
    for i in range(len(keys)):
        rows[i] = find(index, keys[i])
    return rows


@njit(cache=True, nogil=True)
def rehash(old, new):  # type: ignore[no-untyped-def]
    """Enter every row of the index ``old`` in the empty index ``new``."""
    for i in range(old.shape[0]):
        if old[i, KEY] != EMPTY:
            new[find(new, old[i, KEY])] = old[i]


@njit(cache=True, nogil=True)
def place_all(words, index, counters, keys, data, stops, at, spare):  # type: ignore[no-untyped-def]
    """Copy states from ``data`` to new rows from ``at`` on; return where there was no room, or n.

    ``stops`` int64[n] are where they end, ``spare`` words each gets beyond. None is here yet.
    """
    for i in range(at, len(keys)):
        start = stops[i - 1] if i > 0 else 0
        row = reserve(words, index, counters, keys[i], stops[i] - start + spare)
        if row < 0:
            return i
        place = index[row, PLACE]
        words[place : place + stops[i] - start] = data[start : stops[i]]
    return len(keys)


@njit(cache=True, nogil=True)
def absent(words, index, keys):  # type: ignore[no-untyped-def]
    """Return bool[n]: for which keys there is no state."""
    found = np.empty(len(keys), np.bool_)
    for i in range(len(keys)):
        row = find(index, keys[i])
        # A batch that ran out of memory may leave room for a state without the state.
        found[i] = index[row, KEY] != keys[i] or words[index[row, PLACE] + META] == 0
    return found


@njit(cache=True, nogil=True)
def measure(words, places, stops):  # type: ignore[no-untyped-def]
    """Fill ``stops`` int64[n] with where each state ends when they stand in a row; return where."""
    end = 0
    for i in range(len(places)):
        end += length_of(words[places[i] + META])
        stops[i] = end
    return end


@njit(cache=True, nogil=True)
def collect(words, places, stops, out):  # type: ignore[no-untyped-def]
    """Copy the states at ``places`` into ``out``, one after another, as ``measure`` said."""
    start = 0
    for i in range(len(places)):
        size = stops[i] - start
        out[start : stops[i]] = words[places[i] : places[i] + size]
        start = stops[i]
