"""The roles of two hosts, two of each stage, and a keeper that starts again what ended.

Owns which role runs where, and who killed what: an exit that nobody ordered is counted. Must not
know why a role is killed.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import Any

from featurizer.adapters import read_partition
from featurizer.store import StoreError
from tests.clusters import Cluster
from tests.conftest import Process, free_port
from tests.torture.sandbox import SecondHost
from trainer.signing import public_path

HOSTS = 2
PARTITIONS = 4
KINDS = ("serve", "relay", "split", "fold")
ROLES = tuple(f"{kind}-{n}" for n in range(HOSTS) for kind in KINDS)
LOOK_S = 0.1
BACK_OFF_S = 0.5  # before an ended role is started again


class Placed(Process):
    """A role that runs on a host of its own, if ``prefix`` says so."""

    def __init__(self, output: Path, prefix: tuple[str, ...], *argv: str) -> None:
        self._output = output
        with output.open("ab") as file:
            self.popen = Popen((*prefix, sys.executable, "-m", *argv), stdout=file, stderr=file)


@dataclass
class Fleet(Cluster):
    """Hosts 0 and 1 with every role; ``second`` is where host 1 runs, None for here.

    ``replication`` is how many brokers keep each record.
    """

    second: SecondHost | None = None
    replication: int = 1
    exits: Counter[str] = field(default_factory=Counter)  # that nobody ordered
    starts: Counter[str] = field(default_factory=Counter)
    _ordered: set[Any] = field(default_factory=set)  # processes whose end is no surprise
    _wanted: set[str] = field(default_factory=set)
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _closing: threading.Event = field(default_factory=threading.Event)

    @property
    def kafka_url(self) -> str:
        counts = f"event_partitions={PARTITIONS}&entity_partitions={PARTITIONS}"
        times = f"session_ms={self.session_ms}&request_ms=4000&transaction_ms=6000"
        return (
            f"kafka://{self.bootstrap}/{self.prefix}?{counts}&{times}"
            f"&replication={self.replication}"
        )

    @property
    def store_url(self) -> str:
        patient = "" if self.store.startswith("lmdb") else "&socket_timeout_ms=2000"
        return f"{self.store}?partitions={PARTITIONS}&inputs={PARTITIONS}{patient}"

    def arguments(self, role: str) -> tuple[str, ...]:
        """Return the command of a role; a scorer can be reached from other hosts."""
        argv = list(super().arguments(role))
        if role.startswith("serve"):
            argv[argv.index("--address") + 1] = f"0.0.0.0:{self.port(role)}"
            argv.append("--plaintext")
        return tuple(argv)

    def port(self, role: str) -> int:
        return self.ports.setdefault(role, free_port())

    def target(self, host: int) -> str:
        """Return where the scorer of a host is reached."""
        address = SecondHost.ADDRESS if self.second is not None and host else "127.0.0.1"
        return f"{address}:{self.port(f'serve-{host}')}"

    def prepare(self) -> None:
        """Lay out what every role needs."""
        public_path(self.folder / "key").write_bytes(self.trained.public_key)

    def launch(self, *roles: str) -> None:
        """Start roles, and have them started again whenever they end, until ``retire``."""
        with self._lock:
            for role in roles:
                self._wanted.add(role)
                self._begin(role)

    def wait_ready(self, *roles: str) -> None:
        """Wait until roles that were launched say that they are up."""
        for role in roles:
            self.processes[role].wait_for(self.folder / f"{role}.ready")

    def all_ready(self) -> bool:
        """Whether every role is up, or was when it last said so."""
        with self._lock:
            return all(
                self.processes[role].popen.poll() is None
                and (self.folder / f"{role}.ready").exists()
                for role in self._wanted
            )

    def not_ready(self) -> list[str]:
        """Return which roles are not up, and what the system says each is at."""
        found = []
        with self._lock:
            for role in sorted(self._wanted):
                pid = self.processes[role].popen.pid
                proc = Path(f"/proc/{pid}")
                if (self.folder / f"{role}.ready").exists() or not proc.exists():
                    continue
                wait, times = (proc / "wchan").read_text(), (proc / "stat").read_text().split()
                found.append(f"{role} {pid} {times[2]} in {wait} after {times[13]} ticks")
        return found

    def retire(self, role: str) -> None:
        """Stop a role as an operator does, for good."""
        with self._lock:
            self._wanted.discard(role)
            self._ordered.add(self.processes[role].popen)
        self.processes[role].stop(signal.SIGTERM)

    def kill(self, role: str) -> None:
        """Kill a role as a crash would."""
        with self._lock:
            process = self.processes[role]
            self._ordered.add(process.popen)
            process.stop(signal.SIGKILL)

    def send(self, role: str, number: signal.Signals) -> bool:
        """Send a signal to a role; return whether it ran."""
        with self._lock:
            process = self.processes[role].popen
            if process.poll() is not None:
                return False
            process.send_signal(number)
            return True

    def keep(self) -> None:
        """Begin to look for roles that ended."""
        threading.Thread(target=self._keep, name="keeper", daemon=True).start()

    def position(self, partition: int) -> int:
        """Return how far a partition of the states is, -1 where it cannot be read."""
        try:
            store = read_partition(self.place, partition)
        except StoreError:
            return -1
        try:
            snapshot = store.snapshot()
            found = snapshot.position
            snapshot.close()
        except StoreError:
            return -1
        finally:
            store.close()
        return found

    def stored(self, partition: int, keys: list[int]) -> dict[int, bytes]:
        """Return which of the keys a partition of the states has. Raises StoreError."""
        store = read_partition(self.place, partition)
        try:
            snapshot = store.snapshot()
            pairs = zip(keys, snapshot.get_many(keys), strict=True)
            found = {key: bytes(blob) for key, blob in pairs if blob is not None}
            snapshot.close()
        finally:
            store.close()
        return found

    def close(self) -> None:
        """End every role at once."""
        self._closing.set()
        with self._lock:
            for process in self.processes.values():
                if process.popen.poll() is None:
                    process.popen.kill()
                    process.popen.wait()

    def _keep(self) -> None:
        ended_s: dict[Any, float] = {}
        while not self._closing.wait(LOOK_S):
            with self._lock:
                for role in sorted(self._wanted):
                    popen = self.processes[role].popen
                    if popen.poll() is None:
                        continue
                    if popen not in ended_s:
                        ended_s[popen] = time.monotonic()
                        self.exits[role] += popen not in self._ordered
                    if ended_s[popen] + BACK_OFF_S < time.monotonic():
                        self._begin(role)

    def _begin(self, role: str) -> None:
        if self._closing.is_set():
            return
        (self.folder / f"{role}.ready").unlink(missing_ok=True)
        (self.folder / role.partition("-")[2]).mkdir(exist_ok=True)
        there = self.second is not None and role.endswith("-1")
        prefix = self.second.prefix if there and self.second is not None else ()
        self.starts[role] += 1
        self.processes[role] = Placed(self.folder / f"{role}.out", prefix, *self.arguments(role))
