"""The command `python -m loadgen drill`: which drills, against what, and where results go.

Owns the life of the systems that drills want: drills of one plan share one. Must not know what a
drill does.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loadgen.cores import apart
from loadgen.drill_run import DrillRun, Progress, Result, RunSettings, calibrate
from loadgen.drills import DRILLS, Drill, Mode
from loadgen.driver import Prepared, prepare
from loadgen.objectives import Objective, load_objectives
from loadgen.rows import read_rows, table_rows
from loadgen.servers import Servers
from loadgen.system import (
    START_S,
    Models,
    Plan,
    RoleError,
    System,
    UnfitError,
    make_models,
    wait_for,
)
from loadgen.world import World, WorldSettings

PREPARED = 20_000


@dataclass(frozen=True, slots=True)
class DrillOptions:
    """What to run and against what.

    ``modes`` are run one after another; a drill that has no such mode is left out of it. With
    ``target`` the system is somebody else's: nothing is started, and faults need ``data``,
    its data folder on this machine. ``home`` keeps models and runs between commands; ``models`` are
    used instead of its own.
    """

    names: tuple[str, ...]
    home: Path
    run: RunSettings = field(default_factory=RunSettings)
    modes: tuple[Mode, ...] = ("embedded",)
    target: str = ""
    data: Path | None = None
    models: Models | None = None


def chosen(names: str) -> tuple[str, ...]:
    """Return the drills of some names with commas between, or of `all`; ValueError for others."""
    if names == "all":
        return tuple(DRILLS)
    wanted = tuple(name.strip() for name in names.split(","))
    for name in wanted:
        if name not in DRILLS:
            raise ValueError(f"no drill {name}: there are {', '.join(DRILLS)}")
    return wanted


class Session:
    """Runs drills one after another; ``results`` yields each as soon as it is there."""

    def __init__(
        self,
        options: DrillOptions,
        on_progress: Callable[[Progress], None],
        on_step: Callable[[str], None],
    ) -> None:
        self._options = options
        self._on_progress, self._on_step = on_progress, on_step
        self._objectives: dict[str, Objective] = load_objectives()
        self._requests: Sequence[Prepared] = ()

    def results(self) -> Iterator[Result]:
        """Run the drills, those of one plan together. Raises RoleError where nothing starts."""
        options = self._options
        world = World(WorldSettings(seed=options.run.seed, customers=1_000))
        rows = itertools.chain.from_iterable(table_rows(table) for table in world.days(2))
        self._requests = prepare(itertools.islice(rows, PREPARED))
        drills = [DRILLS[name] for name in options.names]
        if options.target:
            yield from self._against(System(options.data, address=options.target), drills)
            return
        models = self._models()
        for mode in options.modes:
            fit = [drill for drill in drills if mode in drill.modes]
            with _folder() as folder, self._servers(mode, folder / "servers") as servers:
                for plan in dict.fromkeys(drill.plan for drill in fit):
                    of_plan = [drill for drill in fit if drill.plan == plan]
                    with apart() as cores:
                        yield from self._started(plan, models, servers, of_plan, cores)

    def _models(self) -> Models:
        options = self._options
        if options.models is not None:
            return options.models
        self._on_step("models: made once, kept for later runs")
        return make_models(options.home / f"models-{options.run.seed}", options.run.seed)

    @contextlib.contextmanager
    def _servers(self, mode: Mode, folder: Path) -> Iterator[Servers | None]:
        if mode == "embedded":
            yield None
            return
        self._on_step("starting Kafka and Redis")
        servers = Servers(folder)
        try:
            servers.start()
            wait_for(lambda: servers.ready() or bool(servers.ended), "Kafka and Redis", START_S)
            if servers.ended:
                raise RoleError(f"no Kafka and Redis: {servers.ended}")
            yield servers
        finally:
            servers.stop()

    def _started(
        self,
        plan: Plan,
        models: Models,
        servers: Servers | None,
        drills: Sequence[Drill],
        cores: Sequence[int],
    ) -> Iterator[Result]:
        with _folder() as folder:
            system = System(folder / "data", plan, servers=servers, cores=cores)
            try:
                self._on_step(f"starting {plan}")
                try:
                    system.prepare(models)
                    system.start()
                except UnfitError as error:
                    yield from (_skipped(drill, system, error) for drill in drills)
                    return
                yield from self._against(system, drills)
            finally:
                system.close()

    def _against(self, system: System, drills: Sequence[Drill]) -> Iterator[Result]:
        run = self._options.run
        self._on_step("calibrating")
        requests = self._requests
        first = requests
        if system.live is not None:  # each once, in their order
            requests = prepare(
                read_rows(system.live.history, {}, None, system.live.span), keep_times=True
            )
            quarter = len(requests) // 4
            first, requests = requests[:quarter], requests[quarter:]
        capacity = calibrate(system, first, run.calibrate_s)
        self._on_step(f"capacity {capacity:,.0f} calls a second")
        for drill in drills:
            try:
                made = DrillRun(drill, system, requests, capacity, run)
                yield made.run(self._objectives, self._on_progress)
            except UnfitError as error:
                yield _skipped(drill, system, error)
            except RoleError as error:
                raise RoleError(f"{drill.name}: {error}") from None


def _skipped(drill: Drill, system: System, why: UnfitError) -> Result:
    return Result(drill, system.mode, 0.0, {}, [], [], skipped=str(why))


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="fraud-drill-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
