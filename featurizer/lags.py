"""How far behind consumers of a log are, in bytes and in time. A function of looks at the log.

Owns the one thing that a position alone does not tell: how old the oldest unread byte is.
"""

from __future__ import annotations

from collections import deque

LOOKS_MAX = 1 << 12


class Lags:
    """Remembers when the log was first seen to reach each position."""

    def __init__(self, looks_max: int = LOOKS_MAX) -> None:
        self._looks: deque[tuple[float, int]] = deque(maxlen=looks_max)

    def look(self, now_s: float, end: int) -> None:
        """Take in where the log ends now."""
        if not self._looks or self._looks[-1][1] < end:
            self._looks.append((now_s, end))

    def of(self, position: int, now_s: float) -> tuple[int, float]:
        """Return bytes and seconds that a consumer at a position is behind.

        The time is that since the first look that saw more than the consumer has read.
        """
        if not self._looks or self._looks[-1][1] <= position:
            return 0, 0.0
        first_s = next(seen_s for seen_s, end in self._looks if end > position)
        return self._looks[-1][1] - position, max(0.0, now_s - first_s)

    def forget(self, position: int) -> None:
        """Forget what every consumer has read."""
        while self._looks and self._looks[0][1] <= position:
            self._looks.popleft()
