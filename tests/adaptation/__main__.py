"""``python -m tests.adaptation``: every system on every stream, then the report.

Each stream's figures are written as they come; the report is made of what is there, so that a run
that was stopped still has one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.adaptation.compare import Seed
from tests.adaptation.report import write_report, write_tables
from tests.adaptation.streams import NEWS
from tests.adaptation.world import Scale

ROOT = Path(__file__).parents[2]
# Seeds run side by side, each on one core.
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def main() -> int:
    """Run, and write the report."""
    parser = argparse.ArgumentParser(prog="python -m tests.adaptation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="streams of each attack")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--attacks", default=",".join(NEWS), help="which, such as A,B")
    parser.add_argument("--systems", default="", help="which, by their names; all where empty")
    parser.add_argument("--minutes", type=int, default=75, help="of stream after the onset")
    parser.add_argument("--per-minute", type=int, default=1_000, help="payments")
    parser.add_argument("--jobs", type=int, default=1, help="seeds at once")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "adaptation")
    parser.add_argument("--docs", type=Path, help="page whose tables are to be written anew")
    parser.add_argument("--report-only", action="store_true", help="of what is there")
    parsed = parser.parse_args()
    attacks = parsed.attacks.split(",")
    if unknown := set(attacks) - set(NEWS):
        parser.error(f"no such attack: {', '.join(sorted(unknown))}; there are {', '.join(NEWS)}")
    parsed.out.mkdir(parents=True, exist_ok=True)
    seeds = list(range(parsed.first_seed, parsed.first_seed + parsed.seeds))
    failed = 0
    if not parsed.report_only:
        if len(seeds) > 1:
            failed = _each_apart(parsed, seeds)
        else:
            _one_seed(parsed, seeds[0], attacks)
            return 0
    text = write_report(parsed.out)
    print(text)
    if parsed.docs is not None:
        write_tables(parsed.docs, text)
    return failed


def _each_apart(parsed: argparse.Namespace, seeds: list[int]) -> int:
    """Run each seed in a process of its own, ``jobs`` at once; return how many failed."""
    waiting, failed = list(seeds), 0
    running: list[subprocess.Popen[bytes]] = []
    environment = {**os.environ, **dict.fromkeys(ONE_THREAD, "1")}
    while waiting or running:
        while waiting and len(running) < parsed.jobs:
            command = [
                sys.executable, "-m", "tests.adaptation", "--seeds", "1",
                "--first-seed", str(waiting.pop(0)), "--attacks", parsed.attacks,
                "--minutes", str(parsed.minutes), "--per-minute", str(parsed.per_minute),
                "--systems", parsed.systems, "--out", str(parsed.out),
            ]  # fmt: skip
            running.append(subprocess.Popen(command, cwd=ROOT, env=environment))
        for process in [p for p in running if p.poll() is not None]:
            running.remove(process)
            failed += process.returncode != 0
        time.sleep(0.5)
    return failed


def _one_seed(parsed: argparse.Namespace, seed: int, attacks: list[str]) -> None:
    scale = Scale(
        per_minute=parsed.per_minute, customers=50 * parsed.per_minute,
        past_rows_a_day=8 * parsed.per_minute, after_minutes=parsed.minutes,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(dir=parsed.out) as scratch:
        began = time.process_time()
        ready = Seed(seed, scale, Path(scratch))
        print(f"seed {seed}: ready after {time.process_time() - began:.0f} s of CPU", flush=True)
        for attack in attacks:
            began = time.process_time()
            found = ready.compare(attack, [name for name in parsed.systems.split(",") if name])
            path = parsed.out / f"{attack}-{seed}.json"
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps(found))
            partial.replace(path)
            print(f"seed {seed}, {attack}: {time.process_time() - began:.0f} s of CPU", flush=True)


if __name__ == "__main__":
    sys.exit(main())
