"""Whether decisions made again have the bytes of those on the log, many in one kernel call.

Owns the comparison. What nobody decided (times, trace, scorer, steps) is taken over from the log,
and given to the service's own writer. Must not know what a difference means: who parses both says.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fraudsvc.answers import FIXED_BYTES, write_decision
from fraudsvc.assess import Sheet
from fraudsvc.decide import Drafts
from fraudsvc.replay.told import Told
from fraudsvc.wire.put import put_all


@njit(cache=True, nogil=True)
def _are_equal(out, begin, end, data, start):  # type: ignore[no-untyped-def]
    made, logged = out[begin:end], data[start : start + end - begin]
    other = np.uint8(0)
    for i in range(len(made)):  # to its end: so the machine compares many bytes at once
        other |= made[i] ^ logged[i]
    return other == 0


@njit(cache=True, nogil=True)
def _find_same(out, values, told, sheet, reasons, drafts, versions, key, state, same):  # type: ignore[no-untyped-def]
    """Set ``same`` bool[n]: whether each decision, written anew, has the bytes of ``values``."""
    data, starts, lengths = values
    bodies, models, figures = sheet
    texts, reason_ends = reasons
    reason_at = 0
    for i in range(len(same)):
        row, first = told[i], starts[i]
        begin, end, _ = write_decision(
            out, data[first + row[Told.TRANSACTION] : first + row[Told.TRANSACTION_END]],
            bodies[i], models[i], figures[i], texts[reason_at : reason_ends[i]], versions,
            data[first + row[Told.TRACE] : first + row[Told.TRACE_END]],
            data[first + row[Told.ORIGIN] : first + row[Told.ORIGIN_END]], key, state,
            (
                drafts[i, 0], row[Told.RUNG], row[Told.CAUSE], drafts[i, 1], drafts[i, 2],
                row[Told.LOG_POSITION], row[Told.RECEIVED_MS], row[Told.USED_NS], np.int64(1),
                0, 0, 0,
            ),
        )  # fmt: skip
        end = put_all(out, end, data, first + row[Told.STEPS], first + row[Told.STEPS_END])
        same[i] = end - begin == lengths[i]
        same[i] = same[i] and _are_equal(out, begin, end, data, first)
        reason_at = reason_ends[i]


class Comparer:
    """Memory for one decision. ``key`` uint64[2] is the id hasher's."""

    def __init__(self, key: NDArray[np.uint64]) -> None:
        self._key = key
        self._out = np.zeros(0, np.uint8)
        self._trace_state = np.zeros(1, np.uint64)  # for trace ids, which all decisions have

    def same(
        self,
        values: tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]],
        told: NDArray[np.int64],
        drafts: Drafts,
        requests: NDArray[np.int64],
        sheet: Sheet,
    ) -> NDArray[np.bool_]:
        """Return bool[n]: which of the logged ``values`` the drafts come to, byte for byte.

        They are in one block, from int64[n] on, so many bytes, int64[n]. ``told`` int64[n,
        Told.COLUMNS] is what they say, ``requests`` int64[n] the hashes of their requests;
        ``sheet`` has a row for each. All have one bundle and one policy.
        """
        same = np.zeros(len(told), np.bool_)
        if not len(told):
            return same
        sizes = np.zeros(len(told), np.int64)
        for row, each in drafts.reasons.items():
            sizes[row] = len(each)
        reasons = b"".join(drafts.reasons[row] for row in sorted(drafts.reasons))
        # Broken bytes may have origin and steps, which are taken over, around all the rest.
        needed = int(3 * values[2].max() + sizes.max()) + FIXED_BYTES
        if needed > len(self._out):
            self._out = np.zeros(2 * needed, np.uint8)
        numbers = np.stack([drafts.outcomes, drafts.model_reasons, requests], axis=1)
        _find_same(
            self._out, values, told,
            (sheet.bodies, sheet.reasons, sheet.figures),
            (np.frombuffer(reasons, np.uint8), np.cumsum(sizes)), numbers, drafts.versions,
            self._key, self._trace_state, same,
        )  # fmt: skip
        return same
