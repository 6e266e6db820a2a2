"""The supervisor with real child processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fraudsvc.supervisor import Change, Role, State, Supervisor, SupervisorSettings
from fraudsvc.up import UpOptions, roles

FAST = SupervisorSettings(
    backoff_first_ms=20, backoff_max_ms=100, stable_ms=60_000, drain_ms=400, poll_ms=5
)
WAIT_S = 20.0
SLEEP = "import time; time.sleep(60)"
STUBBORN = "import signal; signal.signal(15, signal.SIG_IGN); open({!r}, 'w'); " + SLEEP


def python(name: str, code: str, **more: object) -> Role:
    return Role(name, (sys.executable, "-c", code), **more)  # type: ignore[arg-type]


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


@contextmanager
def running(
    *roles: Role, settings: SupervisorSettings = FAST
) -> Iterator[tuple[Supervisor, list[Change], list[bool]]]:
    changes: list[Change] = []
    drained: list[bool] = []
    supervisor = Supervisor(roles, changes.append, settings)
    thread = threading.Thread(target=lambda: drained.append(supervisor.run()))
    thread.start()
    try:
        yield supervisor, changes, drained
    finally:
        supervisor.stop()
        thread.join(WAIT_S)
        assert not thread.is_alive()


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.parametrize("shared", [("", ""), ("kafka://broker:9092/a", "redis://store:6379/a")])
def test_all_of_a_machine_but_its_scorers_give_way(tmp_path: Path, shared: tuple[str, str]) -> None:
    (tmp_path / "key").touch()
    kafka, store = shared
    options = UpOptions(
        tmp_path, "127.0.0.1:50051", 2, False, "", console="127.0.0.1:0", kafka=kafka, store=store,
        niceness=7,
    )  # fmt: skip
    found = {role.name: role.niceness for role in roles(options)}
    stages = {"relay", "split-0", "fold-0"} if kafka else {"featurizer"}
    scorers = {"serve-0": 0, "serve-1": 0}
    assert found == {**dict.fromkeys(stages | {"trainer", "console"}, 7), **scorers}
    with pytest.raises(ValueError, match="0 to 19"):
        replace(options, niceness=20)


def test_a_role_gives_way_as_much_as_it_is_said_to() -> None:
    own = os.getpriority(os.PRIO_PROCESS, 0)
    both = python("first", SLEEP), python("gives-way", SLEEP, niceness=7)
    with running(*both) as (_, changes, _drained):
        until(lambda: len([c for c in changes if c.state is State.READY]) == 2)
        pids = {c.role: c.pid for c in changes if c.pid is not None}
        nice = {name: os.getpriority(os.PRIO_PROCESS, pid) for name, pid in pids.items()}
    assert nice == {"first": own, "gives-way": min(own + 7, 19)}


def test_a_role_goes_from_start_to_stop() -> None:
    with running(python("sleeper", SLEEP)) as (supervisor, changes, drained):
        until(lambda: supervisor.states() == {"sleeper": State.READY})
        pid = changes[0].pid
        assert pid is not None
        assert alive(pid)
        supervisor.stop()
        until(lambda: bool(drained))
    assert [change.state for change in changes] == [
        State.STARTING, State.READY, State.DRAINING, State.STOPPED,
    ]  # fmt: skip
    assert drained == [True]
    assert changes[-1].exit_code == -signal.SIGTERM
    assert not alive(pid)


def test_a_role_that_dies_is_started_again_and_the_others_go_on() -> None:
    with running(python("victim", SLEEP), python("other", SLEEP)) as (supervisor, changes, _):
        until(lambda: set(supervisor.states().values()) == {State.READY})
        pids = {change.role: change.pid for change in changes if change.state is State.READY}
        assert pids["victim"] is not None
        os.kill(pids["victim"], signal.SIGKILL)
        until(lambda: any(c.role == "victim" and c.restarts == 1 for c in changes))
        until(lambda: supervisor.states()["victim"] is State.READY)
        died = next(change for change in changes if change.state is State.WAITING)
        assert (died.role, died.exit_code, died.pid) == ("victim", -signal.SIGKILL, None)
        last = [change for change in changes if change.role == "other"][-1]
        assert (last.pid, last.restarts) == (pids["other"], 0)


def test_the_pause_between_starts_doubles_up_to_its_bound() -> None:
    now_ms, failures_ms = [0.0], list[float]()

    def tick() -> float:
        now_ms[0] += 1
        return now_ms[0]

    def note(change: Change) -> None:
        if change.state is State.WAITING:
            failures_ms.append(now_ms[0])
        if len(failures_ms) == 6:
            supervisor.stop()

    settings = SupervisorSettings(backoff_first_ms=20, backoff_max_ms=80, poll_ms=1)
    broken = Role("broken", ("/nonexistent/program",))
    supervisor = Supervisor([broken], note, settings, tick)
    assert supervisor.run()
    assert np.diff(failures_ms).round(-1).tolist() == [20, 40, 80, 80, 80]


def test_ready_means_the_ready_file_of_this_start(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    ready.touch()  # left by a run before
    gate = tmp_path / "gate"
    code = (
        f"import os, time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.01)\n"
        f"open({str(ready)!r}, 'w').close(); time.sleep(60)"
    )
    with running(python("slow", code, ready_file=ready)) as (supervisor, changes, _):
        until(lambda: bool(changes))
        time.sleep(0.1)
        assert supervisor.states() == {"slow": State.STARTING}
        gate.touch()
        until(lambda: supervisor.states() == {"slow": State.READY})


def test_ready_may_be_asked_of_a_callable() -> None:
    answers = iter([False, False, True])
    with running(python("asked", SLEEP, ready=lambda: next(answers))) as (supervisor, _, _d):
        until(lambda: supervisor.states() == {"asked": State.READY})
    assert next(answers, None) is None


def test_a_role_that_ignores_the_signal_is_killed_at_the_deadline(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    role = python("stubborn", STUBBORN.format(str(ready)), ready_file=ready)
    with running(role) as (supervisor, changes, drained):
        until(lambda: supervisor.states() == {"stubborn": State.READY})
    assert drained == [False]
    assert changes[-1].exit_code == -signal.SIGKILL


def test_a_role_sees_its_environment(tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = f"import os; open({str(out)!r}, 'w').write(os.environ['FRAUD_X']); {SLEEP}"
    with running(python("env", code, environment={"FRAUD_X": "42"})):
        until(lambda: out.exists() and out.read_text() == "42")


PARENT = """
import sys
from fraudsvc.supervisor import Role, Supervisor
def show(change):
    print(change.state.value, change.pid, flush=True)
child = Role("child", (sys.executable, "-c", "import time; time.sleep(60)"))
drained = Supervisor([child], show).run()
print("drained", drained, flush=True)
"""


@pytest.fixture
def parent() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A supervisor in a process of its own, and its child's pid."""
    process = subprocess.Popen((sys.executable, "-c", PARENT), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline().split()[1])
    process.stdout.readline()
    yield process, child
    process.kill()
    process.wait(WAIT_S)
    process.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_drain(parent: tuple[subprocess.Popen[str], int], number: signal.Signals) -> None:
    process, child = parent
    process.send_signal(number)
    output, _ = process.communicate(timeout=WAIT_S)
    assert output.split()[-2:] == ["drained", "True"]
    assert process.returncode == 0
    assert not alive(child)


def test_children_die_with_a_killed_supervisor(parent: tuple[subprocess.Popen[str], int]) -> None:
    process, child = parent
    assert alive(child)
    process.kill()
    until(lambda: not alive(child))


def test_two_roles_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="one name"):
        Supervisor([python("a", SLEEP), python("a", SLEEP)], list[Change]().append)
