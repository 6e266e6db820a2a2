"""The featurizer's commands: the catalogue, and vectors from a history file."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from featurizer.arena import Arena
from featurizer.backfill import backfill, order_events
from featurizer.eventlog import LogError
from featurizer.features import FEATURES, SCHEMA_VERSION
from featurizer.hashing import IdHasher
from featurizer.history import HistoryError, read_history
from featurizer.role import RoleOptions, run
from featurizer.store import StoreError

DAY_MS = 86_400_000


def _features(args: argparse.Namespace) -> int:
    fields = ("name", "family", "entity", "window", "unit", "default", "meaning")
    if args.json:
        print(json.dumps([{f: getattr(row, f) for f in fields} for row in FEATURES], indent=1))
        return 0
    table = Table(title=f"{len(FEATURES)} features, schema {SCHEMA_VERSION}")
    for name in fields:
        table.add_column(name, no_wrap=name == "name", overflow="fold")
    for row in FEATURES:
        table.add_row(*(getattr(row, f) for f in fields))
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    return 0


def _pairs(texts: list[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    for ours, separator, theirs in pairs:
        if not (ours and separator and theirs):
            raise HistoryError(f"--map wants ours=theirs, not {ours}{separator}{theirs}")
    return {ours: theirs for ours, _, theirs in pairs}


def _backfill(args: argparse.Namespace) -> int:
    console = Console(stderr=True)
    delay = None if args.label_delay_days is None else round(args.label_delay_days * DAY_MS)
    started = time.perf_counter()
    with console.status(f"reading {args.history}"):
        history = read_history(args.history, IdHasher(), _pairs(args.map), delay)
    for problem in history.problems:
        console.print(f"line {problem.line}: {problem.column} {problem.why}", style="yellow")
    if history.bad_rows:
        console.print(f"{history.bad_rows} rows cannot be used", style="yellow")
        if args.strict:
            return 1
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("events", total=len(order_events(history)))
        arena = Arena(args.memory_gib << 30)
        rows = backfill(history, args.out, arena, lambda n: progress.advance(task, n))
    seconds = time.perf_counter() - started
    console.print(f"{rows} vectors of {len(FEATURES)} features in {seconds:.1f} s → {args.out}")
    return 0


def _run(args: argparse.Namespace) -> int:
    logging.basicConfig(
        level=args.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    retain_bytes = None if args.retain_gib is None else round(args.retain_gib * (1 << 30))
    return run(RoleOptions(args.log, args.store, retain_bytes, args.retain_days, args.ready_file))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m featurizer", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    features = commands.add_parser("features", help="print the catalogue of features")
    features.add_argument("--json", action="store_true")
    features.set_defaults(run=_features)
    fill = commands.add_parser("backfill", help="turn a history file into vectors")
    fill.add_argument("history", type=Path, metavar="HISTORY", help="Parquet or CSV")
    fill.add_argument("out", type=Path, metavar="OUT", help="Parquet")
    fill.add_argument("--map", action="append", default=[], metavar="OURS=THEIRS", help="rename")
    fill.add_argument(
        "--label-delay-days", type=float, help="labels become known so long after their event"
    )
    fill.add_argument("--strict", action="store_true", help="stop at a row that cannot be used")
    fill.add_argument("--memory-gib", type=int, default=8, help="bound of the states' memory")
    fill.set_defaults(run=_backfill)
    role = commands.add_parser("run", help="follow the log and keep the store")
    role.add_argument("--log", default=os.environ.get("FRAUD_LOG", "file://data/log"))
    role.add_argument("--store", default=os.environ.get("FRAUD_STORE", "lmdb://data/store"))
    role.add_argument("--retain-gib", type=float, help="of the log; older segments are dropped")
    role.add_argument("--retain-days", type=float, help="of the log; older segments are dropped")
    role.add_argument("--ready-file", type=Path, help="is written once the store is up to date")
    role.add_argument("--log-level", default=os.environ.get("FRAUD_LOG_LEVEL", "INFO"))
    role.set_defaults(run=_run)
    return parser


def main() -> int:
    """Run one command; the exit status is 2 where its input cannot be used."""
    args = _parser().parse_args()
    try:
        return int(args.run(args))
    except (HistoryError, LogError, StoreError, MemoryError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
