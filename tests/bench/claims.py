"""Owns what a row of the report looks like, how two sides take turns, and the worlds measured.

Must not know what is measured.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from featurizer.backfill import read_history
from featurizer.hashing import IdHasher
from featurizer.history import History

COMMAND_TIMEOUT_S = 1_000.0
SEED = 1


def claim(
    name: str,
    value: float | None,
    unit: str,
    *,
    baseline: float | None = None,
    ratio: float | None = None,
    at_most: float | None = None,
    at_least: float | None = None,
    right: bool = True,
) -> dict[str, Any]:
    """Return one row; without a bound, or without a value, ``met`` is None.

    ``right`` is false where the result was fast but wrong: such a row is not met.
    """
    met = None
    target = None
    if at_most is not None:
        target = f"<= {at_most:g}"
        met = None if value is None else right and value <= at_most
    elif at_least is not None:
        target = f">= {at_least:g}"
        met = None if value is None else right and value >= at_least
    return {
        "name": name, "value": value, "unit": unit, "baseline": baseline, "ratio": ratio,
        "target": target, "met": met,
    }  # fmt: skip


def in_turn(rounds: int, *sides: Callable[[], float]) -> list[float]:
    """Return each side's median over rounds in which they take turns, after one to warm up."""
    taken = [[side() for side in sides] for _ in range(rounds + 1)][1:]
    return [median(values) for values in zip(*taken, strict=True)]


def busy_s(work: Callable[[], object]) -> float:
    """Return the CPU seconds that ``work`` takes in this process: waiting for a core is no work."""
    start_ns = time.process_time_ns()
    work()
    return (time.process_time_ns() - start_ns) / 1e9


def pin(cpu: str) -> None:
    """Keep this process, and the threads it starts from now on, on one core."""
    os.sched_setaffinity(0, {int(cpu)})


class Spent(NamedTuple):
    """What a command took, in seconds by the clock and of CPU (user and system)."""

    wall_s: float
    cpu_s: float


def spent(cpu: str, *arguments: str) -> Spent:
    """Run ``python -m arguments`` on one core. Raises RuntimeError with its output's end."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        ["taskset", "-c", cpu, sys.executable, "-m", *arguments],
        capture_output=True, timeout=COMMAND_TIMEOUT_S, check=False,
    )  # fmt: skip
    wall_s = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{arguments[:2]} failed: {done.stderr[-2000:].decode()}")
    return Spent(
        wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    )  # fmt: skip


def make_world(path: Path, days: int, customers: int = 2_000) -> None:
    """Write a seeded world's history, about 10,000 payments a day."""
    sizes = ("--days", str(days), "--customers", str(customers), "--seed", str(SEED))
    spent("0,1", "loadgen", "world", *sizes, "--out", str(path))


def read_world(path: Path) -> History:
    """Return a world's history as the featurizer reads it."""
    return read_history(path, IdHasher(), {})
