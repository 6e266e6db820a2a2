"""What is done to the system: a table of faults, each with its end.

A fault does its harm, holds it, and undoes what it can; starting a killed role again is the
keeper's business. It tells whom it hit. Must not look at what comes of it.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from deploy.testing.kafka import Broker, KafkaCluster
from deploy.testing.redis import RedisServer
from tests.torture.fleet import HOSTS, KINDS, ROLES, Fleet
from tests.torture.sandbox import SecondHost, SmallDisk

STAGES = tuple(role for role in ROLES if role.startswith(("split", "fold")))
SHORT_S = 2.0
JOIN_S = 4.0  # that further members stay


@dataclass
class Ground:
    """All that a fault may lay hands on; what the machine does not allow is None."""

    fleet: Fleet
    kafka: KafkaCluster
    redis: RedisServer | None
    second: SecondHost | None
    disk: SmallDisk | None
    rng: np.random.Generator
    role: str = ""  # whom to hit, "" for any

    @property
    def long_s(self) -> float:
        """A time after which a silent member of a group was taken for dead."""
        return 1.4 * self.fleet.session_ms / 1000

    def pick(self, roles: Sequence[str]) -> str:
        """Choose whom to hit."""
        return self.role or str(self.rng.choice(list(roles)))

    def broker(self) -> Broker:
        """Choose a broker."""
        return self.kafka.brokers[int(self.rng.integers(len(self.kafka.brokers)))]


class Fault(NamedTuple):
    """A row of the table. ``missing`` says why it cannot be done here, or ""."""

    name: str
    does: str
    ends: str
    strike: Callable[[Ground], str]
    missing: Callable[[Ground], str] = lambda _: ""


def _kill(ground: Ground) -> str:
    role = ground.pick(ROLES)
    ground.fleet.kill(role)
    return role


def _kill_twice(ground: Ground) -> str:
    """Kill a role, and again while it starts."""
    role = ground.pick(ROLES)
    ground.fleet.kill(role)
    time.sleep(float(ground.rng.uniform(1.0, 5.0)))
    ground.fleet.kill(role)
    return role


def _kill_host(ground: Ground) -> str:
    number = int(ground.role or ground.rng.integers(HOSTS))
    for kind in KINDS:
        ground.fleet.kill(f"{kind}-{number}")
    return f"host {number}"


def _stop(ground: Ground) -> str:
    role = ground.pick(ROLES)
    ground.fleet.send(role, signal.SIGSTOP)
    time.sleep(ground.long_s)
    ground.fleet.send(role, signal.SIGCONT)
    return role


def _stop_and_replace(ground: Ground) -> str:
    """Stop a member, and let a newcomer take its place before it wakes up."""
    role = ground.pick(STAGES)
    newcomer = f"{role.partition('-')[0]}-2"
    ground.fleet.send(role, signal.SIGSTOP)
    ground.fleet.launch(newcomer)
    ground.fleet.wait_ready(newcomer)
    time.sleep(ground.long_s)
    ground.fleet.send(role, signal.SIGCONT)
    time.sleep(SHORT_S)
    ground.fleet.retire(newcomer)
    return role


def _kill_broker(ground: Ground) -> str:
    broker = ground.broker()
    broker.kill()
    time.sleep(float(ground.rng.uniform(0.5, 4.0)))
    broker.start()
    broker.wait_until_ready()
    return f"broker {broker.number}"


def _stop_broker(ground: Ground) -> str:
    broker = ground.broker()
    broker.pause()
    time.sleep(ground.long_s)
    broker.resume()
    return f"broker {broker.number}"


def _restart_broker(ground: Ground) -> str:
    broker = ground.broker()
    broker.restart()
    return f"broker {broker.number}"


def _rebalance(ground: Ground) -> str:
    """Let a third member join each stage in the middle of it all, and leave again."""
    newcomers = ("split-2", "fold-2")
    ground.fleet.launch(*newcomers)
    ground.fleet.wait_ready(*newcomers)
    time.sleep(JOIN_S)
    for each in newcomers:
        ground.fleet.retire(each)
    return "split and fold"


def _cut(ground: Ground) -> str:
    assert ground.second is not None
    ground.second.cut()
    time.sleep(ground.long_s)
    ground.second.heal()
    return "host 1"


def _fill(ground: Ground) -> str:
    assert ground.disk is not None
    ground.disk.fill()
    time.sleep(ground.long_s / 2)
    ground.disk.free()
    return "journal of host 1"


def _kill_redis(ground: Ground) -> str:
    assert ground.redis is not None
    ground.redis.kill()
    time.sleep(float(ground.rng.uniform(0.1, 3.0)))
    ground.redis.start()
    return "redis"


def _flush_redis(ground: Ground) -> str:
    assert ground.redis is not None
    ground.redis.flush()
    return "redis"


def _stop_redis(ground: Ground) -> str:
    assert ground.redis is not None
    ground.redis.pause()
    time.sleep(ground.long_s)
    ground.redis.resume()
    return "redis"


def _no_redis(ground: Ground) -> str:
    return "" if ground.redis is not None else "the states are in LMDB"


def _no_second(ground: Ground) -> str:
    return "" if ground.second is not None else "no network namespaces here"


def _no_disk(ground: Ground) -> str:
    return "" if ground.disk is not None else "no file system may be mounted here"


FAULTS = (
    Fault("kill", "kill -9 of a role", "the keeper starts it", _kill),
    Fault("kill-twice", "kill -9, and again as it starts", "the keeper starts it", _kill_twice),
    Fault("kill-host", "kill -9 of all roles of a host", "the keeper starts them", _kill_host),
    Fault("zombie", "SIGSTOP beyond the session's time", "SIGCONT", _stop),
    Fault("replaced", "a zombie whose place is taken", "both are there, one leaves",
          _stop_and_replace),
    Fault("rebalance", "third members join mid-batch", "they leave by SIGTERM", _rebalance),
    Fault("broker-kill", "kill -9 of a broker", "it starts on its data", _kill_broker),
    Fault("broker-stop", "SIGSTOP of a broker", "SIGCONT", _stop_broker),
    Fault("broker-restart", "SIGTERM of a broker", "it starts on its data", _restart_broker),
    Fault("partition", "host 1 and all others cut apart", "the link is up", _cut, _no_second),
    Fault("disk-full", "no byte for the journal", "its space is free again", _fill, _no_disk),
    Fault("redis-kill", "kill -9 of Redis", "it starts empty", _kill_redis, _no_redis),
    Fault("redis-flush", "FLUSHALL", "at once", _flush_redis, _no_redis),
    Fault("redis-stop", "SIGSTOP of Redis", "SIGCONT", _stop_redis, _no_redis),
)  # fmt: skip
BY_NAME = {fault.name: fault for fault in FAULTS}
