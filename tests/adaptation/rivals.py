"""Owns the systems beside the product: retrained, continued, and River's learners.

Each sets its threshold as the product does: so that of recent traffic which nobody called fraud
the same share is alerted. Must not know how they are measured.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from catboost import CatBoostClassifier, Pool
from numpy.typing import NDArray

from featurizer.features import FEATURES, OWN
from tests.adaptation.base import BUDGET, SETTINGS, Base
from tests.adaptation.streams import Stream
from tests.adaptation.world import MINUTE_MS
from trainer.challengers import (
    Challenger,
    ForestChallenger,
    ForestSettings,
    LogisticChallenger,
)
from trainer.labelled import FRAUD, JOINED, LEGITIMATE, Joined
from trainer.linear import Inputs
from trainer.model import Model

RETRAIN_EVERY_MS = 60 * MINUTE_MS
CONTINUE_EVERY_MS = 10 * MINUTE_MS
CONTINUED_TREES = 20
GOOD_ROWS = 8_000
WARM_GOOD = 1_500
INPUTS = 40
THRESHOLD_ROWS = 5_000
SAMPLED = 10  # of so many good payments the forest scores one


class Recent:
    """What a rival knows of the stream: decisions so far, and what was said of them."""

    def __init__(self, stream: Stream, seed: int) -> None:
        self._stream = stream
        self._rng = np.random.default_rng([seed, 40])
        self.verdict = np.zeros(len(stream.rows), np.int8)  # 1 fraud, -1 good
        self.count = 0

    def hear(self, told: NDArray[Any]) -> None:
        """Take labels; a later one stands."""
        self.verdict[told["row"]] = np.where(told["is_fraud"], 1, -1)

    def frauds(self) -> NDArray[np.int64]:
        """Return the places of what was called fraud."""
        return np.flatnonzero(self.verdict[: self.count] == 1)

    def traffic(self, count: int) -> NDArray[np.int64]:
        """Return random places of what nobody called fraud."""
        places = np.flatnonzero(self.verdict[: self.count] != 1)
        return np.sort(self._rng.permutation(places)[:count])


class Boosted:
    """CatBoost, learnt anew every hour, or continued (``init_model``) every ten minutes."""

    def __init__(self, name: str, stream: Stream, base: Base, *, anew: bool) -> None:
        self.name, self._stream, self._base, self._anew = name, stream, base, anew
        self._recent = Recent(stream, stream.seed)
        self._model: Any = CatBoostClassifier().load_model(blob=base.content.base_cbm, format="cbm")
        self._every_ms = RETRAIN_EVERY_MS if anew else CONTINUE_EVERY_MS
        self._next_ms = stream.scale.stream_ms + self._every_ms
        self._scores = np.full(len(stream.rows), np.nan)
        self._learnt = 0
        self.threshold = _quantile(self._raw(base.recent))

    def score(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return logits; many at once, since one row takes as long as 256."""
        missing = rows[np.isnan(self._scores[rows])]
        if len(missing):
            block = np.arange(missing[0], min(missing[0] + 4_096, len(self._scores)))
            wanted = np.union1d(missing, block[np.isnan(self._scores[block])])
            self._scores[wanted] = self._raw(self._stream.vectors[wanted])
        return self._scores[rows]

    def serve(self, first: int, stop: int, scores: NDArray[np.float64]) -> None:
        """Remember how far the stream is."""
        self._recent.count = stop

    def learn(self, told: NDArray[Any], now_ms: int) -> bool:
        """Learn when it is time to."""
        self._recent.hear(told)
        if now_ms < self._next_ms:
            return False
        self._next_ms += self._every_ms
        frauds = self._recent.frauds()
        if len(frauds) == self._learnt:
            return False
        self._learnt = len(frauds)
        self._fit(frauds)
        self._scores[:] = np.nan
        recent = self._recent.traffic(THRESHOLD_ROWS)
        self.threshold = _quantile(self._raw(self._stream.vectors[recent]))
        return True

    def _raw(self, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        out: NDArray[np.float64] = self._model.predict(vectors, prediction_type="RawFormulaVal")
        return out

    def _fit(self, frauds: NDArray[np.int64]) -> None:
        """Learn from the frauds heard of, traffic, and what the base was learnt from."""
        stream, base = self._stream, self._base
        drawn = self._recent.traffic(GOOD_ROWS)
        older = base.features if self._anew else base.old_frauds
        older_fraud = base.is_fraud if self._anew else np.ones(len(older), np.bool_)
        features = np.concatenate([stream.vectors[frauds], stream.vectors[drawn], older])
        is_fraud = np.concatenate([np.ones(len(frauds)), np.zeros(len(drawn)), older_fraud])
        settings = {
            "depth": SETTINGS.depth, "border_count": SETTINGS.borders, "thread_count": 1,
            "random_seed": 1, "allow_writing_files": False, "verbose": False,
            "iterations": SETTINGS.trees if self._anew else CONTINUED_TREES,
            "learning_rate": SETTINGS.learning_rate,
        }  # fmt: skip
        self._model = CatBoostClassifier(**settings).fit(
            Pool(features, is_fraud.astype(np.int8)),
            init_model=None if self._anew else self._model,
        )


class Rivers:
    """One of River's learners: learns each label as it comes."""

    def __init__(self, name: str, stream: Stream, base: Base, warm: Warm, *, forest: bool) -> None:
        self.name, self._stream = name, stream
        self._challenger: Challenger = copy.deepcopy(warm.forest if forest else warm.logistic)
        self._logits = Model(base.packed).logits(stream.vectors)
        self._recent = Recent(stream, stream.seed)
        # All fraud, and a share of the rest, is scored where a row takes long; the same for all.
        self._scored = np.ones(len(stream.rows), np.bool_)
        if forest:
            hashed = stream.rows["transaction"].view(np.uint64) % np.uint64(SAMPLED)
            self._scored = stream.is_fraud | (hashed == 0)
        self._renewed_ms = 0
        self.threshold = _quantile(warm.scores_of(self._challenger))

    def score(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the predictions; NaN where a row is not scored."""
        out = np.full(len(rows), np.nan)
        some = rows[self._scored[rows]]
        if len(some):
            predicted = self._challenger.predict(self._stream.vectors[some], self._logits[some])
            out[self._scored[rows]] = predicted + 1e-9 * self._logits[some]  # a vote has few values
        return out

    def serve(self, first: int, stop: int, scores: NDArray[np.float64]) -> None:
        """Remember how far the stream is."""
        self._recent.count = stop

    def learn(self, told: NDArray[Any], now_ms: int) -> bool:
        """Learn each label in its order; set the threshold every two minutes."""
        self._recent.hear(told)
        if len(told):
            rows = np.zeros(len(told), JOINED)
            rows["logit"] = self._logits[told["row"]]
            rows["verdict"] = np.where(told["is_fraud"], FRAUD, LEGITIMATE)
            self._challenger.learn(Joined(rows, self._stream.vectors[told["row"]]))
        if now_ms - self._renewed_ms >= 2 * MINUTE_MS:
            self._renewed_ms = now_ms
            recent = self._recent.traffic(THRESHOLD_ROWS)
            scores = self.score(recent)
            self.threshold = _quantile(scores[~np.isnan(scores)])
        return False


class Warm:
    """River's learners of a seed after the warm-up, to be copied for each stream."""

    def __init__(self, base: Base, seed: int) -> None:
        rng = np.random.default_rng([seed, 41])
        logits = Model(base.packed).logits(base.features)
        good = np.sort(rng.permutation(np.flatnonzero(~base.is_fraud))[:WARM_GOOD])
        self._vectors, self._logits = base.features[good], logits[good]
        features = _inputs(base)
        inputs = Inputs.fit(base.features, logits, features)
        self.logistic = LogisticChallenger(inputs)
        self.forest = ForestChallenger(inputs, ForestSettings(rows_max=20_000))
        both = rng.permutation(np.r_[good, np.flatnonzero(base.is_fraud)])
        rows = np.zeros(len(both), JOINED)
        rows["logit"] = logits[both]
        rows["verdict"] = np.where(base.is_fraud[both], FRAUD, LEGITIMATE)
        self.forest.learn(Joined(rows, base.features[both]))

    def scores_of(self, challenger: Challenger) -> NDArray[np.float64]:
        """Return what a challenger says of the warm-up's good payments."""
        predicted = challenger.predict(self._vectors, self._logits)
        scores: NDArray[np.float64] = predicted + 1e-9 * self._logits
        return scores


def _inputs(base: Base) -> NDArray[np.int64]:
    """Return INPUTS features: all of the payment itself, then those that the base asks most."""
    asked = np.bincount(base.content.trees.split_features, minlength=len(FEATURES))
    own = np.array([feature.entity == OWN for feature in FEATURES])
    order = np.lexsort((-asked, ~own))
    return np.sort(order[:INPUTS]).astype(np.int64)


def _quantile(scores: NDArray[np.float64]) -> float:
    return float(np.quantile(scores, 1.0 - BUDGET.alert_share))
