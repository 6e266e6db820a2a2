"""Owns the way from CatBoost's JSON export to arrays. Must not import CatBoost.

Refuses, with the reason, whatever the evaluator would not compute bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trainer.trees import ModelError, Trees, check_trees

# "AsIs": no NaN was seen in training; the comparison puts it below every border all the same.
_NAN_BELOW = ("AsFalse", "AsIs")


def trees_from_json(document: Mapping[str, Any], n_features: int) -> Trees:
    """Return the trees of a parsed JSON export.

    Raises ModelError for categorical or text features, CTRs, several outputs, trees that are not
    symmetric, and NaN above the borders.
    """
    try:
        _refuse_features(document["features_info"])
        if "oblivious_trees" not in document:
            raise ModelError("the trees are not symmetric (grow_policy must be SymmetricTree)")
        trees = _arrays(document["oblivious_trees"], document["scale_and_bias"], n_features)
    except (KeyError, TypeError, IndexError) as error:
        raise ModelError(f"not a CatBoost JSON export: {error!r}") from error
    check_trees(trees)
    return trees


def _refuse_features(info: Mapping[str, Any]) -> None:
    for kind in info:
        if kind != "float_features":
            raise ModelError(f"{kind} are not supported, only float_features")
    for feature in info["float_features"]:
        index = feature["feature_index"]
        if feature["nan_value_treatment"] not in _NAN_BELOW:
            raise ModelError(f"feature {index} has nan_mode Max, only Min is supported")
        if feature["flat_feature_index"] != index:
            raise ModelError(f"feature {index} has another place among all features")


def _arrays(
    exported: Sequence[Mapping[str, Any]], scale_and_bias: Sequence[Any], n_features: int
) -> Trees:
    scale, biases = scale_and_bias
    if len(biases) != 1:
        raise ModelError(f"{len(biases)} outputs, only one is supported")
    # A tree that is one constant has no list of splits.
    splits = [tree.get("splits") or [] for tree in exported]
    for split in (split for tree in splits for split in tree):
        if split["split_type"] != "FloatFeature":
            raise ModelError(f"a split of type {split['split_type']} is not supported")
    for tree, own in zip(exported, splits, strict=True):
        if len(tree["leaf_values"]) != 1 << len(own):
            raise ModelError("several outputs a leaf, only one is supported")
    flat = [split for tree in splits for split in tree]
    return Trees(
        n_features=n_features,
        depths=np.array([len(tree) for tree in splits], np.int64),
        split_features=np.array([s["float_feature_index"] for s in flat], np.int32),
        split_borders=np.array([s["border"] for s in flat], np.float32),
        leaf_values=np.array([v for tree in exported for v in tree["leaf_values"]], np.float64),
        leaf_weights=np.array([w for tree in exported for w in tree["leaf_weights"]], np.float64),
        scale=float(scale),
        bias=float(biases[0]),
    )
