"""What a service can do: runs against it, and the queue that explains them.

Owns which rates are tried and what is read of the processes. Must not know how a plan is made.

The order: a closed run gives the rate that it cannot exceed, and so how long a call keeps a worker
busy; a light open-loop run what a call takes that does not wait; runs at some rates the queue's
variability. One more rate is held out: the queue has to say its p99 before it is measured.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import grpc
import numpy as np

from loadgen.client import SCORE
from loadgen.driver import Driver, DriveSettings, Landed, Prepared
from loadgen.in_flight import InFlight, Target
from loadgen.queueing import Queue, Samples, Seen, fitted, percentile_s, rate_within

SHARE: Final = 0.99
CONNECT_S: Final = 30.0
LIGHT: Final = 0.1  # of the closed rate: hardly anything waits
FIT: Final = (0.3, 0.5)
HELD_OUT: Final = 0.65
SEARCH_STEPS: Final = 4
OVERLOAD: Final = 2.0
CALLS_MIN: Final = 20


class CapacityError(RuntimeError):
    """A run gave nothing that could be counted."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How to measure: seconds a run, the objective, connections, calls in flight a worker."""

    seconds: float = 8.0
    p99_ms: float = 10.0
    connections: int = 4
    in_flight: int = 4
    search: bool = True

    def __post_init__(self) -> None:
        if not (self.seconds > 0 and self.p99_ms > 0 and self.connections > 0):
            raise ValueError("seconds, objective and connections are above 0")


class Run(NamedTuple):
    """One run: calls a second that were due and answered, seconds of each answer, CPU seconds.

    ``cpu_s`` is of the scorers' processes for each answered call, 0 where they are not known.
    """

    due_per_s: float
    answered_per_s: float
    shed_share: float
    latency_s: Samples
    cpu_s: float

    def percentile_s(self, share: float) -> float:
        """Return the time within which that share was answered."""
        return float(np.quantile(self.latency_s, share))


class Measured(NamedTuple):
    """What runs against one service said. ``within_per_s`` comes from the search, or the queue."""

    workers: int
    closed: Run
    light: Run
    fits: list[Run]
    held_out: Run
    queue: Queue
    predicted_s: float
    within_per_s: float
    searched: list[Run]

    @property
    def error(self) -> float:
        """By which share the prediction missed the held-out p99."""
        return self.predicted_s / self.held_out.percentile_s(SHARE) - 1

    @property
    def per_core_s(self) -> float:
        """Calls a second of one core of scorers within the objective.

        By their CPU time where that is known, as what sends the load is on the same cores.
        """
        busy_share = self.within_per_s / self.queue.limit_per_s
        if self.closed.cpu_s > 0:
            return busy_share / self.closed.cpu_s
        return self.within_per_s / self.workers

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain values; times in ms."""
        return {
            "workers": self.workers, "closed_per_s": self.closed.answered_per_s,
            "cpu_us_per_call": self.closed.cpu_s * 1e6,
            "service_us": self.queue.service_s * 1e6, "variability": self.queue.variability,
            "base_p50_ms": self.light.percentile_s(0.5) * 1e3,
            "base_p99_ms": self.light.percentile_s(SHARE) * 1e3,
            "fit": [_point(run) for run in self.fits], "held_out": _point(self.held_out),
            "predicted_p99_ms": self.predicted_s * 1e3, "error": self.error,
            "within_per_s": self.within_per_s, "per_core_s": self.per_core_s,
            "searched": [_point(run) for run in self.searched],
        }  # fmt: skip


def _point(run: Run) -> dict[str, float]:
    return {"rate_per_s": run.answered_per_s, "p99_ms": run.percentile_s(SHARE) * 1e3}


class Service:
    """A scorer's port, and the processes behind it where they are known."""

    def __init__(
        self, target: str, workers: int, pids: Sequence[int], requests: Sequence[Prepared]
    ) -> None:
        self.target, self.workers = target, workers
        self._pids, self._requests = pids, requests

    def run(self, settings: DriveSettings, connections: int) -> Run:
        """Drive it. Raises CapacityError where too few calls were answered."""
        times_us: list[int] = []
        shed = 0

        def note(landed: Landed) -> None:
            nonlocal shed
            if landed.assessment is not None:
                times_us.append(landed.latency_us)
            shed += landed.status is grpc.StatusCode.RESOURCE_EXHAUSTED

        with InFlight(Target(self.target, connections, CONNECT_S), SCORE) as in_flight:
            before = cpu_seconds(self._pids)
            *_, last = Driver(in_flight, self._requests, settings, on_call=note).run()
            used = cpu_seconds(self._pids) - before
        if len(times_us) < CALLS_MIN:
            raise CapacityError(f"{len(times_us)} calls were answered: {last.statuses}")
        # Calls of the warm-up cost as much and are not counted.
        calls = (len(times_us) + shed) * (settings.seconds + settings.warmup_s) / settings.seconds
        return Run(
            last.sent / last.elapsed_s if settings.closed else settings.rate_per_s,
            len(times_us) / last.elapsed_s, shed / (len(times_us) + shed),
            np.array(times_us, np.float64) / 1e6, used / calls,
        )  # fmt: skip


