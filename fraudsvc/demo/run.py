"""The demo: a world, a model, every role, live traffic with fraud in it, and what came of it.

Owns the order of the steps and the processes. Each step is one of our commands, run as a user
would; must not know how any of them does its work, nor what is in their files (``files``).
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

from fraudsvc.demo import view
from fraudsvc.demo.files import (
    DAY_MS,
    DemoOptions,
    Plan,
    count_live,
    example,
    judge,
    write_live,
    write_settled,
)
from trainer.bundle import MANIFEST

TAIL_LINES = 12
LINE_EVERY_S = 5.0
POLL_S = 0.05
STOP_S = 15.0
INTERRUPTED = 130
_STOPPING = (signal.SIGINT, signal.SIGTERM)

__all__ = ["DemoError", "DemoOptions", "demo"]


class DemoError(Exception):
    """A step failed; the text says which, and ends with the last lines of its output."""


def _iso(time_ms: int) -> str:
    return f"{np.datetime64(time_ms, 'ms')}+00:00"


def _world_argv(plan: Plan) -> list[str]:
    options = plan.options
    return [
        "loadgen", "world", "--days", str(options.days), "--start", _iso(plan.start_ms)[:10],
        "--customers", str(options.customers), "--rate", str(options.payments_per_day),
        "--fraud-rate", str(options.fraud_rate), "--seed", str(options.seed),
        "--out", str(plan.world),
    ]  # fmt: skip


def _backfill_argv(plan: Plan) -> list[str]:
    return [
        "featurizer", "backfill", str(plan.world), str(plan.vectors), "--strict",
        "--log", f"file://{plan.data}/log", "--log-until", _iso(plan.cut_ms),
    ]  # fmt: skip


def _train_argv(plan: Plan) -> list[str]:
    write_settled(plan)
    return [
        "trainer", "train", str(plan.settled), "--out", str(plan.data / "bundle"),
        "--key", str(plan.data / "key"), "--iterations", str(plan.options.trees),
    ]  # fmt: skip


def _replay_argv(plan: Plan, target: str) -> list[str]:
    write_live(plan)
    speed = plan.options.live_hours * 3600 / plan.options.seconds
    return [
        "loadgen", "replay", str(plan.live), "--target", target, "--from", _iso(plan.cut_ms),
        "--speed", str(speed), "--earlier-labels", "--progress-json",
        "--json", str(plan.figures), "--out", str(plan.answers),
    ]  # fmt: skip


# Name, what it does, its command.
STEPS: tuple[tuple[str, str, Callable[[Plan], list[str]]], ...] = (
    ("world", "make a world of payments with fraud campaigns in it", _world_argv),
    ("features", "compile the kernels, make the features, fill the log", _backfill_argv),
    ("train", "train a model on the history and sign it", _train_argv),
)


def _fail(what: str, output: Path) -> NoReturn:
    """Raise DemoError with the last lines of a step's output."""
    lines = output.read_text(errors="replace").splitlines()
    last = [line.rstrip() for line in lines if line.strip()][-TAIL_LINES:]
    raise DemoError("\n".join([what, *(f"  {line}" for line in last)]))


