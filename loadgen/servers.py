"""Kafka and Redis under drill: started, and kept running, by a command of this repository.

Owns that command's process and what it tells of the servers. Must not know what is done to them.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from loadgen.processes import end_process

COMMAND: Final = (sys.executable, "-m", "deploy.testing.servers")
PARTITIONS: Final = 2
CALL_S: Final = 20.0


@dataclass
class Servers:
    """Three brokers and a Redis in a folder."""

    folder: Path
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start them; they are there once ``ready``."""
        self.folder.mkdir(parents=True)
        with (self.folder / "servers.out").open("ab") as output:
            self._process = subprocess.Popen(
                (*COMMAND, str(self.folder)), stdout=output, stderr=output,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip

    def stop(self) -> None:
        """Stop what was started here."""
        if self._process is None:
            return
        pids = [role["pid"] for role in self.roles().values() if role["pid"]]
        end_process(self._process, pids)
        self._process = None

    @property
    def ended(self) -> str:
        """What it said, where it has ended; else nothing."""
        if self._process is None or self._process.poll() is None:
            return ""
        said = (self.folder / "servers.out").read_text(errors="replace")
        return said[-2000:] or f"it ended with {self._process.returncode}"

    def ready(self) -> bool:
        """Whether all are there."""
        roles = self.roles()
        return bool(roles) and all(role["state"] == "ready" for role in roles.values())

    def roles(self) -> dict[str, dict[str, Any]]:
        """Return what is told of each server, as of a role; nothing before they are there."""
        found: dict[str, dict[str, Any]] = self._told().get("roles", {})
        return found

    def kafka_url(self, prefix: str) -> str:
        """Return what `--kafka` is given."""
        counts = f"event_partitions={PARTITIONS}&entity_partitions={PARTITIONS}&replication=3"
        times = "session_ms=4000&request_ms=4000&transaction_ms=6000"
        return f"kafka://{self._told()['kafka']}/{prefix}?{counts}&{times}"

    def store_url(self, prefix: str) -> str:
        """Return what `--store` is given."""
        return f"{self._told()['redis']}/{prefix}?partitions={PARTITIONS}&inputs={PARTITIONS}"

    def flush_redis(self) -> None:
        """Let Redis forget all. Raises OSError where it does not."""
        self._redis("FLUSHALL")

    def dump_redis(self) -> None:
        """Let Redis write what it has into a file, as it is. Raises OSError where it does not."""
        self._redis("CONFIG SET rdbcompression no", "SAVE")

    def _redis(self, *commands: str) -> None:
        host, _, port = self._told()["redis"].rpartition("/")[2].rpartition(":")
        with socket.create_connection((host, int(port)), CALL_S) as redis:
            for command in commands:
                redis.sendall(f"{command}\r\n".encode())
                if not (answer := redis.recv(64)).startswith(b"+OK"):
                    raise OSError(f"{command}: Redis said {answer!r}")

    def _told(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.folder / "servers.json").read_text())
        except FileNotFoundError:
            return {}
        return found
