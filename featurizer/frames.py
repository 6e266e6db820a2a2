"""The frame format: how entries become the bytes of a log, and those bytes columns again.

Owns the layout, its limits and its checks. Must not know files, segments or threads.

A frame is a header of 16 bytes (magic ``FRL1``, body length u32, CRC-32C u32, entry count u16,
flags u16) and its entries, each with a header of 16 bytes (topic u8, version u8, reserved u16,
length u32, key i64) and padded to 8 bytes. All integers are little-endian and all frames start at
a multiple of 8. The last byte of a frame is 0 (8 bytes are added where it would not be), and what
fills up a torn frame to a multiple of 8 is TORN_FILLER, so that it never completes the frame.
The CRC covers the length, the count, the flags and the body, and starts from the
log's own random *salt*: so bytes of a value, or of another log, can never pass for a frame when
a reader looks for the next good one inside damage.

The frames of a call that appends several are a *group*: each is marked GROUPED, and two CLOSE
frames follow, each with its distance to the first frame. Frames of a group without a CLOSE do not
exist, so a write that the disk cut short leaves nothing behind; there are two, so that a damaged
CLOSE does not take the group with it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntFlag
from typing import NamedTuple

import google_crc32c
import numpy as np
from numba import njit
from numpy.typing import NDArray

from featurizer.entries import ALIGNMENT_BYTES, Packed, body_of
from featurizer.eventlog import Batch, Damage, Entry, LogError

MAGIC = 0x314C5246  # "FRL1"
HEADER_BYTES = 16
MAX_APPEND_BYTES = 16 << 20  # all frames of one call
MAX_FRAME_ENTRIES = 0xFFFF
CLOSE_BYTES = HEADER_BYTES + 8
TORN_FILLER = b"\xff"


class FrameFlag(IntFlag):
    """Bits of a frame's ``flags``."""

    SEAL = 1  # the segment ends here
    GROUPED = 2  # counts only when a CLOSE that reaches back to it follows
    FIRST = 4  # the first of its group
    CLOSE = 8  # ends a group; the body is its distance to the group's first frame, i64


# Causes of damage, by the number that the kernel reports.
CAUSES = ("no whole frame", "frames of a write that was cut short")

FRAME_HEADER = struct.Struct("<IIIHH")
_CHECKED = struct.Struct("<IHH")
_DISTANCE = struct.Struct("<q")
_extend = google_crc32c.extend

# Plain numbers: an IntFlag's operators cost a microsecond, and the kernel wants constants.
_SEAL, _GROUPED, _FIRST, _CLOSE = (int(flag) for flag in FrameFlag)
_MAGIC = np.uint64(MAGIC)
_LOW_32 = np.uint64(0xFFFFFFFF)
_LOW_16 = np.uint64(0xFFFF)
_LOW_8 = np.uint64(0xFF)


def _slicing_tables(count: int) -> NDArray[np.uint32]:
    """Return uint32[count, 256]: row k is the CRC-32C of a byte followed by k zero bytes."""
    tables = np.zeros((count, 256), np.uint32)
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
        tables[0, byte] = crc
    for k in range(1, count):
        tables[k] = (tables[k - 1] >> 8) ^ tables[0][tables[k - 1] & 0xFF]
    return tables


_TABLES = _slicing_tables(8)


def checked_frame(body: bytes, count: int, flags: int, salt: int) -> bytes:
    """Return a frame of a body that is made already."""
    crc = _extend(_extend(salt, _CHECKED.pack(len(body), count, flags)), body)
    return FRAME_HEADER.pack(MAGIC, len(body), crc, count, flags) + body


def encode_seal(salt: int) -> bytes:
    """Return the frame that ends a segment."""
    return checked_frame(b"", 0, _SEAL, salt)


