"""ScoreBatch calls that kept decisions are of, until their last frame is on the log.

Owns when the spans of such a call and of its frames are built: once, as they come in the order of
the log. Must not know how a log is read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from fraud.v1 import decision_pb2

from featurizer.spans import Span
from fraudsvc.decision_spans import span_of_batch, spans_of_frame

STALE_MS = 5_000  # on the log's clock; then no frame is waited for: what was left was refused


class _Open(NamedTuple):
    """A call: where it began, the newest frame that it has, a decision there, and if it is told."""

    first: int
    newest: int
    decision: decision_pb2.Decision
    is_told: bool


class OpenCalls:
    """Calls that are not ended. ``append_ns`` tells how long a frame's append took, if known."""

    def __init__(self, append_ns: Callable[[int], int | None]) -> None:
        self._append_ns = append_ns
        self._open: dict[int, _Open] = {}

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._open)

    def copy(self) -> OpenCalls:
        """Return the same calls, to come back to."""
        made = OpenCalls(self._append_ns)
        made._open = dict(self._open)
        return made

    def begins(self, position: int) -> int:
        """Return where the oldest of them begins, ``position`` where there is none."""
        return min((each.first for each in self._open.values()), default=position)

    def keep(self, decision: decision_pb2.Decision, frame: int) -> list[Span]:
        """Take in a kept decision; return the spans of its frame, which it may be the first of."""
        number = decision.shared.number
        before = self._open.get(number, _Open(frame, -1, decision, is_told=False))
        if before.newest == frame and before.is_told:
            return []
        self._open[number] = _Open(before.first, frame, decision, is_told=True)
        return spans_of_frame(decision, self._append_ns(frame))

    def has(self, decision: decision_pb2.Decision) -> bool:
        """Return whether the call that a decision was made in is one of them."""
        return decision.shared.number in self._open

    def pass_by(self, shared: decision_pb2.Shared, frame: int, decision: bytes) -> None:
        """Take in that a call, of which nothing more may be kept, has a decision in a frame."""
        before = self._open.get(shared.number)
        if before is not None and before.newest < frame:
            parsed = decision_pb2.Decision.FromString(decision)
            self._open[shared.number] = _Open(before.first, frame, parsed, is_told=False)

    def end(self, now_ms: int) -> list[Span]:
        """Return the spans of calls whose last frame was seen, or is not waited for any more."""
        ended = {
            number: each
            for number, each in self._open.items()
            if not each.decision.shared.items_left
            or now_ms - each.decision.receive_time.ToMilliseconds() > STALE_MS
        }
        for number in ended:
            del self._open[number]
        return [
            span_of_batch(each.decision, self._append_ns(each.newest)) for each in ended.values()
        ]
