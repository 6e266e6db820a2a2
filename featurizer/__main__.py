"""The featurizer's commands: the catalogue, and vectors from a history file."""

from __future__ import annotations

import argparse
import asyncio
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
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from featurizer.adapters import open_log
from featurizer.arena import Arena
from featurizer.backfill import backfill, read_history
from featurizer.cluster import (
    RelayOptions,
    StageOptions,
    create_topics,
    rebuild,
    run_fold,
    run_relay,
    run_split,
)
from featurizer.eventlog import LogError
from featurizer.features import FEATURES, SCHEMA_VERSION
from featurizer.hashing import IdHasher
from featurizer.history import OPTIONAL, REQUIRED, History, HistoryError
from featurizer.id_secret import read_id_secret
from featurizer.kafka_settings import kafka_settings
from featurizer.load import LoggedArena
from featurizer.places import store_place
from featurizer.records import NO_TIME_MS
from featurizer.renames import renames_of
from featurizer.role import RoleOptions, run
from featurizer.state import DAY_MS
from featurizer.store import StoreError
from featurizer.telemetry import telemetry

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


def _read(args: argparse.Namespace, console: Console) -> History | None:
    """Read the history and say what is wrong with it; None where that ends the run."""
    if args.out.resolve() == args.history.resolve():
        raise HistoryError("OUT would replace HISTORY")
    hasher = IdHasher(read_id_secret(args.id_secret))
    delay_ms = None if args.label_delay_days is None else round(args.label_delay_days * DAY_MS)
    with console.status("reading the history"):
        history = read_history(args.history, hasher, renames_of(args.map), delay_ms)
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
    with telemetry("featurizer", os.environ) as told:
        return run(
            RoleOptions(
                args.log, args.store, retain_bytes, args.retain_days, args.ready_file,
                telemetry=told,
            )
        )  # fmt: skip


def _log_to_terminal(args: argparse.Namespace) -> None:
    logging.basicConfig(
        level=args.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("aiokafka").setLevel(logging.ERROR)  # we say what its errors mean


def _topics(args: argparse.Namespace) -> int:
    created = asyncio.run(create_topics(kafka_settings(args.kafka)))
    print("\n".join(f"created {name}" for name in created) or "every topic is there")
    return 0


def _relay(args: argparse.Namespace) -> int:
    _log_to_terminal(args)
    retain_bytes = None if args.retain_gib is None else round(args.retain_gib * (1 << 30))
    with telemetry("relay", os.environ) as told:
        return run_relay(
            RelayOptions(
                kafka_settings(args.kafka), args.log, args.index, args.metrics_file,
                args.ready_file, retain_bytes, args.retain_days, told,
            )
        )  # fmt: skip


def _stage(args: argparse.Namespace) -> int:
    _log_to_terminal(args)
    place = store_place(args.store) if args.stage is run_fold else None
    with telemetry("fold" if args.stage is run_fold else "split", os.environ) as told:
        options = StageOptions(
            kafka_settings(args.kafka), place, args.instance, args.ready_file, told
        )
        return int(args.stage(options))


def _rebuild(args: argparse.Namespace) -> int:
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        tasks: dict[int, TaskID] = {}

        def tell(number: int, done: int, total: int) -> None:
            if number not in tasks:
                tasks[number] = progress.add_task(f"partition {number}", total=total)
            progress.update(tasks[number], completed=done)

        into = None if args.into is None else store_place(args.into)
        found = rebuild(kafka_settings(args.kafka), store_place(args.store), into, tell)
    for number, each in found.items():
        print(
            f"partition {number}: {each.states} states, {each.equal} equal, {each.newer} newer,"
            f" {len(each.different)} different"
        )
    return 1 if any(each.different for each in found.values()) else 0


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
    fill.add_argument(
        "--id-secret", default=os.environ.get("FRAUD_ID_SECRET", ""), metavar="FILE",
        help="with the 16 bytes that ids are hashed with, as the scorer has it (FRAUD_ID_SECRET)",
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
    _add_cluster(commands)
    return parser


def _add_cluster(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the roles of several hosts."""
    topics = commands.add_parser("topics", help="create what is missing of Kafka's topics")
    relay = commands.add_parser("relay", help="ship this host's journal to Kafka")
    split = commands.add_parser("split", help="turn records into updates of entities")
    fold = commands.add_parser("fold", help="fold updates into the states")
    again = commands.add_parser("rebuild", help="make the states again from the log, and compare")
    for each in (topics, relay, split, fold, again):
        each.add_argument(
            "--kafka", default=os.environ.get("FRAUD_KAFKA", "kafka://127.0.0.1:9092/fraud"),
            help="URL of Kafka (FRAUD_KAFKA)",
        )  # fmt: skip
        each.add_argument("--log-level", default=os.environ.get("FRAUD_LOG_LEVEL", "INFO"))
    for each in (fold, again):
        each.add_argument(
            "--store", default=os.environ.get("FRAUD_STORE", "lmdb://data/states"),
            help="URL of the states, with ?partitions=P&inputs=I (FRAUD_STORE)",
        )  # fmt: skip
    for each in (split, fold):
        each.add_argument("--instance", default="", help="static membership: a name of its own")
    for each in (relay, split, fold):
        each.add_argument("--ready-file", type=Path, help="is written once the role is up")
    relay.add_argument("--log", default=os.environ.get("FRAUD_LOG", "file://data/log"))
    relay.add_argument("--index", default=os.environ.get("FRAUD_INDEX", "lmdb://data/index"))
    relay.add_argument("--retain-gib", type=float, help="of what is shipped; the rest always stays")
    relay.add_argument("--retain-days", type=float, help="of what is shipped")
    relay.add_argument("--metrics-file", type=Path, help="for Prometheus' textfile collector")
    again.add_argument("--into", metavar="URL", help="keep the new states there, a local replica")
    topics.set_defaults(run=_topics)
    relay.set_defaults(run=_relay)
    split.set_defaults(run=_stage, stage=run_split)
    fold.set_defaults(run=_stage, stage=run_fold)
    again.set_defaults(run=_rebuild)


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
