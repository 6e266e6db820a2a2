"""Owns which good payments a residual learns from: all that the base finds suspicious, few others.

Alerts are decided among the few good payments in a hundred that score highest. Drawn evenly, those
are a few dozen, and a residual that saw no more of them pushes others above old fraud. So a
payment is drawn the likelier the more the base suspects it, and how likely it was is told to the
residual (local case-control sampling: Fithian and Hastie, 2014). Must not know CatBoost.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_HARD = 0.01  # of good payments: those that the base suspects most are all drawn
_EASY_SHARE = 0.05  # of the others one in twenty, at least


def hardness(logits: NDArray[np.float64]) -> float:
    """Return the base's logit from which on good payments of ``logits`` float64[m] are all drawn.

    m is 1 or more.
    """
    return float(np.quantile(logits, 1.0 - _HARD))


def shares_drawn(logits: NDArray[np.float64], hard: float) -> NDArray[np.float64]:
    """Return the share float64[k] drawn of good payments with the base's ``logits`` float64[k].

    As their odds of fraud are to those at ``hard``.
    """
    shares: NDArray[np.float64] = np.clip(np.exp(np.minimum(logits - hard, 0.0)), _EASY_SHARE, 1.0)
    return shares
