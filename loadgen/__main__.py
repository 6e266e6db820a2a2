"""The command line: `python -m loadgen world | drive | replay`.

Owns the arguments and what is printed. Must not know how anything is made or measured.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from loadgen.campaigns import PLANS, Mix
from loadgen.columns import SCHEMA
from loadgen.history import HistoryWriter
from loadgen.world import World, WorldSettings

BAD_ARGUMENT = 2


def _mix(entries: Sequence[str]) -> Mix:
    """Read KIND=WEIGHT[@DAY] entries; without any, the usual mix."""
    weights: dict[str, float] = {}
    first_day: dict[str, int] = {}
    for entry in entries:
        kind, _, value = entry.partition("=")
        weight, _, day = value.partition("@")
        weights[kind] = float(weight)
        if day:
            first_day[kind] = int(day)
    return Mix(weights, first_day) if weights else Mix()


def _settings(args: argparse.Namespace) -> WorldSettings:
    return WorldSettings(
        seed=args.seed,
        start=args.start,
        customers=args.customers,
        rate_per_day=args.rate,
        fraud_rate=args.fraud_rate,
        mix=_mix(args.campaign),
    )


def _run_world(args: argparse.Namespace, console: Console) -> int:
    world = World(_settings(args))
    rows = frauds = 0
    bar = Progress(
        TextColumn("world"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("days"),
        TimeRemainingColumn(),
        console=console,
    )
    with bar, HistoryWriter(args.out, SCHEMA) as history:
        for table in bar.track(world.days(args.days), total=args.days):
            history.write(table)
            rows += len(table)
            frauds += table["is_fraud"].to_numpy().sum()
    console.print(f"{args.out}: {rows} payments, {frauds} fraudulent ({frauds / max(rows, 1):.3%})")
    return 0


def _add_world_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--customers", type=int, default=5_000)
    parser.add_argument(
        "--start", type=datetime.date.fromisoformat, default="2025-01-01", metavar="DATE"
    )
    parser.add_argument(
        "--rate", type=float, default=10_000, metavar="PER_DAY", help="payments a day"
    )
    parser.add_argument("--fraud-rate", type=float, default=0.006, help="share of payments")
    parser.add_argument(
        "--campaign",
        action="append",
        default=[],
        metavar="KIND=WEIGHT[@DAY]",
        help=f"only these kinds, by weight, from that day on; kinds: {', '.join(PLANS)}",
    )


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; each sets ``run``."""
    parser = argparse.ArgumentParser(prog="loadgen", description=__doc__)
    commands = parser.add_subparsers(required=True)
    world = commands.add_parser("world", help="write a history of payments with ground truth")
    world.add_argument("--days", type=int, required=True)
    world.add_argument("--out", type=Path, required=True, help="Parquet, or CSV by its ending")
    _add_world_arguments(world)
    world.set_defaults(run=_run_world)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    args = build_parser().parse_args(argv)
    console = Console(stderr=True)
    try:
        result: int = args.run(args, console)
    except (ValueError, OSError) as error:
        console.print(f"loadgen: {error}", markup=False, highlight=False)
        return BAD_ARGUMENT
    return result


if __name__ == "__main__":
    sys.exit(main())
