"""Owns the tests by betting: which of two models is right where they differ, peeked at any time.

A discordant pair is a confirmed label of a payment that exactly one of two models would have
alerted, each at the threshold that it serves, or would serve. It is a win where the challenging
model was right. Wealth starts at 1 and is bet on the next pair being a win; were the challenging
model no better it could not be expected to grow, so that it ever passes 1 / alpha has at most the
probability alpha, however often one looks (Ville, 1939; Waudby-Smith and Ramdas, 2024).

Must not know models, labels or clocks. State is one float64 array.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# The shares of the wealth that are bet, an equal part of the wealth on each: whatever the true
# share of wins, one of them is nearly the best bet, at the price of log(BETS) at most.
BETS = 20
_SHARES = (np.arange(BETS) + 0.5) / BETS
_LOG_BETS = math.log(BETS)
STATE_WORDS = BETS + 3


def discordant(champion_alerts: bool, candidate_alerts: bool, is_fraud: bool) -> bool | None:
    """Return whether the candidate was right where the champion was not; None where they agree."""
    return None if champion_alerts == candidate_alerts else candidate_alerts == is_fraud


class EProcess:
    """Evidence that one model beats another, from discordant pairs in the order of their labels.

    Null: given all that came before, a pair is a win with probability at most 1/2; pairs may
    depend on one another in any way within that. With weights: the mean of +weight for wins and
    -weight for losses is not positive. A weight is fixed by what was known of how likely such a
    label is to be reported at all (the smallest such probability over the pair's own), since a
    false alert of a model that does not serve is seldom reported.

    ``alpha`` is the probability of ever deciding wrongly, 0 to 1, for one process: start a new
    one for each model that challenges. Once decided it stays so. Raises ValueError.
    """

    __slots__ = ("_log_wealth", "alpha", "decided", "losses", "wins")

    def __init__(self, alpha: float) -> None:
        if not 0.0 < alpha < 1.0:
            raise ValueError(f"alpha must lie between 0 and 1, not at {alpha}")
        self.alpha = alpha
        self.wins = self.losses = 0
        self.decided = False
        self._log_wealth = np.zeros(BETS)

    def update(self, win: bool, weight: float = 1.0) -> bool:
        """Take one discordant pair, ``weight`` above 0 and up to 1; return whether it is decided.

        Raises ValueError for a weight outside.
        """
        if not 0.0 < weight <= 1.0:
            raise ValueError(f"the weight of a pair must be above 0 and up to 1, not {weight}")
        self._log_wealth += np.log1p(_SHARES * (weight if win else -weight))
        self.wins += win
        self.losses += not win
        self.decided = self.decided or self.log_e_value >= -math.log(self.alpha)
        return self.decided

    @property
    def log_e_value(self) -> float:
        """Natural logarithm of the wealth."""
        most = float(self._log_wealth.max())
        return most + math.log(float(np.exp(self._log_wealth - most).sum())) - _LOG_BETS

    @property
    def e_value(self) -> float:
        """The wealth; infinite where a float64 cannot hold it."""
        return math.exp(self.log_e_value) if self.log_e_value < 709.0 else math.inf

    def to_array(self) -> NDArray[np.float64]:
        """Return the state as float64[STATE_WORDS]; counts are exact up to 2**53."""
        state = np.empty(STATE_WORDS)
        state[:BETS] = self._log_wealth
        state[BETS:] = self.wins, self.losses, self.decided
        return state

    @classmethod
    def from_array(cls, alpha: float, state: NDArray[np.float64]) -> EProcess:
        """Return the process whose ``to_array`` is ``state``. Raises ValueError."""
        if state.dtype != np.float64 or state.shape != (STATE_WORDS,):
            raise ValueError(f"the state is {state.dtype}{state.shape}, not float64[{STATE_WORDS}]")
        process = cls(alpha)
        process._log_wealth = state[:BETS].copy()
        process.wins, process.losses = int(state[BETS]), int(state[BETS + 1])
        process.decided = bool(state[BETS + 2])
        return process


class Evidence(NamedTuple):
    """The figures of a trial as they go into an event."""

    wins: int
    losses: int
    e_value: float
    e_value_mirrored: float
    e_value_needed: float


@dataclass(slots=True)
class Trial:
    """A challenging model against the one it would replace, watched from both sides.

    Before it serves, ``better`` decides its promotion, and ``worse`` ends the trial early. From
    the promotion on a new Trial runs, in which ``worse`` (the mirrored process) decides the
    rollback. Each side has its own ``alpha``.
    """

    better: EProcess
    worse: EProcess

    @classmethod
    def start(cls, alpha: float, alpha_worse: float | None = None) -> Trial:
        """Return a trial without any pair yet."""
        return cls(EProcess(alpha), EProcess(alpha if alpha_worse is None else alpha_worse))

    def update(
        self,
        champion_alerts: bool,
        candidate_alerts: bool,
        is_fraud: bool,
        weight: float = 1.0,
    ) -> None:
        """Take one confirmed label; one on which both agree says nothing and is passed over."""
        win = discordant(champion_alerts, candidate_alerts, is_fraud)
        if win is not None:
            self.better.update(win, weight)
            self.worse.update(not win, weight)

    def evidence(self) -> Evidence:
        """Return the figures so far."""
        one = self.better
        return Evidence(one.wins, one.losses, one.e_value, self.worse.e_value, 1.0 / one.alpha)

    def to_array(self) -> NDArray[np.float64]:
        """Return the state as float64[2, STATE_WORDS]."""
        return np.stack([self.better.to_array(), self.worse.to_array()])

    @classmethod
    def from_array(
        cls, state: NDArray[np.float64], alpha: float, alpha_worse: float | None = None
    ) -> Trial:
        """Return the trial whose ``to_array`` is ``state``. Raises ValueError."""
        if state.shape != (2, STATE_WORDS):
            raise ValueError(f"the state has shape {state.shape}, not (2, {STATE_WORDS})")
        worse = alpha if alpha_worse is None else alpha_worse
        return cls(EProcess.from_array(alpha, state[0]), EProcess.from_array(worse, state[1]))
