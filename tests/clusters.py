"""Several hosts on one machine: real brokers, every role as a process of its own.

Owns how the roles are started, stopped and killed. Must not assert what they should do.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fraud.v1 import transaction_pb2

from featurizer.adapters import read_partition
from featurizer.kafka_settings import KafkaSettings, kafka_settings
from featurizer.places import StorePlace, store_place
from featurizer.store import StoreError
from fraudsvc.policy import DEFAULT_POLICY
from tests.conftest import START_S, Connected, Process, Trained, connected, free_port
from trainer.signing import public_path

PARTITIONS = 2


@dataclass
class Cluster:
    """Hosts with a journal, a relay and a scorer each, and the stages that they share.

    ``store`` is the URL of the states without its query. Roles are ``serve-0``, ``relay-0``,
    ``split-0``, ``fold-0`` and so on; a stopped one is started again by ``start``.
    """

    folder: Path
    bootstrap: str
    prefix: str
    store: str
    trained: Trained
    session_ms: int = 6_000
    extra: dict[str, tuple[str, ...]] = field(default_factory=dict)
    processes: dict[str, Process] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)
    sent: list[transaction_pb2.Transaction] = field(default_factory=list)
    partitions: int = PARTITIONS
    patience_ms: int = 2_000  # with Redis: a busy machine must not decide which rung a test sees

    @property
    def kafka_url(self) -> str:
        query = f"event_partitions={self.partitions}&entity_partitions={self.partitions}"
        return f"kafka://{self.bootstrap}/{self.prefix}?{query}&session_ms={self.session_ms}"

    @property
    def kafka(self) -> KafkaSettings:
        return kafka_settings(self.kafka_url)

    @property
    def place(self) -> StorePlace:
        return store_place(self.store_url)

    @property
    def store_url(self) -> str:
        slow = f"&socket_timeout_ms={self.patience_ms}"
        patient = "" if self.store.startswith("lmdb") else slow
        return f"{self.store}?partitions={self.partitions}&inputs={self.partitions}{patient}"

    def journal(self, host: str) -> str:
        return f"file://{self.folder}/{host}/journal"

    def arguments(self, role: str) -> tuple[str, ...]:
        """Return the command of a role."""
        kind, _, number = role.partition("-")
        host = self.folder / number
        ready = ("--ready-file", str(self.folder / f"{role}.ready"))
        index = ("--index", f"lmdb://{host}/index")
        deciding = (
            "--store", self.store_url, "--bundle", str(self.trained.bundle_path), "--public-key",
            str(public_path(self.folder / "key")), "--policy", str(DEFAULT_POLICY),
            "--max-age-days", "0", *ready, *self.extra.get(kind, ()),
        )  # fmt: skip
        if kind == "serve":
            address = f"127.0.0.1:{self.port(role)}"
            return (
                "fraudsvc", "serve", "--log", self.journal(number), *index, "--address", address,
                "--budget-ms", "60000", *deciding,
            )  # fmt: skip
        if kind == "stream":
            return ("fraudsvc", "stream", "--kafka", self.kafka_url, "--instance", role, *deciding)
        common = ("featurizer", kind, "--kafka", self.kafka_url, *ready, *self.extra.get(kind, ()))
        if kind == "relay":
            return (*common, "--log", self.journal(number), *index)
        common = (*common, "--instance", role)
        return (*common, "--store", self.store_url) if kind == "fold" else common

    def port(self, role: str) -> int:
        return self.ports.setdefault(role, free_port())

    def start(self, *roles: str) -> None:
        """Start roles, and wait until each is ready."""
        public_path(self.folder / "key").write_bytes(self.trained.public_key)
        for role in roles:
            (self.folder / f"{role}.ready").unlink(missing_ok=True)
            (self.folder / role.partition("-")[2]).mkdir(exist_ok=True)
            self.processes[role] = Process(self.folder / f"{role}.out", *self.arguments(role))
        for role in roles:
            self.processes[role].wait_for(self.folder / f"{role}.ready")

    def kill(self, role: str) -> None:
        """Kill a role as a crash would."""
        self.processes[role].stop(signal.SIGKILL)

    def signal(self, role: str, number: signal.Signals) -> None:
        """Send a signal to a role."""
        self.processes[role].popen.send_signal(number)

    def client(self, role: str) -> contextlib.AbstractContextManager[Connected]:
        """Connect to a scorer."""
        return connected(self.port(role), START_S)

    def states(self, keys: Sequence[int]) -> dict[int, bytes]:
        """Return those states that are in the stores."""
        found: dict[int, bytes] = {}
        for number in range(self.partitions):
            own = [key for key in keys if key % (1 << 64) % self.partitions == number]
            store = read_partition(self.place, number)
            snapshot = store.snapshot()
            for key, blob in zip(own, snapshot.get_many(own), strict=True):
                if blob is not None:
                    found[key] = bytes(blob)
            snapshot.close()
            store.close()
        return found

    def has_states(self, number: int) -> bool:
        """Whether a fold has made a partition of the states."""
        try:
            read_partition(self.place, number).close()
        except StoreError:
            return False
        return True

    def position(self, number: int) -> int:
        """Return the offset that a partition's states are at; 0 where there are none yet."""
        try:
            store = read_partition(self.place, number)
            try:
                snapshot = store.snapshot()
                position = snapshot.position
                snapshot.close()
            finally:
                store.close()
        except StoreError:
            return 0
        return position

    def stop(self) -> None:
        """End every role."""
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.popen.send_signal(signal.SIGCONT)
            process.stop(signal.SIGTERM)


@contextlib.contextmanager
def stopping(cluster: Cluster) -> Iterator[Cluster]:
    """Yield a cluster; whatever happens, its roles are gone afterwards."""
    try:
        yield cluster
    finally:
        for process in cluster.processes.values():
            if process.popen.poll() is None:
                process.popen.kill()
                process.popen.wait()
