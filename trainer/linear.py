"""Owns a linear model on the base's logit and a few features: how it is scaled, and its evaluation.

Must not know who learnt it, nor River.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

FEATURES_MAX = 64
CLIP = 6.0


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a challenger sees of a row: the base's logit and ``features``, scaled.

    ``features`` int64[k] are columns of the vector, ``mean`` and ``spread`` float64[k + 1], the
    logit's first. Unknown values count as the mean, and none goes beyond CLIP spreads. Raises
    ValueError where the arrays contradict each other.
    """

    features: NDArray[np.int64]
    mean: NDArray[np.float64]
    spread: NDArray[np.float64]

    def __post_init__(self) -> None:
        """Refuse what the kernel would read past, or divide by."""
        k = len(self.features)
        if not 0 < k <= FEATURES_MAX or self.features.dtype != np.int64 or self.features.min() < 0:
            raise ValueError(f"1 to {FEATURES_MAX} features as int64 are supported")
        for array in (self.mean, self.spread):
            if array.dtype != np.float64 or array.shape != (k + 1,) or not np.isfinite(array).all():
                raise ValueError(f"mean and spread must be finite, float64[{k + 1}]")
        if not (self.spread > 0.0).all():
            raise ValueError("a spread must be positive")

    @classmethod
    def fit(
        cls,
        vectors: NDArray[np.float32],
        logits: NDArray[np.float64],
        features: NDArray[np.int64],
    ) -> Inputs:
        """Return the scale of rows float32[m, n] with logits float64[m]."""
        x = np.column_stack([logits, vectors[:, features].astype(np.float64)])
        known = np.isfinite(x)
        count = np.maximum(known.sum(axis=0), 1)
        mean = np.where(known, x, 0.0).sum(axis=0) / count
        spread = np.sqrt((np.where(known, x - mean, 0.0) ** 2).sum(axis=0) / count)
        return cls(features, mean, np.where(spread > 0.0, spread, 1.0))

    def scale(
        self, vectors: NDArray[np.float32], logits: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return float64[m, k + 1] of rows float32[m, n] with logits float64[m]."""
        x = np.column_stack([logits, vectors[:, self.features].astype(np.float64)])
        z = (x - self.mean) / self.spread
        scaled: NDArray[np.float64] = np.clip(np.where(np.isnan(z), 0.0, z), -CLIP, CLIP)
        return scaled

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the three arrays by name."""
        return {"features": self.features, "mean": self.mean, "spread": self.spread}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Inputs:
        """Return the inputs whose ``to_arrays`` these are. Raises ValueError."""
        return cls(arrays["features"], arrays["mean"], arrays["spread"])


@njit(cache=True, nogil=True)
def linear_logit(features, mean, spread, weights, vector, logit):  # type: ignore[no-untyped-def]
    """Return the logit (float64) of ``vector`` float32[n] with the base's ``logit``.

    ``weights`` float64[k + 2], the last one the bias; the others as in Inputs. No index is
    checked.
    """
    z = (logit - mean[0]) / spread[0]
    total = weights[len(features) + 1] + weights[0] * min(max(z, -CLIP), CLIP)
    for i in range(len(features)):
        z = (np.float64(vector[features[i]]) - mean[i + 1]) / spread[i + 1]
        if not np.isnan(z):
            total += weights[i + 1] * min(max(z, -CLIP), CLIP)
    return total


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear model that a bundle can hold: ``inputs`` and ``weights`` float64[k + 2], bias last.

    Raises ValueError for weights of another shape, or not finite.
    """

    inputs: Inputs
    weights: NDArray[np.float64]

    def __post_init__(self) -> None:
        """Refuse what the kernel would read past."""
        if self.weights.shape != (len(self.inputs.mean) + 1,) or self.weights.dtype != np.float64:
            raise ValueError(f"weights must be float64[{len(self.inputs.mean) + 1}]")
        if not np.isfinite(self.weights).all():
            raise ValueError("weights must be finite")

    def logit(self, vector: NDArray[np.float32], logit: float) -> float:
        """Return the logit of one row float32[n] with the base's logit."""
        i = self.inputs
        value: float = linear_logit(i.features, i.mean, i.spread, self.weights, vector, logit)
        return value
