"""Owns the cost of the layers beside the base: one row of all of them, learning and loading them.

Run with ``python -m tests.bench.bench_layers``. Times are of CPU, so
that what else runs does not count, and sides take turns, so that a slower clock slows all.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from tests.bench.claims import SEED, claim, in_turn
from tests.layers import random_expert, random_trees
from trainer.bundle import Bundle, Content, load_bundle, write_bundle
from trainer.calibration import Calibration
from trainer.expert import EXPERT_FEATURES_MAX
from trainer.few_shot import ExpertSettings, fit_expert
from trainer.model import Model, score
from trainer.residual import ResidualRows, ResidualSettings, fit_residual
from trainer.signing import create_key, public_path
from trainer.thresholds import Thresholds
from trainer.traffic import prepare_traffic
from trainer.trees import Trees

FEATURES, TRAFFIC, FRAUDS = 432, 5_000, 30
BASE_TREES, RESIDUAL_TREES, DEPTH = 300, 40, 6
ROUNDS, ROWS = 15, 256


def rows() -> list[dict[str, Any]]:
    """Return one row per claim."""
    return [*_scoring(), *_learning(), *_loading()]


@njit(nogil=True)
def _score_all(model, matrix, parts):  # type: ignore[no-untyped-def]
    total = 0.0
    for row in range(matrix.shape[0]):
        total += score(model, matrix[row], parts)
    return total


def _full_trees(random: np.random.Generator, count: int) -> Trees:
    """Return trees that are all of the usual depth, with questions on any feature."""
    splits, leaves = count * DEPTH, count << DEPTH
    return replace(
        random_trees(random, FEATURES, 1),
        depths=np.full(count, DEPTH),
        split_features=random.integers(0, FEATURES, splits).astype(np.int32),
        split_borders=random.normal(size=splits).astype(np.float32),
        leaf_values=random.normal(size=leaves),
        leaf_weights=np.ones(leaves),
    )


def _scoring() -> list[dict[str, Any]]:
    """Measure one row inside a kernel, as a decision has it, with logit and contributions."""
    random = np.random.default_rng(SEED)
    matrix = random.normal(size=(ROWS, FEATURES)).astype(np.float32)
    residual = _full_trees(random, RESIDUAL_TREES)
    expert = random_expert(random, FEATURES, EXPERT_FEATURES_MAX)
    boosting = replace(expert, gains=np.ones(4), thresholds=np.zeros(4))
    silent = replace(expert, gains=np.zeros(4))
    made = []
    for trees in (100, 200, BASE_TREES):
        base = _full_trees(random, trees)
        models = [Model(base), Model(base, residual, silent), Model(base, residual, boosting)]
        alone, still, all_us = in_turn(ROUNDS, *(_row_us(model, matrix) for model in models))
        name = f"base of {trees} trees, residual and expert: a row ({still:.2f} without a boost)"
        ratio = round(all_us / alone, 2)
        made.append(claim(name, round(all_us, 2), "us", baseline=alone, ratio=ratio, at_most=6.0))
    return made


def _row_us(model: Model, matrix: NDArray[np.float32]) -> Callable[[], float]:
    parts = np.zeros(model.n_parts)

    def measured() -> float:
        start_ns = time.process_time_ns()
        for _ in range(8):
            _score_all(model.array, matrix, parts)
        return (time.process_time_ns() - start_ns) / (8 * len(matrix)) / 1_000.0

    return measured


def _learning() -> list[dict[str, Any]]:
    random = np.random.default_rng(SEED)
    usual = random.normal(size=(TRAFFIC, FEATURES)).astype(np.float32)
    frauds = random.normal(size=(FRAUDS, FEATURES)).astype(np.float32)
    frauds[:, :6] += 1.5
    settings = ExpertSettings()
    traffic = prepare_traffic(usual)
    many = ResidualRows(
        np.concatenate([usual, frauds]), np.arange(TRAFFIC + FRAUDS) >= TRAFFIC,
        np.full(TRAFFIC + FRAUDS, -6.0), np.ones(TRAFFIC + FRAUDS),
        np.full(TRAFFIC + FRAUDS, 0.1),
    )  # fmt: skip
    prepare_ms, few_ms, fit_ms, residual_ms = in_turn(
        5,
        _ms(lambda: prepare_traffic(usual)),
        _ms(lambda: fit_expert(frauds[:10], traffic, None, settings)),
        _ms(lambda: fit_expert(frauds, traffic, None, settings)),
        _ms(lambda: fit_residual(many, ResidualSettings(threads=2))),
    )
    what = f"{TRAFFIC:,} of traffic, {FEATURES} features"
    return [
        claim(f"an expert from 10 frauds, {what}", round(few_ms, 1), "ms"),
        claim(f"an expert from {FRAUDS} frauds, with groups tried", round(fit_ms, 1), "ms"),
        claim(f"the traffic made ready, {what}", round(prepare_ms, 1), "ms"),
        claim("a residual of 40 trees on as many rows", round(residual_ms, 1), "ms"),
    ]


def _ms(call: Callable[[], object]) -> Callable[[], float]:
    def measured() -> float:
        start_ns = time.process_time_ns()
        call()
        return (time.process_time_ns() - start_ns) / 1e6

    return measured


def _loading() -> list[dict[str, Any]]:
    random = np.random.default_rng(SEED)
    base = _full_trees(random, BASE_TREES)
    matrix = random.normal(size=(ROWS, FEATURES)).astype(np.float32)
    content = Content(
        "s-bench", tuple(f"feature_{n}" for n in range(FEATURES)), bytes(1 << 20), base,
        Calibration(np.array([[-1.0, 1.0], [0.1, 0.9]])), Thresholds(0.5, 0.8), matrix,
        Model(base).logits(matrix), {}, _full_trees(random, RESIDUAL_TREES),
        random_expert(random, FEATURES, EXPERT_FEATURES_MAX),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        path, key = Path(directory, "bundle"), Path(directory, "key")
        create_key(key)
        public = public_path(key).read_bytes()
        write_bundle(path, content, key)

        def load(like: Bundle | None = None) -> Bundle:
            return load_bundle(path, schema_version="s-bench", public_key=public, like=like)

        known = load()
        whole_ms, same_ms = in_turn(7, _ms(load), _ms(lambda: load(known)))
    return [
        claim(
            "a bundle loaded and verified whose base is known", round(same_ms, 1), "ms",
            baseline=round(whole_ms, 1), ratio=round(whole_ms / same_ms, 1),
        )
    ]  # fmt: skip


if __name__ == "__main__":
    for line in rows():
        print(line)
