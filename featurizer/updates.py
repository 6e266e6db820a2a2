"""What a split sends to a fold: the records of a batch, packed once for each partition they touch.

Owns the layout of a packed array and which entity belongs to which partition. Must not know how
it travels, nor what a fold does.

A packed array is HEAD and then UPDATE rows. A row's ``mask`` has a bit for each entity of its
record that belongs to the partition; ``host`` and ``position`` say where the record was written
first, ``offset`` where it stood when it was split. A source's rows come in the order of that, and
one that is not beyond the last is a repeat, which whoever reads drops (``take_new``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from featurizer.eventlog import LogError
from featurizer.records import RECORD, Entity, Kind

UPDATES_VERSION = 2
HEAD = np.dtype(
    [("version", "u1"), ("spare", "u1"), ("input", "<u2"), ("count", "<u4"), ("schema", "<i8")]
)
UPDATE = np.dtype(
    [("mask", "<i8"), ("offset", "<i8"), ("host", "<i8"), ("position", "<i8"), ("record", RECORD)],
    align=False,
)
PLACE_BITS = 20  # of a log position, below the offset: the row's place in its array
ROWS_MAX = 1 << PLACE_BITS
KINDS = len(Kind)  # of records, each of which has a source of its own in a partition

_OFFSETS: Mapping[str, tuple[Any, ...]] = RECORD.fields or {}
_ENTITIES_WORD = _OFFSETS["entities"][1] // 8
_RECORD_WORDS = RECORD.itemsize // 8
_ROW_WORDS = UPDATE.itemsize // 8
_LEAD = _ROW_WORDS - _RECORD_WORDS


@njit(cache=True, nogil=True)
def home_of(key, partitions):  # type: ignore[no-untyped-def]
    """Return the partition of an entity."""
    return np.int64(np.uint64(key) % np.uint64(partitions))


def homes_of(keys: NDArray[np.int64], partitions: int) -> NDArray[np.int64]:
    """Return the partition of each entity, int64 of the shape of ``keys``."""
    unsigned = np.ascontiguousarray(keys).view(np.uint64)
    homes: NDArray[np.int64] = (unsigned % np.uint64(partitions)).astype(np.int64)
    return homes


@njit(cache=True, nogil=True)
def _find_homes(words, partitions, homes):  # type: ignore[no-untyped-def]
    """Fill homes[i, entity], -1 where absent; return how many rows each partition gets."""
    counts = np.zeros(partitions, np.int64)
    last = np.full(partitions, -1, np.int64)  # the last record that gave the partition a row
    for i in range(words.shape[0]):
        for entity in range(homes.shape[1]):
            key = words[i, _ENTITIES_WORD + entity]
            homes[i, entity] = -1
            if key == 0:
                continue
            home = home_of(key, partitions)
            homes[i, entity] = home
            if last[home] != i:
                last[home] = i
                counts[home] += 1
    return counts


@njit(cache=True, nogil=True)
def _pack(words, places, homes, starts, rows):  # type: ignore[no-untyped-def]
    """Write the rows of each partition from ``starts[partition]`` on."""
    row_of = np.full(len(starts), -1, np.int64)
    for i in range(words.shape[0]):
        row_of[:] = -1
        for entity in range(homes.shape[1]):
            home = homes[i, entity]
            if home < 0:
                continue
            row = row_of[home]
            if row < 0:
                row = starts[home]
                starts[home] = row + 1
                row_of[home] = row
                rows[row, 0] = 0
                rows[row, 1:_LEAD] = places[i]
                rows[row, _LEAD:] = words[i]
            rows[row, 0] |= 1 << entity


def pack(
    records: NDArray[np.void],
    places: NDArray[np.int64],
    partitions: int,
    source: tuple[int, int],
) -> dict[int, bytes]:
    """Return a packed array for each partition that the records (RECORD[n]) touch.

    ``places`` int64[n, 3] are the offset of each, and host and position where it was written first;
    ``source`` is the partition that they were read from and the hash of the schema.
    """
    if len(records) > ROWS_MAX:
        raise ValueError(f"{len(records)} records in an array of at most {ROWS_MAX}")
    words = np.ascontiguousarray(records).view(np.int64).reshape(-1, _RECORD_WORDS)
    homes = np.empty((len(words), len(Entity)), np.int64)
    counts = _find_homes(words, partitions, homes)
    stops = np.cumsum(counts)
    rows = np.empty((int(stops[-1]), _ROW_WORDS), np.int64)
    _pack(words, places, homes, stops - counts, rows)
    head = np.zeros(1, HEAD)
    head["version"], head["input"], head["schema"] = UPDATES_VERSION, *source
    packed = {}
    for partition in np.flatnonzero(counts).tolist():
        head["count"] = counts[partition]
        stop = stops[partition]
        packed[partition] = head.tobytes() + rows[stop - counts[partition] : stop].tobytes()
    return packed


def sources_of(rows: NDArray[np.void], partition: int) -> Iterator[tuple[int, int, int]]:
    """Yield host, source and last position of what each host wrote of a packed array's rows.

    A source is where a host's records come in the order that it wrote them: one kind of record in
    one partition of the events.
    """
    for kind in (Kind.TRANSACTION, Kind.FEEDBACK):
        of_kind = rows[rows["record"]["kind"] == kind]
        for host in np.unique(of_kind["host"]).tolist():
            last = int(of_kind["position"][of_kind["host"] == host].max())
            yield host, source_of(partition, kind), last


def source_of(partition: Any, kind: Any) -> Any:
    """Return the number of a source; int, or int64[n] from int64[n] each."""
    return partition * KINDS + kind - Kind.TRANSACTION


def unpack(value: bytes, schema: int) -> tuple[int, NDArray[np.void]]:
    """Return the input partition and the rows (UPDATE[n]) of a packed array.

    Raises LogError for anything else, and for one of another schema.
    """
    if len(value) < HEAD.itemsize:
        raise LogError(f"{len(value)} bytes are no packed updates")
    head = np.frombuffer(value, HEAD, 1)[0]
    if head["version"] != UPDATES_VERSION:
        raise LogError(f"packed updates of version {head['version']}, not {UPDATES_VERSION}")
    if head["schema"] != schema:
        raise LogError("packed updates of another schema: rebuild from the log with this version")
    rows = np.frombuffer(value, UPDATE, offset=HEAD.itemsize)
    if len(rows) != head["count"]:
        raise LogError(f"packed updates of {len(rows)} rows that should be {head['count']}")
    return int(head["input"]), rows


class Updates(NamedTuple):
    """Rows (UPDATE[n]) of a packed array, their positions int64[n], and the input's partition."""

    partition: int
    rows: NDArray[np.void]
    positions: NDArray[np.int64]


def take_new(value: bytes, offset: int, schema: int, met: NDArray[np.int64]) -> Updates:
    """Return of the packed array at ``offset`` what was not met before, and note it in ``met``.

    ``met`` int64[sources] has the last offset that came from each source. Why that is enough to
    know a repeat by: docs/decisions/0033. Raises LogError, as ``unpack`` does, and for a source
    that ``met`` does not have.
    """
    partition, rows = unpack(value, schema)
    positions = (offset << PLACE_BITS) + np.arange(1, len(rows) + 1)
    sources = source_of(partition, rows["record"]["kind"].astype(np.int64))
    if len(rows) and not 0 <= sources.min() <= sources.max() < len(met):
        raise LogError(f"updates of sources {np.unique(sources)}, where {len(met)} are known")
    is_new = rows["offset"] > met[sources]
    if not is_new.all():
        rows, positions, sources = rows[is_new], positions[is_new], sources[is_new]
    np.maximum.at(met, sources, rows["offset"])
    return Updates(partition, rows, positions)
