"""What a Kafka cluster has of its hosts, read once into files: updates by partition, and journals.

A journal here is what one host, or one lane of the stream, sent: put together again by the origin
that every record carries. Owns the files, and which record came to the states where. Must not know
what is made of them. Never writes to Kafka.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from featurizer.eventlog_kafka import Consumer, Partition, Received, origins_of
from featurizer.folder import UPDATES
from featurizer.kafka_settings import KafkaSettings
from featurizer.progress import NONE
from featurizer.records import RECORD, Entity, Kind
from featurizer.splitter import INPUTS, read_all, well_formed
from featurizer.updates import KINDS, UPDATE, homes_of, source_of, take_new
from fraudsvc.replay.shared_kernel import NEVER, link

# Decisions first: what each was made of is on the log when it is there.
TOPICS = ("decisions", *INPUTS, UPDATES)
RECORDS_AT_ONCE = 4_096
DECIDED = np.dtype(
    [("position", "<i8"), ("frame", "<i8"), ("start", "<i8"), ("length", "<i8")], align=False
)
_ARRAYS = ("records", "positions", "frames", "counts", "updated", "before", "newest", "decided")
_ENTITIES = len(Entity)

TellRead = Callable[[int], None]


@dataclass(frozen=True, slots=True, eq=False)
class Journal:
    """What one host sent, in its own order.

    records RECORD[n], their positions and frames int64[n]; ``counts`` bool[n], false for a request
    that came before. Per entity, int64[n, entities]: ``updated`` is where in the updates each came
    (NEVER where it did not), ``before`` and ``newest`` what ``link`` makes. ``decided`` DECIDED[m]
    tells where the decisions stand in ``values``. ``arrived`` are the positions of its updates in
    each partition, in order.
    """

    records: NDArray[np.void]
    positions: NDArray[np.int64]
    frames: NDArray[np.int64]
    counts: NDArray[np.bool_]
    updated: NDArray[np.int64]
    before: NDArray[np.int64]
    newest: NDArray[np.int64]
    decided: NDArray[np.void]
    values: NDArray[np.uint8]
    arrived: Sequence[NDArray[np.int64]]


class Spool(NamedTuple):
    """A folder that was filled. ``partitions`` are those of the entities.

    ``log_begins`` is the oldest offset of the updates that Kafka still has, 0 while it is all.
    """

    folder: Path
    partitions: int
    log_begins: int = 0

    def hosts(self) -> list[str]:
        """Return the names of the journals."""
        return sorted({each.name.partition(".")[0] for each in self.folder.glob("host-*")})

    def journal(self, host: str) -> Journal:
        """Open a journal."""
        arrays = {name: _opened(self.folder / f"{host}.{name}.npy") for name in _ARRAYS}
        path = self.folder / f"{host}.values"
        values = np.frombuffer(b"", np.uint8)
        if path.exists() and path.stat().st_size:
            values = np.asarray(np.memmap(path, np.uint8, mode="r"))
        arrived = [_opened(self.folder / f"{host}.arrived-{n}.npy") for n in range(self.partitions)]
        return Journal(**arrays, values=values, arrived=arrived)

    def updates(self, partition: int) -> tuple[NDArray[np.void], NDArray[np.int64]]:
        """Return the updates of a partition, UPDATE[n], and their positions int64[n]."""
        path = self.folder / f"updates-{partition}"
        return _opened(path.with_suffix(".rows.npy")), _opened(path.with_suffix(".at.npy"))


def _opened(path: Path) -> NDArray[Any]:
    """Map a file; kernels want an array that looks writable, and nobody writes."""
    return np.asarray(np.load(path, mmap_mode="c"))


class _Parts:
    """Arrays that grow by pieces, in files, and are made one at the end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, Any] = {}

    def add(self, name: str, data: bytes) -> int:
        """Append bytes; return where they begin."""
        if name not in self._files:
            self._files[name] = (self._folder / name).open("wb")
        file = self._files[name]
        at: int = file.tell()
        file.write(data)
        return at

    def close(self) -> None:
        """Write all that was added."""
        for file in self._files.values():
            file.close()

    def take(self, name: str, dtype: Any) -> NDArray[Any]:
        """Return what was added under a name, and delete its file; nothing for no such name."""
        path = self._folder / name
        if not path.exists():
            return np.zeros(0, dtype)
        found = np.fromfile(path, dtype)
        path.unlink()
        return found


