"""Owns all that looks on and serves nothing: label guards, drift, running metrics, challengers.

Takes what was read and joined, gives alarms and figures. Must not know logs, files or clocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.alarms import Alarm
from trainer.bundle import Content
from trainer.decision_ring import APPROVED
from trainer.drift import DriftSettings, DriftWatch
from trainer.guards import GuardSettings
from trainer.joins import Joins
from trainer.label_watch import LabelWatch
from trainer.labelled import Joined
from trainer.reporters import ReporterSettings
from trainer.rivals import Rivals, RivalSettings, asked_most
from trainer.running_metrics import RunningMetrics
from trainer.thresholds import Budget


@dataclass(frozen=True, slots=True)
class ObserverSettings:
    """What is looked at how closely; figures are told every ``measure_labels``."""

    guards: GuardSettings = field(default_factory=GuardSettings)
    reporters: ReporterSettings = field(default_factory=ReporterSettings)
    drift: DriftSettings = field(default_factory=DriftSettings)
    rivals: RivalSettings = field(default_factory=RivalSettings)
    drift_inputs: int = 16
    measure_labels: int = 100


class Observers:
    """Everything that is looked at while one base serves."""

    def __init__(self, champion: Content, settings: ObserverSettings) -> None:
        self._settings = settings
        self.labels = LabelWatch(settings.guards, settings.reporters)
        self.metrics = RunningMetrics()
        self.rivals: Rivals | None = None
        self._unmeasured = 0
        self._looked_ms: int | None = None
        self._base = champion
        self._drift = self._watched(champion)

    def _watched(self, champion: Content) -> DriftWatch:
        columns = asked_most(champion.trees, self._settings.drift_inputs).tolist()
        names = champion.feature_names
        return DriftWatch({names[each]: each for each in columns}, self._settings.drift)

    def see_traffic(self, decisions: NDArray[Any], vectors: NDArray[np.float32]) -> list[Alarm]:
        """Take decisions DECISION[m] with float32[m, n]; return alarms of drift."""
        return self._drift.see_traffic(vectors, decisions["logit"], decisions["event_time_ms"])

    def see_labels(self, joined: Joined, champion_alerts: NDArray[np.bool_]) -> list[Alarm]:
        """Take joined labels, and what the champion does with each; return alarms of missed fraud.

        Metrics judge what was served when the payment came.
        """
        missed = joined.rows["outcome"] == APPROVED
        told = zip(joined.rows["score"].tolist(), missed.tolist(), joined.is_fraud.tolist(),
                   strict=True)  # fmt: skip
        for score, was_missed, is_fraud in told:
            self.metrics.update(score, not was_missed, is_fraud)
        self._unmeasured += len(joined)
        if self.rivals is not None:
            self.rivals.see(joined, champion_alerts)
        return self._drift.see_labels(joined, missed.tolist())

    def is_measuring(self) -> bool:
        """Return whether figures are to be told again; asking settles it."""
        if self._unmeasured < self._settings.measure_labels:
            return False
        self._unmeasured = 0
        return True

    def figures(self, joins: Joins) -> Mapping[str, float]:
        """Return running metrics, counts of labels, and the challengers' evidence, by name."""
        counts = joins.counts
        figures = {name: float(value) for name, value in self.metrics.figures()._asdict().items()}
        figures |= {
            "labelled share of decisions": counts.coverage,
            "labels joined": float(counts.joined.sum()),
            "labels refused": float(sum(counts.refused.values())),
        }
        for name, found in (self.rivals.evidence() if self.rivals else {}).items():
            figures |= {
                f"{name}: wins": float(found.wins), f"{name}: losses": float(found.losses),
                f"{name}: e-value": found.e_value,
            }  # fmt: skip
        return figures

    def look_is_due(self, passed_ms: int) -> bool:
        """Return whether the challengers are to be shown traffic again."""
        waited = self._looked_ms is None or passed_ms - self._looked_ms
        return waited is True or waited >= self._settings.rivals.look_ms

    def look(
        self, traffic: NDArray[np.float32], lessons: Joined, budget: Budget, passed_ms: int
    ) -> None:
        """Show recent traffic float32[m, n] to the challengers, made where there are none yet."""
        self._looked_ms = passed_ms
        if len(traffic) < self._settings.rivals.traffic_min:
            return
        if self.rivals is None:
            self.rivals = Rivals(self._base, traffic, self._settings.rivals)
            self.rivals.restart(lessons)
        self.rivals.look(traffic, budget)

    def serve_another(self, champion: Content) -> None:
        """Begin anew with what depends on what is served; on another base, with the challengers."""
        if champion.base_cbm != self._base.base_cbm:
            self._drift, self.rivals, self._looked_ms = self._watched(champion), None, None
        self._base = champion
        self._drift.restart_scores()
        if self.rivals is not None:
            self.rivals.start_trials()

    def forget(self, reporter: int, lessons: Joined) -> None:
        """Forget what a reporter said; ``lessons`` are left."""
        self.labels.forget(reporter)
        if self.rivals is not None:
            self.rivals.restart(lessons)
