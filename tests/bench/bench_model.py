"""Owns the speed of one row of the model, measured against CatBoost's own calls in one run.

Run with ``python -m tests.bench.bench_model``. Times are medians over rounds in which both sides
take turns, so that a busy machine slows both.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from catboost import CatBoostClassifier, Pool
from numpy.typing import NDArray

from tests.trainer_world import make_features, trees_of
from trainer.model import Model

ROUNDS = 9
FEATURES = 330
TREES = 300
SEED = 1


def rows() -> list[dict[str, object]]:
    """Return one row per claim: name, value, unit, baseline, ratio, target, met."""
    fitted, model, features = _models()
    parts = np.empty(model.n_parts)
    wanted = fitted.predict(features, prediction_type="RawFormulaVal")
    equal = model.logits(features).tobytes() == np.asarray(wanted).tobytes()
    ours_us, theirs_us = _in_turn(
        model.logit, lambda row: fitted.predict(row, prediction_type="RawFormulaVal"), features, 100
    )
    score_us, shap_us = _in_turn(
        lambda row: model.score(row, parts),
        lambda row: fitted.get_feature_importance(Pool(row[None]), type="ShapValues"),
        features,
        5,
    )
    shap = fitted.get_feature_importance(Pool(features), type="ShapValues")[:, :-1]
    found = np.empty((len(features), model.n_parts))
    for row, out in zip(features, found, strict=True):
        model.score(row, out)
    difference = float(np.abs(found[:, :FEATURES] - shap).max())
    return [
        _row("one row of the model, bits equal to CatBoost's", ours_us, theirs_us, 100.0, equal),
        _row(
            f"logit and contributions, {difference:.0e} from CatBoost's ShapValues",
            score_us,
            shap_us,
            1_000.0,
            difference <= 1e-12,
        ),
    ]


def _models() -> tuple[CatBoostClassifier, Model, NDArray[np.float32]]:
    features = make_features(6_000, FEATURES, SEED)
    noise = np.random.default_rng(SEED).normal(size=len(features))
    labels = np.nan_to_num(features[:, 0]) + features[:, 2] + noise > 3.0
    fitted = CatBoostClassifier(
        iterations=TREES,
        depth=6,
        learning_rate=0.05,
        random_seed=SEED,
        allow_writing_files=False,
        verbose=False,
    ).fit(features, labels.astype(np.int8))
    with tempfile.TemporaryDirectory() as directory:
        model = Model(trees_of(fitted, Path(directory), FEATURES))
    return fitted, model, features[:256].copy()


def _in_turn(
    ours: Callable[[NDArray[np.float32]], object],
    theirs: Callable[[NDArray[np.float32]], object],
    features: NDArray[np.float32],
    calls: int,
) -> tuple[float, float]:
    """Return the median time a call of each; ours is called 100 times as often."""
    ours_us, theirs_us = [], []
    for _ in range(ROUNDS):
        ours_us.append(_call_us(ours, features, 100 * calls))
        theirs_us.append(_call_us(theirs, features, calls))
    return median(ours_us[1:]), median(theirs_us[1:])  # the first round warms up


def _call_us(
    call: Callable[[NDArray[np.float32]], object], features: NDArray[np.float32], calls: int
) -> float:
    chosen = [features[number % len(features)] for number in range(calls)]
    start_ns = time.perf_counter_ns()
    for row in chosen:
        call(row)
    return (time.perf_counter_ns() - start_ns) / calls / 1_000.0


def _row(
    name: str, ours_us: float, theirs_us: float, target: float, right: bool
) -> dict[str, object]:
    ratio = theirs_us / ours_us
    return {
        "name": name,
        "value": round(ours_us, 2),
        "unit": "us",
        "baseline": round(theirs_us, 1),
        "ratio": round(ratio, 1),
        "target": target,
        "met": right and ratio >= target,
    }


if __name__ == "__main__":
    for line in rows():
        print(line)
