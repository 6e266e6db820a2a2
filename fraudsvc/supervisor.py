"""Runs the roles as child processes, starts one again when it dies, and stops all in good time.

Owns the life of a child: its states, the back-off between starts, the drain. Must not know what
a role does or how its state is shown; who wants to know gets each change by a callback.

    STARTING ──ready──▶ READY ──exit──▶ WAITING ──back-off──▶ STARTING
        └──────────────exit──────────────▲
    any ──stop──▶ DRAINING ──exit, or kill at the deadline──▶ STOPPED
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import FrameType
from typing import NamedTuple

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


class State(Enum):
    """Where a role is in its life."""

    STARTING = "starting"
    READY = "ready"
    WAITING = "waiting"
    DRAINING = "draining"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Role:
    """One child process. It is ready when ``ready`` says so, or its ``ready_file`` exists.

    With neither it is ready as soon as it runs. ``ready_file`` is removed before each start;
    ``environment`` is added to the supervisor's own. ``niceness``, 0 to 19, is how much it gives
    way to others where cores are short.
    """

    name: str
    argv: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    ready: Callable[[], bool] | None = None
    ready_file: Path | None = None
    niceness: int = 0


@dataclass(frozen=True, slots=True)
class SupervisorSettings:
    """Bounds of a life; the back-off doubles, and is first again after a run of ``stable_ms``."""

    backoff_first_ms: int = 200
    backoff_max_ms: int = 10_000
    stable_ms: int = 30_000
    drain_ms: int = 10_000
    poll_ms: int = 50


class Change(NamedTuple):
    """One change of state. ``exit_code`` as of subprocess (minus the signal), None if running."""

    role: str
    state: State
    pid: int | None
    restarts: int
    exit_code: int | None


class _Child:
    """One role and the process that plays it now."""

    def __init__(self, role: Role, settings: SupervisorSettings) -> None:
        self.role = role
        self.state = State.WAITING
        self.process: subprocess.Popen[bytes] | None = None
        self.restarts = -1
        self.started_ms = 0.0
        self.start_at_ms = 0.0
        self.backoff_ms = settings.backoff_first_ms

    @property
    def exit_code(self) -> int | None:
        return None if self.process is None else self.process.poll()

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def is_ready(self) -> bool:
        if self.role.ready is not None:
            return self.role.ready()
        return self.role.ready_file is None or self.role.ready_file.exists()


class Supervisor:
    """Keeps roles running until stopped. Not for use by several threads, but for ``stop``.

    ``on_change`` is called in the thread of ``run`` with each change of a role's state. That
    thread must live as long as the roles: the system ends them with the thread that began them.
    """

    def __init__(
        self,
        roles: Sequence[Role],
        on_change: Callable[[Change], None],
        settings: SupervisorSettings | None = None,
        clock_ms: Callable[[], float] = lambda: time.monotonic() * 1000,
    ) -> None:
        names = [role.name for role in roles]
        if len(set(names)) != len(names):
            raise ValueError(f"two roles of one name in {names}")
        self._settings = settings or SupervisorSettings()
        self._children = [_Child(role, self._settings) for role in roles]
        self._on_change = on_change
        self._clock_ms = clock_ms
        self._stop = threading.Event()

    def stop(self, *_: int | FrameType | None) -> None:
        """End ``run`` after a drain. Fits signal.signal; may be called from any thread."""
        self._stop.set()

    def run(self) -> bool:
        """Start all roles and keep them running until ``stop``; return whether all drained.

        SIGTERM and SIGINT stop it when called in the main thread.
        """
        main = threading.current_thread() is threading.main_thread()
        before = {s: signal.signal(s, self.stop) for s in _STOPPING} if main else {}
        try:
            while not self._stop.is_set():
                for child in self._children:
                    self._step(child)
                self._stop.wait(self._settings.poll_ms / 1000)
        finally:
            drained = self._drain()
            for number, handler in before.items():
                signal.signal(number, handler)
        return drained

    def states(self) -> dict[str, State]:
        """Return each role's state now, by name."""
        return {child.role.name: child.state for child in self._children}

    def _step(self, child: _Child) -> None:
        now_ms = self._clock_ms()
        if child.state is State.WAITING:
            if now_ms >= child.start_at_ms:
                self._start(child, now_ms)
        elif not child.running:
            self._wait(child, now_ms)
        elif child.state is State.STARTING and child.is_ready():
            self._change(child, State.READY)

    def _start(self, child: _Child, now_ms: float) -> None:
        if child.role.ready_file is not None:
            child.role.ready_file.unlink(missing_ok=True)
        child.started_ms = now_ms
        child.restarts += 1
        child.process = None
        try:
            child.process = subprocess.Popen(
                child.role.argv,
                env={**os.environ, **child.role.environment},
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a terminal's ^C reaches us alone; we pass it on once
                preexec_fn=_before_exec(os.getpid(), child.role.niceness),  # noqa: PLW1509 - no thread needs a lock here
            )
        except OSError:
            self._wait(child, now_ms)
            return
        self._change(child, State.STARTING)

    def _wait(self, child: _Child, now_ms: float) -> None:
        """Plan the next start: later each time, unless the last run was a long one."""
        settings = self._settings
        if now_ms - child.started_ms >= settings.stable_ms:
            child.backoff_ms = settings.backoff_first_ms
        child.start_at_ms = now_ms + child.backoff_ms
        child.backoff_ms = min(child.backoff_ms * 2, settings.backoff_max_ms)
        self._change(child, State.WAITING)

    def _drain(self) -> bool:
        """Ask all to stop, wait until the deadline, kill the rest; return whether none was."""
        running = [child for child in self._children if child.running]
        for child in running:
            _signal(child, signal.SIGTERM)
            self._change(child, State.DRAINING)
        deadline_ms = self._clock_ms() + self._settings.drain_ms
        while any(child.running for child in running) and self._clock_ms() < deadline_ms:
            time.sleep(self._settings.poll_ms / 1000)
        late = [child for child in running if child.running]
        for child in late:
            _signal(child, signal.SIGKILL)
        for child in self._children:
            if child.process is not None:
                child.process.wait()
            self._change(child, State.STOPPED)
        return not late

    def _change(self, child: _Child, state: State) -> None:
        child.state = state
        pid = child.process.pid if child.process is not None and child.running else None
        restarts = max(child.restarts, 0)
        self._on_change(Change(child.role.name, state, pid, restarts, child.exit_code))


_STOPPING = (signal.SIGTERM, signal.SIGINT)


def _signal(child: _Child, number: signal.Signals) -> None:
    """Send to the role's process; a kill goes to its whole session, workers of its own too."""
    if child.process is None or not child.running:
        return
    if number is signal.SIGKILL:
        os.killpg(child.process.pid, number)
    else:
        child.process.send_signal(number)


def _before_exec(parent: int, niceness: int) -> Callable[[], None]:
    """Return what a child runs before exec: it never outlives a killed supervisor, and is nice."""

    def before_exec() -> None:
        os.nice(niceness)
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent died before prctl could tell
            os._exit(1)

    return before_exec
