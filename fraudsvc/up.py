"""All roles on one machine: embedded mode, or one host of several with the stages they share.

Owns which roles there are and where each keeps its files. Must not know what a role does.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from fraudsvc.supervisor import Change, Role, State, Supervisor
from fraudsvc.topology import cpu_flags

_MEMORY = Path("/dev/shm")  # noqa: S108 - in memory, counting waits for no disk  # nosec B108
NICENESS, NICENESS_MAX = 5, 19  # of what answers no call
_STYLES = {State.READY: "green", State.WAITING: "red", State.STOPPED: "dim"}


@dataclass(frozen=True, slots=True)
class UpOptions:
    """Where the data is and how many scorers share the port.

    With ``kafka`` and ``store``, the URLs of a cluster and of shared states, the machine is one of
    several hosts: a relay ships its journal, and ``stages`` splits and as many folds run here.
    ``niceness``, 0 to 19, is how much all but the scorers give way where cores are short: calls
    wait for an answer, and no stage does. Raises ValueError for one of the two URLs alone, or
    another niceness.
    """

    data: Path
    address: str
    workers: int
    pin: bool
    policy: str
    serve_arguments: Sequence[str] = ()
    console: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    kafka: str = ""
    store: str = ""
    stages: int = 1
    niceness: int = NICENESS

    def __post_init__(self) -> None:
        if bool(self.kafka) != bool(self.store):
            raise ValueError("Kafka and shared states come together: --kafka and --store")
        if not 0 <= self.niceness <= NICENESS_MAX:
            raise ValueError(f"niceness must be 0 to {NICENESS_MAX}, not {self.niceness}")

    @property
    def places(self) -> list[str]:
        """The flags that say where log and states are."""
        data = self.data
        if not self.kafka:
            return ["--log", f"file://{data}/log", "--store", f"lmdb://{data}/store"]
        index = ["--index", f"lmdb://{data}/index"]
        return ["--log", f"file://{data}/log", *index, "--store", self.store]

    @property
    def otlp(self) -> str:
        """Where the console takes spans: a socket that has no file, one for each directory."""
        digest = hashlib.sha256(str(self.data.absolute()).encode()).hexdigest()
        return f"unix-abstract:fraudsvc-{digest[:16]}"

    @property
    def counts_in_memory(self) -> bool:
        """Whether the roles' counters are files of ours in memory, to be tidied up."""
        return bool(self.console) and not self.environment.get("FRAUD_METRICS") and _MEMORY.is_dir()

    @property
    def telling(self) -> dict[str, str]:
        """Return the environment by which roles tell the console what they do; none without it."""
        if not self.console:
            return {}
        name = self.otlp.partition(":")[2]
        folder = _MEMORY / name if _MEMORY.is_dir() else self.data / "metrics"
        given = self.environment.get("FRAUD_METRICS", "") or str(folder)
        return {"FRAUD_METRICS": given, "OTEL_EXPORTER_OTLP_ENDPOINT": self.otlp}


def print_change(change: Change) -> None:
    """Show one change of a role's state on a line."""
    state = change.state
    text = f"{change.role:<12} [{_STYLES.get(state, 'yellow')}]{state.value:<9}[/]"
    if change.pid is not None:
        text += f" pid {change.pid}"
    if state is State.WAITING and change.exit_code is not None:
        text += f" ended with status {change.exit_code}, restarts {change.restarts}"
    Console(stderr=True, highlight=False).print(text)


