"""Owns learning the base model. Imports CatBoost; must not know bundles' files.

Rows are split by time: the last part stops the training early, and calibrates and sets the
thresholds. What comes out was checked against CatBoost's own logits and SHAP values.
"""

from __future__ import annotations

import fnmatch
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from catboost import CatBoostClassifier, CatBoostError, Pool
from numpy.typing import NDArray

from trainer.bundle import Content
from trainer.calibration import fit_calibration
from trainer.evaluate import report
from trainer.export import trees_from_json
from trainer.model import Model
from trainer.thresholds import Costs, choose_thresholds
from trainer.trees import DEPTH_MAX, TREES_MAX, ModelError, Trees
from trainer.vectors import Vectors

# Called with the number of trees done and the number asked for.
Progress = Callable[[int, int], None]

BORDERS_MAX = 65_535
_CONTRIBUTION_ROWS = 32
_CONTRIBUTION_TOLERANCE = 1e-12
_COST_ROUNDS = 2_000


class TrainingError(Exception):
    """The rows or the settings cannot give a model."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How to train. Raises ValueError where a figure is out of its range.

    Features whose name matches a pattern of ``fine_features`` get ``fine_borders`` borders, all
    others ``borders``: time and memory grow with their sum. ``threads`` -1 takes every core.
    """

    trees: int = 300
    depth: int = 6
    learning_rate: float = 0.05
    borders: int = 254
    fine_borders: int = 4_096
    fine_features: tuple[str, ...] = ("amount*",)
    early_stopping_trees: int = 50
    holdout_share: float = 0.15  # of the time range
    holdout_share_max: float = 0.5  # of the rows
    frauds_min: int = 20  # in each part
    check_rows: int = 256
    seed: int = 1
    threads: int = -1
    costs: Costs = field(default_factory=Costs)

    def __post_init__(self) -> None:
        """Refuse figures that CatBoost or the evaluator would not take."""
        limits = {
            "trees": (1, TREES_MAX),
            "depth": (1, DEPTH_MAX),
            "learning_rate": (1e-6, 1.0),
            "borders": (1, BORDERS_MAX),
            "fine_borders": (1, BORDERS_MAX),
            "early_stopping_trees": (1, TREES_MAX),
            "holdout_share": (0.01, 0.9),
            "holdout_share_max": (0.01, 0.9),
            "frauds_min": (1, 1_000_000),
            "check_rows": (1, 4_096),
            "seed": (0, 2**31 - 1),
        }
        for name, (least, most) in limits.items():
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name} must be {least} to {most}, not {getattr(self, name)}")


def train(vectors: Vectors, settings: Settings, progress: Progress) -> Content:
    """Return the content of a bundle learnt from labelled rows.

    Raises TrainingError where there are too few frauds, one outcome only, or no values, or where
    CatBoost or the evaluator refuses.
    """
    split = split_by_time(vectors, settings)
    if np.isnan(vectors.features[:split]).all():
        raise TrainingError("every feature of the training rows is NaN")
    fitted = _fit(vectors, split, settings, progress)
    try:
        cbm, trees = export_trees(fitted, vectors.features.shape[1])
        model = Model(trees)
    except ModelError as error:
        raise TrainingError(f"the model is not supported: {error}") from error
    holdout = slice(split, len(vectors))
    logits = model.logits(vectors.features[holdout])
    fraud, amount = vectors.is_fraud[holdout], vectors.amount_ref[holdout]
    calibration = fit_calibration(logits, fraud)
    thresholds = choose_thresholds(calibration.probabilities(logits), fraud, amount, settings.costs)
    check_vectors, check_logits = _check_rows(fitted, vectors.features[holdout], settings)
    _compare_contributions(fitted, model, check_vectors)
    return Content(
        schema_version=vectors.schema_version,
        feature_names=vectors.feature_names,
        base_cbm=cbm,
        trees=trees,
        calibration=calibration,
        thresholds=thresholds,
        check_vectors=check_vectors,
        check_logits=check_logits,
        facts={
            "data": _data_facts(vectors, split),
            "settings": asdict(settings),
            "seed": settings.seed,
            "metrics": report(logits, calibration, thresholds, vectors, holdout),
            "cost_per_row_us": _cost_per_row_us(model, check_vectors),
        },
    )


