"""Owns what a system under comparison is: it scores, is told labels, and may change its model.

Must not know how it is measured.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tests.adaptation.base import Base
from tests.adaptation.streams import Stream
from trainer.model import Model

# One label as it comes: the payment's place in the stream, what is said, by whom.
TOLD = np.dtype(
    [
        ("row", "<i8"),
        ("time_ms", "<i8"),
        ("is_fraud", "?"),
        ("by_analyst", "?"),
        ("reporter", "<i8"),
    ]
)


class System(Protocol):
    """One of those compared."""

    name: str

    @property
    def threshold(self) -> float:
        """The score from which on a payment is alerted."""
        ...

    def score(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the scores float64[k] of places of the stream, by the model of now; NaN: none."""
        ...

    def serve(self, first: int, stop: int, scores: NDArray[np.float64]) -> None:
        """Take what was decided of the places ``first`` until ``stop``."""
        ...

    def learn(self, told: NDArray[Any], now_ms: int) -> bool:
        """Take TOLD[k], maybe none; return whether another model serves from now on."""
        ...


class Static:
    """The base, for ever."""

    def __init__(self, stream: Stream, base: Base) -> None:
        self.name = "static"
        model = Model(base.packed)
        self._logits = model.logits(stream.vectors)
        calibration = base.content.calibration
        knots = calibration.knots
        # The threshold as a logit: what is alerted is the same, and ties are finer.
        self.threshold = float(np.interp(base.content.thresholds.review, knots[1], knots[0]))

    def score(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the base's logits."""
        return self._logits[rows]

    def serve(self, first: int, stop: int, scores: NDArray[np.float64]) -> None:
        """Nothing is learnt from."""

    def learn(self, told: NDArray[Any], now_ms: int) -> bool:
        """Nothing is learnt."""
        return False
