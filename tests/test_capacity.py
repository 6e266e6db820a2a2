"""The capacity command: its search and its counting alone, then a short run against real roles."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from loadgen.__main__ import main
from loadgen.capacity import Run, Settings, cpu_seconds, search
from tests.conftest import Trained

LIMIT, KNEE = 1_000.0, 700.0


def at(rate: float) -> Run:
    """Return a run of a service that is late beyond its knee."""
    latency = np.full(100, 0.001 if rate <= KNEE else 0.1)
    return Run(rate, rate, 0.0, latency, 0.0)


@pytest.mark.parametrize("guess", [0.0, 300.0, 700.0, 2_000.0])
def test_the_search_narrows_on_the_knee_from_below(guess: float) -> None:
    found, runs = search(at, guess, LIMIT, 0.01)
    assert found <= KNEE
    assert found in {0.0, *(run.due_per_s for run in runs)}
    assert min(run.due_per_s for run in runs if run.percentile_s(0.99) > 0.01) > KNEE


def test_a_rate_at_which_calls_are_shed_is_not_met() -> None:
    found, _ = search(lambda rate: at(rate)._replace(shed_share=0.1), 300.0, LIMIT, 0.01)
    assert found == 0.0


def test_cpu_time_is_read_of_processes_and_their_names_may_hold_anything(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_text("7 (a ) b) S 1 7 7 0 -1 0 0 0 0 0 250 50 0 0 20 0 1")
    ticks_a_second = 100
    assert cpu_seconds([7, 8], tmp_path) == pytest.approx(300 / ticks_a_second)


@pytest.mark.parametrize("seconds", [0.0, -1.0])
def test_settings_that_cannot_be_meant_are_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        Settings(seconds=seconds)


@pytest.mark.parametrize(
    "arguments", [["--assume", "cores=2"], ["--zones", "0"], ["--seconds", "0"]]
)
def test_the_command_refuses_before_it_measures(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["capacity", *arguments]) == 2
    assert "loadgen:" in capsys.readouterr().err


def test_a_run_measures_predicts_and_plans(tmp_path: Path, trained: Trained) -> None:
    out = tmp_path / "capacity.json"
    status = main([
        "capacity", "--quick", "--seconds", "2", "--workers", "1", "--p99-ms", "2000",
        "--target", "100000", "--zones", "3", "--bundle", str(trained.bundle_path),
        "--key", str(trained.key_path), "--json", str(out),
    ])  # fmt: skip
    facts = json.loads(out.read_text())
    assert status == 0
    [measured] = facts["measured"]
    assert measured["closed_per_s"] > 0
    assert measured["cpu_us_per_call"] > 0
    assert measured["predicted_p99_ms"] > 0
    assert 0 < measured["within_per_s"] <= measured["closed_per_s"] * 1.001
    assert measured["error"] > -1
    plan = facts["plan"]
    assert plan["scorer_cores"] * measured["per_core_s"] >= 100_000 * 1.5 * 0.999
    assert facts["dominates"] in facts["sensitivity"]
