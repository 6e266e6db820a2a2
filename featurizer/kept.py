"""Which decisions' traces are kept, told from the log's bytes alone, by every role alike.

Owns the rule, and a kernel that finds in a serialised Decision what the rule and the counters ask
for; parsing the message costs ten times as much. Must not know what is done with a trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from fraud.v1 import decision_pb2
from numba import njit
from numpy.typing import NDArray

from featurizer.eventlog import Batch, Topic
from featurizer.spans import Context, score_context

_APPROVE = int(decision_pb2.OUTCOME_APPROVE)
_FULL = int(decision_pb2.RUNG_FULL)
RANDOM_BITS = 56  # of a trace id, by the W3C's Trace Context Level 2


class Column(IntEnum):
    """The columns of a scan, int64: numbers of the message, and where texts stand in the data."""

    OUTCOME = 0
    RUNG = 1
    CAUSE = 2
    USED_NS = 3
    RECEIVED_MS = 4
    ID_AT = 5  # 36 bytes
    TRACE_AT = 6  # 32 bytes
    RANDOM = 7  # the last 56 bits of the trace id
    STEPS = 8  # how many are told, at most 4
    STEP = 9  # the first of them, ns
    SHARED_AT = 13  # what it says of others of the same go; 0 for nothing
    SHARED_END = 14


COLUMNS = 15


@njit(cache=True, nogil=True)
def _varint(data, at, end, bits):  # type: ignore[no-untyped-def]
    """Return a number of so many bits, and where it ends."""
    value, shift = np.int64(0), 0
    while at < end and shift < bits:
        value |= np.int64(data[at] & 127) << shift
        shift += 7
        at += 1
        if data[at - 1] < 128:
            break
    return value, at


@njit(cache=True, nogil=True)
def _field(data, at, end):  # type: ignore[no-untyped-def]
    """Return number, value or start, stop and next place of a protobuf field; 0 where broken.

    Of a varint the stop is the value too, so that nobody takes it for the start of bytes.
    """
    tag, at = _varint(data, at, end, 35)
    wire = tag & 7
    if wire in (1, 5):
        width = 8 if wire == 1 else 4
        if at + width <= end:
            return tag >> 3, at, at + width, at + width
        return 0, at, at, end + 1
    value, at = _varint(data, at, end, 63)
    if wire == 0:
        return tag >> 3, value, value, at
    if wire == 2 and 0 <= value <= end - at:
        return tag >> 3, at, at + value, at + value
    return 0, at, at, end + 1


@njit(cache=True, nogil=True)
def _instant(data, at, end):  # type: ignore[no-untyped-def]
    """Return seconds and nanoseconds of a Timestamp or Duration."""
    seconds, nanos = 0, 0
    while at < end:
        number, value, _, at = _field(data, at, end)
        if number == 1:
            seconds = value
        elif number == 2:
            nanos = value
    return seconds, nanos


@njit(cache=True, nogil=True)
def _random_of(data, at):  # type: ignore[no-untyped-def]
    found = np.int64(0)
    for i in range(at + 32 - RANDOM_BITS // 4, at + 32):
        digit = np.int64(data[i])
        found = found << 4 | (digit - 48 if digit < 58 else digit - 87)
    return found


@njit(cache=True, nogil=True)
def _scan_assessment(data, at, end, row):  # type: ignore[no-untyped-def]
    """Fill a row from an Assessment; return the score, NaN where there is none."""
    score = np.nan
    while at < end:
        number, value, stop, at = _field(data, at, end)
        if number == 1:
            row[0] = value
        elif number == 2 and stop - value == 8:
            score = data[value:stop].copy().view(np.float64)[0]
        elif number == 4:
            row[1] = value
        elif number == 5:
            row[2] = value
        elif number == 9 and stop - value == 36:
            row[5] = value
        elif number == 10 and stop - value == 32:
            row[6] = value
            row[7] = _random_of(data, value)
        elif number == 11:
            seconds, nanos = _instant(data, value, stop)
            row[3] = seconds * 1_000_000_000 + nanos
    return score


@njit(cache=True, nogil=True)
def _scan(data, starts, lengths, rows, scores):  # type: ignore[no-untyped-def]
    for i in range(len(starts)):
        at, end, row = starts[i], starts[i] + lengths[i], rows[i]
        while at < end:
            number, value, stop, at = _field(data, at, end)
            if number == 1:
                scores[i] = _scan_assessment(data, value, stop, row)
            elif number == 7:
                seconds, nanos = _instant(data, value, stop)
                row[4] = seconds * 1000 + nanos // 1_000_000
            elif number == 12:
                row[8] = min((stop - value) // 4, 4)
                for step in range(row[8]):
                    row[9 + step] = np.int64(
                        data[value + 4 * step : value + 4 * step + 4].copy().view(np.uint32)[0]
                    )
            elif number == 13:
                row[13], row[14] = value, stop


@dataclass(frozen=True, slots=True)
class KeepRule:
    """Which traces are kept: all that are not plain approvals, and ``share`` of those.

    A plain approval is one on the full rung within ``slow_ms``. The share is drawn by the trace
    id's random part, so every role, and every other tracer of that trace, draws the same.
    """

    share: float = 0.01
    slow_ms: float = 25.0

    def __post_init__(self) -> None:
        """Refuse a share that is none."""
        if not 0.0 <= self.share <= 1.0:
            raise ValueError(f"the share of traces lies between 0 and 1, not {self.share}")

    def keeps(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which rows of a scan are kept, bool[n]."""
        drawn = rows[:, Column.RANDOM] >= round((1.0 - self.share) * (1 << RANDOM_BITS))
        kept: NDArray[np.bool_] = drawn & (rows[:, Column.TRACE_AT] > 0)
        kept |= rows[:, Column.OUTCOME] != _APPROVE
        kept |= rows[:, Column.RUNG] != _FULL
        kept |= rows[:, Column.USED_NS] >= self.slow_ms * 1e6
        return kept & (rows[:, Column.ID_AT] > 0)

    def why(self, row: NDArray[np.int64]) -> str:
        """Return in a word why a row is kept."""
        if row[Column.RUNG] != _FULL:
            return "degraded"
        if row[Column.OUTCOME] != _APPROVE:
            return "outcome"
        return "slow" if row[Column.USED_NS] >= self.slow_ms * 1e6 else "share"


