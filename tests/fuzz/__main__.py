"""`python -m tests.fuzz TARGET|all --seconds 600`: a line a target; exit status 1 for a finding."""

from __future__ import annotations

import argparse
import resource
import sys
import time
import traceback
from pathlib import Path

from tests.fuzz.run import feed
from tests.fuzz.targets import TARGETS

MEMORY_BYTES_MAX = 2 << 30  # beyond what the process has mapped when it begins


def _bound_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_BYTES_MAX
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main() -> int:
    """Feed the targets one after another."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=[*TARGETS, "all"])
    parser.add_argument("--seconds", type=float, default=600.0, help="for each target")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the first batch")
    args = parser.parse_args()
    for target in TARGETS.values():
        target.samples()  # some want more memory than what follows may
    _bound_memory()
    findings = 0
    for name in list(TARGETS) if args.target == "all" else [args.target]:
        try:
            fed = feed(name, args.seconds, args.seed)
        except Exception:  # noqa: BLE001 - whatever it is, it is a finding
            findings += 1
            print(f"{name}: a finding, seed {args.seed}\n{traceback.format_exc()}")
            continue
        print(
            f"{name}: {fed.inputs} inputs, {fed.refused} refused, no finding,"
            f" {fed.grown_bytes >> 20} MiB more, seed {args.seed}",
            flush=True,
        )
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
