"""What a drill does to the service while its load runs, or after it.

Owns the faults: each begins, waits, ends, and returns figures of its own. All is done from
outside: signals to pids that `up` tells, files and links in the data folder, sockets, calls. Must
not know the load, nor what is asked of the figures.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc
import numpy as np
from fraud.v1 import fraud_service_pb2, label_pb2, transaction_pb2

from loadgen.client import get_decision_method, report_labels_method, score_method
from loadgen.processes import signal_process
from loadgen.rows import timestamp
from loadgen.system import System, UnfitError

CALL_S: Final = 5.0
FILL_STEP: Final = 1 << 20
LABELS: Final = 200  # a report of the flood
SAMPLE_S: Final = 0.5
PAUSE_S: Final = 0.02
_SHED = grpc.StatusCode.RESOURCE_EXHAUSTED


@dataclass
class Scene:
    """What a fault has to work with. ``clock`` gives s since the load began.

    A fault writes ``began_s`` and ``ended_s``; it lasts ``hold_s`` where it can be chosen.
    ``probes`` are serialised transactions without ids. ``event_ms`` gives when the newest payment
    of the load happened, ms since 1970; ``rate_per_s`` is how many there are while it lasts.
    """

    system: System
    channel: grpc.Channel
    clock: Callable[[], float]
    hold_s: float
    probes: Sequence[bytes]
    began_s: float = -1.0
    ended_s: float = -1.0
    event_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    rate_per_s: float = 100.0
    stop: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def lasting(self) -> Iterator[None]:
        """Mark when the fault began and ended."""
        self.began_s = self.clock()
        try:
            yield
        finally:
            self.ended_s = self.clock()


Figures = dict[str, float]
Fault = Callable[[Scene], Figures]


def kill(*roles: str) -> Fault:
    """Return a fault that kills roles at once; it ends when all of them are ready again."""

    def run(scene: Scene) -> Figures:
        pids = {role: scene.system.pid(role) for role in roles}
        with scene.lasting():
            for pid in pids.values():
                signal_process(pid, signal.SIGKILL)
            for role, pid in pids.items():
                scene.system.wait_for_another(role, pid)
        return {"killed": float(len(roles))}

    return run


def pause(*roles: str) -> Fault:
    """Return a fault that stops roles, and lets them go on where they were: zombies."""

    def run(scene: Scene) -> Figures:
        pids = [scene.system.pid(role) for role in roles]
        with scene.lasting(), stopped(pids):
            scene.stop.wait(scene.hold_s)
        return {}

    return run


@contextlib.contextmanager
def stopped(pids: Sequence[int]) -> Iterator[None]:
    """Keep processes from running; whatever happens, they go on afterwards."""
    for pid in pids:
        signal_process(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            signal_process(pid, signal.SIGCONT)


def fill_disk(scene: Scene) -> Figures:
    """Take all that is free on the log's disk, to the last byte; give it back at the end."""
    if not scene.system.plan.log_disk_mib:
        raise UnfitError("the log has no disk of its own that could be filled")
    folder = scene.system.folder / "log"
    filler = folder / "filler"
    with scene.lasting():
        end_s = scene.clock() + scene.hold_s
        while scene.clock() < end_s and not scene.stop.wait(0.05):
            _fill(folder, filler)
        filler.unlink(missing_ok=True)
    return {}


def _fill(folder: Path, filler: Path) -> None:
    disk = os.statvfs(folder)
    step = disk.f_bavail * disk.f_frsize
    with filler.open("ab", buffering=0) as file:
        while step:
            try:
                os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), step)
                step = 0
            except OSError:
                step //= 2


_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# With an empty SETTINGS frame (RFC 9113, 6.5).
GREETING: Final = _PREFACE + bytes(3) + b"\x04\x00" + bytes(4)
_HALF_OPEN = (b"", _PREFACE[:9], _PREFACE, GREETING)


def slow_clients(scene: Scene) -> Figures:
    """Open connections that send nothing, half a greeting or a whole one, and then never read."""
    host, _, port = scene.system.address.rpartition(":")
    sockets: list[socket.socket] = []
    with scene.lasting(), contextlib.ExitStack() as stack:
        for number in range(64):
            made = stack.enter_context(socket.create_connection((host, int(port)), CALL_S))
            made.sendall(_HALF_OPEN[number % len(_HALF_OPEN)])
            sockets.append(made)
        scene.stop.wait(scene.hold_s)
    return {"half_open": float(len(sockets))}