class Filling:
    """A folder that is being filled. ``schema`` is the number that updates must have."""

    def __init__(self, kafka: KafkaSettings, folder: Path, schema: int) -> None:
        self._kafka = kafka
        self._folder = folder
        self._schema = schema
        self._parts = _Parts(folder)
        self._hosts: set[int] = set()
        sources = (kafka.entity_partitions, kafka.event_partitions * KINDS)
        self._met = np.full(sources, NONE, np.int64)

    def take(self, name: str, partition: int, received: Sequence[Received]) -> None:
        """Take in records of one of TOPICS, in order. Raises LogError for updates that are none."""
        if name == UPDATES:
            self._updates(partition, received)
        elif name == "decisions":
            self._decisions(received)
        else:
            self._records(received, INPUTS[name])

    def _decisions(self, received: Sequence[Received]) -> None:
        origins = origins_of(received)
        for host in np.unique(origins["host"]).tolist():
            if not host:
                continue  # from no journal that anybody follows
            self._hosts.add(host)
            own = np.flatnonzero(origins["host"] == host)
            values = [received[i].value or b"" for i in own.tolist()]
            rows = np.zeros(len(own), DECIDED)
            rows["position"] = origins["position"][own]
            rows["frame"] = rows["position"] - 1 - origins["place"][own]
            rows["length"] = [len(value) for value in values]
            start = self._parts.add(_host(host, "values"), b"".join(values))
            rows["start"] = start + np.cumsum(rows["length"]) - rows["length"]
            self._parts.add(_host(host, "decided"), rows.tobytes())

    def _records(self, received: Sequence[Received], kind: Kind) -> None:
        records, origins, _fit = well_formed(received, kind)
        for host in np.unique(origins["host"]).tolist():
            if not host:
                continue
            self._hosts.add(host)
            own = origins["host"] == host
            positions = origins["position"][own].astype(np.int64)
            frames = positions - 1 - origins["place"][own]
            for name, rows in (
                ("records", records[own]), ("positions", positions), ("frames", frames),
            ):  # fmt: skip
                self._parts.add(_host(host, name), rows.tobytes())

    def _updates(self, partition: int, received: Sequence[Received]) -> None:
        for each in received:
            new = take_new(each.value or b"", each.offset, self._schema, self._met[partition])
            self._parts.add(f"updates-{partition}.rows", new.rows.tobytes())
            self._parts.add(f"updates-{partition}.at", new.positions.tobytes())

    def finish(self, log_begins: int = 0) -> Spool:
        """Make of the parts what a Spool opens."""
        self._parts.close()
        spool = Spool(self._folder, self._kafka.entity_partitions, log_begins)
        for partition in range(spool.partitions):
            for name, dtype in (("rows", UPDATE), ("at", np.dtype("<i8"))):
                file = f"updates-{partition}.{name}"
                np.save(self._folder / f"{file}.npy", self._parts.take(file, dtype))
        for host in self._hosts:
            arrays = _journal(self._parts, host, spool, self._kafka.event_partitions)
            for name, array in zip(_ARRAYS, arrays, strict=True):
                np.save(self._folder / (_host(host, name) + ".npy"), array)
            for partition in range(spool.partitions):
                rows, at = spool.updates(partition)
                name = _host(host, f"arrived-{partition}.npy")
                np.save(self._folder / name, at[rows["host"] == host])
        return spool

    def close(self) -> None:
        """Let go of the files."""
        self._parts.close()


def _host(host: int, name: str) -> str:
    return f"host-{host & (1 << 64) - 1:016x}.{name}"


async def fill(kafka: KafkaSettings, folder: Path, schema: int, tell: TellRead) -> Spool:
    """Read what replay needs into an empty folder. ``tell`` hears how many records were read.

    Raises LogError, and OSError where the folder's disk is full.
    """
    filling, reader, read = Filling(kafka, folder, schema), Consumer(kafka), 0
    await reader.start()
    try:
        for name, partition in _places(kafka):
            async for some in _pieces(reader, (kafka.topic(name), partition)):
                filling.take(name, partition, some)
                read += len(some)
                tell(read)
        ends = await reader.ends([(kafka.topic(n), p) for n, p in _places(kafka) if n == UPDATES])
    finally:
        await reader.stop()
        filling.close()
    return filling.finish(max(oldest for oldest, _ in ends.values()))


async def _pieces(reader: Consumer, at: Partition) -> AsyncIterator[list[Received]]:
    """Yield what a partition has now, some records at a time."""
    some: list[Received] = []
    async for record in read_all(reader, at, 0):
        some.append(record)
        if len(some) == RECORDS_AT_ONCE:
            yield some
            some = []
    if some:
        yield some


