"""Kafka and Redis for drills: `python -m deploy.testing.servers FOLDER` until SIGTERM.

Owns the servers' life: one that ends is started again after a while, as an operator's supervisor
would. `FOLDER/servers.json` says where they are and what each is at, in the form of the
`roles.json` that `fraudsvc up` keeps. Must not know who uses them, nor why one ended.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from deploy.testing.kafka import KafkaCluster, kafka_missing
from deploy.testing.redis import RedisServer, redis_missing

BROKERS = 3  # so that a leader has somebody to hand over to
AWAY_S = 1.0
LOOK_S = 0.05


class Status:
    """The file that says what each server is at. It is replaced as a whole."""

    def __init__(self, path: Path, kafka: KafkaCluster, redis: RedisServer) -> None:
        self._path, self._kafka, self._redis = path, kafka, redis
        self._starts: Counter[str] = Counter()
        self._pids: dict[str, int] = {}

    def write(self, state: str) -> None:
        """Write it; a server that runs is ready, one that does not is in ``state``."""
        running = {f"kafka-{b.number}": b.pid for b in self._kafka.brokers if b.running}
        running |= {"redis": self._redis.pid} if self._redis.running else {}
        self._starts.update(name for name, pid in running.items() if self._pids.get(name) != pid)
        self._pids |= running
        roles = {
            name: {
                "state": "ready" if name in running else state,
                "pid": running.get(name), "restarts": self._starts[name] - 1,
            }
            for name in self._pids
        }  # fmt: skip
        told = {"kafka": self._kafka.bootstrap, "redis": self._redis.url, "roles": roles}
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(told, indent=2) + "\n")
        partial.replace(self._path)


def keep(folder: Path) -> None:
    """Start the servers in an empty folder and keep them running, without end."""
    with (
        RedisServer(folder / "redis") as redis,
        KafkaCluster(folder / "kafka", BROKERS) as kafka,
    ):
        status = Status(folder / "servers.json", kafka, redis)
        status.write("waiting")
        while True:
            time.sleep(LOOK_S)
            if not redis.running or not all(broker.running for broker in kafka.brokers):
                status.write("waiting")
                time.sleep(AWAY_S)
                redis.start()
                kafka.start()
                status.write("waiting")


def main() -> None:
    """Run until told to end; the exit status is 2 where the servers are not installed."""
    parser = argparse.ArgumentParser(prog="python -m deploy.testing.servers", description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    if missing := kafka_missing() or redis_missing():
        parser.error(missing)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    folder.mkdir(parents=True, exist_ok=True)
    keep(folder)


if __name__ == "__main__":
    main()
