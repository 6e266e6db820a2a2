"""Owns what an alarm says: what is wrong, since when, and the figures that show it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Alarm:
    """One finding with its evidence, ready to become an event.

    ``code`` is stable, in UPPER_SNAKE_CASE; ``subject`` is a feature, "score" or a reporter's
    hash; ``method`` names the detector. ``since_ms`` is the likely begin in event time;
    ``before`` and ``after`` are the means, or shares, on its two sides, over ``rows`` after it.
    ``statistic`` is the e-value that reached ``limit``; River's detectors keep theirs to
    themselves: then it is the shift in standard errors, and ``limit`` the detector's setting.
    """

    code: str
    subject: str
    method: str
    since_ms: int
    now_ms: int
    before: float
    after: float
    rows: int
    statistic: float
    limit: float

    def to_json(self) -> str:
        """Return the fields as one JSON object, in their order."""
        return json.dumps(asdict(self))
