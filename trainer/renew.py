"""Owns making a bundle's content from an older one with other layers. Must not know files.

The layers change what a logit means, so calibration and thresholds are fitted again:

- Calibration: the isotonic map of the base was learnt from many labels, and there are few of the
  new ones; a map fitted to those would be ruined. So the map stays, moved as a whole along the
  logits: p(logit) = p_base(logit - shift), the shift such that labelled payments have as many
  frauds as expected (calibration in the large: Steyerberg, Clinical Prediction Models, 2009),
  drawn towards 0 by as many frauds of doubt as SHIFT_DOUBT. The map goes on to its bounds by
  far enough that no two logits of recent traffic above its last block become one probability.
- Thresholds: such that recent traffic stays within the budget of alerts, and the newest decisions
  within a multiple of it: what labels make of a feature may be new for everybody. What is likely
  fraud takes less of either. This moves with
  every swap, whatever the calibration makes of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.bundle import CHECK_ROWS_MAX, Content
from trainer.calibration import Calibration
from trainer.expert import Expert, evaluate_expert
from trainer.model import Model
from trainer.thresholds import Budget, thresholds_within
from trainer.trees import Trees

SHIFT_MAX = 3.0  # log-odds
SHIFT_DOUBT = 10.0  # frauds
JUDGED_DOUBT = 10.0  # payments that were judged
UNJUDGED_MAX = 0.5  # of the budget, for what an expert boosts that nobody has judged
GOOD_MIN = 0.5  # of what the bundle takes for fraud: it may be wrong
_SHIFT_STEPS = 60
LAYER_ROWS_MAX = 64


@dataclass(frozen=True, slots=True)
class Recent:
    """Recent traffic to fit a bundle to.

    ``features`` float32[m, n] is all traffic but what was called fraud, or rows drawn from it
    evenly; ``is_good`` bool[m] says which of them were judged good, ``is_alerted`` which were
    alerted when they were decided. ``newest`` float32[j, n] are the newest decisions, maybe none.
    ``asked`` float32[q, n] with ``asked_is_fraud`` and ``asked_is_alerted`` bool[q] are payments
    that somebody was asked to judge, maybe none. ``labelled`` float32[k, n] with
    ``is_fraud`` bool[k] and ``weights`` float64[k] are payments with known outcomes, weighted so
    that together they stand for traffic; none where k is 0.
    """

    features: NDArray[np.float32]
    is_good: NDArray[np.bool_]
    is_alerted: NDArray[np.bool_]
    newest: NDArray[np.float32]
    asked: NDArray[np.float32]
    asked_is_fraud: NDArray[np.bool_]
    asked_is_alerted: NDArray[np.bool_]
    labelled: NDArray[np.float32]
    is_fraud: NDArray[np.bool_]
    weights: NDArray[np.float64]


def unlabelled(features: NDArray[np.float32]) -> Recent:
    """Return recent traffic float32[m, n] that is taken as good, without other outcomes."""
    none = np.empty((0, features.shape[1]), np.float32)
    no = np.empty(0, np.bool_)
    all_good = np.ones(len(features), np.bool_)
    return Recent(features, all_good, ~all_good, none, none, no, no, none, no, np.empty(0))


def renew(
    older: Content,
    residual: Trees | None,
    expert: Expert | None,
    recent: Recent,
    budget: Budget,
    facts: Mapping[str, Any],
) -> Content:
    """Return the content of a bundle with the base of ``older`` and these layers.

    ``older`` may have been renewed itself: what it was fitted by is in its facts and is taken
    back. ``facts`` are added to the older one's; "fitted" among them says what was fitted here.
    The ``recent.labelled`` that the layers lift most become rows that are checked at every load,
    so that the layers are, too. Raises ModelError where a layer is not supported, ValueError
    where there is no recent traffic.
    """
    if not len(recent.features):
        raise ValueError("no recent traffic to fit thresholds to")
    model = Model(older.trees, residual, expert)
    logits = model.logits(recent.features)
    before = older.facts.get("fitted", {})
    calibration = move_calibration(older.calibration, -before.get("calibration_shift", 0.0))
    shift = fit_shift(calibration, model.logits(recent.labelled), recent.is_fraud, recent.weights)
    moved = move_calibration(calibration, shift, float(logits.max()))
    probabilities = moved.probabilities(logits)
    newest = moved.probabilities(model.logits(recent.newest))
    decline_from = before.get("decline_from", older.thresholds.decline)
    counts = good_shares(expert, recent, probabilities, newest, budget.alert_share)
    thresholds = thresholds_within(probabilities, decline_from, budget, newest, *counts)
    base_rows = before.get("base_check_rows", len(older.check_vectors))
    rows, row_logits = _check_rows(older, base_rows, model, recent)
    fitted = {
        "recent_rows": len(logits),
        "labelled_rows": len(recent.is_fraud),
        "labelled_frauds": int(recent.is_fraud.sum()),
        "calibration_shift": shift,
        "decline_from": decline_from,
        "alert_budget": budget.alert_share,
        "alert_share": float((probabilities >= thresholds.review).mean()),
        "newest_rows": len(newest),
        "newest_alerts": int((newest >= thresholds.review).sum()),
        "decline_share": float((probabilities >= thresholds.decline).mean()),
        "base_check_rows": base_rows,
    }
    return replace(
        older, residual=residual, expert=expert, calibration=moved, thresholds=thresholds,
        check_vectors=rows, check_logits=row_logits,
        facts={**older.facts, **facts, "fitted": fitted},
    )  # fmt: skip


def good_shares(
    expert: Expert | None,
    recent: Recent,
    probabilities: NDArray[np.float64],
    newest: NDArray[np.float64],
    alert_share: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how likely each of ``recent.features`` and of ``recent.newest`` is no fraud.

    Fraud that nobody told of must not take the budget of the rest. So a payment counts as the
    ``probabilities`` float64[m] and ``newest`` float64[j] of the new bundle have it, but by
    GOOD_MIN at least. Of what was alerted, or what the expert boosts, as much is good as among
    those that were judged; what the expert boosts of the newest within GOOD_MIN, too, as who
    judged may have lied. Until some were judged, all that is alerted counts, and what the expert
    boosts up to UNJUDGED_MAX of the budget ``alert_share``: or an attack that is found before
    anybody could judge it would leave nothing for other fraud.
    """
    counts = np.maximum(1.0 - probabilities, GOOD_MIN)
    late_counts = np.maximum(1.0 - newest, GOOD_MIN)
    counts[recent.is_alerted] = _good_share(recent.asked_is_fraud[recent.asked_is_alerted])
    if expert is not None:
        features, asked, late = (
            evaluate_expert(expert, rows)[1] > 0.0
            for rows in (recent.features, recent.asked, recent.newest)
        )
        boosted, most = float(features.mean()), UNJUDGED_MAX * alert_share
        unjudged = most / boosted if boosted > most else 1.0
        counts[features] = good = _good_share(recent.asked_is_fraud[asked], unjudged)
        late_counts[late] = max(good, GOOD_MIN)
    counts[recent.is_good] = 1.0
    return counts, late_counts


