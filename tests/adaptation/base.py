"""Owns the base model of a seed, which all systems begin with, and what they may remember of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from featurizer.features import NAMES, SCHEMA_VERSION
from tests.adaptation.streams import OLD, Begun
from trainer.bundle import Bundle, Content
from trainer.calibration import fit_calibration
from trainer.model import Model, PackedTrees
from trainer.renew import renew, unlabelled
from trainer.thresholds import Budget
from trainer.train import Settings, train
from trainer.vectors import Vectors

GOOD_DRAWN = 4  # of so many good payments one is learnt from
SETTINGS = Settings(
    trees=150, depth=6, learning_rate=0.1, borders=64, fine_features=(), holdout_share=0.2,
    early_stopping_trees=25, threads=1,
)  # fmt: skip
# Of payments that nobody called fraud: false alerts are to be at most 0.5 % of the good ones.
BUDGET = Budget(alert_share=0.005, decline_share=0.0025)
RECENT_ROWS = 20_000


@dataclass(frozen=True, slots=True)
class Base:
    """The base as a bundle's content, with thresholds within the budget of alerts.

    ``features`` float32[m, n] and ``is_fraud`` bool[m] are what it was learnt from, of which one
    good payment in GOOD_DRAWN is there; ``old_frauds`` float32[k, n] all its frauds; ``packed``
    its trees, so that no bundle packs them again.
    """

    content: Content
    packed: PackedTrees
    features: NDArray[np.float32]
    is_fraud: NDArray[np.bool_]
    recent: NDArray[np.float32]

    @property
    def old_frauds(self) -> NDArray[np.float32]:
        """The frauds that the base was learnt from."""
        return self.features[self.is_fraud]


def learn_base(begun: Begun) -> Base:
    """Learn the base of a seed from its warm-up, the first fifth left out."""
    rows, vectors = begun.rows, begun.vectors
    rng = np.random.default_rng([begun.seed, 34])
    fraud = rows["kind"] == OLD
    late = np.arange(len(rows)) >= len(rows) // 5
    drawn = late & (fraud | (rng.random(len(rows)) < 1.0 / GOOD_DRAWN))
    features = vectors[drawn]
    told = Vectors(
        SCHEMA_VERSION, NAMES, features, rows["time_ms"][drawn], rows["amount_ref"][drawn],
        fraud[drawn], rows["customer"][drawn], 0, True,
    )  # fmt: skip
    content = train(told, SETTINGS, lambda _done, _of: None)
    # One good payment in GOOD_DRAWN was learnt from: the odds of fraud were so much higher.
    trees = replace(content.trees, bias=content.trees.bias - np.log(GOOD_DRAWN))
    held = rows["time_ms"] >= content.facts["data"]["holdout_from_ms"]
    model = Model(trees)
    calibration = fit_calibration(model.logits(vectors[held]), fraud[held])
    content = replace(
        content, trees=trees, calibration=calibration,
        check_logits=model.base_logits(content.check_vectors),
    )  # fmt: skip
    recent = vectors[~fraud][-RECENT_ROWS:]
    content = renew(content, None, None, unlabelled(recent), BUDGET, {})
    return Base(content, model.base, features, fraud[drawn], recent)


def bundle_of(content: Content, packed: PackedTrees, name: str) -> Bundle:
    """Return a content as what a scorer would load, without the files."""
    model = Model(packed, content.residual, content.expert)
    return Bundle(
        name, content.schema_version, content.feature_names, model, content.calibration,
        content.thresholds, {},
    )  # fmt: skip