def encode_frame(entries: Sequence[Entry], salt: int, flags: int = 0) -> bytes:
    """Return one frame, a multiple of 8 bytes.

    ``salt`` is the log's, 0 to 2**32-1. Raises LogError for no or too many entries, for a key
    outside int64 and for a topic outside a byte.
    """
    if not 0 < len(entries) <= MAX_FRAME_ENTRIES:
        raise LogError(f"a frame has 1 to {MAX_FRAME_ENTRIES} entries, not {len(entries)}")
    body = entries.body if isinstance(entries, Packed) else body_of(entries)
    if body[-1]:
        body += bytes(ALIGNMENT_BYTES)
    return checked_frame(body, len(entries), flags, salt)


def encode_append(frames: Sequence[Sequence[Entry]], salt: int) -> tuple[bytes, list[int], int]:
    """Return the bytes of one append, each frame's offset in them, and how many bytes suffice.

    Once the bytes that suffice are on the log, all frames exist; with fewer, none does. Raises
    LogError for what ``encode_frame`` refuses and for more than MAX_APPEND_BYTES.
    """
    if len(frames) == 1:
        data = encode_frame(frames[0], salt)
        offsets, enough = [0], len(data)
    else:
        data, offsets, enough = _encode_group(frames, salt)
    if len(data) > MAX_APPEND_BYTES:
        raise LogError(f"an append has at most {MAX_APPEND_BYTES} bytes, not {len(data)}")
    return data, offsets, enough


def _encode_group(frames: Sequence[Sequence[Entry]], salt: int) -> tuple[bytes, list[int], int]:
    parts: list[bytes] = []
    offsets: list[int] = []
    size = 0
    for entries in frames:
        flags = _GROUPED if offsets else _GROUPED | _FIRST
        parts.append(encode_frame(entries, salt, flags))
        offsets.append(size)
        size += len(parts[-1])
    distances = (size, size + CLOSE_BYTES)
    parts += [checked_frame(_DISTANCE.pack(d), 0, _CLOSE, salt) for d in distances]
    return b"".join(parts), offsets, size + CLOSE_BYTES


@njit(cache=True, nogil=True)
def _crc_is_right(words, at, total, salt):  # type: ignore[no-untyped-def]
    """Check the CRC-32C of the frame of ``total`` words at ``at`` by slicing-by-8 (Intel, 2006)."""
    second = words[at + 1]
    word = (words[at] >> np.uint64(32)) | (second & ~_LOW_32)
    crc = np.uint64(salt) ^ _LOW_32
    for i in range(at + 1, at + total):
        if i > at + 1:
            word = words[i]
        x = word ^ crc
        crc = np.uint64(
            _TABLES[7, x & _LOW_8]
            ^ _TABLES[6, (x >> np.uint64(8)) & _LOW_8]
            ^ _TABLES[5, (x >> np.uint64(16)) & _LOW_8]
            ^ _TABLES[4, (x >> np.uint64(24)) & _LOW_8]
            ^ _TABLES[3, (x >> np.uint64(32)) & _LOW_8]
            ^ _TABLES[2, (x >> np.uint64(40)) & _LOW_8]
            ^ _TABLES[1, (x >> np.uint64(48)) & _LOW_8]
            ^ _TABLES[0, x >> np.uint64(56)]
        )
    return (crc ^ _LOW_32) == (second & _LOW_32)


@njit(cache=True, nogil=True)
def _count_and_flags(second):  # type: ignore[no-untyped-def]
    return np.int64((second >> np.uint64(32)) & _LOW_16), np.int64(second >> np.uint64(48))


@njit(cache=True, nogil=True)
def _words_claimed(first, second):  # type: ignore[no-untyped-def]
    """Return how many words a header says its frame has, 0 where it cannot be a header."""
    length = np.int64(first >> np.uint64(32))
    count, _ = _count_and_flags(second)
    if (first & _LOW_32) != _MAGIC or length & 7 or length > MAX_APPEND_BYTES:
        return 0
    return 2 + length // 8 if count * 16 <= length else 0