def a_payment(**fields: object) -> bytes:
    """Return a ScoreRequest of this moment, as bytes; ``fields`` are of its transaction."""
    values: dict[str, object] = {
        "request_id": str(uuid.uuid4()), "transaction_id": f"drill_{uuid.uuid4().hex[:12]}",
        "customer_id": "drill-customer", "amount_minor": 1250, "currency_code": "EUR",
        "event_time": timestamp(time.time_ns() // 1_000_000),
    }  # fmt: skip
    made = transaction_pb2.Transaction(**(values | fields))  # type: ignore[arg-type]
    return fraud_service_pb2.ScoreRequest(transaction=made).SerializeToString()


# What nobody should send, and each must be refused for what it is.
POISON: Final[dict[str, Callable[[], bytes]]] = {
    "bytes that are no message": lambda: b"\xff\xff\xff\xff",
    "a length beyond the end": lambda: b"\x0a\x7f\x0a",
    "text that is not UTF-8": lambda: b"\x0a\x04\x0a\x02\xc3\x28",
    "nothing at all": lambda: b"",
    "a message beyond 16 KiB": lambda: a_payment(customer_id="x" * 20_000),
    "a card number": lambda: a_payment(customer_id="4111" + "1" * 12),
    "an amount below zero": lambda: a_payment(amount_minor=-1),
    "no currency": lambda: a_payment(currency_code=""),
    "an event of next year": lambda: a_payment(
        event_time=timestamp(time.time_ns() // 1_000_000 + 366 * 86_400_000)
    ),
    "a request id that is none": lambda: a_payment(request_id="1"),
}


def poison(scene: Scene) -> Figures:
    """Send what must be refused, again and again; count what was not, or not by its status."""
    method = score_method(scene.channel)
    sent = wrong = 0
    with scene.lasting():
        end_s = scene.clock() + scene.hold_s
        while scene.clock() < end_s and not scene.stop.wait(0.02):
            for make in POISON.values():
                status = _status(method, make())
                sent += 1
                wrong += status not in (grpc.StatusCode.INVALID_ARGUMENT, _SHED)
    return {"poison_sent": float(sent), "wrong_status": float(wrong)}


def _status(method: Callable[..., object], body: bytes) -> grpc.StatusCode:
    try:
        method(body, timeout=CALL_S)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


# Half a day ahead; then behind, by less than the five minutes that an event may be ahead.
CLOCK_STEPS_S: Final = (43_200.0, -240.0, 0.0)
CLOCK_TOLERANCE_S: Final = 60.0
CLOCK_LOOK_S: Final = 10.0


def step_clock(scene: Scene) -> Figures:
    """Step the roles' time of day ahead, and back behind what it was; look for it in decisions."""
    clock = scene.system.clock
    if clock is None:
        raise UnfitError("the clock of these roles cannot be stepped here")
    unseen = 0
    with scene.lasting():
        for off_s in CLOCK_STEPS_S:
            clock.step(off_s)
            scene.stop.wait(scene.hold_s / len(CLOCK_STEPS_S))
            unseen += not _is_off(scene, off_s)
    return {"clock_steps": float(len(CLOCK_STEPS_S)), "clock_steps_unseen": float(unseen)}


def _is_off(scene: Scene, off_s: float) -> bool:
    """Whether the service's time of day is off by so much, as a decision of its own says.

    Its payment has the load's time: one of now would expire every state of a load of the past.
    """
    score, read = score_method(scene.channel), get_decision_method(scene.channel)
    end_s = time.monotonic() + CLOCK_LOOK_S
    while time.monotonic() < end_s:
        try:
            payment = a_payment(event_time=timestamp(scene.event_ms()))
            answer = score(payment, timeout=CALL_S).assessment
            asked = fraud_service_pb2.GetDecisionRequest(decision_id=answer.decision_id)
            decision = read(asked, timeout=CALL_S).decision
        except grpc.RpcError:  # shed, perhaps
            time.sleep(PAUSE_S)
            continue
        found_s = decision.receive_time.ToMilliseconds() / 1000 - time.time_ns() / 1e9
        return abs(found_s - off_s) < CLOCK_TOLERANCE_S
    return False


def rolling_restart(scene: Scene) -> Figures:
    """Ask each scorer in turn to stop, as an upgrade would, and wait until it is back."""
    scorers = scene.system.scorers()
    if len(scorers) < 2:
        raise UnfitError("a rolling restart wants two scorers on one port")
    with scene.lasting():
        for name in scorers:
            pid = scene.system.pid(name)
            signal_process(pid, signal.SIGTERM)
            scene.system.wait_for_another(name, pid)
    return {"restarts": float(len(scorers))}


def label_flood(scene: Scene) -> Figures:
    """Report labels of payments that nobody knows, as fast as they are taken."""
    method = report_labels_method(scene.channel)
    sent = failed = 0
    with scene.lasting():
        end_s = scene.clock() + scene.hold_s
        while scene.clock() < end_s and not scene.stop.is_set():
            request = fraud_service_pb2.ReportLabelsRequest(labels=_labels(sent))
            sent += LABELS
            try:
                taken = len(method(request, timeout=CALL_S).results)
            except grpc.RpcError as error:
                taken = LABELS if error.code() is _SHED else 0
            failed += LABELS - taken
    return {"labels": float(sent), "labels_failed": float(failed)}


def _labels(first: int) -> list[label_pb2.Label]:
    now = timestamp(time.time_ns() // 1_000_000)
    return [
        label_pb2.Label(
            transaction_id=f"drill_flood_{first + i}", verdict=label_pb2.VERDICT_FRAUD,
            source=label_pb2.LABEL_SOURCE_CHARGEBACK, label_time=now, reporter="drill",
        )
        for i in range(LABELS)
    ]  # fmt: skip


def watch(scene: Scene) -> Figures:
    """Sample the scorers' own memory (MiB) and descriptors until the hold is over."""
    pids = scene.system.pids(scene.system.scorers())
    if not pids:
        raise UnfitError("the scorers' pids are not known")
    samples: list[tuple[float, float, float]] = []
    with scene.lasting():
        end_s = scene.clock() + scene.hold_s
        while scene.clock() < end_s and not scene.stop.wait(SAMPLE_S):
            memory = sum(_anonymous_mib(pid) for pid in pids)
            descriptors = sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids)
            samples.append((scene.clock(), memory, float(descriptors)))
    settled = np.array(samples[len(samples) // 3 :])
    if len(settled) < 3:
        return {}
    slope = np.polyfit(settled[:, 0], settled[:, 1], 1)[0]
    grown = settled[:, 2].max() - settled[0, 2]
    return {
        "memory_mib": float(settled[-1, 1]), "memory_mib_per_minute": float(slope * 60),
        "descriptors": float(settled[-1, 2]), "descriptors_grown": float(grown),
    }  # fmt: skip


def _anonymous_mib(pid: int) -> float:
    """Return what a process has for itself; pages of mapped files are the system's."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    return 0.0
