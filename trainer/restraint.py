"""Owns how loudly a residual (T2) may speak beside the base and the expert. Must not know CatBoost.

All layers share one budget of alerts. What a residual lifts pushes the threshold up, and what it
gets wrong moves the rest about, so that frauds which the base finds are lost: more of them than
the residual finds of a new attack, where the expert finds that already. So it is shrunk (its
leaves times a factor, as a learning rate does: Friedman, 2001) as far as it takes to find them
still, within the same budget.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from trainer.expert import Expert
from trainer.model import Model
from trainer.trees import Trees

STRENGTHS = (1.0, 0.75, 0.5, 0.35, 0.25)
LOSS_MAX = 0.05  # of the frauds that the base finds


@dataclass(frozen=True, slots=True)
class Measure:
    """What a residual is held against.

    ``traffic`` float32[m, n] are payments that no layer was learnt from, each taking ``counts``
    float64[m] of the budget; ``frauds`` float32[k, n] are confirmed ones, maybe none.
    """

    traffic: NDArray[np.float32]
    counts: NDArray[np.float64]
    frauds: NDArray[np.float32]
    alert_share: float


def restrained(base: Trees, residual: Trees, expert: Expert | None, measure: Measure) -> Trees:
    """Return the residual at the greatest of STRENGTHS at which little is lost.

    Of the frauds that the base alone finds within the budget no more than LOSS_MAX may be lost.
    The least of STRENGTHS where that cannot be.
    """
    whole, others = Model(base, residual, expert), Model(base, None, expert)
    traffic, frauds = others.logits(measure.traffic), others.logits(measure.frauds)
    more_traffic = whole.logits(measure.traffic) - traffic
    more_frauds = whole.logits(measure.frauds) - frauds
    known = whole.base_logits(measure.frauds) >= _from(whole.base_logits(measure.traffic), measure)

    def found(strength: float) -> float:
        limit = _from(traffic + strength * more_traffic, measure)
        return float(((frauds + strength * more_frauds)[known] >= limit).mean())

    strength = STRENGTHS[0]
    if known.any():
        enough = (s for s in STRENGTHS if found(s) >= 1.0 - LOSS_MAX)
        strength = next(enough, STRENGTHS[-1])
    return replace(residual, scale=residual.scale * strength, bias=residual.bias * strength)


def _from(logits: NDArray[np.float64], measure: Measure) -> float:
    """Return the logit from which on the traffic is within the budget."""
    order = np.argsort(-logits, kind="stable")
    taken = np.cumsum(measure.counts[order])
    most = int(np.searchsorted(taken, measure.alert_share * len(logits), side="right"))
    return float(logits[order[max(most - 1, 0)]])
