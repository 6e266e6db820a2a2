"""The command line: `python -m loadgen world | drive | replay | drill | capacity`.

Owns the arguments and what is printed. Must not know how anything is made or measured.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import gc
import itertools
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from loadgen.campaigns import PLANS, Mix
from loadgen.capacity import CapacityError
from loadgen.capacity_command import add_capacity
from loadgen.client import SCORE, TargetUnreachableError, connect
from loadgen.columns import SCHEMA
from loadgen.drill_command import DrillOptions, Session, chosen
from loadgen.drill_page import page
from loadgen.drill_run import Progress as DrillProgress
from loadgen.drill_run import Result, RunSettings
from loadgen.drill_runs import add_runs, last_run
from loadgen.drills import DRILLS, MODES, STRETCH
from loadgen.drills_report import list_table, live, markdown, result_view, summary_table
from loadgen.driver import Driver, DriveSettings, Prepared, prepare
from loadgen.history import HistoryWriter
from loadgen.in_flight import InFlight, Target
from loadgen.replay import Replayer, ReplaySettings
from loadgen.report import AnswerWriter, problem_lines, summary
from loadgen.rows import DAY_MS, HistoryRow, Span, read_rows, table_rows, to_ms
from loadgen.system import Models, RoleError
from loadgen.tally import Snapshot
from loadgen.world import World, WorldSettings

FAILED = 1
BAD_ARGUMENT = 2
_PREPARED_MAX = 100_000
# The interpreter's usual 5 ms would make a sender wait that long for a busy receiver.
_SWITCH_INTERVAL_S = 2e-4


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


def _run_world(args: argparse.Namespace, console: Console) -> int:
    if args.days < 1:
        raise ValueError("--days must be at least 1")
    settings = WorldSettings(
        seed=args.seed,
        start=args.start,
        customers=args.customers,
        rate_per_day=args.rate,
        fraud_rate=args.fraud_rate,
        mix=_mix(args.campaign),
    )
    bar = Progress(
        TextColumn("world"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("days"),
        TimeRemainingColumn(),
        console=console,
    )
    rows = frauds = 0
    with bar, HistoryWriter(args.out, SCHEMA) as history:
        for table in bar.track(World(settings).days(args.days), total=args.days):
            history.write(table)
            rows += len(table)
            frauds += int(table["is_fraud"].to_numpy().sum())
    console.print(f"{args.out}: {rows:,} payments, {frauds:,} of them fraud, seed {args.seed}")
    return 0


def _requests(args: argparse.Namespace) -> list[Prepared]:
    if args.history is not None:
        rows = read_rows(args.history, {})
    else:
        world = World(WorldSettings(seed=args.seed, customers=args.customers))
        rows = itertools.chain.from_iterable(table_rows(table) for table in world.days(3))
    return prepare(itertools.islice(rows, _PREPARED_MAX))


def _print_json(snapshots: Iterator[Snapshot]) -> Snapshot | None:
    """Print each snapshot as a line of JSON and return the last."""
    last = None
    for last in snapshots:
        print(json.dumps(last.to_json()), flush=True)
    return last


def _show(
    snapshots: Iterator[Snapshot], console: Console, *, as_json: bool = False
) -> Snapshot | None:
    """Show each snapshot in place, or as a line of JSON, and return the last."""
    if as_json:
        return _print_json(snapshots)
    last = None
    with Live(console=console, auto_refresh=False) as live:
        for last in snapshots:
            live.update(summary(last), refresh=True)
    return last


def _write_json(path: Path | None, figures: dict[str, object]) -> None:
    if path is not None:
        text = json.dumps(figures, indent=2) + "\n"
        if str(path) == "-":
            print(text, end="")
        else:
            path.write_text(text)


def _run_drive(args: argparse.Namespace, console: Console) -> int:
    settings = DriveSettings(
        rate_per_s=args.rate,
        seconds=args.seconds,
        warmup_s=args.warmup,
        arrivals=args.arrivals,
        closed=args.closed,
        in_flight_max=args.in_flight_max,
        seed=args.seed,
    )
    target = Target(args.target, args.connections, args.connect_timeout, args.deadline)
    with InFlight(target, SCORE) as calls:
        requests = _requests(args)
        gc.collect()
        gc.freeze()
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        snapshots = Driver(calls, requests, settings).run()
        last = _show(snapshots, console, as_json=args.progress_json)
    if last is not None:
        _write_json(args.json, last.to_json())
    return 0


def _speed(text: str) -> float | None:
    return None if text == "max" else float(text)


def _renamed(entries: Sequence[str]) -> dict[str, str]:
    pairs = [entry.partition("=") for entry in entries]
    if not all(new and old for new, _, old in pairs):
        raise ValueError("--map takes new=old")
    return {new: old for new, _, old in pairs}


def _shift_ms(args: argparse.Namespace, renamed: dict[str, str], span: Span) -> int:
    """Return what moves the last row that will be sent to this moment; 0 if nothing should."""
    if not args.shift_to_now:
        return 0
    rows = read_rows(args.history, renamed, None, span)
    last = max((row.event_ms for row in rows if isinstance(row, HistoryRow)), default=None)
    return 0 if last is None else time.time_ns() // 1_000_000 - last


def _run_replay(args: argparse.Namespace, console: Console) -> int:
    renamed = _renamed(args.map)
    delay = None if args.label_delay_days is None else round(args.label_delay_days * DAY_MS)
    span = Span(args.from_, args.until)
    # The labels of earlier rows can only be known by reading those rows.
    read = Span(None, args.until) if args.earlier_labels else span
    rows = read_rows(args.history, renamed, delay, read)
    settings = ReplaySettings(
        from_ms=args.from_,
        speed=args.speed,
        shift_ms=_shift_ms(args, renamed, span),
        labels=args.labels or args.earlier_labels,
        earlier_labels=args.earlier_labels,
        in_flight=args.in_flight,
        deadline_s=args.deadline,
    )
    with contextlib.ExitStack() as stack:
        (channel,) = stack.enter_context(connect(args.target, 1, args.connect_timeout))
        answers = stack.enter_context(AnswerWriter(args.out)) if args.out else None
        replayer = Replayer(channel, settings, answers.add if answers else None)
        last = _show(replayer.run(rows), console, as_json=args.progress_json)
    for line in problem_lines(replayer.problems, replayer.problem_count):
        console.print(line, markup=False, highlight=False)
    labels = {"statuses": dict(replayer.label_statuses), "left": replayer.labels_left}
    if args.labels:
        console.print(f"labels: {labels}", markup=False)
    if last is not None:
        problems = {"problems": replayer.problem_count, "labels": labels}
        _write_json(args.json, last.to_json() | problems)
    return FAILED if replayer.problem_count else 0


@contextlib.contextmanager
def _ended_by_exit() -> Iterator[None]:
    """Let SIGTERM end the block by an exception, so that what it started is stopped too."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run_drill(args: argparse.Namespace, console: Console) -> int:
    if args.name == "list":
        Console().print(list_table(DRILLS.values()))
        return 0
    settings = RunSettings(1.0 if args.quick else STRETCH, args.seed)
    options = DrillOptions(
        chosen(args.name), args.home, settings,
        MODES if args.mode == "both" else (args.mode,), args.target or "", args.data,
        Models(tuple(args.bundle), args.key) if args.bundle and args.key else None,
    )  # fmt: skip
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    kept = args.home / "runs.jsonl"
    now_s = time.time_ns() // 1_000_000_000
    time_text = datetime.datetime.fromtimestamp(now_s, datetime.UTC).isoformat()
    results: list[Result] = []
    with _ended_by_exit(), Live(console=console, auto_refresh=False, transient=True) as shown:

        def on_progress(progress: DrillProgress) -> None:
            if console.is_terminal:
                shown.update(live(progress), refresh=True)

        for result in Session(options, on_progress, console.print).results():
            found = _drill_facts(result, time_text, args)
            console.print(result_view(result, last_run(kept, found)))
            results.append(result)
            add_runs(kept, [found])
    console.print(summary_table(results))
    return _report_drills(results, time_text, args)