@contextlib.contextmanager
def _started(
    argv: Sequence[str], output: Path, stdout: int | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Run one of our commands with its output in a file; it is stopped at the end."""
    process: subprocess.Popen[str] | None = None
    with output.open("w") as file:
        try:
            with _held_back():  # or the process would be there, and nobody's
                process = subprocess.Popen(
                    [sys.executable, "-m", *argv],
                    stdin=subprocess.DEVNULL,
                    stdout=file if stdout is None else stdout,
                    stderr=file,
                    text=True,
                    start_new_session=True,  # a terminal's ^C reaches us alone; we stop it in order
                )
            yield process
        finally:
            if process is not None:
                _stop(process)
                if process.stdout is not None:
                    process.stdout.close()


@contextlib.contextmanager
def _held_back() -> Iterator[None]:
    """Let a signal that comes within the block have its effect at the end of it."""
    came: list[int] = []
    before = {n: signal.signal(n, lambda number, _: came.append(number)) for n in _STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


def _stop(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _lines(stream: IO[str] | None) -> Iterator[dict[str, Any]]:
    for line in stream or ():
        snapshot: dict[str, Any] = json.loads(line)
        yield snapshot


class _Demo:
    """One run; ``seconds`` holds how long each step took."""

    def __init__(self, plan: Plan, console: Console) -> None:
        self._plan = plan
        self._console = console
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def _step(self, name: str, text: str) -> Iterator[None]:
        """Show a step while it runs, and how long it took."""
        begin = time.perf_counter()
        columns = (TextColumn("  {task.description}"), BarColumn(24), TimeElapsedColumn())
        terminal = self._console.is_terminal
        with Progress(*columns, console=self._console, transient=True, disable=not terminal) as bar:
            bar.add_task(text, total=None)
            yield
        self.seconds[name] = time.perf_counter() - begin
        self.say(f"[green]✓[/green] {text} [dim]{self.seconds[name]:.1f} s[/dim]")

    def say(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, highlight=False, soft_wrap=True)

    def _wait(self, what: str, output: Path, done: Callable[[], bool]) -> None:
        """Wait until ``done``. Raises DemoError where that takes too long."""
        end = time.monotonic() + self._plan.options.step_timeout_s
        while not done():
            if time.monotonic() > end:
                _fail(f"{what}: not done in {self._plan.options.step_timeout_s:g} s", output)
            time.sleep(POLL_S)

    def run_command(self, name: str, text: str, argv: Callable[[Plan], list[str]]) -> None:
        """Run a step that is one command. Raises DemoError where it fails or takes too long."""
        output = self._plan.directory / f"{name}.out"
        with self._step(name, text), _started(argv(self._plan), output) as process:
            self._wait(text, output, lambda: process.poll() is not None)
            if process.returncode:
                _fail(f"{text}: ended with status {process.returncode}", output)

    def wait_for_roles(self, process: subprocess.Popen[str], output: Path) -> str:
        """Wait until every role is ready and return where to call. Raises DemoError."""
        text = "start every role; the featurizer reads the log"
        featurizer = self._plan.data / "featurizer.ready"
        scorer = self._plan.data / "serve-0.ready"

        def is_ready() -> bool:
            if process.poll() is not None:
                _fail(f"{text}: ended with status {process.returncode}", output)
            return featurizer.exists() and scorer.exists() and bool(scorer.read_text())

        with self._step("roles", text):
            self._wait(text, output, is_ready)
        return f"127.0.0.1:{int(scorer.read_text())}"

    def score_live(self, target: str) -> dict[str, Any]:
        """Send the live part, show the figures as they come, return the last. Raises DemoError."""
        plan, output = self._plan, self._plan.directory / "live.out"
        begin = time.perf_counter()
        timeout_s = plan.options.step_timeout_s + plan.options.seconds
        with _started(_replay_argv(plan, target), output, subprocess.PIPE) as process:
            timer = threading.Timer(timeout_s, process.kill)
            timer.start()
            try:
                self._show(_lines(process.stdout))
                status = process.wait(STOP_S)
            finally:
                timer.cancel()
        if status:
            _fail(f"score live traffic: ended with status {status}", output)
        self.seconds["live"] = time.perf_counter() - begin
        live: dict[str, Any] = json.loads(plan.figures.read_text())
        return live

    def _show(self, snapshots: Iterator[dict[str, Any]]) -> None:
        """Show the figures in place, or a line now and then where there is no terminal."""
        if not self._console.is_terminal:
            said = time.monotonic()
            for live in snapshots:
                if time.monotonic() - said > LINE_EVERY_S:
                    said = time.monotonic()
                    self.say(view.live_line(live))
            return
        columns = (TextColumn("live"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        bar = Progress(*columns, auto_refresh=False)
        task = bar.add_task("live", total=count_live(self._plan))
        with Live(bar, console=self._console, auto_refresh=False, transient=True) as shown:
            for live in snapshots:
                bar.update(task, completed=live["answered"])
                shown.update(view.live_view(live, bar), refresh=True)

    def show_calls(self, target: str) -> None:
        """Say how to call Score by hand."""
        now = f"{np.datetime64(time.time_ns() // 1_000_000, 'ms')}Z"
        payment = example(self._plan)
        self.say("\n[bold]Score a payment by hand while the roles are up:[/bold]")
        line = view.grpcurl_line(target, payment, str(uuid.uuid4()), now)
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        self.say("[bold]or with .venv/bin/python:[/bold]")
        snippet = view.python_snippet(target, payment)
        self._console.print(snippet, markup=False, highlight=False, soft_wrap=True)

    def stay(self, process: subprocess.Popen[str], output: Path) -> None:
        """Wait until ^C or SIGTERM. Raises DemoError where the roles end before."""
        self.say("[bold]Every role stays up until ^C.[/bold]")
        with contextlib.suppress(KeyboardInterrupt):
            process.wait()
            _fail("the roles ended", output)


def _run_all(plan: Plan, console: Console) -> None:
    demo = _Demo(plan, console)
    plan.data.mkdir()
    for name, text, argv in STEPS:
        demo.run_command(name, text, argv)
    model = json.loads((plan.data / "bundle" / MANIFEST).read_bytes())["metrics"]
    demo.say(f"  {view.model_line(model)}")
    output = plan.directory / "roles.out"
    places = ["--data", str(plan.data), "--address", "127.0.0.1:0", "--console", "127.0.0.1:0"]
    up = ["fraudsvc", "up", *places]
    with _started(up, output) as roles:
        target = demo.wait_for_roles(roles, output)
        demo.show_calls(target)
        live = demo.score_live(target)
        ranking = judge(plan)
        console.print(view.live_table(live), view.campaigns_table(ranking["campaigns"]))
        demo.say(view.ranking_line(ranking))
        demo.say(view.steps_line(demo.seconds))
        summary = {"live": live, "ranking": ranking, "model": model, "seconds": demo.seconds}
        if plan.options.json is not None:
            plan.options.json.write_text(json.dumps({**summary, "target": target}, indent=1) + "\n")
        if plan.options.keep:
            demo.show_calls(target)
            demo.stay(roles, output)


@contextlib.contextmanager
def _directory(data: Path | None) -> Iterator[Path]:
    if data is None:
        with tempfile.TemporaryDirectory(prefix="fraud-demo-") as made:
            yield Path(made)
        return
    data.mkdir(parents=True, exist_ok=True)
    if any(data.iterdir()):
        raise ValueError(f"{data} is not empty: the demo wants a new directory")
    yield data.absolute()


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def demo(options: DemoOptions) -> int:
    """Run the demo; return 0, 1 where a step failed, INTERRUPTED after ^C or SIGTERM.

    Raises ValueError for a directory that is in use, OSError for one that cannot be written.
    """
    console = Console()
    # Both said: a job in a shell's background is started with SIGINT ignored.
    before = {number: signal.signal(number, _interrupt) for number in _STOPPING}
    end_ms = time.time_ns() // 1_000_000 // DAY_MS * DAY_MS
    try:
        with _directory(options.data) as directory:
            _run_all(Plan(options, directory, end_ms), console)
    except DemoError as error:
        console.print("failed:", style="red", end=" ")
        console.print(str(error), markup=False, highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("stopped")
        return INTERRUPTED
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if not options.keep:
        console.print("Leave every role up and call it yourself: make demo KEEP=1")
    if options.data is not None:
        console.print(
            f"Start it again: .venv/bin/python -m fraudsvc up --data {options.data / 'data'}",
            soft_wrap=True,
        )
    return 0