@njit(cache=True, nogil=True)
def _entries_fit(words, at, total, count):  # type: ignore[no-untyped-def]
    i = at + 2
    for _ in range(count):
        if i + 2 > at + total:
            return False
        i += 2 + (np.int64(words[i] >> np.uint64(32)) + 7) // 8
    return i <= at + total


@njit(cache=True, nogil=True)
def _take_entries(words, at, count, origin, rows, entries):  # type: ignore[no-untyped-def]
    i = at + 2
    for k in range(entries, entries + count):
        length = np.int64(words[i] >> np.uint64(32))
        rows[0, k] = np.int64(words[i] & _LOW_8)
        rows[1, k] = np.int64(words[i + 1])
        rows[2, k] = (i + 2) * 8
        rows[3, k] = length
        rows[4, k] = origin + at * 8 + 1 + k - entries
        rows[5, k] = origin + at * 8
        i += 2 + (length + 7) // 8


@njit(cache=True, nogil=True)
def _drop_before(rows, first, stop, position):  # type: ignore[no-untyped-def]
    """Remove the entries of rows first to stop whose frame is before ``position``."""
    kept = first
    for k in range(first, stop):
        if rows[5, k] >= position:
            for row in range(6):
                rows[row, kept] = rows[row, k]
            kept += 1
    return kept


@njit(cache=True, nogil=True)
def _note(damage, count, start, stop, cause):  # type: ignore[no-untyped-def]
    if stop <= start:
        return count
    damage[count, 0] = start
    damage[count, 1] = stop
    damage[count, 2] = cause
    return count + 1


@njit(cache=True, nogil=True)
def _frame_words(words, at, final, salt):  # type: ignore[no-untyped-def]
    """Return the words of the good frame at ``at``, 0 where there is none.

    Where the block ends inside it and is not ``final``, return minus the words it claims.
    """
    total = _words_claimed(words[at], words[at + 1])
    if at + total > len(words):
        return 0 if final else -total
    if total == 0 or not _crc_is_right(words, at, total, salt):
        return 0
    count, _ = _count_and_flags(words[at + 1])
    return total if _entries_fit(words, at, total, count) else 0