def _drill_facts(result: Result, time_text: str, args: argparse.Namespace) -> dict[str, object]:
    return result.to_json() | {"time": time_text, "quick": args.quick, "seed": args.seed}


def _report_drills(results: Sequence[Result], time_text: str, args: argparse.Namespace) -> int:
    """Write what was asked for; return the exit status."""
    command = shlex.join(["python", "-m", "loadgen", *sys.argv[1:]])
    passed = all(result.passed for result in results)
    facts = {"command": command, "seed": str(args.seed), "time": time_text,
             "cores": str(os.cpu_count())}  # fmt: skip
    runs = [_drill_facts(result, time_text, args) for result in results]
    _write_json(args.json, {**facts, "passed": passed, "drills": runs})
    for report in args.report:
        write = markdown if report.suffix == ".md" else page
        report.write_text(write(results, facts))
    return 0 if passed else FAILED


def _add_world(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--days", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True, help="Parquet, or CSV by its ending")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--customers", type=int, default=5_000)
    parser.add_argument(
        "--start", type=datetime.date.fromisoformat, default="2025-01-01", metavar="DATE"
    )
    parser.add_argument("--rate", type=float, default=10_000, metavar="PER_DAY")
    parser.add_argument("--fraud-rate", type=float, default=0.006, help="share of payments")
    parser.add_argument(
        "--campaign",
        action="append",
        default=[],
        metavar="KIND=WEIGHT[@DAY]",
        help=f"only these kinds, by weight, from that day on; kinds: {', '.join(PLANS)}",
    )
    parser.set_defaults(run=_run_world)


