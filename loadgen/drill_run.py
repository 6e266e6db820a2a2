"""One drill from its row to its verdicts.

Owns the order: calibrate, load, fault, wait until it has ended and settled, read back, judge. Must
not know how results are shown or kept.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import grpc
import numpy as np
from fraud.v1 import fraud_service_pb2

from loadgen import timeline
from loadgen.client import SCORE, get_decision_method
from loadgen.drills import Drill
from loadgen.driver import Driver, DriveSettings, Landed, Prepared
from loadgen.faults import CALL_S, PAUSE_S, Fault, Scene
from loadgen.in_flight import InFlight
from loadgen.objectives import Objective, Verdict, judge
from loadgen.pacing import NS
from loadgen.system import RoleError, System, UnfitError
from loadgen.timeline import Call, Window

CALIBRATE_IN_FLIGHT: Final = 4
SETTLE_S: Final = 2.0  # after a fault
RECOVER_S: Final = 7.0  # after one that is felt: to recover in 5 s, and to show it for 2
FAULT_S_MAX: Final = 300.0
RATE_MIN: Final = 5.0
READ_BACK_MAX: Final = 20_000
READ_RETRY_S: Final = 10.0  # reads that were shed or failed are tried again until then
PROBES: Final = 40
SHOWN_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class RunSettings:
    """How to run drills.

    ``stretch`` is what the table's seconds are multiplied by: 1 is quick, STRETCH full. ``seed``
    is of the arrivals and of the payments; a calibration takes ``calibrate_s``.
    """

    stretch: float = 1.0
    seed: int = 1
    calibrate_s: float = 4.0


@dataclass(frozen=True, slots=True)
class Progress:
    """How a run goes: the newest windows, and what is being done."""

    drill: str
    elapsed_s: float
    doing: str
    windows: Sequence[Window]


@dataclass(frozen=True, slots=True)
class Result:
    """What a drill found. ``skipped`` says why it was not run; then there are no verdicts.

    ``mode`` is what it was run against, "target" for somebody else's service.
    """

    drill: Drill
    mode: str
    capacity_per_s: float
    figures: dict[str, float]
    verdicts: list[Verdict]
    windows: list[Window]
    statuses: dict[str, int] = field(default_factory=dict)
    fault: timeline.Fault | None = None
    skipped: str = ""

    @property
    def title(self) -> str:
        """The drill, and against what."""
        return f"{self.drill.name} ({self.mode})"

    @property
    def passed(self) -> bool:
        """Whether every objective was met."""
        return all(verdict.met for verdict in self.verdicts)

    def to_json(self) -> dict[str, Any]:
        """Return the result without its windows as plain values."""
        return {
            "drill": self.drill.name, "mode": self.mode,
            "skipped": self.skipped, "passed": self.passed,
            "capacity_per_s": self.capacity_per_s,
            "statuses": self.statuses,
            "verdicts": [verdict.to_json() for verdict in self.verdicts],
            "figures": {name: v if v < float("inf") else "never" for name, v in
                        self.figures.items()},
        }  # fmt: skip


def calibrate(system: System, requests: Sequence[Prepared], seconds: float) -> float:
    """Return how many calls a second are answered with as many in flight as a worker has threads.

    What sends the load runs on the same machine, so this is what machine and client do together.
    """
    settings = DriveSettings(
        closed=CALIBRATE_IN_FLIGHT, seconds=seconds, warmup_s=min(1.0, seconds / 2)
    )
    with InFlight(system.target(), SCORE) as calls:
        *_, last = Driver(calls, requests, settings).run()
    return max(last.statuses.get("OK", 0) / last.elapsed_s, RATE_MIN * 2)


class _Act:
    """The drill's fault in a thread of its own, and what came of it."""

    def __init__(self, fault: Fault, scene: Scene, at_s: float, settle_s: float) -> None:
        self._fault, self.scene, self._at_s = fault, scene, at_s
        self._settle_s = settle_s
        self.figures: dict[str, float] = {}
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run)
        self._given_up_s = at_s + FAULT_S_MAX

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        self.scene.stop.wait(max(self._at_s - self.scene.clock(), 0))
        try:
            self.figures = self._fault(self.scene)
        except (RoleError, UnfitError, OSError) as error:
            self.error = error

    def over(self) -> bool:
        """Whether it has ended, and the service had time to settle."""
        now_s, ended_s = self.scene.clock(), self.scene.ended_s
        settled = 0 <= ended_s < now_s - self._settle_s
        return self.error is not None or settled or now_s > self._given_up_s

    def end(self) -> timeline.Fault | None:
        """Wait for it; return when it was. Raises what it raised."""
        self._thread.join(FAULT_S_MAX)
        if self.error is not None:
            raise self.error
        scene = self.scene
        return timeline.Fault(scene.began_s, scene.ended_s) if scene.ended_s >= 0 else None


def due_times(
    phases: Sequence[tuple[float, float]], seed: int, over: Callable[[], bool]
) -> Iterator[int]:
    """Yield when calls are due, ns: a Poisson process by phases of (seconds, rate per s).

    The last phase goes on until ``over``.
    """
    rng = np.random.default_rng(seed)
    start_s = 0.0
    due_s = 0.0
    for number, (seconds, rate) in enumerate(phases):
        end_s = start_s + seconds
        due_s = start_s
        last = number == len(phases) - 1
        while True:
            due_s += rng.exponential(1 / rate)
            if due_s >= end_s and not (last and not over()):
                break
            yield int(due_s * NS)
        start_s = end_s


