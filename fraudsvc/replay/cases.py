"""Decisions of a log that are to be made again: many as columns over the bytes that were read.

Owns where each decision's bytes stand. A block is what was read at once; bytes are taken out of it
only where somebody asks for one decision. Must not know what is made of a case.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast, overload

import numpy as np
from fraud.v1 import decision_pb2
from numba import njit
from numpy.typing import NDArray

from featurizer.records import RECORD
from fraudsvc.replay.told import Told, decided_by, read_told

Rows = slice | NDArray[np.int64] | NDArray[np.bool_]
Block = bytes | NDArray[np.uint8]


class Case(NamedTuple):
    """One decision. ``value`` are its bytes, ``record`` those of its record.

    ``told`` int64[Told.COLUMNS] is what they say; ``frame`` and ``position`` where both stand.
    """

    value: bytes
    told: NDArray[np.int64]
    record: bytes
    frame: int
    position: int

    @property
    def decision(self) -> decision_pb2.Decision:
        """The decision as a message, parsed anew each time."""
        return decision_pb2.Decision.FromString(self.value)

    @property
    def rung(self) -> int:
        """The rung that it was decided on."""
        return int(self.told[Told.RUNG])

    @property
    def cause(self) -> decision_pb2.RungCause:
        """Why it was not decided on a higher rung."""
        return cast(decision_pb2.RungCause, int(self.told[Told.CAUSE]))

    @property
    def by(self) -> tuple[str, str, str]:
        """The versions of schema, model and policy."""
        start, end = self.told[Told.BY : Told.BY_END + 1].tolist()
        return decided_by(self.value[start:end])

    @property
    def versions(self) -> tuple[int, ...]:
        """The positions of its states, as logged; zeros where it has none."""
        return tuple(self.told[Told.FIRST_VERSION : Told.COLUMNS].tolist())


@dataclass(frozen=True, slots=True, eq=False)
class Cases:
    """Decisions, in columns of int64[n]: each stands in ``blocks[block]`` from ``starts`` on.

    ``told`` int64[n, Told.COLUMNS] is what they say, ``records`` RECORD[n] their records as logged,
    ``frames`` and ``positions`` where both stand.
    """

    blocks: tuple[Block, ...]
    block: NDArray[np.int64]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    told: NDArray[np.int64]
    records: NDArray[np.void]
    frames: NDArray[np.int64]
    positions: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        data: Block,
        spans: tuple[NDArray[np.int64], NDArray[np.int64]],
        told: NDArray[np.int64],
        records: NDArray[np.void],
        places: tuple[NDArray[np.int64], NDArray[np.int64]],
    ) -> Cases:
        """Return decisions in ``data``; ``spans`` are starts and lengths, ``places`` frames, too.

        And the positions of their records.
        """
        return cls((data,), np.zeros(len(told), np.int64), *spans, told, records, *places)

    @classmethod
    def one(cls, value: bytes, record: bytes, frame: int, position: int) -> Cases:
        """Return one decision."""
        spans = np.zeros(1, np.int64), np.array([len(value)])
        told = read_told(np.frombuffer(value, np.uint8), *spans)
        places = np.array([frame]), np.array([position])
        return cls.of(value, spans, told, np.frombuffer(record, RECORD), places)

    @classmethod
    def none(cls) -> Cases:
        """Return no decisions."""
        n = np.zeros(0, np.int64)
        told, records = np.zeros((0, Told.COLUMNS), np.int64), np.zeros(0, RECORD)
        return cls((), n, n, n, told, records, n, n)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.starts)

    def __getitem__(self, row: int) -> Case:
        """Return one of them, with its bytes."""
        value = self.part(row, 0, int(self.lengths[row]))
        record = self.records[row].tobytes()
        return Case(value, self.told[row], record, int(self.frames[row]), int(self.positions[row]))

    def __iter__(self) -> Iterator[Case]:
        """Yield each."""
        return (self[row] for row in range(len(self)))

    def part(self, row: int, start: int, end: int) -> bytes:
        """Return bytes of a decision, counted from its first."""
        first = int(self.starts[row])
        return bytes(self.blocks[self.block[row]][first + start : first + end])

    @property
    def data(self) -> NDArray[np.uint8]:
        """The block of cases that all stand in one, as those of a group do."""
        return np.frombuffer(self.blocks[self.block[0]], np.uint8)

    def vectors(self) -> NDArray[np.float32]:
        """Return the vectors that a group's decisions were made of, float32[n, features]."""
        firsts = self.starts + self.told[:, Told.FEATURES]
        size = self.told[0, Told.FEATURES_END] - self.told[0, Told.FEATURES]
        made: NDArray[np.float32] = _parts(self.data, firsts, size).view("<f4")
        return made

    def rows(self, rows: Rows) -> Cases:
        """Return some of them, in the same blocks."""
        return Cases(
            self.blocks, self.block[rows], self.starts[rows], self.lengths[rows], self.told[rows],
            self.records[rows], self.frames[rows], self.positions[rows],
        )  # fmt: skip

    def packed(self) -> Cases:
        """Return them with a block of their own, so that those that were read can go."""
        data = b"".join(self.part(i, 0, length) for i, length in enumerate(self.lengths.tolist()))
        spans = np.cumsum(self.lengths) - self.lengths, self.lengths
        return Cases.of(data, spans, self.told, self.records, (self.frames, self.positions))

    def groups(self) -> Iterator[tuple[Rows, tuple[str, str, str]]]:
        """Yield the rows in one block that one schema, model and policy decided, and which."""
        runs: dict[tuple[int, bytes], list[NDArray[np.int64]]] = {}
        for number, data in enumerate(self.blocks):
            rows = np.flatnonzero(self.block == number)
            changes = _changes(np.frombuffer(data, np.uint8), self.starts, self.told, rows)
            for run in np.split(rows, np.flatnonzero(changes)[1:]) if len(rows) else ():
                row = int(run[0])
                told = self.told[row, Told.BY : Told.BY_END + 1].tolist()
                runs.setdefault((number, self.part(row, *told)), []).append(run)
        for (_, fields), parts in runs.items():
            yield _as_slice(np.concatenate(parts)), decided_by(fields)


