"""Owns learning a residual booster (T2) on top of the base. Imports CatBoost; must not know files.

A few dozen trees learn what the base logit still misses, from confirmed frauds, a replay of old
ones, and a sample of good payments.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from catboost import CatBoostClassifier, CatBoostError, Pool
from numpy.typing import NDArray

from trainer.model import Model
from trainer.train import TrainingError, export_trees
from trainer.trees import ModelError, Trees

TREES_MAX = 40
DEPTH_MAX = 6
_CHECK_ROWS = 64


@dataclass(frozen=True, slots=True)
class ResidualSettings:
    """How to learn a residual. Raises ValueError where a figure is out of its range."""

    trees: int = TREES_MAX
    depth: int = 4
    learning_rate: float = 0.15
    leaf_penalty: float = 10.0
    borders: int = 64
    features_share: float = 0.3  # looked at in each level of a tree
    frauds_min: int = 5
    seed: int = 1
    threads: int = 1

    def __post_init__(self) -> None:
        """Refuse figures that would make a bundle too slow, or that CatBoost would not take."""
        limits = {
            "trees": (1, TREES_MAX),
            "depth": (1, DEPTH_MAX),
            "learning_rate": (1e-6, 1.0),
            "leaf_penalty": (0.0, 1e6),
            "borders": (1, 65_535),
            "features_share": (1e-3, 1.0),
            "frauds_min": (1, 1_000_000),
            "seed": (0, 2**31 - 1),
        }
        for name, (least, most) in limits.items():
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name} must be {least} to {most}, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class ResidualRows:
    """What to learn from.

    ``features`` float32[m, n]; ``is_fraud`` bool[m]; ``base_logits`` float64[m], the base's alone;
    ``weights`` float64[m] above 0, how many rows each stands for among those of its outcome that
    were taken; ``good_share`` float64[m] in (0, 1]: of good payments such as this row, the share
    that was drawn into the rows.
    """

    features: NDArray[np.float32]
    is_fraud: NDArray[np.bool_]
    base_logits: NDArray[np.float64]
    weights: NDArray[np.float64]
    good_share: NDArray[np.float64]


def fit_residual(rows: ResidualRows, settings: ResidualSettings) -> Trees:
    """Return trees whose logit is to be added to the base's.

    Raises TrainingError where the rows cannot give any, or CatBoost or the evaluator refuses.
    """
    _check(rows, settings)
    # Of good payments only a share was drawn, so among the rows the odds of fraud are
    # 1 / good_share times too high, and the base's logit log(1 / good_share) too low. The offset
    # says so to CatBoost; what it learns then holds for all traffic (King and Zeng, 2001).
    # Weighting each good row by 1 / good_share would say the same, with a few heavy rows.
    offset = -np.log(rows.good_share)
    classifier = CatBoostClassifier(
        iterations=settings.trees,
        depth=settings.depth,
        learning_rate=settings.learning_rate,
        l2_leaf_reg=settings.leaf_penalty,
        border_count=settings.borders,
        rsm=settings.features_share,
        grow_policy="SymmetricTree",
        nan_mode="Min",
        boost_from_average=False,
        random_seed=settings.seed,
        thread_count=settings.threads,
        allow_writing_files=False,
        verbose=False,
    )
    pool = Pool(
        rows.features,
        rows.is_fraud.astype(np.int8),
        baseline=rows.base_logits + offset,
        weight=rows.weights,
    )
    try:
        classifier.fit(pool)
        _, trees = export_trees(classifier, rows.features.shape[1])
        found = Model(trees).logits(rows.features[:_CHECK_ROWS])
    except (CatBoostError, ModelError) as error:
        raise TrainingError(f"the residual: {error}") from error
    wanted = classifier.predict(rows.features[:_CHECK_ROWS], prediction_type="RawFormulaVal")
    if np.asarray(wanted, np.float64).tobytes() != found.tobytes():
        raise TrainingError("the residual: logits differ from CatBoost's")
    return trees


def _check(rows: ResidualRows, settings: ResidualSettings) -> None:
    count = len(rows.features)
    for name in ("is_fraud", "base_logits", "weights", "good_share"):
        if getattr(rows, name).shape != (count,):
            raise TrainingError(f"the residual: {name} does not fit {count} rows")
    frauds = int(rows.is_fraud.sum())
    if frauds < settings.frauds_min or frauds == count:
        raise TrainingError(
            f"the residual: {frauds} frauds in {count} rows; {settings.frauds_min}, and others,"
            " are needed"
        )
    if not (np.isfinite(rows.base_logits).all() and (rows.weights > 0.0).all()):
        raise TrainingError("the residual: a base logit is not finite or a weight not above 0")
    if not ((rows.good_share > 0.0) & (rows.good_share <= 1.0)).all():
        raise TrainingError("the residual: a good_share is not in (0, 1]")
    if np.isnan(rows.features).all():
        raise TrainingError("the residual: every feature is NaN")
