"""Owns the gates that a bundle passes before it is served, each with its figure.

In order, and the first that fails ends it: cost of a row, alerts on recent traffic, recall of old
frauds. Integrity and equality come before them, when a bundle is loaded. Must not know files.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.bundle import Bundle

COST_ROUNDS = 400


class Gate(NamedTuple):
    """One gate: what was measured, and what it was held against."""

    name: str
    value: float
    limit: float
    passed: bool


@dataclass(frozen=True, slots=True)
class GateSettings:
    """Limits: µs a row, share of recent traffic alerted, and points of old frauds' recall lost."""

    cost_us_max: float = 12.0
    alert_share_max: float = 0.02
    recall_loss_max: float = 0.05


def judge(
    candidate: Bundle,
    champion: Bundle,
    recent: NDArray[np.float32],
    old_frauds: NDArray[np.float32],
    settings: GateSettings,
) -> list[Gate]:
    """Return the gates met; the candidate may be served where all passed.

    ``recent`` float32[m, n] is traffic, ``old_frauds`` float32[k, n] a frozen set, empty where
    there is none.
    """
    found = []
    for name, value, limit, passed in (
        _cost(candidate, recent, settings),
        _alerts(candidate, recent, settings),
        _recall(candidate, champion, old_frauds, settings),
    ):
        found.append(Gate(name, value, limit, passed))
        if not passed:
            break
    return found


def alerts(bundle: Bundle, rows: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return which of float32[m, n] the bundle would review or decline by score, bool[m]."""
    probabilities = bundle.calibration.probabilities(bundle.model.logits(rows))
    above: NDArray[np.bool_] = probabilities >= bundle.thresholds.review
    return above


def _cost(candidate: Bundle, recent: NDArray[np.float32], settings: GateSettings) -> Gate:
    contributions = np.empty(candidate.model.n_parts)
    used_ns = np.empty(COST_ROUNDS)
    for turn in range(COST_ROUNDS):
        row = recent[turn % len(recent)]
        start_ns = time.perf_counter_ns()
        candidate.model.score(row, contributions)
        used_ns[turn] = time.perf_counter_ns() - start_ns
    cost_us = float(np.median(used_ns)) / 1000
    return Gate("cost per row, µs", cost_us, settings.cost_us_max, cost_us <= settings.cost_us_max)


def _alerts(candidate: Bundle, recent: NDArray[np.float32], settings: GateSettings) -> Gate:
    share = float(alerts(candidate, recent).mean())
    limit = settings.alert_share_max
    return Gate("share of recent traffic alerted", share, limit, share <= limit)


def _recall(
    candidate: Bundle, champion: Bundle, old_frauds: NDArray[np.float32], settings: GateSettings
) -> Gate:
    if not len(old_frauds):
        return Gate("recall of old frauds", 1.0, 0.0, True)
    before = float(alerts(champion, old_frauds).mean())
    limit = max(0.0, before - settings.recall_loss_max)
    recall = float(alerts(candidate, old_frauds).mean())
    return Gate("recall of old frauds", recall, limit, recall >= limit)