class DrillRun:
    """One run of a drill against a system that is up."""

    def __init__(
        self,
        drill: Drill,
        system: System,
        requests: Sequence[Prepared],
        capacity_per_s: float,
        settings: RunSettings,
    ) -> None:
        self._drill, self._system, self._requests = drill, system, requests
        self._capacity, self._settings = capacity_per_s, settings
        # Bounded by what is sent; appended to by many threads.
        self._calls: list[Call] = []
        self._recent: deque[Call] = deque(maxlen=20_000)
        self._begin_s = 0.0

    def _clock(self) -> float:
        return time.perf_counter() - self._begin_s if self._begin_s else 0.0

    def _event_ms(self) -> int:
        newest = self._requests[len(self._calls) % len(self._requests)]
        return newest.event_ms or time.time_ns() // 1_000_000

    def run(
        self, objectives: dict[str, Objective], on_progress: Callable[[Progress], None]
    ) -> Result:
        """Run it. Raises RoleError where the system breaks down, UnfitError where it cannot be."""
        drill, stretch = self._drill, self._settings.stretch
        phases = [
            (p.seconds * stretch, max(p.load * self._capacity, RATE_MIN)) for p in drill.phases
        ]
        with self._system.connect(2) as (channel, reader):
            probes = [prepared.rest for prepared in self._requests[:PROBES]]
            scene = Scene(
                self._system, channel, self._clock, drill.hold_s * stretch, probes,
                event_ms=self._event_ms, rate_per_s=phases[-1][1],
            )  # fmt: skip
            act = self._act(scene, sum(seconds for seconds, _ in phases))
            late = self._load(phases, act, on_progress)
            fault = act.end() if act is not None else None
            read, lost = self._read_back(reader)
            checked = drill.check(scene) if drill.check is not None else {}
        calls = sorted(self._calls)
        during = fault if drill.fault_at is not None else None
        figures = timeline.figures(calls, during) | (act.figures if act is not None else {})
        if fault is not None:
            figures["fault_s"] = fault.ended_s - fault.began_s
        figures |= checked | {
            "read_back": float(read), "lost": float(lost), "late_sends": late,
            "knee": timeline.knee(calls, self._steps()), "machine_load": os.getloadavg()[0],
        }  # fmt: skip
        verdicts = judge([objectives[name] for name in drill.asked], figures)
        return Result(
            drill,
            self._system.mode,
            self._capacity,
            figures,
            verdicts,
            timeline.windows(calls),
            timeline.statuses(calls),
            during,
        )

    def _act(self, scene: Scene, after_s: float) -> _Act | None:
        drill = self._drill
        if drill.fault is None:
            return None
        at_s = after_s if drill.fault_at is None else drill.fault_at * self._settings.stretch
        settle_s = RECOVER_S if "recovers" in drill.objectives else SETTLE_S
        return _Act(drill.fault, scene, at_s, settle_s)

    def _steps(self) -> list[tuple[float, float, float]]:
        stretch = self._settings.stretch
        ends = list(itertools.accumulate(p.seconds * stretch for p in self._drill.phases))
        loads = [p.load for p in self._drill.phases]
        return list(zip([0.0, *ends[:-1]], ends, loads, strict=True))

    def _load(
        self,
        phases: Sequence[tuple[float, float]],
        act: _Act | None,
        on_progress: Callable[[Progress], None],
    ) -> float:
        """Send the load; return the share of calls that the client itself sent late."""
        settings = DriveSettings(snapshot_s=SHOWN_S, seconds=sum(s for s, _ in phases))
        awaited = act is not None and self._drill.fault_at is not None
        over = act.over if act is not None and awaited else _at_once
        with InFlight(self._system.target(retry=self._drill.retry), SCORE) as calls:
            due = due_times(phases, self._settings.seed, over)
            driver = Driver(calls, self._requests, settings, due, self._landed)
            self._begin_s = time.perf_counter() + 1 / 50  # when the driver begins
            if act is not None:
                act.start()
            late = 0.0
            for snapshot in driver.run():
                late = snapshot.late / max(snapshot.sent, 1)
                on_progress(self._progress(act))
                if act is not None and act.error is not None:
                    break
        return late

    def _landed(self, landed: Landed) -> None:
        call = timeline.call_of(*landed)
        self._calls.append(call)
        self._recent.append(call)

    def _progress(self, act: _Act | None) -> Progress:
        now_s = self._clock()
        recent = [c for c in list(self._recent) if c.due_s > now_s - 20]
        doing = "load"
        if act is not None and act.scene.began_s >= 0:
            doing = "fault" if act.scene.ended_s < 0 else "after the fault"
        return Progress(self._drill.name, now_s, doing, timeline.windows(recent))

    def _read_back(self, channel: grpc.Channel) -> tuple[int, int]:
        """Ask for acknowledged decisions again; return how many, and how many were not there."""
        ids = [call.decision_id for call in self._calls if call.decision_id]
        step = max(1, -(-len(ids) // READ_BACK_MAX))
        ids = ids[::step]
        end_s = time.monotonic() + READ_RETRY_S
        read = partial(_is_there, get_decision_method(channel), end_s)
        with ThreadPoolExecutor(4) as pool:
            there = list(pool.map(read, ids))
        return len(ids), there.count(False)


def _at_once() -> bool:
    return True


def _is_there(method: Callable[..., Any], end_s: float, decision_id: str) -> bool:
    """Whether the service gives a decision back; others than "not found" are asked until then."""
    request = fraud_service_pb2.GetDecisionRequest(decision_id=decision_id)
    while True:
        try:
            response = method(request, timeout=CALL_S, wait_for_ready=True)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND or time.monotonic() > end_s:
                return False
            time.sleep(PAUSE_S)
        else:
            return bool(response.decision.assessment.decision_id == decision_id)