@njit(cache=True, nogil=True)
def _end_group(words, at, flags, group, rows, first_entry, entries, origin):  # type: ignore[no-untyped-def]
    """Decide on the open group when the frame at ``at`` is not one more of it.

    Return the word where what exists of it begins, and how many entries there are then.
    """
    if not flags & _CLOSE:
        return at, first_entry
    start = max(group, at - np.int64(words[at + 2]) // 8)
    return start, _drop_before(rows, first_entry, entries, origin + start * 8)


@njit(cache=True, nogil=True)
def scan(words, final, salt, origin, rows, damage):  # type: ignore[no-untyped-def]
    """Read the whole frames of ``words`` into columns.

    ``words`` is uint64[n], the block; ``final`` says that nothing follows it (yet); ``origin`` is
    the position of its first byte. Writes to ``rows`` int64[6, n // 2 + 1] one column per entry:
    topic, key, byte offset of the value in the block, its length, position of the entry, position
    of its frame; and to ``damage`` int64[n // 2 + 2, 3] word offsets start and stop, and a cause.

    Returns (entries, next, needed, sealed, damages): entries read; the word to read on from; how
    many words a block should have to get further than that, 0 where this one was no hindrance;
    the word after the seal, or -1; rows of ``damage``. Where ``final``, the words from ``next``
    on are not a frame yet.
    """
    at, entries, damages, needed, first_entry = 0, 0, 0, 0, 0
    bad, group, sealed = -1, -1, -1
    while at + 2 <= len(words) and sealed < 0:
        total = _frame_words(words, at, final, salt)
        if total < 0:
            needed = at - total
            break
        if total == 0:
            bad = at if bad < 0 else bad
            at += 1
            continue
        if bad >= 0:
            damages = _note(damage, damages, bad, at, 0)
            bad = -1
        count, flags = _count_and_flags(words[at + 1])
        if group >= 0 and (not flags & _GROUPED or flags & _FIRST):
            start, entries = _end_group(words, at, flags, group, rows, first_entry, entries, origin)
            damages = _note(damage, damages, group, start, 1)
            group = -1
        if flags & _GROUPED and group < 0:
            group, first_entry = at, entries
        _take_entries(words, at, count, origin, rows, entries)
        entries += count
        at += total
        sealed = at if flags & _SEAL else -1
    if group >= 0:
        return first_entry, group, max(needed, 2 * len(words)), sealed, damages
    if bad >= 0 and final:
        return entries, bad, needed, sealed, damages
    if bad >= 0:
        damages = _note(damage, damages, bad, at, 0)
    return entries, at, needed, sealed, damages


class Scanned(NamedTuple):
    """What a block held, all but ``entries`` and ``damages`` as positions on the log."""

    entries: int
    next_position: int
    needed_bytes: int  # a block of this many gets further; 0 where the block was no hindrance
    sealed: int  # after the seal, or -1
    damages: int


class FrameScanner:
    """Turns blocks of a log with ``salt`` into batches; keeps its buffers, so for one thread."""

    def __init__(self, salt: int) -> None:
        self._salt = salt
        self._rows = np.empty((6, 1), np.int64)
        self._damage = np.empty((2, 3), np.int64)
        self.scan(b"", True, 0)  # compiles the kernel now, not at the first read

    def scan(self, data: bytes, final: bool, origin: int) -> Scanned:
        """Read the block ``data`` at position ``origin``; ``batch`` then gives its entries.

        ``final`` says that nothing follows it (yet).
        """
        count = len(data) >> 3
        if count // 2 >= self._rows.shape[1]:
            self._rows = np.empty((6, count // 2 + 1), np.int64)
            self._damage = np.empty((count // 2 + 2, 3), np.int64)
        words = np.frombuffer(data, np.uint64, count)
        entries, taken, needed, sealed, damages = scan(
            words, final, self._salt, origin, self._rows, self._damage
        )
        end = -1 if sealed < 0 else origin + sealed * 8
        return Scanned(entries, origin + taken * 8, needed * 8, end, damages)

    def batch(
        self, data: bytes, found: Scanned, origin: int, next_position: int, tail: tuple[Damage, ...]
    ) -> Batch:
        """Return the entries that the last ``scan`` found, with the damage and then ``tail``."""
        rows = self._rows[:, : found.entries].copy()
        damage = tail
        if found.damages:
            damage = (*self._damages(found, origin), *tail)
        topics = rows[0].astype(np.uint8)
        return Batch(
            data, topics, rows[1], rows[2], rows[3], rows[4], rows[5], next_position, damage
        )

    def _damages(self, found: Scanned, origin: int) -> list[Damage]:
        """Return the damage before the next position, in order, without overlaps."""
        merged: list[Damage] = []
        for start, stop, cause in sorted(self._damage[: found.damages].tolist()):
            position, end = origin + start * 8, origin + stop * 8
            if position >= found.next_position:
                break
            if merged:
                position = max(position, merged[-1].position + merged[-1].length)
            if position < end:
                merged.append(Damage(position, end - position, CAUSES[cause]))
        return merged


def find_seal(data: bytes, salt: int) -> int | None:
    """Return the offset after the first seal in ``data``, None where there is none."""
    sealed = FrameScanner(salt).scan(data, True, 0).sealed
    return None if sealed < 0 else sealed


_NO_NUMBERS = np.empty(0, np.int64)
_NO_TOPICS = np.empty(0, np.uint8)


def no_entries(next_position: int, *damage: Damage) -> Batch:
    """Return a batch without entries."""
    none = _NO_NUMBERS
    return Batch(b"", _NO_TOPICS, none, none, none, none, none, next_position, damage)