def joined(parts: Sequence[Cases]) -> Cases:
    """Return cases one after another; blocks that no case stands in any more are left out."""
    parts = [each for each in parts if len(each)]
    if len(parts) < 2:
        return parts[0] if parts else Cases.none()
    blocks: list[Block] = []
    numbers = []
    for each in parts:
        used, at = np.unique(each.block, return_inverse=True)
        numbers.append(len(blocks) + at)
        blocks += [each.blocks[number] for number in used.tolist()]
    columns = ("starts", "lengths", "told", "records", "frames", "positions")
    made = (np.concatenate([getattr(each, name) for each in parts]) for name in columns)
    return Cases(tuple(blocks), np.concatenate(numbers), *made)


class Transactions(Sequence[bytes]):
    """The bytes of cases' transactions, each taken out when it is asked for."""

    def __init__(self, cases: Cases) -> None:
        self._cases = cases

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._cases)

    @overload
    def __getitem__(self, row: int) -> bytes: ...
    @overload
    def __getitem__(self, row: slice) -> Sequence[bytes]: ...
    def __getitem__(self, row: int | slice) -> bytes | Sequence[bytes]:
        """Return one, or some."""
        if isinstance(row, slice):
            return Transactions(self._cases.rows(row))
        start, end = self._cases.told[row, Told.TRANSACTION : Told.TRANSACTION_END + 1].tolist()
        return self._cases.part(row, start, end)


def _as_slice(rows: NDArray[np.int64]) -> Rows:
    """Return rows that are all those between two as a slice, which copies nothing."""
    first, last = int(rows[0]), int(rows[-1])
    return slice(first, last + 1) if last - first + 1 == len(rows) else rows


@njit(cache=True, nogil=True)
def _changes(data, starts, told, rows):  # type: ignore[no-untyped-def]
    """Return bool[n]: where the bytes that say who decided are not those of the row before."""
    found = np.ones(len(rows), np.bool_)
    for i in range(1, len(rows)):
        one, other = rows[i - 1], rows[i]
        size = told[other, Told.BY_END] - told[other, Told.BY]
        if size != told[one, Told.BY_END] - told[one, Told.BY]:
            continue
        a, b = starts[one] + told[one, Told.BY], starts[other] + told[other, Told.BY]
        found[i] = False
        for k in range(size):
            if data[a + k] != data[b + k]:
                found[i] = True
                break
    return found


@njit(cache=True, nogil=True)
def _parts(data, firsts, size):  # type: ignore[no-untyped-def]
    """Return uint8[n, size]: the bytes from each of ``firsts`` on."""
    found = np.empty((len(firsts), size), np.uint8)
    for row in range(len(firsts)):
        found[row] = data[firsts[row] : firsts[row] + size]
    return found
