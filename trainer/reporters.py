"""Owns the watch for poisoned labels: a reporter whose verdicts are not what others' are.

Payments are told apart by who judged them and what the champion did with them: of those that were
declined, say, an analyst calls about as many fraud as other analysts do. For each reporter money
is bet, label by label, that their share differs from the others' by more than a margin; and that
more of their labels are disputed by stronger sources. A new bet begins with each label, so that
who was honest for long and turns is found as soon as who never was (an e-detector: Shin et al.,
2024). Under the null no bet gains on average, so an alarm at ``run_length`` comes falsely once in
that many labels of a reporter at the most often, if the others' share is known; of the error in it
the margin takes care.

A reporter without peers cannot be compared, nor can most be found wrong by the rest: against that
stands the guard on labels from one reporter. Must not know learners.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.alarms import Alarm
from trainer.decision_ring import SOURCES
from trainer.labelled import Cause, Joined, Refusal

OUTCOMES = 4  # the contract's Outcome
# One stratum for each source and outcome, and one of disputes.
DISPUTED = SOURCES * OUTCOMES
STRATA = DISPUTED + 1
BETS = 8
# From so many peers with so many labels each on, their median is heard beside their sum.
PEERS_MIN, PEER_LABELS_MIN = 3, 10
_STAKES = (np.arange(BETS) + 0.5) / BETS


@dataclass(frozen=True, slots=True)
class ReporterSettings:
    """Limits of the watch. Raises ValueError for figures out of range.

    Shares within ``margin`` of the peers' are no fault. Nothing is bet before the peers have
    ``peers_min`` labels of the same kind. Beyond ``reporters_max`` the one who has been silent
    longest is forgotten.
    """

    run_length: float = 10_000.0
    margin: float = 0.15
    peers_min: int = 20
    reporters_max: int = 1_024

    def __post_init__(self) -> None:
        """Refuse figures that bet on nothing."""
        if not (self.run_length > 1.0 and 0.0 < self.margin < 0.5):
            raise ValueError("run_length must be above 1, margin above 0 and below 0.5")
        if self.peers_min < 1 or self.reporters_max < 1:
            raise ValueError("peers_min and reporters_max must be positive")


class _Reporter:
    """What one reporter said: counts int64[STRATA, 2] of all and of ones, and the log wealth."""

    def __init__(self, first_ms: int) -> None:
        self.first_ms = first_ms
        self.counts = np.zeros((STRATA, 2), np.int64)
        # That the share of frauds is above the peers', below it, and that of disputes above it:
        # each at BETS stakes, and none pays for the others' losses.
        self.log_wealth = np.full((3, BETS), -np.inf)
        self.alarmed = False


class ReporterWatch:
    """Compares each reporter with the others of the same source."""

    def __init__(self, settings: ReporterSettings | None = None) -> None:
        self._settings = settings or ReporterSettings()
        self._reporters: dict[int, _Reporter] = {}
        self._totals = np.zeros((STRATA, 2), np.int64)

    def see(self, joined: Joined, refused: Sequence[Refusal], now_ms: int) -> list[Alarm]:
        """Take what a call of Joins returned; return an alarm for each reporter newly suspected."""
        alarms = []
        for row, is_fraud in zip(joined.rows, joined.is_fraud.tolist(), strict=True):
            stratum = int(row["source"]) * OUTCOMES + min(int(row["outcome"]), OUTCOMES - 1)
            time_ms = int(row["label_time_ms"])
            alarms += self._say(int(row["reporter"]), stratum, is_fraud, time_ms, now_ms)
            alarms += self._say(int(row["reporter"]), DISPUTED, False, time_ms, now_ms)
            alarms += self._say(int(row["overruled"]), DISPUTED, True, time_ms, now_ms)
        for refusal in refused:
            if refusal.cause is Cause.CONTRADICTORY:
                of, time_ms = int(refusal.label["reporter"]), int(refusal.label["label_time_ms"])
                alarms += self._say(of, DISPUTED, True, time_ms, now_ms)
        return alarms

    def forget(self, reporter: int) -> None:
        """Forget a reporter, whose labels then say nothing of others any more."""
        known = self._reporters.pop(reporter, None)
        if known:
            self._totals -= known.counts

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return ``who`` int64[r, 3], ``counts`` int64[r, STRATA, 2], ``log_wealth`` float64.

        ``who`` holds the reporter, its first time and whether it was alarmed, the longest silent
        first.
        """
        known = list(self._reporters.items())
        who = [(reporter, each.first_ms, each.alarmed) for reporter, each in known]
        counts = [each.counts for _, each in known]
        wealth = [each.log_wealth for _, each in known]
        return {
            "who": np.array(who, np.int64).reshape(-1, 3),
            "counts": np.array(counts, np.int64).reshape(-1, STRATA, 2),
            "log_wealth": np.array(wealth, np.float64).reshape(-1, 3, BETS),
        }

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, NDArray[Any]], settings: ReporterSettings | None = None
    ) -> ReporterWatch:
        """Return the watch whose ``to_arrays`` these are. Raises ValueError."""
        who, counts, wealth = (arrays[name] for name in ("who", "counts", "log_wealth"))
        if counts.shape != (len(who), STRATA, 2) or wealth.shape != (len(who), 3, BETS):
            raise ValueError(f"{len(who)} reporters with counts {counts.shape}, {wealth.shape}")
        watch = cls(settings)
        for (reporter, first_ms, alarmed), own, log_wealth in zip(
            who.tolist(), counts, wealth, strict=True
        ):
            known = watch._reporters[reporter] = _Reporter(first_ms)
            known.counts, known.log_wealth = own.copy(), log_wealth.copy()
            known.alarmed = bool(alarmed)
            watch._totals += own
        return watch

    def _say(
        self, reporter: int, stratum: int, one: bool, time_ms: int, now_ms: int
    ) -> list[Alarm]:
        if reporter == 0:
            return []
        known = self._reporters.pop(reporter, None) or _Reporter(time_ms)
        # Last in the order: the longest silent is first.
        self._reporters[reporter] = known
        if len(self._reporters) > self._settings.reporters_max:
            self.forget(next(iter(self._reporters)))
        all_peers, ones_peers = (self._totals[stratum] - known.counts[stratum]).tolist()
        if all_peers >= self._settings.peers_min:
            pooled = (ones_peers + 0.5) / (all_peers + 1.0)
            typical = self._typical(reporter, stratum, pooled)
            low, high = min(pooled, typical), max(pooled, typical)
            gains = _gains(one, low, high, self._settings.margin)
            if stratum == DISPUTED:
                known.log_wealth[2] = np.logaddexp(known.log_wealth[2], 0.0) + gains[0]
            else:
                known.log_wealth[:2] = np.logaddexp(known.log_wealth[:2], 0.0) + gains
        for counts in (known.counts, self._totals):
            counts[stratum] += 1, one
        return self._alarm(reporter, known, stratum, now_ms)

    def _typical(self, reporter: int, stratum: int, pooled: float) -> float:
        """Return the median of the peers' shares: one liar among them moves it little."""
        shares = [
            each.counts[stratum, 1] / each.counts[stratum, 0]
            for number, each in self._reporters.items()
            if number != reporter and each.counts[stratum, 0] >= PEER_LABELS_MIN
        ]
        return float(np.median(shares)) if len(shares) >= PEERS_MIN else pooled

    def _alarm(self, reporter: int, known: _Reporter, stratum: int, now_ms: int) -> list[Alarm]:
        e_value = float(np.exp(np.minimum(known.log_wealth, 700.0)).mean())
        if known.alarmed or e_value < self._settings.run_length:
            return []
        known.alarmed = True
        everyone, ones = (self._totals[stratum] - known.counts[stratum]).tolist()
        own, own_ones = known.counts[stratum].tolist()
        return [
            Alarm(
                code="LABELS_DISPUTED" if stratum == DISPUTED else "LABELS_POISONED",
                subject=str(reporter),
                method="e-detector",
                since_ms=known.first_ms,
                now_ms=now_ms,
                before=ones / max(everyone, 1),
                after=own_ones / max(own, 1),
                rows=own,
                statistic=e_value,
                limit=self._settings.run_length,
            )
        ]


def _gains(one: bool, low: float, high: float, margin: float) -> NDArray[np.float64]:
    """Return float64[2, BETS]: the log of what each stake gains or loses by one label.

    Bets that the chance of a one is above ``high + margin``, and below ``low - margin``; each
    such chance kept inside 0 and 1, where the bet on it cannot be lost whole.
    """
    above, below = min(high + margin, 0.99), max(low - margin, 0.01)
    # A fair price of one unit on an event of chance q pays 1 / q.
    up = (1.0 / above if one else 0.0) - 1.0
    down = (0.0 if one else 1.0 / (1.0 - below)) - 1.0
    return np.log1p(np.stack([_STAKES * up, _STAKES * down]))