def cpu_seconds(pids: Sequence[int], proc: Path = Path("/proc")) -> float:
    """Return the CPU time of processes so far, user and system; 0 of one that is gone."""
    ticks = 0
    for pid in pids:
        try:
            text = (proc / str(pid) / "stat").read_text()
        except OSError:
            continue
        # The name, in parentheses, may hold blanks; the 14th and 15th fields are the times.
        ticks += sum(int(each) for each in text.rpartition(")")[2].split()[11:13])
    return ticks / os.sysconf("SC_CLK_TCK")


def measure(service: Service, settings: Settings, on_step: Callable[[str], None]) -> Measured:
    """Return what the service does at rising rates, and the queue that says so."""
    warmup_s = min(1.0, settings.seconds / 4)

    def at(rate: float) -> Run:
        on_step(f"{service.workers} workers: {rate:,.0f} calls a second")
        drive = DriveSettings(rate_per_s=rate, seconds=settings.seconds, warmup_s=warmup_s)
        return service.run(drive, settings.connections)

    on_step(f"{service.workers} workers: as many calls as they take")
    in_flight = settings.in_flight * service.workers
    drive = DriveSettings(closed=in_flight, seconds=settings.seconds, warmup_s=warmup_s)
    closed = service.run(drive, settings.connections)
    limit = closed.answered_per_s
    light = at(limit * LIGHT)
    fits = [at(limit * share) for share in FIT]
    seen = [Seen(run.due_per_s, run.percentile_s(SHARE)) for run in fits]
    queue = fitted(service.workers, service.workers / limit, light.latency_s, seen, SHARE)
    predicted = percentile_s(queue, limit * HELD_OUT, SHARE)
    held_out = at(limit * HELD_OUT)
    within = rate_within(queue, SHARE, settings.p99_ms / 1e3)
    searched: list[Run] = []
    if settings.search:
        within, searched = search(at, within, limit, settings.p99_ms / 1e3)
    return Measured(
        service.workers, closed, light, fits, held_out, queue, predicted, within, searched
    )


def search(
    at: Callable[[float], Run], guess: float, limit: float, objective_s: float
) -> tuple[float, list[Run]]:
    """Return the highest rate tried that met the objective, 0 where none did, and the runs.

    Begins where the queue says, so that few runs narrow it.
    """
    low, high = 0.0, limit
    rate = min(max(guess, limit * LIGHT), limit * 0.95)
    runs: list[Run] = []
    for _ in range(SEARCH_STEPS):
        runs.append(run := at(rate))
        met = run.percentile_s(SHARE) <= objective_s and run.shed_share == 0
        low, high = (rate, high) if met else (low, rate)
        rate = (low + high) / 2
    return low, runs


class Rung(NamedTuple):
    """What a call of a rung costs the scorers, in CPU seconds."""

    name: str
    cpu_s: float


def shed_cost(service: Service, settings: Settings, full: Measured) -> Rung | None:
    """Return what refusing a call costs, from a run at twice the rate; None where few were shed.

    Of the CPU time of that run what the answers cost, by the closed run, is taken off.
    """
    rate = full.closed.answered_per_s * OVERLOAD
    drive = DriveSettings(rate_per_s=rate, seconds=settings.seconds)
    try:
        run = service.run(drive, settings.connections)
    except CapacityError:
        return None
    if run.shed_share < 0.05 or full.closed.cpu_s <= 0:
        return None
    answered = 1 - run.shed_share
    return Rung("SHED", max(run.cpu_s - answered * full.closed.cpu_s, 0.0) / run.shed_share)
