"""The log as replay reads it: records and the decisions beside them, in order.

Owns which records count (the first of a request) and which decisions are cases. Must not know
states. Only reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from featurizer.eventlog import Batch, EventLog, LogError, Topic
from featurizer.former_ids import FormerIds
from featurizer.hashing import request_hash_of
from featurizer.records import Kind
from featurizer.worker import records_of
from fraudsvc.replay.cases import Cases
from fraudsvc.replay.told import Told, read_told
from fraudsvc.shares import Share

READ_BYTES = 4 << 20
KEPT_RECORDS_MAX = 1_000_000  # in memory: 185 bytes each


class Span(NamedTuple):
    """A range of decisions: positions of frames, and times of receipt in ms since 1970."""

    first: int = 0
    stop: int = 1 << 62
    from_ms: int = 0
    until_ms: int = 1 << 62

    def have_time(self, told: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return bool[n]: which decisions were received within the range, by what they say."""
        received = told[:, Told.RECEIVED_MS]
        found: NDArray[np.bool_] = (self.from_ms <= received) & (received < self.until_ms)
        return found


@dataclass(slots=True, eq=False)
class Records:
    """Records in the order of the log: RECORD[m], positions and frames int64[m].

    ``counts`` bool[m] is false for a request that came before.
    """

    records: NDArray[np.void]
    positions: NDArray[np.int64]
    frames: NDArray[np.int64]
    counts: NDArray[np.bool_]


@dataclass(slots=True, eq=False)
class Piece(Records):
    """A stretch of the log up to ``end``: its records, and where decisions stand beside them.

    ``owners`` int64[n] are the places of the decisions' records among the records.
    """

    owners: NDArray[np.int64]
    batch: Batch
    places: NDArray[np.int64]  # of the decisions in the batch

    @property
    def end(self) -> int:
        """Where the next piece begins."""
        return self.batch.next_position

    def _told(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        batch = self.batch
        data = np.frombuffer(batch.data, np.uint8)
        told = read_told(data, batch.starts[places], batch.lengths[places])
        broken = np.flatnonzero(told[:, Told.IS_READ] == 0)
        if len(broken):
            raise LogError(f"no decision can be read at {batch.positions[places[broken[0]]]}")
        return told

    def cases_of(self, span: Span, share: Share) -> tuple[Cases, int]:
        """Return the decisions of a range in a share, and how many repeats of requests there are.

        Those are left out. Raises LogError for what is no decision.
        """
        frames, counts = self.frames[self.owners], self.counts[self.owners]
        mine = (frames >= span.first) & (frames < span.stop) & share.has_each(frames)
        cases = self._cases(np.flatnonzero(mine & counts))
        in_time = span.have_time(cases.told)
        repeats = int((mine & ~counts).sum())
        return cases if in_time.all() else cases.rows(in_time), repeats

    def _cases(self, numbers: NDArray[np.int64]) -> Cases:
        places, owners, batch = self.places[numbers], self.owners[numbers], self.batch
        where = self.frames[owners], self.positions[owners]
        spans = batch.starts[places], batch.lengths[places]
        return Cases.of(batch.data, spans, self._told(places), self.records[owners], where)


@dataclass(slots=True)
class Pieces:
    """Reads a log from its beginning, and knows which requests have come.

    ``lost_bytes`` could not be read; ``first`` is where the log begins, 0 while all is kept. With
    ``keeps`` the records of a log that is not too long stay in memory: ``kept`` has them.
    """

    log: EventLog
    keeps: bool = False
    lost_bytes: int = 0
    first: int = 0
    _requests: set[int] = field(default_factory=set)
    _kept: list[Records] = field(default_factory=list)
    _count: int = 0

    def read(self, stop: int) -> Iterator[Piece]:
        """Yield the log up to the frame at ``stop``, or to its end. Raises LogError."""
        position = self.first = self.log.ends()[0]
        while position < stop:
            batch = self.log.read(position, READ_BYTES)
            self.lost_bytes += sum(damage.length for damage in batch.damage)
            if batch.next_position == position:
                return
            position = batch.next_position
            piece = self._piece(batch)
            self._keep(piece)
            yield piece

    def kept(self, stop: int) -> list[Records] | None:
        """Return the records of what was read up to the frame at ``stop``; None for gone.

        Another thread may ask while one reads.
        """
        kept = list(self._kept)
        if (
            not self.keeps or self._count > KEPT_RECORDS_MAX
        ):  # looked at last: they may just have gone
            return None
        return [each for each in kept if not len(each.frames) or each.frames[0] < stop]

    def _keep(self, piece: Piece) -> None:
        self._count += len(piece.records)
        if self._count > KEPT_RECORDS_MAX:
            self._kept.clear()
        elif self.keeps:
            each = Records(piece.records, piece.positions, piece.frames, piece.counts)
            self._kept.append(each)

    def _piece(self, batch: Batch) -> Piece:
        records, positions, frames = records_of(batch)
        decided = np.flatnonzero(batch.topics == Topic.DECISIONS)
        wanted = batch.positions[decided] - 1  # the record stands before its decision
        owners = np.searchsorted(positions, wanted)
        there = owners < len(positions)
        there[there] = positions[owners[there]] == wanted[there]
        counts = self._first_of(records)
        return Piece(records, positions, frames, counts, owners[there], batch, decided[there])

    def _first_of(self, records: NDArray[np.void]) -> NDArray[np.bool_]:
        """Return bool[m]: which records are no repeat of a request."""
        counts = np.ones(len(records), bool)
        asked = np.flatnonzero((records["kind"] == Kind.TRANSACTION) & (records["request"] != 0))
        requests = records["request"][asked]
        known = self._requests
        for place, request in zip(asked.tolist(), requests.tolist(), strict=True):
            if request in known:
                counts[place] = False
            else:
                known.add(request)
        return counts


class Place(NamedTuple):
    """Where a decision stands: its frame, and the position of its record."""

    frame: int
    position: int


def find_decision(log: EventLog, decision: str, former: FormerIds) -> Place | None:
    """Return where the first decision of an id's request stands; None where the log has none.

    ``former`` are the former ids of the log.

    Raises ValueError for what is no decision id, LogError where the log cannot be read.
    """
    request = former.now(request_hash_of(decision))
    position = log.ends()[0]
    while (batch := log.read(position, READ_BYTES)).next_position != position:
        position = batch.next_position
        records, positions, frames = records_of(batch)
        found = np.flatnonzero(
            (records["request"] == request) & (records["kind"] == Kind.TRANSACTION)
        )
        for i in found.tolist():
            if _decided(batch, int(positions[i])):
                return Place(int(frames[i]), int(positions[i]))
    return None


def _decided(batch: Batch, position: int) -> bool:
    after = np.searchsorted(batch.positions, position) + 1
    return bool(after < len(batch.topics) and batch.topics[after] == Topic.DECISIONS)


def frame_of(log: EventLog, frame: int) -> Batch:
    """Return the one frame at a position. Raises LogError where the log has it no more."""
    batch = log.read(frame, READ_BYTES)
    if not len(batch.frames) or batch.frames[0] != frame:
        raise LogError(f"there is no frame at {frame}")
    return batch
