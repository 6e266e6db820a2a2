"""The command `python -m loadgen capacity`: measure, fit, check, plan.

Owns its arguments and the life of the systems that it starts. Must not know any formula.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from loadgen.capacity import Measured, Rung, Service, Settings, measure, shed_cost
from loadgen.capacity_plan import Assumptions, Target, plan, sensitivity, with_settings
from loadgen.capacity_report import measured_table, plan_tables, rung_table
from loadgen.cores import apart
from loadgen.driver import DriveSettings, Prepared, prepare
from loadgen.rows import table_rows
from loadgen.system import Models, Plan, System, make_models
from loadgen.world import World, WorldSettings

PREPARED = 20_000
# The interpreter's usual 5 ms would make a sender wait that long for a busy receiver.
_SWITCH_INTERVAL_S = 2e-4

Step = Callable[[str], None]


class Screen(Protocol):
    """Where tables and lines go; a rich Console is one."""

    def print(self, *objects: Any) -> None:
        """Show them."""
        ...


def add_capacity(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--target", type=float, default=1_000_000, help="calls a second to plan")
    parser.add_argument("--p99-ms", type=float, default=10.0, help="the objective")
    parser.add_argument("--zones", type=int, default=3, help="of which one may fail; 1 for none")
    parser.add_argument("--address", default="", metavar="HOST:PORT", help="a service that runs")
    parser.add_argument("--workers", default="", metavar="N,N", help="numbers to try; 1 to cores")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each run")
    parser.add_argument("--quick", action="store_true", help="no search, no rungs")
    parser.add_argument(
        "--assume", action="append", default=[], metavar="NAME=NUMBER",
        help="of the plan, such as core_hour=0.05",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--home", type=Path, default=Path("build/drills"), help="keeps models")
    parser.add_argument("--bundle", type=Path, help="a model to use; with --key")
    parser.add_argument("--key", type=Path, help="its private key, KEY.pub beside it")
    parser.add_argument("--json", type=Path, help="write the figures there, - for standard output")
    parser.set_defaults(run=run_capacity)


def run_capacity(args: argparse.Namespace, console: Screen) -> int:
    """Measure, show, and plan; return the exit status."""
    settings = Settings(args.seconds, args.p99_ms, search=not args.quick)
    target = Target(args.target, args.p99_ms, args.zones)
    with_settings(Assumptions(1.0), args.assume)  # before minutes of measuring
    requests = _requests(args.seed)
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    measured, rungs = _measured(args, settings, requests, console.print)
    console.print(measured_table(measured, args.p99_ms))
    if rungs:
        console.print(rung_table(rungs))
    best = max(each.per_core_s for each in measured)
    facts: dict[str, Any] = {
        "cores": os.cpu_count(), "load_1min": os.getloadavg()[0],
        "measured": [each.to_json() for each in measured],
        "rungs": {each.name: each.cpu_s * 1e6 for each in rungs},
    }  # fmt: skip
    if best > 0:
        given = with_settings(Assumptions(best), args.assume)
        made, effects = plan(target, given), sensitivity(target, given)
        console.print(plan_tables(target, given, made, effects))
        console.print(f"what dominates: {effects[0].name}")
        facts |= {"plan": made.to_json(), "dominates": effects[0].name}
        facts["sensitivity"] = {each.name: [each.less, each.more] for each in effects}
    else:
        console.print(f"no rate was within {args.p99_ms:g} ms: there is nothing to plan with")
    _write(args.json, facts)
    return 0 if best > 0 else 1


def _write(path: Path | None, facts: dict[str, Any]) -> None:
    text = json.dumps(facts, indent=2) + "\n"
    if path is not None and str(path) == "-":
        sys.stdout.write(text)
    elif path is not None:
        path.write_text(text)


def _requests(seed: int) -> list[Prepared]:
    world = World(WorldSettings(seed=seed, customers=1_000))
    rows = itertools.chain.from_iterable(table_rows(table) for table in world.days(2))
    return prepare(itertools.islice(rows, PREPARED))


def _worker_counts(text: str, cores: Sequence[int]) -> list[int]:
    counts = [int(each) for each in text.split(",") if each]
    if any(count < 1 for count in counts):
        raise ValueError("--workers takes numbers from 1")
    return counts or list(range(1, max(len(cores), 1) + 1))


def _measured(
    args: argparse.Namespace, settings: Settings, requests: Sequence[Prepared], on_step: Step
) -> tuple[list[Measured], list[Rung]]:
    if args.address:
        count = _worker_counts(args.workers, ())[0]
        service = Service(args.address, count, (), requests)
        return [measure(service, settings, on_step)], []
    with apart() as cores:
        return _measured_here(args, settings, requests, on_step, cores)


def _measured_here(
    args: argparse.Namespace,
    settings: Settings,
    requests: Sequence[Prepared],
    on_step: Step,
    cores: Sequence[int],
) -> tuple[list[Measured], list[Rung]]:
    counts = _worker_counts(args.workers, cores)
    models = _models(args, on_step)
    measured: list[Measured] = []
    rungs: list[Rung] = []
    for count in counts:
        with _started(Plan(workers=count), models, cores) as system:
            service = _service(system, count, requests)
            measured.append(measure(service, settings, on_step))
            if count == counts[0] and not args.quick:
                rungs = [Rung("FULL", measured[0].closed.cpu_s)]
                rungs += filter(None, [shed_cost(service, settings, measured[0])])
    if not args.quick:
        with _started(Plan(), None, cores) as system:
            on_step("without a model: rules alone")
            drive = DriveSettings(closed=settings.in_flight, seconds=settings.seconds, warmup_s=1)
            run = _service(system, 1, requests).run(drive, settings.connections)
            rungs.insert(1, Rung("RULES_ONLY", run.cpu_s))
    return measured, rungs


def _service(system: System, workers: int, requests: Sequence[Prepared]) -> Service:
    return Service(system.address, workers, system.pids(system.scorers()), requests)


def _models(args: argparse.Namespace, on_step: Step) -> Models:
    if args.bundle is not None and args.key is not None:
        return Models((args.bundle,), args.key)
    on_step("models: made once, kept for later runs")
    return make_models(args.home / f"models-{args.seed}", args.seed)


@contextlib.contextmanager
def _started(wanted: Plan, models: Models | None, cores: Sequence[int]) -> Iterator[System]:
    folder = Path(tempfile.mkdtemp(prefix="fraud-capacity-"))
    system = System(folder / "data", wanted, cores=cores)
    try:
        system.prepare(models)
        system.start()
        yield system
    finally:
        system.close()
        shutil.rmtree(folder, ignore_errors=True)
