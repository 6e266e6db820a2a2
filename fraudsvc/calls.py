"""What a scorer is given from outside: its bounds, its clocks, and what is known of a call."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

MS = 1_000_000


@dataclass(frozen=True, slots=True)
class ScorerSettings:
    """Bounds of a decision, in ms, and who decides.

    ``budget_ms`` is the time from arrival within which an answer is due; with less than
    ``full_ms`` of it left, rules alone answer. ``name`` stands in every decision.
    """

    budget_ms: float = 50.0
    full_ms: float = 5.0
    pending_max: int = 4_096
    states_bytes_max: int = 512 << 20
    items_max: int = 1_024
    name: str = ""


class Call(NamedTuple):
    """What the transport knows of a call: clock readings in ns (monotonic) and its trace."""

    arrival_ns: int
    deadline_ns: int
    traceparent: str = ""


class Clocks(NamedTuple):
    """The time of day in ms since 1970, and a monotonic clock in ns."""

    now_ms: Callable[[], int] = lambda: time.time_ns() // MS
    monotonic_ns: Callable[[], int] = time.perf_counter_ns