async def count(kafka: KafkaSettings) -> tuple[int, int]:
    """Return about how many records there are to read, and how many of them are decisions."""
    reader = Consumer(kafka)
    await reader.start()
    try:
        ends = await reader.ends([(kafka.topic(name), n) for name, n in _places(kafka)])
    finally:
        await reader.stop()
    sizes = {at: end - oldest for at, (oldest, end) in ends.items()}
    decisions = [size for at, size in sizes.items() if at[0] == kafka.topic("decisions")]
    return sum(sizes.values()), sum(decisions)


def _places(kafka: KafkaSettings) -> list[Partition]:
    """Return each topic and partition that is read, in this order."""
    counts = dict.fromkeys(TOPICS, kafka.event_partitions)
    counts[UPDATES] = kafka.entity_partitions
    return [(name, n) for name in TOPICS for n in range(counts[name])]


def _journal(parts: _Parts, host: int, spool: Spool, inputs: int) -> tuple[NDArray[Any], ...]:
    """Return a journal's arrays, in the order of ``_ARRAYS``."""
    positions = parts.take(_host(host, "positions"), np.int64)
    positions, first = np.unique(positions, return_index=True)  # a relay may send twice
    records = parts.take(_host(host, "records"), RECORD)[first]
    frames = parts.take(_host(host, "frames"), np.int64)[first]
    decided = parts.take(_host(host, "decided"), DECIDED)
    decided = decided[np.unique(decided["position"], return_index=True)[1]]
    counts = _first_of(records)
    updated = _updated(records, positions, host, spool, inputs)
    before, newest = np.empty_like(updated), np.empty_like(updated)
    for entity in range(_ENTITIES):
        keys = np.where(counts, records["entities"][:, entity], 0)
        order = np.argsort(keys, kind="stable")
        columns = [np.empty(len(keys), np.int64) for _ in range(2)]
        link(keys, order, np.ascontiguousarray(updated[:, entity]), *columns)
        before[:, entity], newest[:, entity] = columns
    return records, positions, frames, counts, updated, before, newest, decided


def _first_of(records: NDArray[np.void]) -> NDArray[np.bool_]:
    """Return bool[n]: which records are no repeat of a request in the same journal."""
    counts = np.ones(len(records), bool)
    asked = np.flatnonzero((records["kind"] == Kind.TRANSACTION) & (records["request"] != 0))
    counts[asked] = False
    counts[asked[np.unique(records["request"][asked], return_index=True)[1]]] = True
    return counts


def _updated(
    records: NDArray[np.void], positions: NDArray[np.int64], host: int, spool: Spool, inputs: int
) -> NDArray[np.int64]:
    """Return int64[n, entities]: where in the updates of its partition each record came.

    A record that is no event, as another host's of the same request came first, is in no update.
    A scorer takes it to be in the states once a later one of its source is, and so it is here.
    """
    found = np.full((len(records), _ENTITIES), NEVER, np.int64)
    keys = np.ascontiguousarray(records["entities"])
    events = homes_of(keys[:, Entity.CUSTOMER], inputs)
    sources = source_of(events, records["kind"].astype(np.int64))
    homes = homes_of(keys, spool.partitions)
    for partition in range(spool.partitions):
        rows, at = spool.updates(partition)
        # An update may be newer than what was read of the events.
        own = np.flatnonzero((rows["host"] == host) & np.isin(rows["position"], positions))
        places, masks, own_at = (
            np.searchsorted(positions, rows["position"][own]), rows["mask"][own], at[own],
        )  # fmt: skip
        for entity in range(_ENTITIES):
            here = masks >> entity & 1 == 1
            found[places[here], entity] = own_at[here]
        lacking = (found == NEVER) & (keys != 0) & (homes == partition)
        for source in np.unique(sources[lacking.any(axis=1)]).tolist():
            later = sources[places] == source
            some = lacking & (sources == source)[:, None]
            _note_later(found, some, places[later], own_at[later])
    return found


def _note_later(
    found: NDArray[np.int64],
    lacking: NDArray[np.bool_],
    places: NDArray[np.int64],
    at: NDArray[np.int64],
) -> None:
    """Let records that are ``lacking`` bool[n, entities] come with the next of ``places``."""
    order = np.argsort(places, kind="stable")
    rows, entities = np.nonzero(lacking)
    after = np.searchsorted(places[order], rows)
    there = after < len(places)
    found[rows[there], entities[there]] = at[order][after[there]]
