"""Owns time that only passes: what a clock says, without its jumps. Must not read a clock."""

from __future__ import annotations


class Elapsed:
    """Milliseconds since the first call, each step at least 0 and at most ``step_max_ms``.

    A clock set back stands still for a call, one set forward moves by a step: what waits is not
    given up all at once, and nothing is kept for ever. It asks to be called more often than every
    ``step_max_ms``; a caller that sleeps longer has waited less than it thinks.
    """

    __slots__ = ("_last_ms", "_step_max_ms", "now_ms")

    def __init__(self, step_max_ms: int) -> None:
        self.now_ms = 0
        self._step_max_ms = step_max_ms
        self._last_ms: int | None = None

    def advance(self, clock_ms: int) -> int:
        """Take what the clock says now; return the time that has passed."""
        step_ms = 0 if self._last_ms is None else clock_ms - self._last_ms
        self._last_ms = clock_ms
        self.now_ms += min(max(step_ms, 0), self._step_max_ms)
        return self.now_ms