def _add_connection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", required=True, metavar="HOST:PORT")
    parser.add_argument("--connect-timeout", type=float, default=5.0, metavar="SECONDS")
    parser.add_argument("--deadline", type=float, default=5.0, metavar="SECONDS", help="of a call")
    parser.add_argument("--json", type=Path, help="write the figures there, - for standard output")
    parser.add_argument(
        "--progress-json", action="store_true", help="print the figures each second as JSON"
    )


def _add_drive(parser: argparse.ArgumentParser) -> None:
    _add_connection(parser)
    parser.add_argument("--rate", type=float, default=1_000, metavar="PER_SECOND")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--warmup", type=float, default=0, metavar="SECONDS", help="not counted")
    parser.add_argument("--arrivals", choices=["poisson", "constant"], default="poisson")
    parser.add_argument("--closed", type=int, default=0, metavar="N", help="N in flight, no rate")
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--in-flight-max", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--customers", type=int, default=5_000, help="of the world that is sent")
    parser.add_argument("--history", type=Path, help="send these rows instead of a world's")
    parser.set_defaults(run=_run_drive)


def _add_replay(parser: argparse.ArgumentParser) -> None:
    _add_connection(parser)
    parser.add_argument("history", type=Path, help="Parquet, or CSV by its ending")
    parser.add_argument("--from", dest="from_", type=to_ms, metavar="TIME", help="ISO 8601, UTC")
    parser.add_argument("--until", type=to_ms, metavar="TIME", help="exclusive")
    parser.add_argument("--speed", type=_speed, default="max", metavar="X|max")
    parser.add_argument("--labels", action="store_true", help="report labels when they are known")
    parser.add_argument(
        "--earlier-labels", action="store_true",
        help="--labels, and those of rows before --from that become known after it",
    )  # fmt: skip
    parser.add_argument("--label-delay-days", type=float, help="where there is no label_time")
    parser.add_argument("--map", action="append", default=[], metavar="NEW=OLD")
    parser.add_argument("--in-flight", type=int, default=1)
    parser.add_argument("--shift-to-now", action="store_true", help="the last row happens now")
    parser.add_argument("--out", type=Path, help="write the answers as Parquet")
    parser.set_defaults(run=_run_replay)


def _add_drill(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", metavar="NAME", help="of a drill, or several with commas between; or all, or list"
    )
    parser.add_argument("--quick", action="store_true", help="a sixth of the time")
    parser.add_argument(
        "--mode", choices=(*MODES, "both"), default="embedded", help="what is started"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the results there, - for standard output")
    parser.add_argument(
        "--report", type=Path, action="append", default=[], metavar="FILE",
        help="write a page with plots there, or a table where its name ends in .md",
    )  # fmt: skip
    parser.add_argument("--target", metavar="HOST:PORT", help="a service that runs; start none")
    parser.add_argument("--data", type=Path, help="its data folder, for faults of its roles")
    parser.add_argument(
        "--home", type=Path, default=Path("build/drills"), help="keeps models and earlier runs"
    )
    parser.add_argument(
        "--bundle", type=Path, action="append", default=[], help="a model to use, twice; with --key"
    )
    parser.add_argument("--key", type=Path, help="private key of the bundles, KEY.pub beside it")
    parser.set_defaults(run=_run_drill)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; each sets ``run``."""
    parser = argparse.ArgumentParser(prog="loadgen", description="A world to score, and a driver.")
    commands = parser.add_subparsers(required=True)
    _add_world(commands.add_parser("world", help="write a history with ground truth"))
    _add_drive(commands.add_parser("drive", help="load on a scorer, and its latency"))
    _add_drill(commands.add_parser("drill", help="load, a fault, and a verdict per objective"))
    add_capacity(commands.add_parser("capacity", help="what this machine can do, and a plan"))
    _add_replay(commands.add_parser("replay", help="send a history in its own order"))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 1 for rows refused, 2 for what cannot be done."""
    args = build_parser().parse_args(argv)
    console = Console(stderr=True)
    try:
        code: int = args.run(args, console)
    except (ValueError, OSError, TargetUnreachableError, RoleError, CapacityError) as error:
        print(f"loadgen: {error}", file=sys.stderr)
        return BAD_ARGUMENT
    return code


if __name__ == "__main__":
    sys.exit(main())
