"""Owns the judgement of a model on rows with labels. Must not know how it was trained.

A report is plain JSON values, so that a manifest, a terminal and a script read the same figures.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer import metrics
from trainer.bundle import Bundle
from trainer.calibration import Calibration
from trainer.thresholds import Thresholds
from trainer.vectors import Vectors

FALSE_POSITIVE_RATES = (0.001, 0.005, 0.01, 0.05)
CARDS_A_DAY = 100


class EvaluationError(Exception):
    """The rows do not fit the model, or have only one outcome."""


def evaluate(bundle: Bundle, vectors: Vectors) -> dict[str, Any]:
    """Return the report of a bundle on labelled rows.

    Raises EvaluationError where the rows have other features or hold no fraud or nothing else.
    """
    if vectors.schema_version != bundle.schema_version:
        raise EvaluationError(
            f"the vectors are of schema {vectors.schema_version}, "
            f"the bundle of {bundle.schema_version}"
        )
    if vectors.feature_names != bundle.feature_names:
        raise EvaluationError("the vectors have other features than the bundle")
    logits = bundle.model.logits(vectors.features)
    return {
        "model_version": bundle.model_version,
        **report(logits, bundle.calibration, bundle.thresholds, vectors, slice(None)),
    }


def report(
    logits: NDArray[np.float64],
    calibration: Calibration,
    thresholds: Thresholds,
    vectors: Vectors,
    rows: slice,
) -> dict[str, Any]:
    """Return the figures of the given rows, whose logits float64[m] are given.

    Raises EvaluationError where they have only one outcome.
    """
    fraud, time_ms = vectors.is_fraud[rows], vectors.event_time_ms[rows]
    customer = vectors.customer[rows]
    frauds = int(fraud.sum())
    if not 0 < frauds < len(fraud):
        raise EvaluationError(f"{frauds} frauds in {len(fraud)} rows: both outcomes are needed")
    probabilities = calibration.probabilities(logits)
    bins = metrics.reliability(probabilities, fraud)
    return {
        "rows": len(fraud),
        "frauds": frauds,
        "first_event_ms": int(time_ms[0]),
        "last_event_ms": int(time_ms[-1]),
        "auc": metrics.roc_auc(logits, fraud),
        "average_precision": metrics.average_precision(logits, fraud),
        "card_precision_at_100": metrics.card_precision(
            logits, fraud, customer, time_ms, CARDS_A_DAY
        ),
        "card_precision_at_100_ceiling": metrics.card_precision_ceiling(
            fraud, customer, time_ms, CARDS_A_DAY
        ),
        "recall_at_false_positive_rate": {
            str(rate): metrics.recall_at(logits, fraud, rate) for rate in FALSE_POSITIVE_RATES
        },
        "expected_calibration_error": metrics.calibration_error(bins),
        "reliability": [row._asdict() for row in bins],
        "outcomes": _outcomes(probabilities, fraud, thresholds),
    }


def _outcomes(
    probabilities: NDArray[np.float64], fraud: NDArray[np.bool_], thresholds: Thresholds
) -> dict[str, dict[str, int]]:
    """Return how many rows, and frauds, the thresholds would decline, review and approve."""
    declined = probabilities >= thresholds.decline
    reviewed = ~declined & (probabilities >= thresholds.review)
    parts = {"decline": declined, "review": reviewed, "approve": ~declined & ~reviewed}
    return {
        name: {"rows": int(part.sum()), "frauds": int(fraud[part].sum())}
        for name, part in parts.items()
    }
