"""The demo as a user runs it: small, end to end, called by hand, interrupted, and failing."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from featurizer.currencies import to_reference
from fraudsvc.demo.files import DAY_MS, HOUR_MS, DemoOptions, Plan
from fraudsvc.demo.run import _started
from fraudsvc.demo.view import reference_cents

SEED = 7
LIVE_HOURS = 24
SMALL = (
    "--days", "20", "--live-hours", str(LIVE_HOURS), "--customers", "400",
    "--payments-per-day", "800", "--fraud-rate", "0.03", "--seconds", "6", "--trees", "30",
    "--seed", str(SEED),
)  # fmt: skip
READY_S = 150.0
STOP_S = 30.0


def start(out: Path, *arguments: str) -> subprocess.Popen[bytes]:
    with out.open("wb") as file:
        return subprocess.Popen(
            (sys.executable, "-m", "fraudsvc", "demo", *arguments), stdout=file, stderr=file
        )


def until(process: subprocess.Popen[bytes], out: Path, condition: Callable[[], bool]) -> None:
    end = time.monotonic() + READY_S
    while not condition():
        assert process.poll() is None, out.read_text()
        assert time.monotonic() < end, out.read_text()
        time.sleep(0.05)


def named_in_a_process(text: str) -> list[str]:
    """Return the command lines of living processes that hold the text."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if text in line and int(path.parts[2]) != os.getpid():
            found.append(line)
    return found


