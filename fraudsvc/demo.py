"""The demo: a world, a model, every role, live traffic with fraud in it, and what came of it.

Owns the order of the steps and where their files are. Each step is one of our commands, run as a
process as a user would; must not know how any of them does its work.
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
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.console import Console
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from featurizer.features import SCHEMA_VERSION
from fraudsvc import demo_view as view
from trainer.bundle import MANIFEST, load_bundle
from trainer.metrics import average_precision, roc_auc

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
DAYS_MAX = 80  # a scorer takes events of the last 90
TAIL_LINES = 12
LINE_EVERY_S = 5.0
STOP_S = 15.0
INTERRUPTED = 130


class DemoError(Exception):
    """A step failed; the text says which, and ends with the last lines of its output."""


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What to make, and the bounds of each step.

    The world has ``days`` days, ends at the last midnight (UTC), and its last ``live_hours`` are
    sent as live traffic in ``seconds``. ``data`` must be new or empty; None makes a temporary
    directory. ``json`` is where the summary goes. Raises ValueError for numbers out of range.
    """

    data: Path | None = None
    seconds: float = 45.0
    keep: bool = False
    json: Path | None = None
    days: int = 20
    live_hours: float = 36.0
    customers: int = 3_000
    payments_per_day: float = 6_000
    fraud_rate: float = 0.01
    seed: int = 1
    trees: int = 150
    step_timeout_s: float = 170.0

    def __post_init__(self) -> None:
        if not 2 <= self.days <= DAYS_MAX:
            raise ValueError(f"--days must be 2 to {DAYS_MAX}")
        if not 0 < self.live_hours < 24 * self.days:
            raise ValueError("the live part must be above 0 hours and shorter than the world")
        if not 0 < self.seconds <= 3_600:
            raise ValueError("--seconds must be above 0, at most 3600")


@dataclass(frozen=True, slots=True)
class _Plan:
    """Where the files are and where time is cut; ms since 1970."""

    options: DemoOptions
    directory: Path
    end_ms: int

    @property
    def cut_ms(self) -> int:
        return self.end_ms - round(self.options.live_hours * HOUR_MS)

    @property
    def world(self) -> Path:
        return self.directory / "world.parquet"

    @property
    def vectors(self) -> Path:
        return self.directory / "vectors.parquet"

    @property
    def answers(self) -> Path:
        return self.directory / "answers.parquet"

    @property
    def data(self) -> Path:
        return self.directory / "data"


def _iso(time_ms: int) -> str:
    return str(np.datetime64(time_ms, "ms")) + "+00:00"


def _world_argv(plan: _Plan) -> list[str]:
    options = plan.options
    start = np.datetime64(plan.end_ms - options.days * DAY_MS, "ms").astype("datetime64[D]")
    return [
        "loadgen", "world", "--days", str(options.days), "--start", str(start),
        "--customers", str(options.customers), "--rate", str(options.payments_per_day),
        "--fraud-rate", str(options.fraud_rate), "--seed", str(options.seed),
        "--out", str(plan.world),
    ]  # fmt: skip


def _backfill_argv(plan: _Plan) -> list[str]:
    return [
        "featurizer", "backfill", str(plan.world), str(plan.vectors), "--strict",
        "--log", f"file://{plan.data}/log", "--log-until", _iso(plan.cut_ms),
    ]  # fmt: skip


def _train_argv(plan: _Plan) -> list[str]:
    return [
        "trainer", "train", str(plan.vectors), "--out", str(plan.data / "bundle"),
        "--key", str(plan.data / "key"), "--until", _iso(plan.cut_ms),
        "--iterations", str(plan.options.trees),
    ]  # fmt: skip


def _replay_argv(plan: _Plan, target: str) -> list[str]:
    speed = plan.options.live_hours * 3600 / plan.options.seconds
    return [
        "loadgen", "replay", str(plan.world), "--target", target, "--from", _iso(plan.cut_ms),
        "--speed", str(speed), "--earlier-labels", "--progress-json", "--out", str(plan.answers),
    ]  # fmt: skip


# Name, what it does, its command.
STEPS: tuple[tuple[str, str, Callable[[_Plan], list[str]]], ...] = (
    ("world", "make a world of payments, fraud campaigns among them", _world_argv),
    ("features", "compile the kernels, fold the history, fill the log", _backfill_argv),
    ("train", "train a model on the history and sign it", _train_argv),
)


def _last_lines(path: Path) -> list[str]:
    lines = path.read_text(errors="replace").replace("\r", "\n").splitlines()
    return [line.rstrip() for line in lines if line.strip()][-TAIL_LINES:]


