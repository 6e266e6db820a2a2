"""Owns what is learnt when: an expert on each missed fraud, a residual every few minutes.

Labels and decisions come in, contents of bundles come out; who judges and serves them is another's
business. Must not know logs, files or clocks.

    decisions ─┐                     ┌─ expert (T1): frauds that were approved
               ├─ joins ─▶ lessons ──┤                                          ─▶ renewed content
    labels ────┘                     └─ residual (T2): all frauds, old ones too
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from trainer.bundle import Content
from trainer.expert import Expert, ExpertError
from trainer.few_shot import ExpertSettings, fit_expert
from trainer.joins import APPROVED, Joins, JoinSettings
from trainer.labelled import FAST, Joined, Refusal
from trainer.lessons import Lessons
from trainer.model import Model, Trees
from trainer.reading import Read
from trainer.renew import Recent, renew
from trainer.residual import ResidualRows, ResidualSettings, fit_residual
from trainer.thresholds import Budget
from trainer.traffic import ROWS_MIN, Traffic, prepare_traffic
from trainer.train import TrainingError


@dataclass(frozen=True, slots=True)
class LearnerSettings:
    """How much is remembered, how often the residual is learnt, and the budget of alerts."""

    traffic_rows: int = 5_000
    judged_within_ms: int = 900_000  # most alerts are
    lessons_max: int = 20_000
    residual_every_ms: int = 120_000
    good_per_fraud: int = 20
    budget: Budget = field(default_factory=Budget)
    expert: ExpertSettings = field(default_factory=ExpertSettings)
    residual: ResidualSettings = field(default_factory=ResidualSettings)
    joins: JoinSettings = field(default_factory=JoinSettings)
    seed: int = 1


class Learner:
    """Learns on top of ``champion``; ``old_frauds`` float32[k, n] are replayed to each residual."""

    def __init__(
        self, champion: Content, old_frauds: NDArray[np.float32], settings: LearnerSettings
    ) -> None:
        width = len(champion.feature_names)
        self.champion = champion
        self.old_frauds = old_frauds
        self.joins = Joins(width, settings.joins)
        self.lessons = Lessons(settings.lessons_max, width)
        self._settings = settings
        self._random = np.random.default_rng(settings.seed)
        self._missed = 0  # frauds that the expert in use was learnt from
        self._learnt = 0  # frauds that the residual in use was learnt from
        self._residual_ms: int | None = None
        self._frauds = 0  # that were told, at the last proposal
        self._is_fresh = False  # whether labels came since
        self._traffic = np.zeros((0, width), np.float32)
        self._traffic_at = 0  # decisions that were read when it was drawn
        self._prepared: Traffic | None = None  # for the expert, once it was asked for

    def take(self, read: Read, now_ms: int) -> list[Refusal]:
        """Take decisions and labels in; return the labels that cannot be used."""
        taken = (
            self.joins.take_decisions(read.decisions, read.vectors, now_ms),
            self.joins.take_labels(read.labels, now_ms),
        )
        for each in taken:
            self.lessons.add(each.joined)
            self._is_fresh |= len(each.joined) > 0
        return [refusal for each in taken for refusal in each.refused]

    def is_due(self, now_ms: int) -> bool:
        """Return whether there may be something to propose; costs nothing."""
        return self._is_fresh or self._residual_is_due(self._frauds, now_ms)

    def traffic(self) -> NDArray[np.float32]:
        """Return recent traffic without what was called fraud, float32[m, n].

        Drawn again once a fifth as many decisions came since as it has rows: to draw it and to
        make it ready takes longer than to learn an expert.
        """
        came = self.joins.counts.decisions - self._traffic_at
        if 5 * came >= len(self._traffic):
            settings = self._settings
            self._traffic = self.joins.not_fraud(
                settings.traffic_rows, settings.judged_within_ms, self._random
            )
            self._traffic_at, self._prepared = self.joins.counts.decisions, None
        return self._traffic

    def propose(self, traffic: NDArray[np.float32], now_ms: int) -> Content | None:
        """Return a content with what was learnt since the last call, None where it is nothing.

        Both layers are learnt from all that is remembered, so a forgotten label is without trace.
        """
        lessons = self.lessons.all()
        if len(traffic) < ROWS_MIN or not len(lessons):
            return None
        self._is_fresh, self._frauds = False, int(lessons.is_fraud.sum())
        missed = lessons.of(FAST)
        missed = missed[missed.is_fraud & (missed.rows["outcome"] == APPROVED)]
        expert, residual = self.champion.expert, self.champion.residual
        causes = []
        if len(missed) != self._missed:
            expert = self._expert(missed, lessons, traffic)
            causes.append("expert")
        if self._residual_is_due(self._frauds, now_ms):
            self._residual_ms, self._learnt = now_ms, self._frauds
            residual = self._residual(lessons, traffic)
            causes.append("residual")
        if not causes:
            return None
        self._missed = len(missed)
        learnt = {
            "layers": causes, "time_ms": now_ms, "missed_frauds": len(missed),
            "lessons": len(lessons), "frauds": self._frauds,
        }  # fmt: skip
        recent = self._recent(lessons, traffic)
        budget = self._settings.budget
        return renew(self.champion, residual, expert, recent, budget, {"learnt": learnt})

    def _recent(self, lessons: Joined, traffic: NDArray[np.float32]) -> Recent:
        """Return all frauds that were told, and traffic that stands for all decisions kept."""
        frauds = lessons[lessons.is_fraud].vectors
        labelled = np.concatenate([frauds, traffic])
        weights = np.ones(len(labelled))
        weights[len(frauds) :] = max(len(self.joins.ring) - len(frauds), 1) / len(traffic)
        return Recent(traffic, labelled, np.arange(len(labelled)) < len(frauds), weights)

    def _expert(
        self, missed: Joined, lessons: Joined, traffic: NDArray[np.float32]
    ) -> Expert | None:
        if not len(missed):
            return None
        settings = self._settings.expert
        good = lessons[~lessons.is_fraud].vectors
        try:
            if self._prepared is None or self._prepared.rows is not traffic:
                self._prepared = prepare_traffic(traffic)
            return fit_expert(missed.vectors, self._prepared, good, settings, len(self.joins.ring))
        except ExpertError:
            return self.champion.expert

    def _residual_is_due(self, frauds: int, now_ms: int) -> bool:
        if self._residual_ms is None:
            self._residual_ms = now_ms
        waited = now_ms - self._residual_ms >= self._settings.residual_every_ms
        return waited and frauds != self._learnt and frauds >= self._settings.residual.frauds_min

    def _residual(self, lessons: Joined, traffic: NDArray[np.float32]) -> Trees | None:
        """Learn from confirmed frauds, old ones, confirmed good payments and presumed good ones."""
        frauds = np.concatenate([lessons[lessons.is_fraud].vectors, self.old_frauds])
        known_good = lessons[~lessons.is_fraud].vectors
        drawn = traffic[: self._settings.good_per_fraud * len(frauds)]
        features = np.concatenate([frauds, known_good, drawn])
        is_fraud = np.arange(len(features)) < len(frauds)
        share = max(len(drawn) / max(len(self.joins.ring), 1), 1e-3)
        rows = ResidualRows(
            features, is_fraud, Model(self.champion.trees).logits(features),
            np.ones(len(features)), min(1.0, share),
        )  # fmt: skip
        try:
            return fit_residual(rows, self._settings.residual)
        except TrainingError:
            return self.champion.residual
