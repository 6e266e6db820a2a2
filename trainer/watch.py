"""Owns the watch over a bundle that serves: what of its decisions and labels speaks against it.

Each figure is tested by a bet that may be looked at after every decision: while the true share is
within its limit, wealth is not expected to grow, so that it passes 1 / alpha falsely with
probability alpha at most (Ville, 1939). Labels are judged by the mirrored bets of ``eprocess``.
Must not know logs, files or clocks, nor what becomes of a verdict.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from fraud.v1 import decision_pb2
from numpy.typing import NDArray

from trainer.eprocess import Trial
from trainer.gates import Gate

ALTERNATIVES = 8
ALERTS = "share of decisions alerted"
LATE = "share of decisions after the budget"
DEGRADED = "share of calls answered by rules alone"
LABELS = "evidence of labels against it"
RULES_ONLY = int(decision_pb2.RUNG_RULES_ONLY)


@dataclass(frozen=True, slots=True)
class WatchSettings:
    """Limits of what a bundle may do while it serves. Raises ValueError for ones without sense.

    ``alert_share_max`` of its decisions may be alerts by score, ``late_share_max`` may take longer
    than ``budget_ms``, and ``degraded_share_max`` of the calls may have no model. ``alpha`` is the
    probability of a false verdict by each of these, ``alpha_labels`` by the labels. After
    ``proven_ms`` with ``proven_decisions`` it is what later ones are taken back to.
    """

    alert_share_max: float = 0.03
    late_share_max: float = 0.02
    degraded_share_max: float = 0.05
    budget_ms: float = 50.0
    alpha: float = 0.001
    alpha_labels: float = 0.01
    proven_ms: int = 60_000
    proven_decisions: int = 100

    def __post_init__(self) -> None:
        """Refuse limits that nothing keeps, or everything."""
        for name in ("alert_share_max", "late_share_max", "degraded_share_max"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be above 0 and up to 1")
        if not (0.0 < self.alpha < 1.0 and 0.0 < self.alpha_labels < 1.0 and self.budget_ms > 0.0):
            raise ValueError("alpha and alpha_labels lie between 0 and 1, budget_ms above 0")
        if self.proven_ms < 0 or self.proven_decisions < 1:
            raise ValueError("proven_ms must not be negative, proven_decisions 1 or more")


class ShareTest:
    """Evidence that a share is above ``limit``, 0 to 1, from counts alone.

    The mean of the likelihood ratios of ALTERNATIVES shares above the limit: a martingale at the
    limit, and falling below it. At a limit of 1 there is nothing to find.
    """

    __slots__ = ("_hit", "_miss", "count", "limit", "ones")

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.count = self.ones = 0
        shares = limit + (1.0 - limit) * np.arange(1, ALTERNATIVES + 1) / (ALTERNATIVES + 0.5)
        if limit < 1.0:
            self._hit = np.log(shares / limit)
            self._miss = np.log((1.0 - shares) / (1.0 - limit))
        else:
            self._hit = self._miss = np.zeros(ALTERNATIVES)

    def see(self, ones: int, count: int) -> None:
        """Take ``count`` more, of which ``ones`` are ones."""
        self.ones += ones
        self.count += count

    @property
    def share(self) -> float:
        """The share seen, 0 where there is nothing."""
        return self.ones / max(self.count, 1)

    def exceeds(self, alpha: float) -> bool:
        """Return whether the share is above its limit."""
        logs = self.ones * self._hit + (self.count - self.ones) * self._miss
        most = float(logs.max())
        log_wealth = most + math.log(float(np.exp(logs - most).mean()))
        return log_wealth >= -math.log(alpha)


class BundleWatch:
    """What is seen of one bundle, since ``began_ms``."""

    def __init__(self, settings: WatchSettings, began_ms: int) -> None:
        self.began_ms = began_ms
        self._settings = settings
        self._tests = {
            ALERTS: ShareTest(settings.alert_share_max),
            LATE: ShareTest(settings.late_share_max),
            DEGRADED: ShareTest(settings.degraded_share_max),
        }
        self._trial = Trial.start(settings.alpha_labels)

    @property
    def decisions(self) -> int:
        """How many it decided."""
        return self._tests[ALERTS].count

    def see(self, served: NDArray[np.void], review_from: float) -> None:
        """Take SERVED[m]: its own decisions, and calls that were its own and had no model.

        It alerts from the probability ``review_from`` on.
        """
        scored = served[served["model"] != b""]
        alerts = int((scored["score"] >= review_from).sum())
        late = int((scored["used_ms"] > self._settings.budget_ms).sum())
        degraded = int((served["rung"] == RULES_ONLY).sum())
        self._tests[ALERTS].see(alerts, len(scored))
        self._tests[LATE].see(late, len(scored))
        self._tests[DEGRADED].see(degraded, len(served))

    def see_labels(
        self,
        own_alerts: NDArray[np.bool_],
        others_alerts: NDArray[np.bool_],
        is_fraud: NDArray[np.bool_],
    ) -> None:
        """Take confirmed labels, bool[m]: what it would have done, and the one before it."""
        told = zip(own_alerts.tolist(), others_alerts.tolist(), is_fraud.tolist(), strict=True)
        for own, others, fraud in told:
            self._trial.update(champion_alerts=others, candidate_alerts=own, is_fraud=fraud)

    def gates(self) -> list[Gate]:
        """Return each figure with its limit; what fails speaks against the bundle."""
        alpha = self._settings.alpha
        gates = [
            Gate(name, test.share, test.limit, not test.exceeds(alpha))
            for name, test in self._tests.items()
        ]
        worse = self._trial.worse
        limit = 1.0 / self._settings.alpha_labels
        return [*gates, Gate(LABELS, worse.e_value, limit, not worse.decided)]

    def failed(self, now_ms: int) -> list[str]:
        """Return the names of the figures that speak against it.

        Once it is proven only labels do: what traffic does later is not its fault.
        """
        failed = [gate.name for gate in self.gates() if not gate.passed]
        return [name for name in failed if name == LABELS] if self.is_proven(now_ms) else failed

    def is_proven(self, now_ms: int) -> bool:
        """Return whether it was seen for long enough to be gone back to."""
        waited = now_ms - self.began_ms >= self._settings.proven_ms
        return waited and self.decisions >= self._settings.proven_decisions
