"""The system under drill: every role of a machine as processes, by their public commands.

Owns the roles that a drill starts, where their files are, and how a role's pid is known
(`roles.json`, which `fraudsvc up` keeps). Must not know what is done to them, nor why.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import grpc
import pyarrow.compute as pc
import pyarrow.parquet as pq

from loadgen.certificates import COMMAND, SERVERS, Certificates
from loadgen.client import Identity, connect
from loadgen.clock import Clock, ClockError
from loadgen.cores import kept_to
from loadgen.in_flight import Target
from loadgen.processes import end_process
from loadgen.rows import Span
from loadgen.servers import Servers

START_S: Final = 300.0  # the first start on a machine compiles every kernel
CONNECT_S: Final = 30.0
LIVE_DAYS: Final = 10
MODELS: Final = 6  # one more than a scorer keeps in memory, so that each swap loads one
STAGES: Final = 2  # splits and folds, so that another can take over
_POLL_S = 0.05


class RoleError(RuntimeError):
    """A role did not start, or did not come back."""


class UnfitError(RuntimeError):
    """A drill cannot be run here; the text says why."""


@dataclass(frozen=True, slots=True)
class Models:
    """Signed bundles that differ, and the keys; the private one lets the trainer run.

    ``foreign`` is one of another feature schema, signed by the same key, and ``history`` the
    payments that they were learnt from, where there are such.
    """

    bundles: tuple[Path, ...]
    key: Path
    foreign: Path | None = None
    history: Path | None = None

    @property
    def public_key(self) -> Path:
        """The key that the bundles are verified with."""
        return self.key.with_name(f"{self.key.name}.pub")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a drill wants started: scorers on one port, the trainer, a log on a disk of so much.

    With ``tls`` callers come by mutual TLS; with ``clock`` the roles' time of day can be stepped.
    With ``lifelike`` the log begins with a history, and the load is what follows, in its own time:
    entities that pay as they would, and not hundreds of times as often.
    """

    workers: int = 1
    trainer: bool = False
    log_disk_mib: int = 0
    tls: bool = False
    clock: bool = False
    lifelike: bool = False


class Live(NamedTuple):
    """The part of a history that is sent."""

    history: Path
    span: Span


def free_port() -> int:
    """Return a port that nothing listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(condition: Callable[[], bool], what: str, seconds: float) -> None:
    """Return once the condition holds. Raises RoleError after so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise RoleError(f"waited {seconds:g} s for {what}")
        time.sleep(_POLL_S)


