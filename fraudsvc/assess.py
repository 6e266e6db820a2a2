"""What the model says of a record, in one kernel call; and of many, each seeing those before it.

Owns the order view, score, calibrate, pick, write, look up. Must not know what the policy makes of
it. ``decide`` calls it for one record, the stream for a batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from featurizer.arena import Arena
from featurizer.arena_kernels import fold_all, gather, hint_all, reserve_all
from featurizer.features import FEATURES, OPS
from featurizer.records import Entity
from featurizer.slots import LINES, SLOTS
from featurizer.state import META, POSITION, ROW_WORDS
from featurizer.view import view
from fraudsvc.answers import (
    EMPTY_BODY,
    FIGURES,
    PARTS,
    REASONS_BYTES_MAX,
    REASONS_MAX,
    write_body,
    write_reasons,
)
from fraudsvc.kernel_clock import monotonic_ns
from fraudsvc.policy.table import fire
from trainer.bundle import Bundle
from trainer.calibration import probability_of
from trainer.model import score

LOGIT, PROBABILITY, EXPERT_LOGIT, VIEWED_NS, SCORED_NS, BEGUN_NS = range(FIGURES)


@njit(cache=True)
def _pick(parts, start, stop, strongest):  # type: ignore[no-untyped-def]
    """Take the largest absolute ``parts`` of a range into ``strongest``; -1 is for none."""
    last = len(strongest) - 1
    least = 0.0 if strongest[last] < 0 else abs(parts[strongest[last]])
    for i in range(np.uint64(start), np.uint64(stop)):
        size = abs(parts[i])
        if size <= least:  # nearly all of them
            continue
        place = last
        while place > 0 and (strongest[place - 1] < 0 or abs(parts[strongest[place - 1]]) < size):
            strongest[place] = strongest[place - 1]
            place -= 1
        strongest[place] = i
        if strongest[last] >= 0:
            least = abs(parts[strongest[last]])


@njit(cache=True)
def appraise(records, vector, versions, model, knots, parts, figures, body, reasons, table):  # type: ignore[no-untyped-def]
    """Evaluate, calibrate, pick, write and look up the policy's rules; what follows from a vector.

    ``versions`` int64[entities] are those of the states that it was made of. Returns as ``assess``.
    """
    figures[LOGIT] = score(model, vector, parts)
    figures[PROBABILITY] = probability_of(knots, figures[LOGIT])
    figures[EXPERT_LOGIT] = parts[len(vector)]
    strongest = np.full(REASONS_MAX, -1)
    _pick(parts, 0, len(vector), strongest)
    if figures[EXPERT_LOGIT] > 0.0:
        _pick(parts, len(vector) + 1, len(parts), strongest)
    write_body(vector, parts, versions, body)
    size = write_reasons(strongest, parts, vector, reasons)
    figures[SCORED_NS] = monotonic_ns()
    return size, fire(table, records, vector, figures[PROBABILITY])


@njit(cache=True)
def assess(rows, records, ops, lines, vector, model, knots, parts, figures, body, reasons, table):  # type: ignore[no-untyped-def]
    """View and appraise; return how many bytes the reasons are, and a bit for each rule that holds.

    ``parts`` are what ``score`` sets. Sets the marks in the record's flags. Holds the GIL, unlike
    the kernels elsewhere: giving it up for 10 µs invites a switch that costs more than it lets
    others do.
    """
    rec = records[0]
    versions = np.zeros(rows.shape[0], np.int64)
    for entity in range(rows.shape[0]):
        if rec.entities[entity] != 0 and rows[entity, META] != 0:
            versions[entity] = rows[entity, POSITION]
    records[0].flags |= view(rows, rec, ops, lines, vector)
    figures[VIEWED_NS] = monotonic_ns()
    return appraise(
        records, vector, versions, model, knots, parts, figures, body, reasons, table
    )  # fmt: skip


@njit(cache=True)
def _assess_all(memory, records, positions, at, stored, ops, judge, space, sheet):  # type: ignore[no-untyped-def]
    """Assess and fold each record from ``at`` on; return where there was no room, or how many."""
    words, index, counters, changed = memory
    rows, lines, parts = space
    model, knots, table = judge
    vectors, figures, bodies, reasons, found = sheet
    for i in range(at, len(records)):
        figures[i, BEGUN_NS] = monotonic_ns()
        hint_all(words, index, records, i)
        if not reserve_all(words, index, counters, records[i]):
            return i
        gather(words, index, records[i], rows)
        if len(stored) > 0:
            for entity in range(rows.shape[0]):
                rows[entity, POSITION] = stored[i, entity]
        found[i] = assess(
            rows, records[i : i + 1], ops, lines, vectors[i], model, knots, parts, figures[i],
            bodies[i], reasons[i], table,
        )  # fmt: skip
        fold_all(words, index, counters, changed, records[i], positions[i])
    return len(records)


@njit(cache=True, nogil=True)
def _appraise_all(records, versions, judge, parts, sheet):  # type: ignore[no-untyped-def]
    """Appraise the vectors of a sheet, whose records RECORD[n] have their marks."""
    model, knots, table = judge
    vectors, figures, bodies, reasons, found = sheet
    for i in range(len(records)):
        found[i] = appraise(
            records[i : i + 1], vectors[i], versions[i], model, knots, parts, figures[i], bodies[i],
            reasons[i], table,
        )  # fmt: skip


class Sheet:
    """What the model says of at most ``capacity`` records; a row each, of ``Workspace``'s kinds.

    ``found`` int64[capacity, 2]: how many bytes the reasons are, and the rules that hold.
    """

    def __init__(self, capacity: int) -> None:
        features = len(FEATURES)
        self.vectors = np.zeros((capacity, features), np.float32)
        self.figures = np.zeros((capacity, FIGURES))
        self.bodies = np.tile(np.frombuffer(EMPTY_BODY, np.uint8), (capacity, 1))
        self.reasons = np.zeros((capacity, REASONS_BYTES_MAX), np.uint8)
        self.found = np.zeros((capacity, 2), np.int64)
        self._space = (
            np.zeros((len(Entity), ROW_WORDS), np.int64), np.zeros((LINES, SLOTS)), np.zeros(PARTS),
        )  # fmt: skip

    def fill(
        self,
        arena: Arena,
        records: NDArray[np.void],
        positions: NDArray[np.int64],
        stored: NDArray[np.int64],
        bundle: Bundle,
        table: NDArray[np.int64],
        at: int = 0,
    ) -> None:
        """Assess ``records`` (RECORD[n]), which get their marks, and fold each before the next.

        Their rows begin at ``at``.

        ``stored`` int64[n, entities] are the positions that the states were stored with, or
        int64[0, entities] where the arena's own are those. ``table`` is the policy's.
        """
        judge, sheet = _judge_of(bundle, table), self._rows(at)
        arena.run_by(_assess_all, records, positions, stored, OPS, judge, self._space, sheet)

    def appraise(
        self,
        vectors: NDArray[np.float32],
        records: NDArray[np.void],
        versions: NDArray[np.int64],
        bundle: Bundle,
        table: NDArray[np.int64],
    ) -> None:
        """Appraise vectors float32[n, features] that were made before, one for each record.

        ``versions`` int64[n, entities] are those of their states; ``table`` is the policy's.
        """
        self.vectors[: len(vectors)] = vectors
        judge, parts = _judge_of(bundle, table), self._space[-1]
        _appraise_all(records, versions, judge, parts, self._rows(0))

    def with_room(self, count: int) -> Sheet:
        """Return this sheet, or a larger one where it has less than ``count`` rows."""
        return self if count <= len(self.found) else Sheet(2 * count)

    def _rows(self, at: int) -> tuple[NDArray[Any], ...]:
        return (
            self.vectors[at:], self.figures[at:], self.bodies[at:], self.reasons[at:],
            self.found[at:],
        )  # fmt: skip


def _judge_of(bundle: Bundle, table: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
    return bundle.model.array, bundle.calibration.knots, table