@dataclass(frozen=True)
class Run:
    process: subprocess.Popen[bytes]
    out: Path
    directory: Path
    summary: dict[str, Any]

    def columns(self, name: str) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]] = pq.read_table(self.directory / name).to_pydict()
        return columns


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A small demo that stays up, once its summary is written."""
    print(f"seed {SEED}")
    base = tmp_path_factory.mktemp("demo")
    out, summary, directory = base / "out", base / "summary.json", base / "kept"
    process = start(out, *SMALL, "--keep", "--data", str(directory), "--json", str(summary))
    try:
        until(process, out, lambda: "stays up until" in out.read_text())
        yield Run(process, out, directory, json.loads(summary.read_text()))
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(STOP_S)


def test_every_live_payment_is_decided_in_full(run: Run) -> None:
    live = run.summary["live"]
    sent = set(run.columns("answers.parquet")["transaction_id"])
    assert live["answered"] == live["sent"] == len(sent) > 100
    assert live["statuses"] == {"OK": live["sent"]}
    assert sum(live["outcomes"].values()) == live["answered"]
    assert live["rungs"]["FULL"] >= 0.98 * live["answered"]
    world = run.columns("world.parquet")
    end_ms = max(time.timestamp() for time in world["event_time"]) * 1000
    cut_ms = (end_ms // DAY_MS + 1) * DAY_MS - LIVE_HOURS * HOUR_MS
    chosen = zip(world["transaction_id"], world["event_time"], strict=True)
    assert sent == {identity for identity, time in chosen if time.timestamp() * 1000 >= cut_ms}


def test_live_scores_are_the_batch_scores_and_rank_the_frauds(run: Run) -> None:
    ranking = run.summary["ranking"]
    assert ranking["compared"] >= 0.98 * run.summary["live"]["answered"]
    assert ranking["differing"] == 0
    assert ranking["models"] >= 1
    assert ranking["auc"] > 0.7
    assert ranking["average_precision"] > 3 * ranking["prevalence"]


def test_fraud_is_counted_in_number_and_money_by_its_truth(run: Run) -> None:
    live, answers = run.summary["live"], run.columns("answers.parquet")
    outcome = dict(zip(answers["transaction_id"], answers["outcome"], strict=True))
    world = run.columns("world.parquet")
    names = ("transaction_id", "is_fraud", "currency", "amount_minor", "campaign")
    count: Counter[str] = Counter()
    minor: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    frauds: Counter[str] = Counter()
    for identity, is_fraud, currency, amount, kind in zip(*(world[n] for n in names), strict=True):
        if identity not in outcome:
            continue
        caught = outcome[identity] != "APPROVE"
        count["declined"] += not is_fraud and outcome[identity] == "DECLINE"
        if is_fraud:
            count["caught" if caught else "missed"] += 1
            minor[caught][currency] += amount
            frauds[kind] += 1
    assert live["fraud_caught"] == count["caught"] > 0
    assert live["fraud_missed"] == count["missed"]
    assert live["false_declines"] == count["declined"]
    assert live["fraud_caught_minor"] == minor[True]
    assert live["fraud_missed_minor"] == minor[False]
    assert {k: v["frauds"] for k, v in run.summary["ranking"]["campaigns"].items()} == frauds


def test_labels_of_the_history_are_reported_when_their_time_comes(run: Run) -> None:
    sent = set(run.columns("answers.parquet")["transaction_id"])
    world = run.columns("world.parquet")
    times = dict(zip(world["transaction_id"], world["event_time"], strict=True))
    first, last = (f(times[identity] for identity in sent) for f in (min, max))
    cut_ms = int(first.timestamp() * 1000) // HOUR_MS * HOUR_MS
    due = [
        identity
        for identity, known in zip(world["transaction_id"], world["label_time"], strict=True)
        if known is not None and cut_ms <= known.timestamp() * 1000 and known <= last
    ]
    assert len([identity for identity in due if identity not in sent]) > 10
    assert run.summary["live"]["labels"]["statuses"] == {"APPLIED": len(due)}


def test_the_python_snippet_scores(run: Run) -> None:
    text = run.out.read_text()
    snippet = text[text.rindex("import uuid") : text.rindex("Every role")]
    done = subprocess.run(
        (sys.executable, "-c", snippet), capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "rung: RUNG_FULL" in done.stdout
    assert re.search(r"^score: [0-9.e-]+$", done.stdout, re.MULTILINE)


@pytest.mark.skipif(shutil.which("grpcurl") is None, reason="grpcurl is not installed")
def test_the_grpcurl_line_scores_and_a_repeat_gets_the_same_answer(run: Run) -> None:
    lines = [line for line in run.out.read_text().splitlines() if line.startswith("grpcurl ")]
    argv = [*shlex.split(lines[-1])]
    said = [subprocess.run(argv, capture_output=True, timeout=30, check=True) for _ in range(2)]
    first, second = (json.loads(each.stdout)["assessment"] for each in said)
    assert first["rung"] == "RUNG_FULL"
    assert first["decision_id" if "decision_id" in first else "decisionId"]
    for answer in (first, second):
        answer.pop("time_used", answer.pop("timeUsed", None))
    assert first == second


def test_it_says_what_happened(run: Run) -> None:
    text = run.out.read_text()
    for word in ("decisions", "rung", "latency, ms", "fraud caught", "fraud missed",
                 "false declines", "average precision", "grpcurl", "s in all"):  # fmt: skip
        assert word in text, word


def test_a_directory_in_use_is_refused_and_stays_as_it_is(run: Run) -> None:
    before = sorted(path.name for path in run.directory.iterdir())
    done = subprocess.run(
        (sys.executable, "-m", "fraudsvc", "demo", "--data", str(run.directory)),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "is not empty" in done.stderr
    assert sorted(path.name for path in run.directory.iterdir()) == before


def test_an_interrupt_ends_it_and_every_role(run: Run) -> None:
    """The last of the tests that use the run."""
    assert len(named_in_a_process(str(run.directory / "data"))) >= 3
    run.process.send_signal(signal.SIGINT)
    assert run.process.wait(STOP_S) == 0
    assert named_in_a_process(str(run.directory)) == []


def test_an_interrupt_during_a_step_ends_that_step_too(tmp_path: Path) -> None:
    out, directory = tmp_path / "out", tmp_path / "kept"
    process = start(out, "--data", str(directory), "--days", "80")
    until(process, out, lambda: named_in_a_process(f"--out {directory}") != [])
    process.send_signal(signal.SIGINT)
    assert process.wait(STOP_S) == 130
    assert named_in_a_process(str(directory)) == []
    assert "stopped" in out.read_text()


def test_a_signal_while_a_step_starts_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[subprocess.Popen[str]] = []

    class Interrupted(subprocess.Popen[str]):
        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(*args, **more)
            made.append(self)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    argv = ["loadgen", "world", "--days", "80", "--out", str(tmp_path / "world.parquet")]
    # A job in the background of a shell is begun with this signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), _started(argv, tmp_path / "out"):
            pytest.fail("it goes on")
    finally:
        signal.signal(signal.SIGINT, before)
    assert made[0].poll() is not None


def test_a_step_that_fails_is_named_with_its_last_lines(tmp_path: Path) -> None:
    out, directory = tmp_path / "out", tmp_path / "kept"
    few = ("--days", "12", "--live-hours", "6", "--customers", "20", "--payments-per-day", "20")
    process = start(out, *few, "--data", str(directory))
    assert process.wait(READY_S) == 1
    text = out.read_text()
    assert "failed: train a model" in text
    assert "ended with status 2" in text
    assert "  error: " in text
    assert named_in_a_process(str(directory)) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"days": 0}, "--days"),
        ({"days": 81}, "--days"),
        ({"days": 11, "live_hours": 24.0}, "leave room"),
        ({"live_hours": 0.0}, "leave room"),
        ({"live_hours": float("nan")}, "leave room"),
        ({"seconds": 0.0}, "--seconds"),
        ({"seconds": float("nan")}, "--seconds"),
    ],
)
def test_numbers_out_of_range_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DemoOptions(**change)


def test_the_plan_cuts_the_world_before_its_end() -> None:
    plan = Plan(DemoOptions(days=30, live_hours=12.0), Path("x"), 100 * DAY_MS)
    assert (plan.start_ms, plan.cut_ms) == (70 * DAY_MS, 100 * DAY_MS - 12 * HOUR_MS)


def test_money_is_added_in_cents_of_the_reference_currency() -> None:
    assert reference_cents({"USD": 1_050, "JPY": 2_000}) == 1_050 + to_reference(2_000, "JPY")
    assert reference_cents({}) == 0
