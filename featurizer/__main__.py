"""The featurizer's commands: the catalogue, and vectors from a history file."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from featurizer.adapters import open_log
from featurizer.arena import Arena
from featurizer.backfill import backfill, read_history
from featurizer.eventlog import LogError
from featurizer.features import FEATURES, SCHEMA_VERSION
from featurizer.hashing import IdHasher
from featurizer.history import OPTIONAL, REQUIRED, History, HistoryError
from featurizer.load import LoggedArena
from featurizer.records import NO_TIME_MS
from featurizer.role import RoleOptions, run
from featurizer.state import DAY_MS
from featurizer.store import StoreError

LABEL_DELAY_DAYS_MAX = 3_650
MEMORY_GIB_MAX = 1_024


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
    pairs: dict[str, str] = {}
    for text in texts:
        ours, _, theirs = text.partition("=")
        if not (ours and theirs):
            raise HistoryError(f"--map wants OURS=THEIRS, not {text}")
        if ours in pairs:
            raise HistoryError(f"--map names {ours} twice")
        pairs[ours] = theirs
    return pairs


def _read(args: argparse.Namespace, console: Console) -> History | None:
    """Read the history and say what is wrong with it; None where that ends the run."""
    if args.out.resolve() == args.history.resolve():
        raise HistoryError("OUT would replace HISTORY")
    delay_ms = None if args.label_delay_days is None else round(args.label_delay_days * DAY_MS)
    with console.status("reading the history"):
        history = read_history(args.history, IdHasher(), _pairs(args.map), delay_ms)
    for problem in history.problems:
        _say(f"line {problem.line}: {problem.column} {problem.why}".replace("  ", " "))
    if history.bad_rows:
        _say(f"{history.bad_rows} rows cannot be used ({len(history.problems)} shown)")
        if args.strict:
            return None
    if not len(history.records):
        raise HistoryError("no row can be used")
    if (history.is_fraud >= 0).any() and (history.label_time_ms == NO_TIME_MS).all():
        _say("labels have no effect: give label_time, or --label-delay-days")
    return history


def _say(text: str) -> None:
    print(text, file=sys.stderr)


@contextlib.contextmanager
def _arena(args: argparse.Namespace) -> Iterator[Arena]:
    """Yield the arena of a backfill, one that writes to the log where a log is given."""
    bytes_max = args.memory_gib << 30
    if args.log is None:
        yield Arena(bytes_max)
        return
    with contextlib.closing(open_log(args.log)) as log:
        arena = LoggedArena(log, args.log_until, bytes_max)
        yield arena
        _say(f"{arena.appended} events → {args.log}")


def _backfill(args: argparse.Namespace) -> int:
    console = Console(stderr=True)
    started = time.perf_counter()
    history = _read(args, console)
    if history is None:
        return 1
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("events", total=None)
        with _arena(args) as arena:
            rows = backfill(
                history, args.out, arena,
                lambda done, total: progress.update(task, completed=done, total=total),
            )  # fmt: skip
    seconds = time.perf_counter() - started
    _say(f"{rows} vectors of {len(FEATURES)} features in {seconds:.1f} s → {args.out}")
    return 0


def _run(args: argparse.Namespace) -> int:
    logging.basicConfig(
        level=args.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    retain_bytes = None if args.retain_gib is None else round(args.retain_gib * (1 << 30))
    return run(RoleOptions(args.log, args.store, retain_bytes, args.retain_days, args.ready_file))


def _days(text: str) -> float:
    days = float(text)
    if not 0 <= days <= LABEL_DELAY_DAYS_MAX:
        raise argparse.ArgumentTypeError(f"must lie between 0 and {LABEL_DELAY_DAYS_MAX}")
    return days


def _time_ms(text: str) -> int:
    time = datetime.fromisoformat(text)
    aware = time if time.tzinfo else time.replace(tzinfo=UTC)
    return round(aware.timestamp() * 1000)


def _gib(text: str) -> int:
    gib = int(text)
    if not 1 <= gib <= MEMORY_GIB_MAX:
        raise argparse.ArgumentTypeError(f"must lie between 1 and {MEMORY_GIB_MAX}")
    return gib


_COLUMNS_HELP = f"""columns:
  required: {", ".join(REQUIRED)}
  optional: {", ".join(OPTIONAL)}
Times are ISO 8601 (UTC where they name no zone) or milliseconds since 1970, amounts minor units.
Rows that cannot be used are reported and left out. Exit status: 1 --strict met such a row, 2 the
input or the options cannot be used."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m featurizer", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    features = commands.add_parser("features", help="print the catalogue of features")
    features.add_argument("--json", action="store_true", help="as JSON")
    features.set_defaults(run=_features)
    fill = commands.add_parser(
        "backfill", help="turn a history file into vectors", epilog=_COLUMNS_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    fill.add_argument("history", type=Path, metavar="HISTORY", help="Parquet, or CSV by its ending")
    fill.add_argument("out", type=Path, metavar="OUT", help="Parquet")
    fill.add_argument(
        "--map", action="append", default=[], metavar="OURS=THEIRS",
        help="the file calls our column OURS by the name THEIRS",
    )  # fmt: skip
    fill.add_argument(
        "--label-delay-days", type=_days, metavar="DAYS",
        help="where there is no label_time: labels become known so long after their event",
    )  # fmt: skip
    fill.add_argument("--strict", action="store_true", help="stop at a row that cannot be used")
    fill.add_argument(
        "--memory-gib", type=_gib, default=8, metavar="GIB", help="bound of the states' memory"
    )
    fill.add_argument("--log", metavar="URL", help="put the events on this log too; it is empty")
    fill.add_argument(
        "--log-until", type=_time_ms, metavar="TIME",
        help="no event from then on, and no label that became known then; ISO 8601",
    )  # fmt: skip
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
    """Run one command; the exit status is 2 where its input or output cannot be used."""
    args = _parser().parse_args()
    try:
        return int(args.run(args))
    except (HistoryError, LogError, StoreError, MemoryError, OSError, ValueError) as error:
        _say(f"error: {error}")
        return 2


if __name__ == "__main__":
    sys.exit(main())
