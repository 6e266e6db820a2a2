"""Owns what is learnt when: an expert on each missed fraud, a residual every few minutes.

Labels and decisions come in, contents of bundles come out; who judges and serves them is another's
business. Must not know logs, files or clocks.

    decisions ─┐                     ┌─ expert (T1): frauds the base misses
               ├─ joins ─▶ lessons ──┤                                          ─▶ renewed content
    labels ────┘                     └─ residual (T2): all frauds, old ones too
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from trainer.bundle import Content
from trainer.decision_ring import APPROVED
from trainer.drawing import hardness, shares_drawn
from trainer.expert import Expert, ExpertError
from trainer.few_shot import ExpertSettings, fit_expert
from trainer.joins import Joins, JoinSettings
from trainer.labelled import ANALYST, FAST, Joined, Refusal, stacked
from trainer.lessons import Lessons
from trainer.model import Model
from trainer.reading import Read
from trainer.renew import Recent, renew
from trainer.residual import ResidualRows, ResidualSettings, fit_residual
from trainer.thresholds import Budget
from trainer.traffic import ROWS_MIN, Sample, prepare_traffic
from trainer.train import TrainingError
from trainer.trees import Trees


@dataclass(frozen=True, slots=True)
class LearnerSettings:
    """How much is remembered, how often the residual is learnt, and the budget of alerts."""

    learnt_rows: int = 40_000  # that a residual draws from
    expert_rows: int = 5_000  # of those
    held_rows: int = 15_000  # for thresholds: of fewer, the share alerted is left to chance
    newest_rows: int = 3_000
    judged_within_ms: int = 900_000  # most alerts are
    lessons_max: int = 20_000
    residual_every_ms: int = 120_000
    news_weight: float = 2.0  # of a fraud told since, beside an old one: of those are many
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
        self._missed = self._learnt = 0
        self.resume()
        self.heard = stacked([], [], width)  # what the last call of ``take`` joined
        self._residual_ms: int | None = None
        self._frauds = 0  # that were told, at the last proposal
        self._is_fresh = False  # whether labels came since

    def resume(self) -> None:
        """Take what is remembered as learnt where the champion says that it learnt as much.

        ``_missed`` and ``_learnt`` are the frauds that its expert and its residual were learnt
        from: after a restart they are in the bundle, and nothing is learnt twice.
        """
        learnt = self.champion.facts.get("learnt", {})
        self._missed = int(learnt.get("missed_frauds", 0))
        self._learnt = int(learnt.get("residual_frauds", 0))

    def take(self, read: Read, now_ms: int) -> list[Refusal]:
        """Take decisions and labels in; return the labels that cannot be used."""
        taken = (
            self.joins.take_decisions(read.decisions, read.vectors, now_ms),
            self.joins.take_labels(read.labels, now_ms),
        )
        self.heard = taken[0].joined + taken[1].joined
        if self.lessons.unsay([pair for each in taken for pair in each.unsaid]):
            self._missed = self._learnt = -1  # what is proposed next is learnt from what is left
            self._is_fresh = True
        self.lessons.add(self.heard)
        self._is_fresh |= len(self.heard) > 0
        return [refusal for each in taken for refusal in each.refused]

    def forget(self, reporter: int) -> int:
        """Forget what a reporter said, and what others said of the same counts; return the rows.

        What is proposed next is learnt from what is left.
        """
        stands_again = self.joins.forget(reporter=reporter)
        rows = self.lessons.forget(reporter=reporter)
        self.lessons.add(stands_again)
        self._missed = self._learnt = -1
        self._is_fresh = True
        return rows

    def is_due(self, now_ms: int, *, with_residual: bool = True) -> bool:
        """Return whether there may be something to propose; costs nothing."""
        due = with_residual and self._residual_is_due(self._frauds, now_ms)
        return self._is_fresh or due

    def traffic(self) -> Sample:
        """Return recent traffic.

        The choice depends on what is remembered alone: who reads the same log makes the same.
        """
        settings = self._settings
        return self.joins.traffic(
            settings.learnt_rows, settings.held_rows, settings.newest_rows,
            settings.judged_within_ms, self._random(),
        )  # fmt: skip

    def propose(
        self, traffic: Sample, now_ms: int, *, with_residual: bool = True
    ) -> Content | None:
        """Return a content with what was learnt since the last call, None where it is nothing.

        Both layers are learnt from all that is remembered, so a forgotten label is without trace.
        Without ``with_residual`` only the expert is looked at: it is due at once.
        """
        lessons = self.lessons.all()
        if len(traffic.learnt) < ROWS_MIN or not len(lessons):
            return None
        self._is_fresh, self._frauds = False, int(lessons.is_fraud.sum())
        told = lessons.of(FAST)
        told = told[told.is_fraud]
        missed = int((told.rows["outcome"] == APPROVED).sum())
        is_due = with_residual and self._residual_is_due(self._frauds, now_ms)
        expert, residual = self.champion.expert, self.champion.residual
        causes = []
        if missed != self._missed or is_due:
            expert = self._expert(told, lessons, traffic)
            causes.append("expert")
        if is_due:
            self._residual_ms, self._learnt = now_ms, self._frauds
            residual = self._residual(lessons, traffic.learnt)
            causes.append("residual")
        if not causes:
            return None
        self._missed = missed
        return self._renewed(lessons, residual, expert, traffic, causes, now_ms)

    def compose(self, residual: Trees | None, cause: str, traffic: Sample, now_ms: int) -> Content:
        """Return a content with the champion's expert and another residual, fitted to now."""
        lessons = self.lessons.all()
        return self._renewed(lessons, residual, self.champion.expert, traffic, [cause], now_ms)

    def _renewed(
        self,
        lessons: Joined,
        residual: Trees | None,
        expert: Expert | None,
        traffic: Sample,
        causes: list[str],
        now_ms: int,
    ) -> Content:
        learnt = {
            "layers": causes, "time_ms": now_ms, "missed_frauds": max(self._missed, 0),
            "residual_frauds": max(self._learnt, 0), "lessons": len(lessons),
            "frauds": self._frauds,
        }  # fmt: skip
        recent = self._recent(lessons, traffic)
        budget = self._settings.budget
        return renew(self.champion, residual, expert, recent, budget, {"learnt": learnt})

    def _recent(self, lessons: Joined, traffic: Sample) -> Recent:
        """Return all frauds that were told, and traffic that stands for all decisions kept."""
        frauds, held = lessons[lessons.is_fraud].vectors, traffic.held
        labelled = np.concatenate([frauds, held])
        weights = np.ones(len(labelled))
        weights[len(frauds) :] = max(len(self.joins.ring) - len(frauds), 1) / len(held)
        is_fraud = np.arange(len(labelled)) < len(frauds)
        asked = lessons.of((ANALYST,))
        return Recent(
            held, traffic.held_is_good, traffic.held_is_alerted, traffic.newest, asked.vectors,
            asked.is_fraud, asked.rows["outcome"] != APPROVED, labelled,
            is_fraud, weights,
        )  # fmt: skip

    def _expert(self, told: Joined, lessons: Joined, traffic: Sample) -> Expert | None:
        """Learn from the frauds that the base alone misses, whoever found them since.

        What was missed by what served then is few, and fewer the better that was.
        """
        base = Model(self.champion.trees)
        alerted_from = np.quantile(
            base.logits(traffic.held), 1.0 - self._settings.budget.alert_share
        )
        frauds = told.vectors[base.logits(told.vectors) < alerted_from]
        if not len(frauds):
            return None
        good = lessons[~lessons.is_fraud].vectors
        every = -(-len(traffic.learnt) // self._settings.expert_rows)
        try:
            prepared = prepare_traffic(traffic.learnt[::every])
            return fit_expert(frauds, prepared, good, self._settings.expert, len(self.joins.ring))
        except ExpertError:
            return self.champion.expert

    def _residual_is_due(self, frauds: int, now_ms: int) -> bool:
        if self._residual_ms is None:
            self._residual_ms = now_ms
        waited = now_ms - self._residual_ms >= self._settings.residual_every_ms
        return waited and frauds != self._learnt and frauds >= self._settings.residual.frauds_min

    def _residual(self, lessons: Joined, traffic: NDArray[np.float32]) -> Trees | None:
        """Learn from confirmed frauds, old ones, confirmed good payments and presumed good ones."""
        told = lessons[lessons.is_fraud].vectors
        frauds = np.concatenate([told, self.old_frauds])
        base = Model(self.champion.trees)
        suspected = base.logits(traffic)
        hard = hardness(suspected)
        is_drawn = self._random().random(len(traffic)) < shares_drawn(suspected, hard)
        known_good = lessons[~lessons.is_fraud].vectors
        features = np.concatenate([frauds, known_good, traffic[is_drawn]])
        logits = base.logits(features)
        weights = np.ones(len(features))
        weights[: len(told)] = self._settings.news_weight
        rows = ResidualRows(
            features, np.arange(len(features)) < len(frauds), logits, weights,
            shares_drawn(logits, hard) * min(1.0, len(traffic) / len(self.joins.ring)),
        )  # fmt: skip
        try:
            return fit_residual(rows, self._settings.residual)
        except TrainingError:
            return self.champion.residual

    def _random(self) -> np.random.Generator:
        """Return a source of chance that depends on what is remembered alone."""
        newest = self.joins.ring.newest() & 0xFFFF_FFFF_FFFF_FFFF  # as a seed: not negative
        return np.random.default_rng([self._settings.seed, newest])
