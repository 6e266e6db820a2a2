"""The decision itself: from a transaction, the states it meets, a bundle and a policy.

``decide`` is pure: no clock, no log, no store. Scorer, replay and backtest call it. Everything that
varies comes in as an argument, so the same arguments give the same bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from fraud.v1 import decision_pb2
from numpy.typing import NDArray

from featurizer.features import FEATURES, OPS, SCHEMA_VERSION
from featurizer.records import Entity
from featurizer.slots import LINES, SLOTS
from featurizer.state import ROW_WORDS
from fraudsvc.answers import (
    EMPTY_BODY,
    FIGURES,
    PARTS,
    REASONS_BYTES_MAX,
    Draft,
    versions_of,
)
from fraudsvc.assess import PROBABILITY, Sheet, assess
from fraudsvc.payment import Payment
from fraudsvc.policy import Policy
from fraudsvc.rungs import FULL, NO_CAUSE, RULES_ONLY
from trainer.bundle import Bundle

_CERTAIN = (1.0, 1.0)  # no score reaches these thresholds, as there is none


@dataclass(slots=True)
class Workspace:
    """Memory for one decision at a time, allocated once.

    ``rows`` int64[entities, ROW_WORDS] are the states before the record; ``parts`` and ``figures``
    what the logit is made of and what follows from it, as ``answers`` says; ``body`` and
    ``reasons`` what of them goes onto the wire.
    """

    rows: NDArray[np.int64] = dataclasses.field(
        default_factory=lambda: np.zeros((len(Entity), ROW_WORDS), np.int64)
    )
    lines: NDArray[np.float64] = dataclasses.field(default_factory=lambda: np.zeros((LINES, SLOTS)))
    vector: NDArray[np.float32] = dataclasses.field(
        default_factory=lambda: np.zeros(len(FEATURES), np.float32)
    )
    parts: NDArray[np.float64] = dataclasses.field(default_factory=lambda: np.zeros(PARTS))
    figures: NDArray[np.float64] = dataclasses.field(default_factory=lambda: np.zeros(FIGURES))
    body: NDArray[np.uint8] = dataclasses.field(
        default_factory=lambda: np.frombuffer(EMPTY_BODY, np.uint8).copy()
    )
    reasons: NDArray[np.uint8] = dataclasses.field(
        default_factory=lambda: np.zeros(REASONS_BYTES_MAX, np.uint8)
    )


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
        return Draft(ruling.outcome, RULES_ONLY, cause, ruling.fields, versions, -1)
    size, looked_up = assess(
        space.rows, record, OPS, space.lines, space.vector, bundle.model.array,
        bundle.calibration.knots, space.parts, space.figures, space.body, space.reasons,
        policy.table,
    )  # fmt: skip
    limits = (bundle.thresholds.review, bundle.thresholds.decline)
    probability = space.figures.item(PROBABILITY)
    ruling = policy.rule(payment, space.vector, probability, limits, looked_up)
    versions = versions_of(bundle.model_version, policy.version, SCHEMA_VERSION)
    return Draft(ruling.outcome, rung, cause, ruling.fields, versions, size)


def decide_on(payment: Payment, sheet: Sheet, row: int, bundle: Bundle, policy: Policy) -> Draft:
    """Return the decision on a payment assessed in a row of ``sheet``, as ``decide`` would."""
    size, looked_up = sheet.found[row].tolist()
    limits = (bundle.thresholds.review, bundle.thresholds.decline)
    probability = sheet.figures.item(row, PROBABILITY)
    ruling = policy.rule(payment, sheet.vectors[row], probability, limits, looked_up)
    versions = versions_of(bundle.model_version, policy.version, SCHEMA_VERSION)
    return Draft(ruling.outcome, FULL, NO_CAUSE, ruling.fields, versions, size)


class Drafts(NamedTuple):
    """Many drafts of one bundle and one policy; ``reasons`` are those of rows that have any.

    outcomes and model_reasons int64[n], as in Draft.
    """

    outcomes: NDArray[np.int64]
    model_reasons: NDArray[np.int64]
    reasons: Mapping[int, bytes]
    versions: bytes

    def draft(self, row: int, rung: int, cause: int) -> Draft:
        """Return one of them."""
        outcome, size = int(self.outcomes[row]), int(self.model_reasons[row])
        return Draft(outcome, rung, cause, self.reasons.get(row, b""), self.versions, size)


def decide_all(
    payment_of: Callable[[int], Payment],
    datas: Sequence[bytes],
    sheet: Sheet,
    bundle: Bundle,
    policy: Policy,
) -> Drafts:
    """Return the decisions on the first rows of ``sheet``, as ``decide_on`` would.

    ``payment_of`` is asked for a row's payment where more than its score has a say; ``datas`` have
    each one's bytes somewhere in them.
    """
    count = len(datas)
    limits = (bundle.thresholds.review, bundle.thresholds.decline)
    scores, found = sheet.figures[:count, PROBABILITY], sheet.found[:count]
    outcomes = policy.rule_by_score(scores, found[:, 1], limits, datas)
    reasons = {}
    for row in np.flatnonzero(outcomes == 0).tolist():
        draft = decide_on(payment_of(row), sheet, row, bundle, policy)
        outcomes[row] = draft.outcome
        if draft.reasons:
            reasons[row] = draft.reasons
    versions = versions_of(bundle.model_version, policy.version, SCHEMA_VERSION)
    return Drafts(outcomes, found[:, 0].copy(), reasons, versions)