def _fail(what: str, output: Path) -> NoReturn:
    raise DemoError("\n".join([what, *(f"  {line}" for line in _last_lines(output))]))


@contextlib.contextmanager
def _started(
    argv: Sequence[str], output: Path, stdout: int | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Run one of our commands with its output in a file; it is stopped at the end."""
    with output.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *argv],
            stdin=subprocess.DEVNULL,
            stdout=file if stdout is None else stdout,
            stderr=file,
            text=True,
            start_new_session=True,  # a terminal's ^C reaches us alone; we stop it in order
        )
        try:
            yield process
        finally:
            _stop(process)
            if process.stdout is not None:
                process.stdout.close()


def _stop(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class _Demo:
    """One run of all steps; ``seconds`` holds how long each took."""

    def __init__(self, plan: _Plan, console: Console) -> None:
        self._plan = plan
        self._console = console
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def step(self, name: str, text: str) -> Iterator[Callable[[], None]]:
        """Show a step while it runs, and its time; yields what to call while waiting."""
        begin = time.perf_counter()
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(pulse_style="cyan"))
        bar = Progress(
            *columns, TimeElapsedColumn(), console=self._console, transient=True
        )  # fmt: skip
        if not self._console.is_terminal:
            self._console.print(f"… {text}", highlight=False)
        with bar:
            bar.add_task(text, total=None)
            yield lambda: time.sleep(0.05)
        self.seconds[name] = time.perf_counter() - begin
        self._console.print(
            f"[green]✓[/green] {text} [dim]{self.seconds[name]:.1f} s[/dim]", highlight=False
        )

    def run_command(self, name: str, text: str, argv: Sequence[str]) -> None:
        """Run a step that is one command. Raises DemoError where it fails or takes too long."""
        output = self._plan.directory / f"{name}.out"
        with self.step(name, text) as wait, _started(argv, output) as process:
            end = time.monotonic() + self._plan.options.step_timeout_s
            while process.poll() is None:
                if time.monotonic() > end:
                    _fail(f"{text}: did not end in time", output)
                wait()
            if process.returncode:
                _fail(f"{text}: ended with status {process.returncode}", output)

    def wait_for_roles(self, process: subprocess.Popen[str], output: Path) -> int:
        """Wait until every role is ready and return the scorer's port. Raises DemoError."""
        text = "start every role"
        featurizer = self._plan.data / "featurizer.ready"
        scorer = self._plan.data / "serve-0.ready"
        with self.step("roles", text) as wait:
            end = time.monotonic() + self._plan.options.step_timeout_s
            while not (featurizer.exists() and scorer.exists() and scorer.read_text()):
                if process.poll() is not None or time.monotonic() > end:
                    _fail(f"{text}: they did not become ready", output)
                wait()
        return int(scorer.read_text())

    def score_live(self, target: str) -> dict[str, Any]:
        """Send the live part, show the figures as they come and return the last ones."""
        plan, output = self._plan, self._plan.directory / "live.out"
        begin = time.perf_counter()
        with _started(_replay_argv(plan, target), output, subprocess.PIPE) as process:
            # Every external call has a timeout: here it is the process that makes them.
            timer = threading.Timer(
                plan.options.step_timeout_s + plan.options.seconds, process.kill
            )
            timer.start()
            try:
                live = self._show_live(_lines(process.stdout))
                status = process.wait(STOP_S)
            finally:
                timer.cancel()
        if status or not live:
            _fail(f"score live traffic: ended with status {status}", output)
        self.seconds["live"] = time.perf_counter() - begin
        return live

    def _show_live(self, snapshots: Iterator[dict[str, Any]]) -> dict[str, Any]:
        total = _count_from(self._plan.vectors, self._plan.cut_ms)
        columns = (TextColumn("live"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        bar = Progress(*columns, auto_refresh=False)
        task = bar.add_task("live", total=total)
        live: dict[str, Any] = {}
        said = time.monotonic()
        with Live(bar, console=self._console, auto_refresh=False) as shown:
            for live in snapshots:
                bar.update(task, completed=live["answered"])
                shown.update(view.live_view(live, bar), refresh=True)
                if not self._console.is_terminal and time.monotonic() - said > LINE_EVERY_S:
                    said = time.monotonic()
                    self._console.print(view.live_line(live), highlight=False)
        return live


def _lines(stream: IO[str] | None) -> Iterator[dict[str, Any]]:
    for line in stream or ():
        snapshot: dict[str, Any] = json.loads(line)
        yield snapshot


def _count_from(vectors: Path, from_ms: int) -> int:
    times = pq.read_table(vectors, columns=["event_time_ms"])["event_time_ms"]
    return int(pc.sum(pc.greater_equal(times, from_ms)).as_py())


def _example(world: Path) -> dict[str, Any]:
    """Return a payer and a payee who know each other: those of the last honest card payment."""
    names = ["customer_id", "card_id", "merchant_id", "amount_minor", "currency", "is_fraud"]
    rows = pq.read_table(world, columns=names, filters=[("is_fraud", "=", False)])
    last: dict[str, Any] = rows.slice(len(rows) - 1).to_pylist()[0]
    return last


def _offline(plan: _Plan) -> tuple[list[str], NDArray[np.float64]]:
    """Return the ids of the live part and the scores of its vectors as the backfill made them."""
    names = ["transaction_id", "features"]
    rows = pq.read_table(
        plan.vectors, columns=names, filters=[("event_time_ms", ">=", plan.cut_ms)]
    )
    flat = rows["features"].combine_chunks().flatten().to_numpy()
    key = (plan.data / "key.pub").read_bytes()
    bundle = load_bundle(plan.data / "bundle", schema_version=SCHEMA_VERSION, public_key=key)
    logits = bundle.model.logits(flat.reshape(len(rows), -1))
    return rows["transaction_id"].to_pylist(), bundle.calibration.probabilities(logits)


def rank(plan: _Plan) -> dict[str, Any]:
    """Return how the live scores rank the frauds and how many differ from the backfill's."""
    answers = pq.read_table(plan.answers).to_pydict()
    known = dict(zip(*_offline(plan), strict=True))
    scores = np.array([np.nan if s is None else s for s in answers["score"]])
    expected = np.array([known[identity] for identity in answers["transaction_id"]])
    is_fraud = np.array(answers["is_fraud"], bool)
    scored = ~np.isnan(scores)
    return {
        "compared": len(scores),
        "differing": int((scores != expected).sum()),
        "prevalence": float(is_fraud.mean()),
        "auc": roc_auc(scores[scored], is_fraud[scored]),
        "average_precision": average_precision(scores[scored], is_fraud[scored]),
    }


def _show_calls(console: Console, plan: _Plan, target: str) -> None:
    example = _example(plan.world)
    line = view.grpcurl_line(target, example, str(uuid.uuid4()), _now_text())
    console.print("\nScore a payment by hand while it runs:", style="bold")
    console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print("or in Python (.venv/bin/python):", style="bold")
    console.print(view.python_snippet(target, example), markup=False, highlight=False)


def _now_text() -> str:
    return str(np.datetime64(time.time_ns() // 1_000_000, "ms")) + "Z"


def _last_midnight_ms() -> int:
    return time.time_ns() // 1_000_000 // DAY_MS * DAY_MS


def _run_all(plan: _Plan, console: Console) -> None:
    demo = _Demo(plan, console)
    plan.data.mkdir(parents=True)
    for name, text, argv in STEPS:
        demo.run_command(name, text, argv(plan))
    metrics = json.loads((plan.data / "bundle" / MANIFEST).read_bytes())["metrics"]
    console.print(f"  {view.model_line(metrics)}", highlight=False)
    output = plan.directory / "roles.out"
    up = ["fraudsvc", "up", "--data", str(plan.data), "--address", "127.0.0.1:0"]
    with _started(up, output) as roles:
        target = f"127.0.0.1:{demo.wait_for_roles(roles, output)}"
        _show_calls(console, plan, target)
        live = demo.score_live(target)
        ranking = rank(plan)
        console.print(view.ranking_line(ranking), highlight=False)
        console.print(view.steps_table(demo.seconds))
        if plan.options.json is not None:
            summary = {
                "live": live, "ranking": ranking, "model": metrics, "seconds": demo.seconds,
                "target": target,
            }  # fmt: skip
            plan.options.json.write_text(json.dumps(summary, indent=1) + "\n")
        if plan.options.keep:
            _show_calls(console, plan, target)
            _wait_for_end(console, roles, output)


def _wait_for_end(console: Console, roles: subprocess.Popen[str], output: Path) -> None:
    console.print("Every role stays up until ^C.", style="bold")
    with contextlib.suppress(KeyboardInterrupt):
        roles.wait()
        _fail("the roles ended", output)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


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


def demo(options: DemoOptions) -> int:
    """Run the demo; return 0, 1 where a step failed, 130 where it was interrupted.

    Raises ValueError for a directory that is in use.
    """
    console = Console()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with _directory(options.data) as directory:
            _run_all(_Plan(options, directory, _last_midnight_ms()), console)
    except DemoError as error:
        console.print(f"[red]failed:[/red] {error}", highlight=False)
        return 1
    except KeyboardInterrupt:
        console.print("stopped")
        return INTERRUPTED
    return 0