@dataclass
class System:
    """`fraudsvc up` in a folder. With ``address`` given it is somebody else's, and is left alone.

    ``data`` of a foreign system may be None: then nothing can be done to its processes. ``models``
    and ``foreign``, a bundle of another feature schema, are places in it. With ``servers``, which
    run already, it is one host of several: Kafka's topics and the states begin with the name of
    the folder that holds ``data``. Its roles are kept to ``cores``, where there are any.
    """

    data: Path | None
    plan: Plan = field(default_factory=Plan)
    address: str = ""
    servers: Servers | None = None
    certificates: Certificates | None = None
    clock: Clock | None = None
    live: Live | None = None
    models: list[Path] = field(default_factory=list)
    foreign: Path | None = None
    cores: Sequence[int] = ()
    _process: subprocess.Popen[bytes] | None = None

    @property
    def owned(self) -> bool:
        """Whether it was started here."""
        return self._process is not None

    @property
    def mode(self) -> str:
        """What it is: a mode of a drill's, or "target" where it is somebody else's."""
        if not self.owned:
            return "target"
        return "embedded" if self.servers is None else "kafka"

    @property
    def folder(self) -> Path:
        """The data folder. Raises UnfitError where it is not known."""
        if self.data is None:
            raise UnfitError("the target's data folder is not known: --data")
        return self.data

    def prepare(self, models: Models | None) -> None:
        """Make the data folder."""
        folder = self.folder
        folder.mkdir(parents=True)
        if self.plan.log_disk_mib:
            mount_small_disk(folder / "log", self.plan.log_disk_mib)
        if self.plan.tls:
            self.certificates = Certificates(folder.parent / "tls")
            _run(COMMAND, str(self.certificates.folder), "--servers", str(SERVERS))
            self.certificates.begin()
        if self.plan.clock:
            self.clock = make_clock(folder.parent / "clock")
        if self.plan.lifelike:
            self.live = self._begin_log(models.history if models is not None else None)
        if models is not None:
            shutil.copy(models.public_key, folder / "key.pub")
            if self.plan.trainer:
                shutil.copy(models.key, folder / "key")
            self.models = [self._shelve(bundle) for bundle in models.bundles]
            self.foreign = self._shelve(models.foreign) if models.foreign is not None else None
            (folder / "bundle").symlink_to(self.models[0])

    def _begin_log(self, history: Path | None) -> Live:
        """Put a history on the log but for its last days. Raises UnfitError where there is none."""
        if history is None:
            raise UnfitError("there is no history that could be gone on with")
        last = pc.max(pq.read_table(history, columns=["event_time"])["event_time"]).as_py()
        first = last - datetime.timedelta(days=LIVE_DAYS)
        _run("featurizer", "backfill", str(history), str(self.folder.parent / "vectors.parquet"),
             "--log", f"file://{self.folder}/log", "--log-until", first.isoformat())  # fmt: skip
        return Live(history, Span(round(first.timestamp() * 1000), None))

    def _shelve(self, bundle: Path) -> Path:
        """Put a bundle where the trainer would; return its place, relative to the data folder."""
        version = json.loads((bundle / "manifest.json").read_bytes())["bundle_id"]
        place = Path("models", version)
        shutil.copytree(bundle, self.folder / place, dirs_exist_ok=True)
        return place

    def start(self) -> None:
        """Start every role and wait until each is ready. Raises RoleError."""
        self.address = self.address or f"127.0.0.1:{free_port()}"
        (self.folder / "roles.json").unlink(missing_ok=True)
        command = [
            *kept_to(self.cores),
            *(self.clock.command if self.clock is not None else ()),
            sys.executable, "-m", "fraudsvc", "up", "--data", str(self.folder),
            "--address", self.address, "--workers", str(self.plan.workers),
            "--console", f"127.0.0.1:{free_port()}", *self._shared(),
            *(self.certificates.arguments if self.certificates is not None else ()),
            *(("--max-age-days", "0") if self.live is not None else ()),
        ]  # fmt: skip
        with self._output.open("ab") as output:
            self._process = subprocess.Popen(
                command, stdout=output, stderr=output, stdin=subprocess.DEVNULL
            )
        wait_for(self.all_ready, "the roles to start", START_S)

    @contextlib.contextmanager
    def connect(self, connections: int) -> Iterator[list[grpc.Channel]]:
        """Open connections as its callers do; what it raises is as of `client.connect`."""
        with connect(self.address, connections, CONNECT_S, identity=self._identity) as channels:
            yield channels

    def target(self, *, retry: bool = False) -> Target:
        """Return how its callers call it."""
        return Target(self.address, connect_s=CONNECT_S, retry=retry, identity=self._identity)

    @property
    def _identity(self) -> Identity | None:
        return self.certificates.caller if self.certificates is not None else None

    def said(self) -> str:
        """Return what the roles have printed. Raises UnfitError where that is not known."""
        if not self.owned:
            raise UnfitError("what the roles say is not known here")
        return self._output.read_text(errors="replace")

    @property
    def _output(self) -> Path:
        return self.folder.parent / f"{self.folder.name}.out"

    def _shared(self) -> list[str]:
        """Make the topics where there are servers; return the flags that say where those are."""
        if self.servers is None:
            return []
        kafka, store = self._urls()
        _run("featurizer", "topics", "--kafka", kafka)
        return ["--kafka", kafka, "--store", store, "--stages", str(STAGES)]

    def _urls(self) -> tuple[str, str]:
        if self.servers is None:
            raise UnfitError("the states are not shared, or where they are is not known")
        prefix = self.folder.parent.name
        return self.servers.kafka_url(prefix), self.servers.store_url(prefix)

    def compare_states(self) -> str:
        """Return what `featurizer rebuild` says of the states. Raises RoleError where it fails."""
        kafka, store = self._urls()
        return _run("featurizer", "rebuild", "--kafka", kafka, "--store", store, statuses=(0, 1))

    def replay(self) -> dict[str, Any]:
        """Return what `fraudsvc replay` says of all decisions. Raises RoleError where it fails."""
        log = () if self.servers is None else ("--log", self._urls()[0])
        said = _run(
            "fraudsvc", "replay", "--data", str(self.folder), *log, "--json", statuses=(0, 1)
        )
        found: dict[str, Any] = json.loads(said)
        return found

    def stop(self) -> None:
        """Stop what was started here."""
        if self._process is None:
            return
        end_process(self._process, self.pids(self._own_roles()))
        self._process = None

    def close(self) -> None:
        """Stop, and give a small disk back."""
        self.stop()
        if self.plan.log_disk_mib and self.data is not None:
            _tool("umount", "--lazy", str(self.data / "log"))

    def roles(self) -> dict[str, dict[str, Any]]:
        """Return what is said of each role, and of each server; nothing before anything is."""
        return self._own_roles() | (self.servers.roles() if self.servers is not None else {})

    def _own_roles(self) -> dict[str, dict[str, Any]]:
        try:
            found: dict[str, dict[str, Any]] = json.loads((self.folder / "roles.json").read_text())
        except (FileNotFoundError, UnfitError):
            return {}
        return found

    def all_ready(self) -> bool:
        """Whether every role is ready. Raises RoleError where `up` has ended."""
        if self._process is not None and self._process.poll() is not None:
            raise RoleError(f"up ended with {self._process.returncode}: {self.said()[-2000:]}")
        roles = self._own_roles()
        return len(roles) > self.plan.workers and all(
            role["state"] == "ready" for role in roles.values()
        )

    def pids(self, names: Iterable[str]) -> list[int]:
        """Return the pids of those roles that run."""
        roles = self.roles()
        return [int(roles[name]["pid"]) for name in names if roles[name]["pid"]]

    def pid(self, name: str) -> int:
        """Return a role's pid. Raises UnfitError where there is no such role running."""
        role = self.roles().get(name, {})
        if not role.get("pid"):
            raise UnfitError(f"no role {name} is running")
        return int(role["pid"])

    def scorers(self) -> list[str]:
        """Return the names of the scorers."""
        return sorted(name for name in self.roles() if name.startswith("serve-"))

    def wait_for_another(self, name: str, pid: int) -> None:
        """Wait until the role is ready as another process. Raises RoleError."""

        def is_back() -> bool:
            if self.servers is not None and self.servers.ended:
                raise RoleError(f"the servers ended: {self.servers.ended}")
            role = self.roles().get(name, {})
            return role.get("state") == "ready" and role.get("pid") != pid

        wait_for(is_back, f"{name} to come back", START_S)


