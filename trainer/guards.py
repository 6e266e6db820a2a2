"""Owns when learning stops and why: labels that dry up, burst, or come from one side.

Serving goes on as it was. What is measured (LabelWindow) and what is decided of it (judge) are
apart; the decision is a function of the figures and of what was stopped before, with a limit to
stop at and another, further in, to go on at, so that it does not flicker. Must not know models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.elapsed import Elapsed
from trainer.labelled import ANALYST, Joined

MINUTE_MS = 60_000


class Stop(Enum):
    """Why learning stops; the value is the text of an event, filled in with the figures."""

    DRIED_UP = "no label for {quiet_ms} ms"
    BURST = "{minute_labels} labels within a minute, where {usual_labels:.1f} are usual"
    ONE_REPORTER = "{reporter_share:.0%} of the newest labels come from analyst {reporter}"
    ONE_MERCHANT = "{merchant_share:.0%} of the newest labels are about merchant {merchant}"
    POSITIVE_SHARE = "{positive_share:.0%} of the newest labels are fraud"


@dataclass(frozen=True, slots=True)
class GuardSettings:
    """Windows and limits; of each pair the first stops learning, the second lets it go on.

    Shares are over the newest ``share_labels``, and are not judged below ``share_labels_min``.
    A burst is more than ``burst_factor`` times the mean of the last hour, and ``burst_labels_min``
    at least. Raises ValueError where a pair is the wrong way round.
    """

    share_labels: int = 200
    share_labels_min: int = 30
    quiet_ms: tuple[int, int] = (30 * MINUTE_MS, 5 * MINUTE_MS)
    burst_factor: tuple[float, float] = (10.0, 3.0)
    burst_labels_min: int = 60
    reporter_share: tuple[float, float] = (0.8, 0.6)
    merchant_share: tuple[float, float] = (0.6, 0.4)
    positive_share_low: tuple[float, float] = (0.02, 0.04)
    positive_share_high: tuple[float, float] = (0.98, 0.95)
    step_max_ms: int = 10_000

    def __post_init__(self) -> None:
        """Refuse limits between which nothing lies."""
        for name in ("quiet_ms", "burst_factor", "reporter_share", "merchant_share"):
            stop, resume = getattr(self, name)
            if not 0 < resume <= stop:
                raise ValueError(f"{name} must stop above where it resumes, not at {stop}")
        low, high = self.positive_share_low, self.positive_share_high
        if not 0.0 <= low[0] <= low[1] < high[1] <= high[0] <= 1.0:
            raise ValueError("positive_share_low and _high must leave a band to go on in")
        if not 0 < self.share_labels_min <= self.share_labels or self.burst_labels_min < 1:
            raise ValueError("share_labels_min must be 1 to share_labels, burst_labels_min 1")
        if self.step_max_ms < 1:
            raise ValueError("step_max_ms must be positive")


class Figures(NamedTuple):
    """What a window holds now. Shares are NaN where no label is in it, reporters hashes."""

    labels: int
    quiet_ms: int
    minute_labels: int
    usual_labels: float  # a minute, over the hour before
    reporter: int
    reporter_share: float
    merchant: int
    merchant_share: float
    positive_share: float


class LabelWindow:
    """The newest labels as they came, counted; ``share_labels`` of them and 61 minutes' counts."""

    def __init__(self, settings: GuardSettings | None = None) -> None:
        self._settings = settings = settings or GuardSettings()
        self._elapsed = Elapsed(settings.step_max_ms)
        self._last_ms = 0
        self._minute = 0
        # Labels a minute, the newest last; those of before the start are not known.
        self._counts = np.zeros(61, np.int64)
        self._rows: NDArray[Any] = np.zeros(
            0, [("reporter", "<i8"), ("merchant", "<i8"), ("is_fraud", "?")]
        )

    def see(self, joined: Joined, now_ms: int) -> None:
        """Count labels that came by ``now_ms``. To be called without any, too, as time passes."""
        elapsed_ms = self._elapsed.advance(now_ms)
        self._turn(elapsed_ms // MINUTE_MS)
        if not len(joined):
            return
        self._last_ms = elapsed_ms
        self._counts[-1] += len(joined)
        self.remember(joined)

    def remember(self, joined: Joined) -> None:
        """Take who said what, and not when: for labels that are read again after a restart."""
        rows = np.zeros(len(joined), self._rows.dtype)
        # Of other sources the reporter is a system that speaks for many.
        by_analyst = joined.rows["source"] == ANALYST
        rows["reporter"] = np.where(by_analyst, joined.rows["reporter"], 0)
        rows["merchant"], rows["is_fraud"] = joined.rows["merchant"], joined.is_fraud
        self._rows = np.r_[self._rows, rows][-self._settings.share_labels :]

    def figures(self) -> Figures:
        """Return the figures as of the last ``see``."""
        past = self._counts[max(0, 60 - self._minute) : -1]
        reporter, reporter_share = _most(self._rows["reporter"])
        merchant, merchant_share = _most(self._rows["merchant"])
        frauds = self._rows["is_fraud"]
        return Figures(
            labels=len(self._rows),
            quiet_ms=self._elapsed.now_ms - self._last_ms,
            minute_labels=int(self._counts[-1]),
            usual_labels=float(past.mean()) if len(past) else float("nan"),
            reporter=reporter,
            reporter_share=reporter_share,
            merchant=merchant,
            merchant_share=merchant_share,
            positive_share=float(frauds.mean()) if len(frauds) else float("nan"),
        )

    def forget(self) -> None:
        """Forget who said what, after labels were taken back."""
        self._rows = self._rows[:0]

    def _turn(self, minute: int) -> None:
        turned = min(minute - self._minute, len(self._counts))
        if turned:
            self._counts = np.r_[self._counts[turned:], np.zeros(turned, np.int64)]
        self._minute = minute


def _most(ids: NDArray[np.int64]) -> tuple[int, float]:
    """Return the most frequent id but 0, and its share of all; (0, NaN) where there are none."""
    if not len(ids):
        return 0, float("nan")
    found, counts = np.unique(ids[ids != 0], return_counts=True)
    if not len(found):
        return 0, 0.0
    at = int(counts.argmax())
    return int(found[at]), float(counts[at] / len(ids))


def judge(
    figures: Figures, settings: GuardSettings, stopped: Mapping[Stop, str]
) -> dict[Stop, str]:
    """Return why learning must stand still now, each with its text; empty: it may go on.

    ``stopped`` is what this returned before. A reason that cannot be judged, for want of labels,
    stays as it was.
    """
    verdicts = {
        Stop.DRIED_UP: _beyond(figures.quiet_ms, settings.quiet_ms),
        Stop.BURST: _burst(figures, settings),
        **_shares(figures, settings),
    }
    text = figures._asdict()
    return {
        stop: stop.value.format(**text)
        for stop, (stops, resumes) in verdicts.items()
        if stops or (stop in stopped and not resumes)
    }


def _beyond(value: float, limits: tuple[float, float]) -> tuple[bool, bool]:
    """Return whether a value stops, and whether it lets go on."""
    return value >= limits[0], value < limits[1]


def _burst(figures: Figures, settings: GuardSettings) -> tuple[bool, bool]:
    # Without a past to compare with, which is NaN, the least that is a burst is the measure.
    usual = float(np.nan_to_num(figures.usual_labels))
    limits = [max(settings.burst_labels_min, factor * usual) for factor in settings.burst_factor]
    return _beyond(figures.minute_labels, (limits[0], limits[1]))


def _shares(figures: Figures, settings: GuardSettings) -> dict[Stop, tuple[bool, bool]]:
    low, high = settings.positive_share_low, settings.positive_share_high
    share = figures.positive_share
    found = {
        Stop.ONE_REPORTER: _beyond(figures.reporter_share, settings.reporter_share),
        Stop.ONE_MERCHANT: _beyond(figures.merchant_share, settings.merchant_share),
        Stop.POSITIVE_SHARE: (share <= low[0] or share >= high[0], low[1] < share < high[1]),
    }
    if figures.labels < settings.share_labels_min:
        return dict.fromkeys(found, (False, False))
    return found
