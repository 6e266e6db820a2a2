"""Owns the product's learning loop on a stream: the trainer's own parts in the live order.

Take labels in, watch them, propose, judge, serve. As ``trainer.live`` does it, without files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from fraud.v1 import decision_pb2
from numpy.typing import NDArray

from tests.adaptation.base import BUDGET, Base, bundle_of
from tests.adaptation.streams import Stream
from trainer.decision_ring import APPROVED, DECISION
from trainer.expert import Expert
from trainer.gates import Gate, GateSettings, judge
from trainer.joins import JoinSettings
from trainer.label_watch import LabelWatch
from trainer.labelled import ANALYST, CUSTOMER, FRAUD, LABEL, LEGITIMATE, Joined
from trainer.learner import Learner, LearnerSettings
from trainer.reading import Read
from trainer.traffic import Sample

REVIEW = int(decision_pb2.OUTCOME_REVIEW)
NEVER_MS = 1 << 50
RESIDUAL_EVERY_MS = 240_000
# The machine is shared: a row's time says little here, and `make bench` measures it.
GATES = GateSettings(cost_us_max=1_000.0)


class _ResidualOnly(Learner):
    """A learner without the few-shot expert."""

    def _expert(self, told: Joined, lessons: Joined, traffic: Sample) -> Expert | None:
        return None


@dataclass(frozen=True, slots=True)
class Event:
    """What became of a proposal, or of the labels' guards."""

    time_ms: int
    what: str
    gates: list[Gate]


class Product:
    """T1, T2 or both on the base. ``guarded``: the guards on labels are on, as they are live."""

    def __init__(
        self, name: str, stream: Stream, base: Base, *, expert: bool = True, residual: bool = True,
        guarded: bool = True,
    ) -> None:  # fmt: skip
        self.name, self._stream, self._base = name, stream, base
        settings = LearnerSettings(
            residual_every_ms=RESIDUAL_EVERY_MS if residual else NEVER_MS, budget=BUDGET,
            joins=JoinSettings(decisions_max=1 << 17),
        )  # fmt: skip
        kind = Learner if expert else _ResidualOnly
        self._learner = kind(base.content, base.old_frauds, settings)
        self._watch = LabelWatch()
        self._distrusted: set[int] = set()
        self._guarded = guarded
        self._champion = bundle_of(base.content, base.packed, "base")
        self._swaps = 0
        self.events: list[Event] = []
        self._pending = _no_decisions(), np.zeros((0, stream.vectors.shape[1]), np.float32)

    @property
    def threshold(self) -> float:
        """The probability that is served."""
        return self._champion.thresholds.review

    def score(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return probabilities of the bundle that serves."""
        bundle = self._champion
        return bundle.calibration.probabilities(bundle.model.logits(self._stream.vectors[rows]))

    def serve(self, first: int, stop: int, scores: NDArray[np.float64]) -> None:
        """Put the decisions before the learner, as the log would."""
        rows = self._stream.rows[first:stop]
        decisions = np.zeros(len(rows), DECISION)
        for name, own in (
            ("transaction", "transaction"), ("event_time_ms", "time_ms"),
            ("customer", "customer"), ("merchant", "merchant"),
        ):  # fmt: skip
            decisions[name] = rows[own]
        decisions["score"] = scores
        decisions["outcome"] = np.where(scores >= self.threshold, REVIEW, APPROVED)
        self._pending = decisions, self._stream.vectors[first:stop]

    def learn(self, told: NDArray[Any], now_ms: int) -> bool:
        """Take labels, watch them, and propose and judge where learning is allowed."""
        decisions, vectors = self._pending
        labels = self._labels(told)
        refused = self._learner.take(Read(decisions, vectors, labels), now_ms)
        suspected = self._watch.see(self._learner.heard, refused, now_ms)
        if self._guarded and suspected:
            self._go_back([int(alarm.subject) for alarm in suspected], now_ms)
            return True
        if self._guarded and self._must_stand_still(now_ms):
            return False
        if not self._learner.is_due(now_ms):
            return False
        traffic = self._learner.traffic()
        content = self._learner.propose(traffic, now_ms)
        if content is None:
            return False
        return self._try(content, traffic, now_ms)

    def _go_back(self, reporters: list[int], now_ms: int) -> None:
        """Serve the base again, and forget what the suspected said; they are not heard again."""
        learner = self._learner
        for reporter in reporters:
            learner.forget(reporter)
            self._watch.forget(reporter)
            self._distrusted.add(reporter)
        learner.champion = self._base.content
        self._champion = bundle_of(self._base.content, self._base.packed, "base")
        self.events.append(Event(now_ms, "rolled back: labels are suspected", []))

    def _labels(self, told: NDArray[Any]) -> NDArray[Any]:
        told = told[~np.isin(told["reporter"], list(self._distrusted))]
        labels = np.zeros(len(told), LABEL)
        labels["transaction"] = self._stream.rows["transaction"][told["row"]]
        labels["label_time_ms"], labels["reporter"] = told["time_ms"], told["reporter"]
        labels["verdict"] = np.where(told["is_fraud"], FRAUD, LEGITIMATE)
        labels["source"] = np.where(told["by_analyst"], ANALYST, CUSTOMER)
        return labels

    def _must_stand_still(self, now_ms: int) -> bool:
        for turn in self._watch.turns():
            what = f"stops: {turn.text}" if turn.begins else f"goes on: {turn.stop.name}"
            self.events.append(Event(now_ms, what, []))
        return bool(self._watch.stopped)

    def _try(self, content: Any, traffic: Sample, now_ms: int) -> bool:
        candidate = bundle_of(content, self._base.packed, f"{self.name}-{self._swaps}")
        gates = judge(candidate, self._champion, traffic.held, self._learner.old_frauds, GATES)
        passed = all(gate.passed for gate in gates)
        layers = " and ".join(content.facts["learnt"]["layers"])
        what = f"promoted: {layers}" if passed else f"refused: {gates[-1].name}"
        self.events.append(Event(now_ms, what, gates))
        if passed:
            self._champion, self._learner.champion = candidate, content
            self._swaps += 1
        return passed


def _no_decisions() -> NDArray[Any]:
    return np.zeros(0, DECISION)
