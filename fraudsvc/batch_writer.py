"""Writes many Decisions, with the Assessment in each, in one kernel call.

Owns what of them is one after another, and how one says it that was decided with others: its own
turn, and what all share. Must not know why an answer is what it is; each is written by ``answers``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numba import njit
from numpy.typing import NDArray

from featurizer.entries import ALIGNMENT_BYTES, ENTRY_HEADER_BYTES, Packed, put_entry_head
from featurizer.eventlog import Topic
from featurizer.memory import move
from featurizer.records import ENTITIES_WORD, RECORD, REQUEST_WORD
from fraudsvc.answers import FIXED_BYTES, GAP, Stamp, put_step, write_decision
from fraudsvc.assess import BEGUN_NS, SCORED_NS, VIEWED_NS
from fraudsvc.decide import Drafts
from fraudsvc.rungs import FULL, NO_CAUSE
from fraudsvc.wire.put import put_all

Sheets = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float64]]
Texts = tuple[NDArray[np.uint8], NDArray[np.int64]]  # one after another, and where each ends
# Outcome, size of the model's reasons, request and position of each, and what BatchWriter.entries
# calls own; none of what all have in common, or what is in the record.
Columns = tuple[
    NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]
]
_TRANSACTIONS, _DECISIONS = int(Topic.TRANSACTIONS), int(Topic.DECISIONS)
_ENTRIES_BYTES = 2 * ENTRY_HEADER_BYTES + RECORD.itemsize + ALIGNMENT_BYTES  # beside a Decision
_NO_RECORDS = np.zeros((0, RECORD.itemsize // 8), np.int64)
_NONE, _NO_STEPS = np.zeros(0, np.int64), np.zeros((0, 4), np.int64)


@njit(cache=True)
def _put_turn(out, at, figures, arrival):  # type: ignore[no-untyped-def]
    """Write a Decision's field 12 as one says it that was decided with others."""
    out[at], out[at + 1] = 0x62, 12
    at += 2
    for figure in (BEGUN_NS, VIEWED_NS, SCORED_NS):
        at = put_step(out, at, np.int64(figures[figure]) - arrival)
    return at


@njit(cache=True)
def _put_record(words, at, records, row):  # type: ignore[no-untyped-def]
    """Write the entry of a transaction whose words are a row of ``records``; return its end."""
    width = records.shape[1]
    to = put_entry_head(words, at, _TRANSACTIONS, records[row, ENTITIES_WORD], 8 * width)
    move(words, to >> 3, records[row], 0, width)
    return to + 8 * width


@njit(cache=True)
def _write_all(out, texts, sheet, columns, common, shared, key, state, records, places):  # type: ignore[no-untyped-def]
    """Write a Decision for each row of ``columns``, one after another; return where they end.

    With ``records`` int64[n, words] as the entries of a frame, each behind its transaction's.
    ``places`` int64[n, 4] get where each begins and ends, and where its Assessment does.
    """
    data, ends = texts
    bodies, models, figures = sheet
    outcomes, sizes, requests, positions, own = columns
    rung, cause, position, received_ms, used_ns, named = common
    versions, field, arrival = shared
    words, framed = out.view(np.int64), len(records) > 0
    at, text_at = 0, 0
    for i in range(len(outcomes)):
        head, request, seen = at, np.int64(0), position
        if framed:
            head, request = _put_record(words, at, records, i), records[i, REQUEST_WORD]
        else:
            request, seen = requests[i], positions[i]
        used, since, accepted, loaded = used_ns, np.int64(0), np.int64(0), np.int64(0)
        if len(own) > 0:
            used, since, accepted, loaded = own[i, 0], own[i, 1], own[i, 2], own[i, 3]
        start = head + ENTRY_HEADER_BYTES
        room = out[start:]
        begin, end, assessed = write_decision(
            room, data[text_at : ends[i, 0]], bodies[i], models[i], figures[i],
            data[ends[i, 0] : ends[i, 1]], versions, data[ends[i, 1] : ends[i, 2]],
            data[ends[i, 2] : ends[i, 3]], key, state,
            (
                outcomes[i], rung, cause, sizes[i], request, seen, received_ms, used, named, since,
                accepted, loaded,
            ),
        )  # fmt: skip
        if sizes[i] >= 0 and since == 0:
            end = _put_turn(room, end, figures[i], arrival)
        end = put_all(room, end, field, 0, len(field))
        move(room, 0, room, begin, end - begin)
        at, text_at = start + end - begin, ends[i, 3]
        places[i, 0], places[i, 1] = start, at
        places[i, 2], places[i, 3] = start + GAP - begin, start + assessed - begin
        if framed:
            put_entry_head(words, head, _DECISIONS, records[i, ENTITIES_WORD], end - begin)
            while at & 7:
                out[at] = 0
                at += 1
    return at