@dataclass(frozen=True, slots=True, eq=False)
class Scanned:
    """The decisions of a batch: which entries they are, and what a scan of them found.

    ``entries`` int64[n], ``rows`` int64[n, COLUMNS], ``scores`` float64[n].
    """

    batch: Batch
    entries: NDArray[np.int64]
    rows: NDArray[np.int64]
    scores: NDArray[np.float64]

    def decision_id(self, i: int) -> str:
        """Return the id of decision ``i``."""
        at = int(self.rows[i, Column.ID_AT])
        return self.batch.data[at : at + 36].decode("ascii")

    def trace_id(self, i: int) -> str:
        """Return the trace id of decision ``i``."""
        at = int(self.rows[i, Column.TRACE_AT])
        return self.batch.data[at : at + 32].decode("ascii")

    def shared(self, i: int) -> decision_pb2.Shared:
        """Return what decision ``i`` has in common with others; nothing where it stands alone."""
        start, end = self.rows[i, Column.SHARED_AT : Column.SHARED_END + 1].tolist()
        return decision_pb2.Shared.FromString(self.batch.data[start:end])

    def contexts(self, chosen: Sequence[int]) -> list[Context]:
        """Return the span of each chosen decision's call."""
        return [score_context(self.trace_id(i), self.decision_id(i)) for i in chosen]


def scan(batch: Batch) -> Scanned:
    """Find the decisions of a batch and what is asked of them."""
    entries = np.flatnonzero(batch.topics == Topic.DECISIONS)
    rows = np.zeros((len(entries), COLUMNS), np.int64)
    scores = np.full(len(entries), np.nan)
    if len(entries):
        data = np.frombuffer(batch.data, np.uint8)
        _scan(data, batch.starts[entries], batch.lengths[entries], rows, scores)
    return Scanned(batch, entries, rows, scores)
