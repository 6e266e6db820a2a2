"""What stands in Redis: the names of keys, and the label of a partition.

Owns every byte that is written there. Must not know connections, nor what a state means.

    {PREFIX:p}m          label: position, writes, epoch, writer, schema
    {PREFIX:p}s + key    a state
    {PREFIX:p}i + id     the position of an id's frame

Numbers are 8 bytes, little-endian. The hash tag keeps a partition in one slot of a cluster. Each
write changes the label and takes effect only where it finds the label that its writer left, so of
two writers, or of two attempts at one write, the late one changes nothing.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from featurizer.store import StoreError, StoreStale

FORMAT = b"FRS1"
# Stands in place of a label while a partition is deleted, so that no half of it is ever opened;
# chance follows, so that of two who delete only one does.
DISCARDING = b"discarding"
NUMBER = struct.Struct("<q")
# First and last byte of a number: a state's last event's time, and an id's position.
EVENT_TIME = (b"8", b"15")
PLACE = (b"0", b"7")

_HEAD = struct.Struct("<4sqq8s8s")
_START = struct.Struct("<4sq")
_PREFIX = re.compile(r"[A-Za-z0-9_.-]{1,64}")

# These two do something only where the label is the one that is given, and also where the server is
# full, which refuses a transaction: what is there can still be opened, swept and deleted.
RELABEL = b"""#!lua flags=allow-oom
local label = redis.call('GET', KEYS[1]) or ''
if label ~= ARGV[1] then return label end
redis.call('SET', KEYS[1], ARGV[2])
return 1
"""
DROP = b"""#!lua flags=allow-oom
local label = redis.call('GET', KEYS[1]) or ''
if label ~= ARGV[1] then return label end
local dropped = 0
for i = 2, #KEYS do dropped = dropped + redis.call('UNLINK', KEYS[i]) end
return dropped
"""


class Names:
    """The keys of one partition. Raises StoreError for a prefix that could be a pattern."""

    __slots__ = ("ids", "label", "states", "tag")

    def __init__(self, prefix: str, partition: int) -> None:
        if not _PREFIX.fullmatch(prefix):
            raise StoreError(f"a prefix has letters, digits and _.- only, not {prefix!r}")
        tag = f"{{{prefix}:{partition}}}".encode()
        self.tag = tag
        self.label = tag + b"m"
        self.states = tag + b"s"
        self.ids = tag + b"i"


class Label(NamedTuple):
    """What a partition says of itself.

    ``writes`` counts, so that no two labels are alike; ``epoch`` is chance, drawn when the
    partition was made; ``writer`` is chance, drawn by who writes it.
    """

    position: int
    writes: int
    epoch: bytes
    writer: bytes
    schema: str

    def pack(self) -> bytes:
        """Return the label's bytes. Raises struct.error for a position outside int64."""
        head = _HEAD.pack(FORMAT, self.position, self.writes, self.epoch, self.writer)
        return head + self.schema.encode()


def read_label(value: bytes | None, schema: str) -> Label:
    """Return the label in ``value``. Raises StoreStale where it is none, or of another schema."""
    if not value:
        raise StoreStale("the states are gone")
    if value.startswith(DISCARDING):
        raise StoreStale("the states are being deleted")
    if len(value) < _HEAD.size or not value.startswith(FORMAT):
        raise StoreStale(f"the states are not of format {FORMAT.decode()}")
    _, position, writes, epoch, writer = _HEAD.unpack_from(value)
    label = Label(position, writes, epoch, writer, value[_HEAD.size :].decode(errors="replace"))
    if label.schema != schema:
        raise StoreStale(f"the states have schema {label.schema}, not {schema}")
    return label


def read_position(value: bytes | None, schema: bytes) -> int:
    """Return the position alone: ``read_label`` for who reads often. ``schema`` is encoded."""
    if value is not None and value[_HEAD.size :] == schema:
        format_, position = _START.unpack_from(value)
        if format_ == FORMAT:
            return int(position)
    return read_label(value, schema.decode()).position
