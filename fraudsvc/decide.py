"""The decision itself: from a transaction, the states it meets, a bundle and a policy.

``decide`` is pure: no clock, no log, no store. Scorer, replay and backtest call it. Everything that
varies comes in as an argument, so the same arguments give the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from fraud.v1 import decision_pb2, transaction_pb2
from numba import njit
from numpy.typing import NDArray

from featurizer.features import FEATURES, INDEX, OPS, SCHEMA_VERSION
from featurizer.records import Entity
from featurizer.slots import LINES, SLOTS
from featurizer.state import META, POSITION, ROW_WORDS
from featurizer.view import view
from fraudsvc.policy import Policy
from trainer.bundle import Bundle
from trainer.model import score

REASONS_MAX = 4
FULL, PARTIAL, RULES_ONLY = (
    decision_pb2.RUNG_FULL,
    decision_pb2.RUNG_PARTIAL,
    decision_pb2.RUNG_RULES_ONLY,
)
_MODEL = decision_pb2.REASON_SOURCE_MODEL


# Per feature: the code and text of its reason, and where in the vector its norm is, -1 for none.
_CODES = [f.name.upper() for f in FEATURES]
_TEXTS = [f"{f.entity}: {f.meaning}" for f in FEATURES]
_NORMS = [INDEX[f.norm] if f.norm else -1 for f in FEATURES]


@dataclass(slots=True)
class Workspace:
    """Memory for one decision at a time, allocated once.

    ``rows`` int64[entities, ROW_WORDS] are the states before the record; ``versions``
    int64[entities] the log position that each had applied; ``logged`` the contributions as they go
    into the log.
    """

    rows: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros((len(Entity), ROW_WORDS), np.int64)
    )
    lines: NDArray[np.float64] = field(default_factory=lambda: np.zeros((LINES, SLOTS)))
    vector: NDArray[np.float32] = field(default_factory=lambda: np.zeros(len(FEATURES), np.float32))
    contributions: NDArray[np.float64] = field(default_factory=lambda: np.zeros(len(FEATURES)))
    logged: NDArray[np.float32] = field(default_factory=lambda: np.zeros(len(FEATURES), np.float32))
    versions: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(Entity), np.int64))
    strongest: NDArray[np.int64] = field(default_factory=lambda: np.zeros(REASONS_MAX, np.int64))


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
def _assess(rows, records, ops, lines, vector, model, contributions, logged, versions, strongest):  # type: ignore[no-untyped-def]
    """View, evaluate, pick; set the marks in the record's flags and return the logit.

    Holds the GIL, unlike the kernels elsewhere: giving it up for 10 µs invites a switch that
    costs more than it lets others do.
    """
    rec = records[0]
    for entity in range(rows.shape[0]):
        known = rec.entities[entity] != 0 and rows[entity, META] != 0
        versions[entity] = rows[entity, POSITION] if known else 0
    records[0].flags |= view(rows, rec, ops, lines, vector)
    logit = score(model, vector, contributions)
    logged[:] = contributions
    _pick(contributions, strongest)
    return logit


def _add_model_reasons(assessment: decision_pb2.Assessment, space: Workspace) -> None:
    for i in space.strongest.tolist():
        if i < 0:
            return
        reason = assessment.reasons.add(
            code=_CODES[i], source=_MODEL, text=_TEXTS[i], contribution=space.contributions[i]
        )
        value = space.vector[i]
        if value == value:  # noqa: PLR0124 - false for NaN, and quicker than asking
            reason.value = value
        norm = _NORMS[i]
        if norm >= 0 and space.vector[norm] == space.vector[norm]:
            reason.norm = space.vector[norm]


def decide(
    transaction: transaction_pb2.Transaction,
    record: NDArray[np.void],
    space: Workspace,
    bundle: Bundle | None,
    policy: Policy,
    rung: decision_pb2.Rung,
    cause: decision_pb2.RungCause,
    now_ms: int,
) -> decision_pb2.Decision:
    """Return the decision without its ids and times; those are the shell's.

    ``record`` RECORD[1] is the transaction's and gets its marks; ``space.rows`` hold the states
    before it. On RULES_ONLY, or without a bundle, neither states nor model are used.
    """
    if rung == RULES_ONLY or bundle is None:
        decision = decision_pb2.Decision(transaction=transaction)
        ruling = policy.rule(transaction, None, None, (1.0, 1.0), now_ms)
        rung = RULES_ONLY
    else:
        logit = _assess(
            space.rows, record, OPS, space.lines, space.vector, bundle.model.array,
            space.contributions, space.logged, space.versions, space.strongest,
        )  # fmt: skip
        probability = bundle.calibrate(logit)
        limits = (bundle.thresholds.review, bundle.thresholds.decline)
        ruling = policy.rule(transaction, space.vector, probability, limits, now_ms)
        decision = decision_pb2.Decision(
            transaction=transaction, features=space.vector.tobytes(),
            contributions=space.logged.tobytes(),
            entity_versions=space.versions.tolist(), logit=logit,
        )  # fmt: skip
        decision.assessment.score = probability
        decision.assessment.model_version = bundle.model_version
    assessment = decision.assessment
    assessment.outcome, assessment.rung, assessment.rung_cause = ruling.outcome, rung, cause
    assessment.policy_version, assessment.schema_version = policy.version, SCHEMA_VERSION
    assessment.reasons.extend(ruling.reasons)
    if rung != RULES_ONLY:
        _add_model_reasons(assessment, space)
    return decision
