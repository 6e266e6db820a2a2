"""Owns oblivious trees as arrays, and what is supported. Must not know how they are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

DEPTH_MAX = 8
TREES_MAX = 20_000


class ModelError(Exception):
    """The model is not one that the evaluator supports."""


@dataclass(frozen=True, slots=True)
class Trees:
    """Oblivious trees, one after the other.

    ``depths`` int64[t]; ``split_features`` int32[s] and ``split_borders`` float32[s], s the sum
    of the depths; ``leaf_values`` and ``leaf_weights`` float64[l], l the sum of 2**depth; the
    logit is ``scale * sum + bias``.
    """

    n_features: int
    depths: NDArray[np.int64]
    split_features: NDArray[np.int32]
    split_borders: NDArray[np.float32]
    leaf_values: NDArray[np.float64]
    leaf_weights: NDArray[np.float64]
    scale: float
    bias: float


def check_trees(trees: Trees) -> None:
    """Raise ModelError where an array contradicts another or a limit.

    The kernels check no index, so nothing gets to them but what passed here.
    """
    _check_shapes(trees)
    features = trees.split_features
    if len(features) and not (features.min() >= 0 and features.max() < trees.n_features):
        raise ModelError(f"a split on a feature outside the {trees.n_features} of the schema")
    if np.isnan(trees.split_borders).any():
        raise ModelError("a border is NaN")
    if not (np.isfinite(trees.leaf_values).all() and np.isfinite([trees.scale, trees.bias]).all()):
        raise ModelError("a leaf value, the scale or the bias is not finite")
    if not np.isfinite(trees.leaf_weights).all() or trees.leaf_weights.min() < 0:
        raise ModelError("a leaf weight is negative or not finite")
    if (trees.leaf_values[trees.leaf_weights == 0.0] != 0.0).any():
        # CatBoost then takes its covers from the rows that are asked about, which we do not have.
        raise ModelError("a leaf that no training row reached has a value")


def _check_shapes(trees: Trees) -> None:
    depths = trees.depths
    if depths.dtype != np.int64 or depths.ndim != 1:
        raise ModelError(f"depths is {depths.dtype}{depths.shape}, not int64[trees]")
    if not 0 < len(depths) <= TREES_MAX:
        raise ModelError(f"{len(depths)} trees; 1 to {TREES_MAX} are supported")
    if depths.min() < 0 or depths.max() > DEPTH_MAX:
        raise ModelError(
            f"trees of depth {depths.min()} to {depths.max()}; 0 to {DEPTH_MAX} are supported"
        )
    splits, leaves = int(depths.sum()), int((1 << depths).sum())
    sizes: dict[str, tuple[NDArray[Any], type, int]] = {
        "split_features": (trees.split_features, np.int32, splits),
        "split_borders": (trees.split_borders, np.float32, splits),
        "leaf_values": (trees.leaf_values, np.float64, leaves),
        "leaf_weights": (trees.leaf_weights, np.float64, leaves),
    }
    for name, (array, kind, size) in sizes.items():
        if array.dtype != kind or array.shape != (size,):
            raise ModelError(f"{name} is {array.dtype}{array.shape}, not {kind.__name__}({size},)")
