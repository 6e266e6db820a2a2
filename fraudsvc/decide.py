"""The decision itself: from a transaction, the states it meets, a bundle and a policy.

``decide`` is pure: no clock, no log, no store. Scorer, replay and backtest call it. Everything that
varies comes in as an argument, so the same arguments give the same bytes.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from fraud.v1 import decision_pb2
from numba import njit
from numpy.typing import NDArray

from featurizer.features import FEATURES, OPS, SCHEMA_VERSION
from featurizer.records import Entity
from featurizer.slots import LINES, SLOTS
from featurizer.state import META, POSITION, ROW_WORDS
from featurizer.view import view
from fraudsvc.answers import (
    EMPTY_BODY,
    REASONS_BYTES_MAX,
    REASONS_MAX,
    Draft,
    field,
    versions_of,
    write_body,
    write_reasons,
)
from fraudsvc.payment import Payment
from fraudsvc.policy import Policy, Ruling
from fraudsvc.policy_table import fire
from trainer.bundle import Bundle
from trainer.calibration import probability_of
from trainer.model import score

FULL, PARTIAL, RULES_ONLY = (
    decision_pb2.RUNG_FULL,
    decision_pb2.RUNG_PARTIAL,
    decision_pb2.RUNG_RULES_ONLY,
)
_CERTAIN = (1.0, 1.0)  # no score reaches these thresholds, as there is none
_LOGIT, _PROBABILITY = range(2)


@dataclass(slots=True)
class Workspace:
    """Memory for one decision at a time, allocated once.

    ``rows`` int64[entities, ROW_WORDS] are the states before the record; ``figures`` float64[2]
    the logit and the probability; ``body`` and ``reasons`` what of them goes onto the wire.
    """

    rows: NDArray[np.int64] = dataclasses.field(
        default_factory=lambda: np.zeros((len(Entity), ROW_WORDS), np.int64)
    )
    lines: NDArray[np.float64] = dataclasses.field(default_factory=lambda: np.zeros((LINES, SLOTS)))
    vector: NDArray[np.float32] = dataclasses.field(
        default_factory=lambda: np.zeros(len(FEATURES), np.float32)
    )
    contributions: NDArray[np.float64] = dataclasses.field(
        default_factory=lambda: np.zeros(len(FEATURES))
    )
    figures: NDArray[np.float64] = dataclasses.field(default_factory=lambda: np.zeros(2))
    body: NDArray[np.uint8] = dataclasses.field(
        default_factory=lambda: np.frombuffer(EMPTY_BODY, np.uint8).copy()
    )
    reasons: NDArray[np.uint8] = dataclasses.field(
        default_factory=lambda: np.zeros(REASONS_BYTES_MAX, np.uint8)
    )


@njit(cache=True)
def _pick(contributions, strongest):  # type: ignore[no-untyped-def]
    """Set ``strongest`` to the features of the largest absolute contributions, -1 for none."""
    strongest[:] = -1
    for i in range(len(contributions)):
        size = abs(contributions[i])
        if size == 0.0:
            continue
        place = len(strongest)
        while place > 0 and (
            strongest[place - 1] < 0 or abs(contributions[strongest[place - 1]]) < size
        ):
            place -= 1
        if place < len(strongest):
            for j in range(len(strongest) - 1, place, -1):
                strongest[j] = strongest[j - 1]
            strongest[place] = i


@njit(cache=True)
def _assess(rows, records, ops, lines, vector, model, knots, parts, figures, body, reasons, table):  # type: ignore[no-untyped-def]
    """View, evaluate, calibrate, pick, write and look up the policy's rules.

    Return how many bytes the reasons are, and a bit for each rule that holds.

    ``parts`` are the contributions. Sets the marks in the record's flags. Holds the GIL, unlike
    the kernels elsewhere: giving it up for 10 µs invites a switch that costs more than it lets
    others do.
    """
    rec = records[0]
    versions = np.zeros(rows.shape[0], np.int64)
    for entity in range(rows.shape[0]):
        if rec.entities[entity] != 0 and rows[entity, META] != 0:
            versions[entity] = rows[entity, POSITION]
    records[0].flags |= view(rows, rec, ops, lines, vector)
    figures[_LOGIT] = score(model, vector, parts)
    figures[_PROBABILITY] = probability_of(knots, figures[_LOGIT])
    strongest = np.empty(REASONS_MAX, np.int64)
    _pick(parts, strongest)
    write_body(vector, parts, versions, body)
    size = write_reasons(strongest, parts, vector, reasons)
    return size, fire(table, records, vector, figures[_PROBABILITY])


def decide(
    payment: Payment,
    record: NDArray[np.void],
    space: Workspace,
    bundle: Bundle | None,
    policy: Policy,
    rung: decision_pb2.Rung,
    cause: decision_pb2.RungCause,
) -> Draft:
    """Return the decision without its ids and times; those are the shell's.

    ``record`` RECORD[1] is the payment's, or what of it is to be seen, and gets its marks;
    ``space.rows`` hold the states before it. On RULES_ONLY, or without a bundle, neither states
    nor model are used.
    """
    if rung == RULES_ONLY or bundle is None:
        ruling = policy.rule(payment, None, None, _CERTAIN)
        versions = versions_of("", policy.version, SCHEMA_VERSION)
        return Draft(ruling.outcome, RULES_ONLY, cause, _fields(ruling), versions, -1)
    size, looked_up = _assess(
        space.rows, record, OPS, space.lines, space.vector, bundle.model.array,
        bundle.calibration.knots, space.contributions, space.figures, space.body, space.reasons,
        policy.table,
    )  # fmt: skip
    limits = (bundle.thresholds.review, bundle.thresholds.decline)
    probability = space.figures.item(_PROBABILITY)
    ruling = policy.rule(payment, space.vector, probability, limits, looked_up)
    versions = versions_of(bundle.model_version, policy.version, SCHEMA_VERSION)
    return Draft(ruling.outcome, rung, cause, _fields(ruling), versions, size)


def _fields(ruling: Ruling) -> bytes:
    """Return the policy's reasons as fields of an Assessment."""
    if not ruling.reasons:
        return b""
    return b"".join(field(b"\x1a", reason.SerializeToString()) for reason in ruling.reasons)
