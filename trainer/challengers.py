"""Owns River's learners beside the champion: what they learn from, predict, and keep of themselves.

They learn row by row from joined labels, off the scoring path, and predict batches. Their state
is arrays; restored, they give the same next prediction to the bit, and go on learning alike.
- The logistic regression's state is its weights.
- A forest's state is a web of River's own objects, which change with its versions. So what is
  kept is the rows that it learnt from: seeded, it grows the same trees from them again. That costs
  a restart the time of learning them, so they are bounded: halfway through the bound a young
  forest begins beside the old one, and takes its place at the bound.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from river import forest, linear_model, optim
from river.utils import VectorDict

from trainer.labelled import Joined
from trainer.linear import Inputs, Linear


class Challenger(Protocol):
    """A model that learns beside the champion and is judged by the same gates."""

    def learn(self, joined: Joined) -> None:
        """Learn rows in their order."""
        ...

    def predict(
        self, vectors: NDArray[np.float32], logits: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return float64[m] in [0, 1], greater for fraud, of rows float32[m, n]; changes nothing.

        ``logits`` float64[m] are the base's.
        """
        ...

    def restart(self) -> None:
        """Forget everything that was learnt; to be followed by what may be remembered."""
        ...

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the whole state as arrays without objects, for ``from_arrays``."""
        ...


@dataclass(frozen=True, slots=True)
class LogisticSettings:
    """Stochastic gradient descent: step and ridge. Raises ValueError where they diverge.

    With ``base_fixed`` the base's logit keeps its weight, so that what is learnt is what is to be
    added to it.
    """

    rate: float = 0.02
    ridge: float = 1e-5
    base_fixed: bool = False

    def __post_init__(self) -> None:
        """Refuse figures that would not converge."""
        if not (0.0 < self.rate <= 1.0 and 0.0 <= self.ridge <= 1.0):
            raise ValueError("rate must be above 0 and up to 1, ridge 0 to 1")


class LogisticChallenger:
    """Logistic regression on the base's logit and a few features; begins as the base itself."""

    def __init__(self, inputs: Inputs, settings: LogisticSettings | None = None) -> None:
        self._inputs = inputs
        self._settings = settings or LogisticSettings()
        self.restart()

    def restart(self) -> None:
        """Begin again with the weights that give the base's own probability."""
        weights = np.zeros(len(self._inputs.mean))
        weights[0] = self._inputs.spread[0]
        self._set(weights, float(self._inputs.mean[0]), 0)

    def _set(self, weights: NDArray[np.float64], bias: float, rows: int) -> None:
        model = linear_model.LogisticRegression(
            optim.SGD(self._settings.rate),
            l2=self._settings.ridge,
            intercept_lr=self._settings.rate,
            intercept_init=bias,
        )
        # River has no way to begin elsewhere than at one value for every weight.
        model._weights = VectorDict(dict(enumerate(weights.tolist())))
        model.optimizer.n_iterations = rows
        self._model = model

    def learn(self, joined: Joined) -> None:
        """Learn rows in their order; 13 µs a row with 16 features."""
        inputs = self._inputs.scale(joined.vectors, joined.rows["logit"])
        for row, is_fraud in zip(inputs.tolist(), joined.is_fraud.tolist(), strict=True):
            self._model.learn_one(dict(enumerate(row)), is_fraud)
            if self._settings.base_fixed:
                self._model._weights[0] = float(self._inputs.spread[0])

    def predict(
        self, vectors: NDArray[np.float32], logits: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the probabilities float64[m]."""
        weights = self._weights()
        margin = self._inputs.scale(vectors, logits) @ weights[:-1] + weights[-1]
        out: NDArray[np.float64] = 1.0 / (1.0 + np.exp(-margin))
        return out

    def export_linear(self) -> Linear:
        """Return it as what a bundle can evaluate."""
        return Linear(self._inputs, self._weights())

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the inputs, ``weights`` float64[k + 2], bias last, and ``rows`` int64[1]."""
        rows = np.array([self._model.optimizer.n_iterations], np.int64)
        return {**self._inputs.to_arrays(), "weights": self._weights(), "rows": rows}

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, NDArray[Any]], settings: LogisticSettings | None = None
    ) -> LogisticChallenger:
        """Return the challenger whose ``to_arrays`` these are. Raises ValueError."""
        linear = Linear(Inputs.from_arrays(arrays), arrays["weights"])
        challenger = cls(linear.inputs, settings)
        weights = linear.weights
        challenger._set(weights[:-1], float(weights[-1]), int(arrays["rows"][0]))
        return challenger

    def _weights(self) -> NDArray[np.float64]:
        found = self._model.weights
        weights = [found[number] for number in range(len(self._inputs.mean))]
        return np.array([*weights, self._model.intercept], np.float64)