def _tool(*command: str) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=20)
    return done.stderr.strip() if done.returncode else ""


def make_clock(folder: Path) -> Clock:
    """Return a time of day that can be stepped. Raises UnfitError where there cannot be one."""
    clock = Clock(folder)
    try:
        clock.make()
    except ClockError as error:
        raise UnfitError(str(error)) from None
    return clock


def mount_small_disk(directory: Path, size_mib: int) -> None:
    """Put a file system in memory on the directory. Raises UnfitError where it is not allowed."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        raise UnfitError("a disk that can be filled wants root and mount")
    directory.mkdir(parents=True, exist_ok=True)
    if wrong := _tool("mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "tmpfs", str(directory)):
        raise UnfitError(f"no disk that can be filled: {wrong}")


def make_models(home: Path, seed: int) -> Models:
    """Return small bundles of a seeded world, made by the public commands where not there.

    That of another feature schema is learnt from the same vectors, by which their file says so.
    """
    home.mkdir(parents=True, exist_ok=True)
    history, vectors, key = home / "history.parquet", home / "vectors.parquet", home / "key"
    others = home / "vectors-foreign.parquet"
    bundles = tuple(home / f"bundle-{number}" for number in range(MODELS))
    foreign = home / "bundle-foreign"
    models = Models(bundles, key, foreign, history)
    if all((bundle / "manifest.json").exists() for bundle in (*bundles, foreign)):
        return models
    _run("loadgen", "world", "--days", "30", "--rate", "2000", "--customers", "1000",
         "--fraud-rate", "0.02", "--seed", str(seed), "--out", str(history))  # fmt: skip
    _run("featurizer", "backfill", str(history), str(vectors))
    rename_schema(vectors, others)
    for number, bundle in enumerate((*bundles, foreign)):
        learnt = others if bundle == foreign else vectors
        _run("trainer", "train", str(learnt), "--out", str(bundle), "--key", str(key), "--replace",
             "--iterations", "40", "--depth", "4", "--frauds-min", "5", "--seed", str(number),
             "--border-count", "64", "--fine-border-count", "256")  # fmt: skip
    return models


def rename_schema(vectors: Path, out: Path) -> None:
    """Write the same vectors to another file, as of another feature schema."""
    table = pq.read_table(vectors)
    metadata = {**(table.schema.metadata or {}), b"fraud.schema_version": b"s-0123456789abcdef"}
    pq.write_table(table.replace_schema_metadata(metadata), out)


def _run(module: str, *arguments: str, statuses: Sequence[int] = (0,)) -> str:
    """Return what a command of this repository prints. Raises RoleError for another status."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=START_S * 4)
    if done.returncode not in statuses:
        raise RoleError(f"python -m {module} {arguments[0]}: {done.stderr[-2000:]}")
    return done.stdout