def _texts(
    transactions: Sequence[bytes],
    reasons: Mapping[int, bytes],
    callers: Sequence[tuple[bytes, bytes]],
) -> Texts:
    """Return the transaction, the policy's reasons, trace id and origin of each, in a row."""
    texts = [
        text
        for i, (transaction, caller) in enumerate(zip(transactions, callers, strict=True))
        for text in (transaction, reasons.get(i, b""), *caller)
    ]
    ends = np.fromiter(map(len, texts), np.int64, len(texts)).cumsum()
    return np.frombuffer(b"".join(texts), np.uint8), ends.reshape(-1, 4)


class BatchWriter:
    """Memory for the Decisions of one batch at a time.

    ``key`` uint64[2] is the hasher's, ``seed`` where new trace ids begin (0 to 2**64 - 1): those of
    decisions whose caller has none.
    """

    def __init__(self, key: NDArray[np.uint64], seed: int) -> None:
        self._out = np.zeros(1 << 16, np.uint8)
        self._key = key
        self._trace_state = np.array([seed], np.uint64)

    def write(
        self,
        drafts: Drafts,
        stamp: Stamp,
        requests: NDArray[np.int64],
        log_positions: NDArray[np.int64],
        transactions: Sequence[bytes],
        sheet: Sheets,
        callers: Sequence[tuple[bytes, bytes]],
        *,
        rung: int = FULL,
        cause: int = NO_CAUSE,
    ) -> list[bytes]:
        """Return the bytes of each Decision.

        ``stamp`` is all of theirs, but for the requests and positions, int64[n] both, and
        ``callers``, the trace id and the origin of each. ``sheet`` has a row for each:
        body, model's reasons, figures. ``rung`` and ``cause`` are all of theirs.
        """
        columns = (drafts.outcomes, drafts.model_reasons, requests, log_positions, _NO_STEPS)
        written, places = self._write(
            drafts, stamp, columns, (rung, cause), _NO_RECORDS, transactions, sheet, callers
        )
        return [written[start:stop] for start, stop in places[:, :2].tolist()]

    def entries(
        self,
        drafts: Drafts,
        stamp: Stamp,
        records: NDArray[np.int64],
        transactions: Sequence[bytes],
        sheet: Sheets,
        callers: Sequence[tuple[bytes, bytes]],
        own: NDArray[np.int64] | None = None,
    ) -> tuple[Packed, list[bytes]]:
        """Return the entries of a frame, transaction and Decision of each, and the Assessments.

        As ``write``, on rung FULL and at the stamp's position. ``records`` int64[n, words] are the
        transactions'. Where each is a call of its own and nothing is shared, ``own`` int64[n, 4]
        has the stamp's time used and three steps of each.
        """
        steps = _NO_STEPS if own is None else own
        columns = (drafts.outcomes, drafts.model_reasons, _NONE, _NONE, steps)
        written, places = self._write(
            drafts, stamp, columns, (FULL, NO_CAUSE), records, transactions, sheet, callers
        )
        answers = [written[start:stop] for start, stop in places[:, 2:].tolist()]
        return Packed(written, 2 * len(records)), answers

    def _write(
        self,
        drafts: Drafts,
        stamp: Stamp,
        columns: Columns,
        ladder: tuple[int, int],
        records: NDArray[np.int64],
        transactions: Sequence[bytes],
        sheet: Sheets,
        callers: Sequence[tuple[bytes, bytes]],
    ) -> tuple[bytes, NDArray[np.int64]]:
        """Return what ``_write_all`` wrote, and the places that it gave."""
        count = len(transactions)
        places = np.empty((count, 4), np.int64)
        if not count:
            return b"", places
        texts = _texts(transactions, drafts.reasons, callers)
        needed = len(texts[0]) + count * (FIXED_BYTES + len(stamp.shared) + _ENTRIES_BYTES)
        if needed > len(self._out):
            self._out = np.zeros(-(-needed // 8) * 16, np.uint8)
        common = (
            *ladder, stamp.log_position, stamp.receive_time_ms, stamp.used_ns, int(stamp.named),
        )  # fmt: skip
        shared = drafts.versions, stamp.shared, stamp.arrival_ns
        end = _write_all(
            self._out, texts, sheet, columns, common, shared, self._key, self._trace_state,
            records, places,
        )  # fmt: skip
        return self._out[:end].tobytes(), places
