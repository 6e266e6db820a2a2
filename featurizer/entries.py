"""An entry as it stands in a frame: its header, its value, and zeros up to a multiple of 8.

Owns the bytes of one entry, and of those that a kernel writes one after another. What a frame adds
is the business of ``frames``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import overload

from numba import njit

from featurizer.eventlog import Entry, LogError, Topic

ENTRY_VERSION = 1
ALIGNMENT_BYTES = 8
ENTRY_HEADER = struct.Struct("<BBHIq")
ENTRY_HEADER_BYTES = ENTRY_HEADER.size
_PADDING = tuple(bytes(n) for n in range(ALIGNMENT_BYTES))


class Packed(Sequence[Entry]):
    """Entries that a kernel wrote as they stand in a frame; ``body`` are the bytes of ``count``."""

    __slots__ = ("_count", "body")

    def __init__(self, body: bytes, count: int) -> None:
        self.body = body
        self._count = count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, place: int) -> Entry: ...
    @overload
    def __getitem__(self, place: slice) -> list[Entry]: ...
    def __getitem__(self, place: int | slice) -> Entry | list[Entry]:
        return [*self][place]

    def __iter__(self) -> Iterator[Entry]:
        at = 0
        for _ in range(self._count):
            topic, _, _, length, key = ENTRY_HEADER.unpack_from(self.body, at)
            at += ENTRY_HEADER.size
            yield Entry(Topic(topic), key, self.body[at : at + length])
            at += length + (-length & 7)


@njit(cache=True)
def put_entry_head(words, at, topic, key, length):  # type: ignore[no-untyped-def]
    """Write an entry's header at byte ``at``, a multiple of 8; return where its value goes.

    ``words`` int64[n] are the memory that the entry is made in.
    """
    words[at >> 3] = topic | ENTRY_VERSION << 8 | length << 32
    words[(at >> 3) + 1] = key
    return at + ENTRY_HEADER_BYTES


def body_of(entries: Sequence[Entry]) -> bytes:
    """Return the entries one after another. Raises LogError where one does not fit."""
    parts = []
    try:
        for topic, key, value in entries:
            length = len(value)
            parts.append(ENTRY_HEADER.pack(topic, ENTRY_VERSION, 0, length, key))
            parts.append(value)
            if length & 7:
                parts.append(_PADDING[-length & 7])
    except struct.error as error:
        raise LogError(f"topic {topic} with key {key} does not fit an entry: {error}") from error
    return b"".join(parts)
