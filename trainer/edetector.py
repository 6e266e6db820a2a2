"""Owns the e-detector: a rise in the share of misses, found from few labels (Shin et al., 2024).

Before the change each outcome is a miss with probability at most ``baseline``, given all before
it. For each alternative share a Shiryaev-Roberts sum of likelihood ratios runs, one addend for
each time at which the change may have been; their mean cannot be expected to exceed the number of
outcomes. So an alarm at ``run_length`` comes falsely once in that many outcomes at the most often,
however the outcomes depend on one another. River's ADWIN, which knows no baseline, needs ten
times as many labels.

Must not know labels or clocks. State is arrays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

ALTERNATIVES = 8
REMEMBERED = 512
# A share beyond which a rise would be no rise.
_SHARE_MIN, _SHARE_MAX = 0.005, 0.97


class Rise(NamedTuple):
    """Evidence of a rise: ``rows`` outcomes back it began, most likely."""

    e_value: float
    rows: int
    before: float
    after: float
    since_ms: int


class EDetector:
    """Watches outcomes for a rise of their share above ``baseline``.

    ``run_length`` is the mean number of outcomes between false alarms, at least. Raises
    ValueError for figures out of range.
    """

    def __init__(self, baseline: float, run_length: float) -> None:
        if not 0.0 <= baseline <= 1.0 or not run_length > 1.0:
            raise ValueError("baseline must be 0 to 1 and run_length above 1")
        self.baseline = min(max(baseline, _SHARE_MIN), _SHARE_MAX)
        self.run_length = run_length
        steps = np.arange(1, ALTERNATIVES + 1) / (ALTERNATIVES + 0.5)
        shares = self.baseline + (1.0 - self.baseline) * steps
        self._miss = np.log(shares / self.baseline)
        self._catch = np.log((1.0 - shares) / (1.0 - self.baseline))
        self.restart()

    def restart(self) -> None:
        """Begin again, with the same baseline: after an alarm, or when another model serves."""
        self._log_sums = np.full(ALTERNATIVES, -np.inf)
        self._misses = np.zeros(0, np.bool_)
        self._times_ms = np.zeros(0, np.int64)

    @property
    def e_value(self) -> float:
        """The detector's value now; an alarm at ``run_length``."""
        return float(np.exp(np.minimum(self._log_sums, 700.0)).mean())

    def update(self, miss: bool, time_ms: int) -> Rise | None:
        """Take one outcome; return the evidence where the value has reached ``run_length``."""
        # S <- (S + 1) * likelihood ratio.
        self._log_sums = np.logaddexp(self._log_sums, 0.0) + (self._miss if miss else self._catch)
        self._misses = np.r_[self._misses[1 - REMEMBERED :], miss]
        self._times_ms = np.r_[self._times_ms[1 - REMEMBERED :], time_ms]
        return self._rise() if self.e_value >= self.run_length else None

    def _rise(self) -> Rise:
        """Return what most likely happened: the begin and the share of the greatest likelihood."""
        gains = np.where(self._misses[:, None], self._miss, self._catch)
        since = np.cumsum(gains[::-1], axis=0)[::-1]
        first = int(np.unravel_index(since.argmax(), since.shape)[0])
        after, before = self._misses[first:], self._misses[:first]
        return Rise(
            e_value=self.e_value,
            rows=len(after),
            before=float(before.mean()) if len(before) else self.baseline,
            after=float(after.mean()),
            since_ms=int(self._times_ms[first]),
        )

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the state as ``settings`` float64[2], ``log_sums``, ``misses``, ``times_ms``."""
        return {
            "settings": np.array([self.baseline, self.run_length]),
            "log_sums": self._log_sums.copy(),
            "misses": self._misses.copy(),
            "times_ms": self._times_ms.copy(),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> EDetector:
        """Return the detector whose ``to_arrays`` these are. Raises ValueError."""
        sums, misses, times_ms = (arrays[name] for name in ("log_sums", "misses", "times_ms"))
        if sums.shape != (ALTERNATIVES,) or misses.shape != times_ms.shape:
            raise ValueError(f"the sums are {sums.shape} with {misses.shape} outcomes")
        detector = cls(*arrays["settings"].tolist())
        detector._log_sums = sums.astype(np.float64)
        detector._misses = misses.astype(np.bool_)
        detector._times_ms = times_ms.astype(np.int64)
        return detector
