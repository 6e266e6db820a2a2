"""Writes many Decisions, with the Assessment in each, in one kernel call.

Owns what of them is one after another, and how one says it that was decided with others: its own
turn, and what all share. Must not know why an answer is what it is; each is written by ``answers``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fraudsvc.answers import FIXED_BYTES, GAP, Stamp, put_step, write_decision
from fraudsvc.assess import BEGUN_NS, SCORED_NS, VIEWED_NS
from fraudsvc.decide import Drafts
from fraudsvc.rungs import FULL, NO_CAUSE
from fraudsvc.wire.put import put_all

Sheets = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float64]]
Texts = tuple[NDArray[np.uint8], NDArray[np.int64]]  # one after another, and where each ends
_NUMBERS = 12  # of a decision: those of Draft, then of Stamp


@njit(cache=True)
def _put_turn(out, at, figures, arrival):  # type: ignore[no-untyped-def]
    """Write a Decision's field 12 as one says it that was decided with others."""
    out[at], out[at + 1] = 0x62, 12
    at += 2
    for figure in (BEGUN_NS, VIEWED_NS, SCORED_NS):
        at = put_step(out, at, np.int64(figures[figure]) - arrival)
    return at


@njit(cache=True)
def _write_all(out, texts, sheet, shared, key, state, numbers, places):  # type: ignore[no-untyped-def]
    """Write a Decision for each row of ``numbers``, one after another; return where they end.

    ``places`` int64[n, 4] get where each begins and ends, and where its Assessment does.
    """
    transactions, reasons, traces, origins = texts
    bodies, models, figures = sheet
    versions, field, arrival = shared
    at, data_at, reason_at, trace_at, origin_at = 0, 0, 0, 0, 0
    for i in range(len(numbers)):
        row = numbers[i]
        begin, end, assessed = write_decision(
            out[at:], transactions[0][data_at : transactions[1][i]], bodies[i], models[i],
            figures[i], reasons[0][reason_at : reasons[1][i]], versions,
            traces[0][trace_at : traces[1][i]], origins[0][origin_at : origins[1][i]], key, state,
            (
                row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7], row[8], row[9],
                row[10], row[11],
            ),
        )  # fmt: skip
        if row[3] >= 0 and row[9] == 0:
            end = _put_turn(out[at:], end, figures[i], arrival)
        end = put_all(out[at:], end, field, 0, len(field))
        places[i, 0], places[i, 1] = at + begin, at + end
        places[i, 2], places[i, 3] = at + GAP, at + assessed
        at += end
        data_at, reason_at = transactions[1][i], reasons[1][i]
        trace_at, origin_at = traces[1][i], origins[1][i]
    return at


def _texts(each: Sequence[bytes]) -> Texts:
    ends = np.cumsum(np.fromiter(map(len, each), np.int64, len(each)))
    return np.frombuffer(b"".join(each), np.uint8), ends


class BatchWriter:
    """Memory for the Decisions of one batch at a time.

    ``key`` uint64[2] is the hasher's, ``seed`` where new trace ids begin (0 to 2**64 - 1): those of
    decisions whose caller has none.
    """

    def __init__(self, key: NDArray[np.uint64], seed: int = 0) -> None:
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
        own: NDArray[np.int64] | None = None,
        rung: int = FULL,
        cause: int = NO_CAUSE,
    ) -> list[tuple[bytes, bytes]]:
        """Return the bytes of each Decision, and of the Assessment in it.

        ``stamp`` is all of theirs, but for the requests and positions, int64[n] both, and
        ``callers``, the trace id and the origin of each. ``sheet`` has a row for each:
        body, model's reasons, figures. ``rung`` and ``cause`` are all of theirs. Where each is a
        call of its own and nothing is shared, ``own`` int64[n, 4] has the stamp's time used and
        three steps of each.
        """
        count = len(transactions)
        if not count:
            return []
        texts = (
            _texts(transactions), _texts([drafts.reasons.get(i, b"") for i in range(count)]),
            _texts([trace for trace, _ in callers]), _texts([origin for _, origin in callers]),
        )  # fmt: skip
        needed = sum(int(ends[-1]) for _, ends in texts)
        needed += count * (FIXED_BYTES + len(stamp.shared))
        if needed > len(self._out):
            self._out = np.zeros(2 * needed, np.uint8)
        numbers = np.empty((count, _NUMBERS), np.int64)
        numbers[:, 0], numbers[:, 1] = drafts.outcomes, rung
        numbers[:, 2], numbers[:, 3] = cause, drafts.model_reasons
        numbers[:, 4], numbers[:, 5] = requests, log_positions
        numbers[:, 6:9] = stamp.receive_time_ms, stamp.used_ns, stamp.named
        numbers[:, 9:] = 0
        if own is not None:
            numbers[:, [7, 9, 10, 11]] = own
        places = np.empty((count, 4), np.int64)
        shared = drafts.versions, stamp.shared, stamp.arrival_ns
        end = _write_all(
            self._out, texts, sheet, shared, self._key, self._trace_state, numbers, places
        )
        written = self._out[:end].tobytes()
        return [
            (written[begin:stop], written[first:last])
            for begin, stop, first, last in places.tolist()
        ]
