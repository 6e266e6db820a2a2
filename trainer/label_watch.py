"""Owns what labels themselves say against learning from them: guards, and suspected reporters.

Must not know models, logs or what becomes of a finding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from trainer.alarms import Alarm
from trainer.guards import Figures, GuardSettings, LabelWindow, Stop, judge
from trainer.labelled import Joined, Refusal
from trainer.reporters import ReporterSettings, ReporterWatch


class Turn(NamedTuple):
    """One reason to stop learning that began or ended, with its text and the figures of then."""

    stop: Stop
    begins: bool
    text: str
    figures: Figures


class LabelWatch:
    """Guards on the stream of labels, and the comparison of reporters."""

    def __init__(
        self, guards: GuardSettings | None = None, reporters: ReporterSettings | None = None
    ) -> None:
        self._settings = guards or GuardSettings()
        self._window = LabelWindow(self._settings)
        self._reporters = ReporterWatch(reporters)
        self._stopped: dict[Stop, str] = {}

    @property
    def stopped(self) -> dict[Stop, str]:
        """Why learning stands still, each reason with its text; empty where it does not."""
        return self._stopped

    def remember(self, joined: Joined, refused: Sequence[Refusal], now_ms: int) -> list[Alarm]:
        """Take labels that were read again after a restart: they count, but did not come now."""
        self._window.remember(joined)
        return self._reporters.see(joined, refused, now_ms)

    def see(self, joined: Joined, refused: Sequence[Refusal], now_ms: int) -> list[Alarm]:
        """Take labels as they come; return alarms on reporters newly suspected."""
        self._window.see(joined, now_ms)
        return self._reporters.see(joined, refused, now_ms)

    def turns(self) -> list[Turn]:
        """Judge the figures of now; return what changed since the last call."""
        figures = self._window.figures()
        found = judge(figures, self._settings, self._stopped)
        before, self._stopped = self._stopped, found
        return [
            *(
                Turn(stop, True, text, figures)
                for stop, text in found.items()
                if stop not in before
            ),
            *(
                Turn(stop, False, text, figures)
                for stop, text in before.items()
                if stop not in found
            ),
        ]

    def forget(self, reporter: int) -> None:
        """Forget a reporter, whose labels were taken back."""
        self._reporters.forget(reporter)
        self._window.forget()