class StatusFile:
    """Keeps a file that says each role's state, pid and restarts, for whoever looks from outside.

    It is replaced as a whole with each change, so a reader never meets half of one. A disk that
    takes no file must not end the roles: then it is old.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._roles: dict[str, dict[str, object]] = {}

    def add(self, change: Change) -> None:
        """Take in one change."""
        self._roles[change.role] = {
            "state": change.state.value, "pid": change.pid, "restarts": change.restarts
        }  # fmt: skip
        partial = self._path.with_suffix(".partial")
        try:
            partial.write_text(json.dumps(self._roles, indent=2) + "\n")
            partial.replace(self._path)
        except OSError as error:
            Console(stderr=True).print(f"{self._path} is old: {error}", markup=False)


def roles(options: UpOptions) -> list[Role]:
    """Return the roles of this machine."""
    found = _shared_stages(options) if options.kafka else [_stage(options, "featurizer", "run")]
    found += _scorers(options)
    if (options.data / "key").exists():  # without the private key nobody can sign what is learnt
        found.append(_trainer(options))
    return [*found, _console(options)] if options.console else found


def _stage(options: UpOptions, name: str, command: str, *more: str) -> Role:
    """Return a role of the featurizer's."""
    ready = options.data / f"{name}.ready"
    places = more or options.places
    argv = [sys.executable, "-m", "featurizer", command, *places, "--ready-file", str(ready)]
    return Role(name, argv, options.telling, ready_file=ready, niceness=options.niceness)


def _shared_stages(options: UpOptions) -> list[Role]:
    """Return what moves records between hosts; a split or a fold keeps its name, so its share."""
    kafka, data = ("--kafka", options.kafka), options.data
    journal = ("--log", f"file://{data}/log", "--index", f"lmdb://{data}/index")
    found = [_stage(options, "relay", "relay", *kafka, *journal)]
    for number in range(options.stages):
        split, fold = f"split-{number}", f"fold-{number}"
        store = ("--store", options.store)
        found += [
            _stage(options, split, "split", *kafka, "--instance", split),
            _stage(options, fold, "fold", *kafka, *store, "--instance", fold),
        ]
    return found


def _scorers(options: UpOptions) -> list[Role]:
    data, found = options.data, []
    for i, cpus in enumerate(cpu_flags(options.workers, options.pin)):
        ready = data / f"serve-{i}.ready"
        argv = [
            sys.executable, "-m", "fraudsvc", "serve", *options.places,
            "--address", options.address, "--policy", options.policy,
            "--bundle", str(data / "bundle"), "--public-key", str(data / "key.pub"),
            "--ready-file", str(ready), "--reflection", *cpus, *options.serve_arguments,
        ]  # fmt: skip
        found.append(Role(f"serve-{i}", argv, options.telling, ready_file=ready))
    return found


def _trainer(options: UpOptions) -> Role:
    data = options.data
    ready = data / "trainer.ready"
    argv = [
        sys.executable, "-m", "trainer", "run", "--log", f"file://{data}/log",
        "--bundle", str(data / "bundle"), "--key", str(data / "key"),
        "--public-key", str(data / "key.pub"), "--ready-file", str(ready),
    ]  # fmt: skip
    return Role("trainer", argv, options.telling, ready_file=ready, niceness=options.niceness)


def _console(options: UpOptions) -> Role:
    """Return the console. A collector that the environment names is its own: it passes on to it."""
    data, ready = options.data, options.data / "console.ready"
    argv = [
        sys.executable, "-m", "fraudsvc", "console", *options.places,
        "--read-model", f"sqlite:///{data}/readmodel.sqlite", "--http", options.console,
        "--otlp", options.otlp, "--ready-file", str(ready), "--data", str(data),
        "--scorer", options.address, "--policy", options.policy,
    ]  # fmt: skip
    folder = {"FRAUD_METRICS": options.telling["FRAUD_METRICS"]}
    return Role("console", argv, folder, ready_file=ready, niceness=options.niceness)


def up(options: UpOptions) -> int:
    """Run all roles until SIGTERM or SIGINT; a role that dies is started again."""
    options.data.mkdir(parents=True, exist_ok=True)
    if options.workers > 1 and options.address.endswith(":0"):
        raise ValueError("several workers share one port: --address needs its number")
    status = StatusFile(options.data / "roles.json")

    def on_change(change: Change) -> None:
        status.add(change)
        print_change(change)

    drained = Supervisor(roles(options), on_change).run()
    if options.counts_in_memory:  # a reader expects resets, and what was counted has been told
        shutil.rmtree(options.telling["FRAUD_METRICS"], ignore_errors=True)
    return 0 if drained else 1