def split_by_time(vectors: Vectors, settings: Settings) -> int:
    """Return the first row of the held-out part.

    It is the last ``holdout_share`` of the time range, or more where that holds too few frauds.
    Raises TrainingError where no split leaves enough frauds on both sides.
    """
    fraud, time_ms = vectors.is_fraud, vectors.event_time_ms
    frauds = np.flatnonzero(fraud)
    least = settings.frauds_min
    if len(frauds) < 2 * least:
        raise TrainingError(f"{len(frauds)} frauds in {len(fraud)} rows; {2 * least} are needed")
    start_ms = time_ms[-1] - settings.holdout_share * (time_ms[-1] - time_ms[0])
    # Rows of one moment stay on one side.
    enough_ms = min(start_ms, time_ms[frauds[-least]])
    split = int(np.searchsorted(time_ms, enough_ms))
    if split < (1.0 - settings.holdout_share_max) * len(fraud):
        raise TrainingError(
            f"the last {settings.holdout_share_max:.0%} of the rows hold fewer than {least} frauds"
            " to stop and calibrate by"
        )
    for name, part in (("before", fraud[:split]), ("after", fraud[split:])):
        if part.sum() < least or part.all():
            raise TrainingError(
                f"{int(part.sum())} frauds in the {len(part)} rows {name} the split;"
                f" at least {least}, and other rows, are needed"
            )
    return split


class _Callback:
    """Tells CatBoost's progress; the name of the method is CatBoost's."""

    def __init__(self, progress: Progress, trees: int) -> None:
        self._progress, self._trees = progress, trees

    def after_iteration(self, info: Any) -> bool:
        """Report and go on."""
        self._progress(info.iteration, self._trees)
        return True


def _fit(vectors: Vectors, split: int, settings: Settings, progress: Progress) -> Any:
    classifier = _classifier(
        vectors.feature_names, settings, early_stopping_rounds=settings.early_stopping_trees
    )
    features, labels = vectors.features, vectors.is_fraud.astype(np.int8)
    try:
        classifier.fit(
            Pool(features[:split], labels[:split]),
            eval_set=Pool(features[split:], labels[split:]),
            use_best_model=True,
            callbacks=[_Callback(progress, settings.trees)],
        )
    except CatBoostError as error:
        raise TrainingError(f"CatBoost: {error}") from error
    return classifier


def fit_committee(
    features: NDArray[np.float32],
    is_fraud: NDArray[np.bool_],
    weights: NDArray[np.float64],
    names: tuple[str, ...],
    settings: Settings,
    members: int,
) -> Callable[[NDArray[np.float32]], NDArray[np.float64]]:
    """Learn models that differ by their seed alone; return what gives their mean logit.

    ``features`` float32[m, n], of which nothing is held out: every model has ``settings.trees``.
    What is returned takes float32[k, n] and gives float64[k]. Raises TrainingError where CatBoost
    refuses.
    """
    pool = Pool(features, is_fraud.astype(np.int8), weight=weights)
    fitted = []
    try:
        for member in range(members):
            own = replace(settings, seed=settings.seed + member)
            fitted.append(_classifier(names, own).fit(pool))
    except CatBoostError as error:
        raise TrainingError(f"CatBoost: {error}") from error

    def logits(rows: NDArray[np.float32]) -> NDArray[np.float64]:
        each = [one.predict(rows, prediction_type="RawFormulaVal") for one in fitted]
        mean: NDArray[np.float64] = np.mean(each, axis=0)
        return mean

    return logits


