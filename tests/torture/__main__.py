"""`python -m tests.torture`: rounds of faults under traffic, each followed by a verdict.

Prints the seed and a line a round; exit status 1 where something is wrong, and then the folder
with all logs is kept. By itself it goes on in namespaces of its own where the machine allows.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from deploy.testing.kafka import jars, kafka_missing
from deploy.testing.redis import redis_missing
from tests.torture import sandbox
from tests.torture.faults import BY_NAME, FAULTS
from tests.torture.rounds import Options, Report, Round, Torture, grounds

MODULE = ("-m", "tests.torture")


def _arguments() -> argparse.Namespace:
    table = "\n".join(f"  {each.name:15} {each.does}; ends: {each.ends}" for each in FAULTS)
    parser = argparse.ArgumentParser(
        prog="python -m tests.torture", description=f"{__doc__}\nfaults:\n{table}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, help="of faults and payments; any by default")
    parser.add_argument("--store", choices=("lmdb", "redis"), default="lmdb")
    parser.add_argument("--rate", type=float, default=40.0, help="requests a second")
    parser.add_argument("--brokers", type=int, default=1)
    parser.add_argument("--faults", default="", help="in this order: NAME[:ROLE],...")
    parser.add_argument("--json", type=Path, help="write the report there")
    parser.add_argument("--folder", type=Path, help="work there, and keep it")
    return parser.parse_args()


def _line(done: Round) -> str:
    exits = sum(done.exits.values())
    return (
        f"{done.number:4} {done.fault:14} {done.target:18} fault {done.fault_s:5.1f} s"
        f"  acknowledged {done.acknowledged:6}  recovered in {done.recovery_s:5.1f} s"
        f"  lost {done.lost} twice {done.twice} different {done.different}"
        f"  (split again {done.repeated}, repeats {done.repeats}, sent again {done.resent},"
        f" exits {exits})" + "".join(f"\n     WRONG: {each}" for each in done.wrong)
    )


def _print_sum(report: Report) -> None:
    recoveries = sorted(each.recovery_s for each in report.rounds)
    print(
        f"{len(report.rounds)} rounds, {report.rounds[-1].acknowledged} acknowledged,"
        f" recovery median {statistics.median(recoveries):.1f} s, longest {recoveries[-1]:.1f} s;"
        f" answers {report.rungs}, refusals {report.statuses}, {report.moved} moved to another"
        f" host, {report.labels} labels; exits nobody ordered {report.rounds[-1].exits}"
    )


def _torture(options: Options, folder: Path) -> Report:
    from tests.conftest import train_tiny  # noqa: PLC0415 - brings the trainer, after the sandbox

    trained = train_tiny(folder)
    with grounds(folder, trained, options) as ground:
        torture = Torture(ground, options)
        for name, why in torture.report.skipped.items():
            print(f"skipped: {name}: {why}")
        return torture.run(lambda done: print(_line(done), flush=True))


def main() -> int:
    """Run the torture; return the exit status."""
    args = _arguments()
    order = tuple(name for name in args.faults.split(",") if name)
    unknown = [name for name in order if name.partition(":")[0] not in BY_NAME]
    missing = kafka_missing() or (args.store == "redis" and redis_missing())
    if unknown or missing:
        print(missing or f"no such fault: {unknown}", file=sys.stderr)
        return 2
    jars()  # Maven wants the network
    why = sandbox.enter([*MODULE, *sys.argv[1:]])
    if why:
        print(f"no sandbox: {why}")
    seed = args.seed if args.seed is not None else random.SystemRandom().getrandbits(31)
    print(f"SEED={seed}", flush=True)
    folder = args.folder or Path(tempfile.mkdtemp(prefix="fraud-torture-"))
    folder.mkdir(parents=True, exist_ok=True)
    options = Options(args.rounds, seed, args.store, args.rate, args.brokers, order)
    begin_s, kept = time.monotonic(), True
    try:
        report = _torture(options, folder)
        kept = not report.passed or args.folder is not None
    finally:
        if kept:
            print(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    _print_sum(report)
    print(f"took {time.monotonic() - begin_s:.0f} s")
    if args.json is not None:
        args.json.write_text(json.dumps(report.as_json(), indent=1) + "\n")
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())