@dataclass(frozen=True, slots=True)
class ForestSettings:
    """An adaptive random forest (Gomes et al., 2017). Raises ValueError for sizes without sense.

    It remembers at most ``rows_max`` rows; a restart learns them again.
    """

    trees: int = 10
    rows_max: int = 4_000
    grace_rows: int = 50
    seed: int = 7

    def __post_init__(self) -> None:
        """Refuse what could not grow."""
        if self.trees < 1 or self.rows_max < 2 or self.grace_rows < 1 or self.seed < 0:
            raise ValueError("trees and grace_rows must be 1 or more, rows_max 2, seed 0")


class ForestChallenger:
    """An adaptive random forest on the base's logit and a few features."""

    def __init__(self, inputs: Inputs, settings: ForestSettings | None = None) -> None:
        self._inputs = inputs
        self._settings = settings or ForestSettings()
        self._half = self._settings.rows_max // 2
        self.restart()

    def restart(self) -> None:
        """Begin again without a tree."""
        self._learnt: NDArray[np.float64] = np.zeros(
            (self._settings.rows_max, len(self._inputs.mean))
        )
        self._frauds = np.zeros(self._settings.rows_max, np.bool_)
        self._begin(0)

    def _begin(self, generation: int) -> None:
        self._generation = generation
        self._count = 0
        self._old, self._young = self._seeded(0), self._seeded(1)

    def _seeded(self, ahead: int) -> Any:
        return forest.ARFClassifier(
            n_models=self._settings.trees,
            grace_period=self._settings.grace_rows,
            # Leaves that count: naive Bayes in them doubles the time of a row, and more.
            leaf_prediction="mc",
            seed=self._settings.seed + self._generation + ahead,
        )

    def learn(self, joined: Joined) -> None:
        """Learn rows in their order; 1 to 2.5 ms a row with ten trees and 16 features."""
        inputs = self._inputs.scale(joined.vectors, joined.rows["logit"])
        for row, is_fraud in zip(inputs, joined.is_fraud.tolist(), strict=True):
            self._learn(row, is_fraud)

    def _learn(self, row: NDArray[np.float64], is_fraud: bool) -> None:
        if self._count == self._settings.rows_max:
            self._renew()
        self._learnt[self._count], self._frauds[self._count] = row, is_fraud
        named = dict(enumerate(row.tolist()))
        self._old.learn_one(named, is_fraud)
        if self._count >= self._half:
            self._young.learn_one(named, is_fraud)
        self._count += 1

    def _renew(self) -> None:
        """Let the young forest take over, with the rows that it has learnt."""
        kept = self._settings.rows_max - self._half
        for array in (self._learnt, self._frauds):
            array[:kept] = array[self._half :].copy()
        self._generation += 1
        self._old, self._young = self._young, self._seeded(1)
        self._count = kept
        # Where rows_max is odd the half that is kept is one row past the middle.
        for number in range(self._half, kept):
            self._young.learn_one(
                dict(enumerate(self._learnt[number].tolist())), bool(self._frauds[number])
            )

    def predict(
        self, vectors: NDArray[np.float32], logits: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the forest's vote float64[m], 0 before it learnt anything."""
        inputs = self._inputs.scale(vectors, logits)
        if self._count == 0:
            return np.zeros(len(inputs))
        votes = (self._old.predict_proba_one(dict(enumerate(row))) for row in inputs.tolist())
        return np.array([vote.get(True, 0.0) for vote in votes], np.float64)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the inputs, the rows that it learnt, and ``generation`` int64[1].

        ``learnt`` float64[c, k + 1] and ``frauds`` bool[c], c up to ``rows_max``.
        """
        return {
            **self._inputs.to_arrays(),
            "learnt": self._learnt[: self._count].copy(),
            "frauds": self._frauds[: self._count].copy(),
            "generation": np.array([self._generation], np.int64),
        }

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, NDArray[Any]], settings: ForestSettings | None = None
    ) -> ForestChallenger:
        """Return the challenger whose ``to_arrays`` these are, by learning its rows again.

        With the same ``settings``, or it is another forest. Raises ValueError.
        """
        challenger = cls(Inputs.from_arrays(arrays), settings)
        learnt, frauds = arrays["learnt"], arrays["frauds"]
        if len(learnt) != len(frauds) or len(learnt) > challenger._settings.rows_max:
            raise ValueError(f"{len(learnt)} rows; {challenger._settings.rows_max} are kept")
        if learnt.dtype != np.float64 or learnt.shape[1:] != challenger._learnt.shape[1:]:
            raise ValueError(f"learnt is {learnt.dtype}{learnt.shape}, not as the inputs are")
        challenger._begin(int(arrays["generation"][0]))
        for row, is_fraud in zip(learnt, frauds.tolist(), strict=True):
            challenger._learn(row, is_fraud)
        return challenger


def cost_per_row_us(
    challenger: Challenger, vectors: NDArray[np.float32], logits: NDArray[np.float64]
) -> float:
    """Return the microseconds that a row of a batch takes to predict; for the gate on cost.

    A forest has no other form than this. A logistic regression is promoted as its
    ``export_linear``, which is what is to be timed.
    """
    challenger.predict(vectors, logits)
    began = time.perf_counter_ns()
    challenger.predict(vectors, logits)
    return (time.perf_counter_ns() - began) / 1_000 / max(len(vectors), 1)