def _classifier(names: tuple[str, ...], settings: Settings, **more: Any) -> Any:
    fine = [
        f"{index}:border_count={settings.fine_borders}"
        for index, name in enumerate(names)
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in settings.fine_features)
    ]
    return CatBoostClassifier(
        iterations=settings.trees,
        depth=settings.depth,
        learning_rate=settings.learning_rate,
        border_count=settings.borders,
        per_float_feature_quantization=fine or None,
        grow_policy="SymmetricTree",
        nan_mode="Min",
        random_seed=settings.seed,
        thread_count=settings.threads,
        allow_writing_files=False,
        verbose=False,
        **more,
    )


def export_trees(fitted: Any, n_features: int) -> tuple[bytes, Trees]:
    """Return CatBoost's own file and the arrays; it can only write to files."""
    with tempfile.TemporaryDirectory() as directory:
        cbm, exported = Path(directory, "base.cbm"), Path(directory, "base.json")
        fitted.save_model(str(cbm), format="cbm")
        fitted.save_model(str(exported), format="json")
        return cbm.read_bytes(), trees_from_json(json.loads(exported.read_bytes()), n_features)


def _check_rows(
    fitted: Any, features: NDArray[np.float32], settings: Settings
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return rows to be checked at every load and CatBoost's logits of them.

    Drawn from the held-out part, with unknowns struck into half of them, so that both sides of a
    border and NaN are met.
    """
    random = np.random.default_rng(settings.seed)
    drawn = random.choice(len(features), min(settings.check_rows, len(features)), replace=False)
    rows = features[np.sort(drawn)]
    struck = random.random(rows.shape) < 0.2
    struck[::2] = False
    rows[struck] = np.nan
    logits = fitted.predict(rows, prediction_type="RawFormulaVal")
    return rows, np.asarray(logits, np.float64)


def _compare_contributions(fitted: Any, model: Model, rows: NDArray[np.float32]) -> None:
    """Refuse to hand out a model whose contributions are not CatBoost's SHAP values."""
    rows = rows[:_CONTRIBUTION_ROWS]
    wanted = fitted.get_feature_importance(Pool(rows), type="ShapValues")[:, :-1]
    found = np.empty((len(rows), model.n_parts))
    for row, parts in zip(rows, found, strict=True):
        model.score(row, parts)
    difference = float(np.abs(wanted - found[:, : model.n_features]).max())
    if not difference <= _CONTRIBUTION_TOLERANCE:
        raise TrainingError(f"contributions differ from CatBoost's SHAP values by {difference}")


def _data_facts(vectors: Vectors, split: int) -> dict[str, Any]:
    """Return what the model was learnt from."""
    empty = np.flatnonzero(np.isnan(vectors.features[:split]).all(axis=0))
    return {
        "first_event_ms": int(vectors.event_time_ms[0]),
        "holdout_from_ms": int(vectors.event_time_ms[split]),
        "last_event_ms": int(vectors.event_time_ms[-1]),
        "rows": len(vectors),
        "frauds": int(vectors.is_fraud.sum()),
        "training_rows": split,
        "training_frauds": int(vectors.is_fraud[:split].sum()),
        "rows_without_label": vectors.left_out,
        "label_times_known": vectors.label_times_known,
        "features_without_values": [vectors.feature_names[index] for index in empty],
    }


def _cost_per_row_us(model: Model, rows: NDArray[np.float32]) -> float:
    """Return the median time of scoring one row with its contributions, from Python."""
    parts = np.empty(model.n_parts)
    used_ns = np.empty(_COST_ROUNDS)
    for turn in range(_COST_ROUNDS):
        row = rows[turn % len(rows)]
        start_ns = time.perf_counter_ns()
        model.score(row, parts)
        used_ns[turn] = time.perf_counter_ns() - start_ns
    return round(float(np.median(used_ns)) / 1_000.0, 3)