def _good_share(is_fraud: NDArray[np.bool_], unjudged: float = 1.0) -> float:
    """Return how many of the judged are good; as many as ``unjudged`` where few were judged."""
    good = np.count_nonzero(~is_fraud) + JUDGED_DOUBT * unjudged
    return float(good / (len(is_fraud) + JUDGED_DOUBT))


def fit_shift(
    calibration: Calibration,
    logits: NDArray[np.float64],
    is_fraud: NDArray[np.bool_],
    weights: NDArray[np.float64],
) -> float:
    """Return the shift (log-odds) with which labelled payments have the expected frauds.

    ``logits`` float64[k], ``is_fraud`` bool[k] and ``weights`` float64[k]. Between -SHIFT_MAX and
    SHIFT_MAX; 0.0 where nothing is labelled.
    """
    if not len(logits):
        return 0.0
    seen = float(weights[is_fraud].sum())
    low, high = -SHIFT_MAX, SHIFT_MAX
    for _ in range(_SHIFT_STEPS):  # the expectation falls as the shift grows
        middle = 0.5 * (low + high)
        if float((weights * calibration.probabilities(logits - middle)).sum()) > seen:
            low = middle
        else:
            high = middle
    frauds = float(is_fraud.sum())
    return 0.5 * (low + high) * frauds / (frauds + SHIFT_DOUBT)


def move_calibration(
    calibration: Calibration, shift: float, logit_max: float | None = None
) -> Calibration:
    """Return the map moved by ``shift`` along the logits, its tail reaching ``logit_max``."""
    knots = calibration.knots.copy()
    knots[0] += shift
    if logit_max is not None:
        knots[0, -1] = max(knots[0, -1], logit_max + 1.0)
    # Two logits next to each other may have become one.
    increasing = np.r_[True, np.diff(knots[0]) > 0.0]
    return Calibration(knots[:, increasing])


def _check_rows(
    older: Content, base_rows: int, model: Model, recent: Recent
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return rows to be checked at every load, and the base's logits of them.

    Those that CatBoost judged, and the labelled ones that the layers lift most.
    """
    base = model.base_logits(recent.labelled)
    most = min(LAYER_ROWS_MAX, CHECK_ROWS_MAX - base_rows)
    lifted = np.argsort(base - model.logits(recent.labelled), kind="stable")[:most]
    rows = np.concatenate([older.check_vectors[:base_rows], recent.labelled[lifted]])
    logits = np.concatenate([older.check_logits[:base_rows], base[lifted]])
    return np.ascontiguousarray(rows, np.float32), logits
