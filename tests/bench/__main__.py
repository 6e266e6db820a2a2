"""Runs the measurements and writes bench.json: which machine, and one row per claim.

Owns the choice of modules, their processes and the report. Must not know what a module measures.
Each runs in a process of its own, so that none inherits another's memory, threads or compiled code.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
REPORT = ROOT / "bench.json"
MODULE_TIMEOUT_S = 1_200
GIT_TIMEOUT_S = 10
# What every row has; a module may add more.
FIELDS = ("name", "value", "unit", "baseline", "ratio", "target", "met")
LIBRARIES = (
    "catboost", "grpcio", "lmdb", "llvmlite", "numba", "numpy", "protobuf", "pyarrow",
)  # fmt: skip

Row = Mapping[str, Any]


class BenchError(Exception):
    """A module could not be run, or its rows are not rows."""


def modules() -> list[str]:
    """Return the names of the measurements, without their prefix, in alphabetical order."""
    return sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))


def checked(rows: object) -> list[Row]:
    """Return ``rows`` when each has all FIELDS. Raises BenchError."""
    if not isinstance(rows, list):
        raise BenchError(f"rows() gave {type(rows).__name__}, not a list")
    for row in rows:
        missing = [name for name in FIELDS if name not in row]
        if missing:
            raise BenchError(f"a row lacks {', '.join(missing)}: {row}")
    return rows


def run_here(module: str, out: Path) -> None:
    """Run one module in this process and write its rows to ``out`` as JSON."""
    rows = importlib.import_module(f"tests.bench.bench_{module}").rows()
    out.write_text(json.dumps(checked(list(rows))))


def run_apart(module: str) -> list[Row]:
    """Run one module in a process of its own and return its rows. Raises BenchError."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "rows.json"
        command = [sys.executable, "-m", "tests.bench", "--into", str(out), module]
        try:
            subprocess.run(command, cwd=ROOT, check=True, timeout=MODULE_TIMEOUT_S)
            return checked(json.loads(out.read_bytes()))
        except subprocess.TimeoutExpired as error:
            raise BenchError(f"took longer than {MODULE_TIMEOUT_S} s") from error
        except subprocess.CalledProcessError as error:
            raise BenchError(f"ended with status {error.returncode}, see above") from error
        except (OSError, ValueError) as error:
            raise BenchError(str(error)) from error


def machine() -> dict[str, Any]:
    """Return what a figure depends on beside the code: processor, load, versions, commit."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load_1min": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=GIT_TIMEOUT_S
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:,.6g}" if abs(value) < 1_000 else f"{value:,.0f}"
    return str(value)


def table_of(rows: Sequence[Row]) -> Table:
    """Return the rows as a table for a terminal."""
    table = Table()
    for name in FIELDS:
        table.add_column(name, justify="left" if name in ("name", "unit") else "right")
    for row in rows:
        style = "" if row["met"] in (True, None) else "red"
        table.add_row(*(_text(row[name]) for name in FIELDS), style=style)
    return table


def run(chosen: Sequence[str], report: Path, console: Console) -> int:
    """Run the chosen modules, show and write their rows; 1 when one of them failed."""
    facts, started = machine(), time.monotonic()
    rows: list[Row] = []
    failed: dict[str, str] = {}
    for module in chosen:
        console.print(f"{module} …", highlight=False)
        try:
            rows.extend({"module": module, **row} for row in run_apart(module))
        except BenchError as error:
            failed[module] = str(error)
            console.print(f"{module} failed: {error}", style="red", markup=False)
    facts["load_1min_after"] = round(os.getloadavg()[0], 2)
    facts["seconds"] = round(time.monotonic() - started, 1)
    content = {"machine": facts, "rows": rows, "failed": failed}
    report.write_text(json.dumps(content, indent=1) + "\n")
    console.print(table_of(rows))
    missed = sum(row["met"] is False for row in rows)
    console.print(f"{len(rows)} rows, {missed} missed their target, {len(failed)} modules failed")
    return 1 if failed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    known = modules()
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("module", nargs="*", help=f"only these of: {', '.join(known)}")
    parser.add_argument("--out", type=Path, default=REPORT, help="the report, bench.json")
    parser.add_argument("--into", type=Path, help="run one module in this process, rows to a file")
    parsed = parser.parse_args(arguments)
    unknown = sorted(set(parsed.module) - set(known))
    if unknown:
        parser.error(f"no such measurement: {', '.join(unknown)}; there are {', '.join(known)}")
    if parsed.into is not None:
        run_here(parsed.module[0], parsed.into)
        return 0
    return run(parsed.module or known, parsed.out, Console(width=None if _wide() else 140))


def _wide() -> bool:
    return sys.stdout.isatty()


if __name__ == "__main__":
    sys.exit(main())
