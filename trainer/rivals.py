"""Owns the challengers beside the champion: they learn each label after they were asked about it.

Off the scoring path: recent traffic is scored to give each the threshold that it would serve with,
and each confirmed label on which it and the champion differ is a pair of an e-process. The linear
one can be promoted, as a scorecard; the forest is judged, and is too slow to serve. Must not know
logs, files or clocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from trainer.bundle import Content
from trainer.challengers import (
    Challenger,
    ForestChallenger,
    ForestSettings,
    LogisticChallenger,
    LogisticSettings,
)
from trainer.eprocess import Evidence, Trial
from trainer.gates import Gate
from trainer.labelled import FAST, Joined
from trainer.linear import Inputs, Linear
from trainer.model import Model
from trainer.thresholds import Budget, thresholds_within
from trainer.trees import Trees

LINEAR, FOREST = "linear", "forest"


@dataclass(frozen=True, slots=True)
class RivalSettings:
    """How challengers are made and tried. Raises ValueError for figures without sense.

    ``alpha`` is the probability that one that is no better is found better; each sees the
    ``features`` that the base asks about most, and is shown ``traffic_rows`` of recent traffic
    every ``look_ms``. At a start it learns the newest ``lessons_max`` lessons again.
    """

    alpha: float = 0.01
    features: int = 16
    traffic_rows: int = 1_000
    traffic_min: int = 500
    look_ms: int = 60_000
    lessons_max: int = 2_000
    forest: ForestSettings = field(default_factory=lambda: ForestSettings(trees=5, rows_max=2_000))

    def __post_init__(self) -> None:
        """Refuse what could not be tried."""
        if not 0.0 < self.alpha < 1.0 or not 0 < self.traffic_min <= self.traffic_rows:
            raise ValueError("alpha lies between 0 and 1, traffic_min is 1 to traffic_rows")
        if not 0 < self.features <= 20 or self.look_ms < 0 or self.lessons_max < 1:
            raise ValueError("1 to 20 features; look_ms not negative, lessons_max 1 or more")


def asked_most(trees: Trees, count: int) -> NDArray[np.int64]:
    """Return the features that ``trees`` ask about most, int64[up to count], ascending."""
    asked = np.bincount(trees.split_features, minlength=trees.n_features)
    most = np.argsort(-asked, kind="stable")[:count]
    found: NDArray[np.int64] = np.sort(most[asked[most] > 0]).astype(np.int64)
    return found


class _Rival:
    """A challenger with the threshold it would serve with, and its trial."""

    def __init__(self, challenger: Challenger, alpha: float) -> None:
        self.challenger = challenger
        self.alert_from = np.inf
        self.trial = Trial.start(alpha)


class Rivals:
    """The linear challenger and the forest, on top of one base."""

    def __init__(
        self, base: Content, traffic: NDArray[np.float32], settings: RivalSettings
    ) -> None:
        self._settings = settings
        self._base = Model(base.trees)
        inputs = Inputs.fit(
            traffic, self._base.logits(traffic), asked_most(base.trees, settings.features)
        )
        self._linear = LogisticChallenger(inputs, LogisticSettings(base_fixed=True))
        self._rivals = {
            LINEAR: _Rival(self._linear, settings.alpha),
            FOREST: _Rival(ForestChallenger(inputs, settings.forest), settings.alpha),
        }

    def look(self, traffic: NDArray[np.float32], budget: Budget) -> None:
        """Score recent traffic float32[m, n]: each alerts on as much of it as the budget allows."""
        traffic = traffic[: self._settings.traffic_rows]
        logits = self._base.logits(traffic)
        for rival in self._rivals.values():
            scores = rival.challenger.predict(traffic, logits)
            rival.alert_from = thresholds_within(scores, 0.0, budget).review

    def see(self, joined: Joined, champion_alerts: NDArray[np.bool_]) -> None:
        """Take confirmed labels with what the champion would have done, bool[m]."""
        fast = np.isin(joined.rows["source"], FAST)
        joined, champion_alerts = self._on_base(joined[fast]), champion_alerts[fast]
        for rival in self._rivals.values():
            for i, alerted in enumerate(champion_alerts.tolist()):
                row = joined[slice(i, i + 1)]
                score = rival.challenger.predict(row.vectors, row.rows["logit"])[0]
                rival.trial.update(alerted, bool(score >= rival.alert_from), bool(row.is_fraud[0]))
                rival.challenger.learn(row)

    def restart(self, lessons: Joined) -> None:
        """Learn anew from what may be remembered, with trials that begin."""
        newest = self._on_base(lessons.of(FAST)[slice(-self._settings.lessons_max, None)])
        for rival in self._rivals.values():
            rival.challenger.restart()
            rival.challenger.learn(newest)
        self.start_trials()

    def start_trials(self) -> None:
        """Begin all trials anew: another champion serves."""
        for rival in self._rivals.values():
            rival.trial = Trial.start(self._settings.alpha)

    def evidence(self) -> Mapping[str, Evidence]:
        """Return the figures of each trial."""
        return {name: rival.trial.evidence() for name, rival in self._rivals.items()}

    def winner(self) -> Linear | None:
        """Return the linear challenger where it was found better than the champion."""
        better = self._rivals[LINEAR].trial.better.decided
        return self._linear.export_linear() if better else None

    def gate(self) -> Gate:
        """Return the evidence for the linear challenger as a gate."""
        found = self._rivals[LINEAR].trial.better
        return Gate("evidence of labels for it", found.e_value, 1.0 / found.alpha, found.decided)

    def _on_base(self, joined: Joined) -> Joined:
        """Return the rows with the base's logit in place of the one that was served."""
        rows = joined.rows.copy()
        rows["logit"] = self._base.logits(joined.vectors)
        return Joined(rows, joined.vectors)
