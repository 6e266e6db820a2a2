"""Starts what is measured: a trained bundle, the roles and the bare echo, each pinned to a core.

Owns processes and files; what is measured is the bench modules' business.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

SERVER_CPU, CLIENT_CPU = "0", "1"
START_TIMEOUT_S = 300.0  # kernels may be compiled first
WORLD_DAYS = 20
WORLD_CUSTOMERS = 2_000
TICKS = os.sysconf("SC_CLK_TCK")


class Running(NamedTuple):
    """A process under measurement: its port and how to read what it used."""

    process: subprocess.Popen[bytes]
    port: int

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stand still until the block ends."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def cpu_s(self) -> float:
        """Return the CPU time it has used, user and system, seconds."""
        return cpu_s(self.process.pid)

    def resident_mib(self) -> float:
        """Return its resident memory, mapped files left out, MiB."""
        return own_memory(self.process.pid) / (1 << 20)


def cpu_s(pid: int) -> float:
    """Return the CPU time that a process has used, user and system, seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def own_memory(pid: int) -> int:
    """Return a process's resident memory, mapped files left out, bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = [line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")]
    return int(found[0]) << 10


def command(*arguments: str) -> None:
    """Run one of our commands to its end. Raises CalledProcessError with its output."""
    subprocess.run([sys.executable, "-m", *arguments], check=True, capture_output=True)


def make_bundle(where: Path) -> None:
    """Make a world, its vectors and a bundle in ``where``."""
    world, vectors = where / "world.parquet", where / "vectors.parquet"
    sizes = ["--days", str(WORLD_DAYS), "--customers", str(WORLD_CUSTOMERS), "--seed", "1"]
    command("loadgen", "world", *sizes, "--out", str(world))
    command("featurizer", "backfill", str(world), str(vectors))
    bundle, key = str(where / "bundle"), str(where / "key")
    command("trainer", "train", str(vectors), "--out", bundle, "--key", key)


@contextlib.contextmanager
def started(name: str, argv: list[str], where: Path, cpu: str, nice: int = 0) -> Iterator[Running]:
    """Run ``python -m argv`` pinned to ``cpu`` until the block ends; ``nice`` is its niceness."""
    ready, output = where / f"{name}.ready", where / f"{name}.log"
    ready.unlink(missing_ok=True)
    with output.open("wb") as log:
        process = subprocess.Popen(
            [
                "nice", "-n", str(nice), "taskset", "-c", cpu, sys.executable, "-m", *argv,
                "--ready-file", str(ready),
            ],
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not ready.exists() or not ready.read_text():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{name} did not start:\n{output.read_text()[-2000:]}")
            time.sleep(0.05)
        yield Running(process, int(ready.read_text()))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


@contextlib.contextmanager
def roles(where: Path) -> Iterator[tuple[Running, Running]]:
    """Run featurizer and scorer on a fresh log; give both.

    The featurizer has the core of the client, which must not wait for it.
    """
    places = ["--log", f"file://{where}/log", "--store", f"lmdb://{where}/store"]
    model = ["--bundle", str(where / "bundle"), "--public-key", str(where / "key.pub")]
    serve = ["fraudsvc", "serve", *places, *model, "--address", "127.0.0.1:0"]
    with (
        started(
            "featurizer", ["featurizer", "run", *places], where, CLIENT_CPU, nice=10
        ) as featurizer,
        started("serve", serve, where, SERVER_CPU) as scorer,
    ):
        yield featurizer, scorer


def drive(where: Path, port: int, *arguments: str) -> dict[str, Any]:
    """Load a server and return the driver's figures."""
    out = where / "drive.json"
    argv = ["loadgen", "drive", "--target", f"127.0.0.1:{port}", "--json", str(out), *arguments]
    subprocess.run(
        ["taskset", "-c", CLIENT_CPU, sys.executable, "-m", *argv], check=True, capture_output=True
    )
    figures: dict[str, Any] = json.loads(out.read_text())
    return figures


def call_by_grpc(port: int, in_flight: int) -> float:
    """Load a server by gRPC's own client for a few seconds; return how many calls it answered."""
    argv = ["--target", f"127.0.0.1:{port}", "--in-flight", str(in_flight)]
    done = subprocess.run(
        ["taskset", "-c", CLIENT_CPU, sys.executable, "-m", "tests.bench.grpc_client", *argv],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return float(json.loads(done.stdout)["answered"])
