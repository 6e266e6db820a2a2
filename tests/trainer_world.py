"""Owns seeded data and models for the trainer's tests. Must not assert anything."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from catboost import CatBoostClassifier
from numpy.typing import NDArray

from trainer.export import trees_from_json
from trainer.train import Settings
from trainer.trees import Trees
from trainer.vectors import Vectors

DAY_MS = 86_400_000
START_MS = 1_522_540_800_000  # 2018-04-01
SCHEMA = "s-test"
FAST = Settings(trees=25, depth=4, frauds_min=10, threads=2, check_rows=64)


def make_features(rows: int, width: int, seed: int) -> NDArray[np.float32]:
    """Return float32[rows, width] with unknowns, a coarse, a constant and an empty column."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(rows, width)).astype(np.float32)
    features[random.random(features.shape) < 0.1] = np.nan
    features[:, 2] = random.integers(0, 4, rows)
    features[:, 3] = 1.0
    features[:, 4] = np.nan
    return features


def make_vectors(rows: int = 6_000, width: int = 8, seed: int = 5) -> Vectors:
    """Return 60 days of payments, about 4 % of them fraud, that the first features tell."""
    random = np.random.default_rng(seed)
    features = make_features(rows, width, seed)
    signal = np.nan_to_num(features[:, 0]) + 0.8 * features[:, 2] + random.normal(size=rows)
    return Vectors(
        schema_version=SCHEMA,
        feature_names=("amount", *(f"feature_{n}" for n in range(1, width))),
        features=features,
        event_time_ms=START_MS + np.sort(random.integers(0, 60 * DAY_MS, rows)),
        amount_ref=random.integers(100, 50_000, rows),
        is_fraud=signal > np.quantile(signal, 0.96),
        customer=random.integers(0, 400, rows),
        left_out=0,
        label_times_known=True,
    )


def take(vectors: Vectors, rows: Any) -> Vectors:
    """Return some of the rows."""
    names = ("features", "event_time_ms", "amount_ref", "is_fraud", "customer")
    return replace(vectors, **{name: getattr(vectors, name)[rows] for name in names})


def write_vectors(
    path: Path, vectors: Vectors, label_delay_ms: int | None = 7 * DAY_MS, **columns: Any
) -> None:
    """Write the rows as the backfill does; ``columns`` replaces some, None drops one."""
    rows, width = vectors.features.shape
    times = vectors.event_time_ms
    labelled = [None] * rows if label_delay_ms is None else times + label_delay_ms
    table: dict[str, Any] = {
        "transaction_id": pa.array([f"t{n}" for n in range(rows)], pa.string()),
        "event_time_ms": pa.array(times),
        "customer_id": pa.array([f"c{n}" for n in vectors.customer], pa.string()),
        "amount_ref": pa.array(vectors.amount_ref),
        "is_fraud": pa.array(vectors.is_fraud),
        "label_time_ms": pa.array(labelled, pa.int64()),
        "features": pa.FixedSizeListArray.from_arrays(pa.array(vectors.features.ravel()), width),
    }
    table = {name: column for name, column in (table | columns).items() if column is not None}
    metadata = {
        b"fraud.schema_version": vectors.schema_version.encode(),
        b"fraud.features": json.dumps(vectors.feature_names).encode(),
    }
    pq.write_table(pa.table(table).replace_schema_metadata(metadata), path, row_group_size=700)


def fit(features: NDArray[np.float32], labels: NDArray[Any], **settings: Any) -> Any:
    """Return a small CatBoost classifier."""
    fixed = {"random_seed": 3, "thread_count": 2, "allow_writing_files": False, "verbose": False}
    classifier = CatBoostClassifier(**{"iterations": 30, **fixed, **settings})
    return classifier.fit(features, labels)


def export(fitted: Any, directory: Path) -> dict[str, Any]:
    """Return a model's JSON export."""
    path = directory / "model.json"
    fitted.save_model(str(path), format="json")
    document: dict[str, Any] = json.loads(path.read_bytes())
    return document


def trees_of(fitted: Any, directory: Path, width: int) -> Trees:
    """Return a model's trees."""
    return trees_from_json(export(fitted, directory), width)
