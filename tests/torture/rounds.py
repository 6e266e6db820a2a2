"""The order of a torture: start all, then rounds of fault, recovery and verdict.

Owns what a round is and when it counts as passed. Traffic goes on through the fault and until all
that was acknowledged by then is in the states, which is the recovery; then it pauses, all of it is
folded, and log and states are held against each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from aiokafka.errors import KafkaError

from deploy.testing.kafka import KafkaCluster, free_ports
from deploy.testing.redis import RedisServer
from featurizer.cluster import create_topics
from featurizer.eventlog import LogError
from featurizer.store import StoreError
from tests.checker import Found, Reader, faults
from tests.conftest import Trained
from tests.torture.faults import BY_NAME, FAULTS, Fault, Ground
from tests.torture.fleet import HOSTS, PARTITIONS, ROLES, Fleet
from tests.torture.sandbox import HUB, SecondHost, SmallDisk, inside
from tests.torture.traffic import Traffic

WARM_S = 2.0  # of traffic before a fault, so that it meets work
RECOVER_S = 90.0
ANSWER_S = 60.0  # for the last requests of a round
DISK_BYTES = 1 << 29
LOOK_S = 0.1
SHOWN = 5  # of what is wrong


@dataclass(frozen=True)
class Options:
    """What to do: ``order`` names faults, with ":role" if it is to hit one; () is by chance."""

    rounds: int
    seed: int
    store: str = "lmdb"
    rate: float = 40.0
    brokers: int = 1
    order: Sequence[str] = ()


@dataclass
class Round:
    """What a round did and found."""

    number: int
    fault: str
    target: str
    acknowledged: int = 0
    fault_s: float = 0.0
    recovery_s: float = 0.0
    lost: int = 0
    twice: int = 0
    different: int = 0
    repeated: int = 0  # updates that a split wrote twice, so far
    repeats: int = 0  # records of requests that another host had decided before, so far
    resent: int = 0  # records that a relay sent twice, so far
    exits: dict[str, int] = field(default_factory=dict)  # that nobody ordered, so far
    rungs: dict[str, int] = field(default_factory=dict)  # of the answers of this round
    wrong: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.wrong


@dataclass
class Report:
    """All rounds, and what the clients saw."""

    seed: int
    store: str
    skipped: dict[str, str]
    rounds: list[Round] = field(default_factory=list)
    statuses: dict[str, int] = field(default_factory=dict)
    rungs: dict[str, int] = field(default_factory=dict)
    moved: int = 0
    labels: int = 0

    @property
    def passed(self) -> bool:
        return bool(self.rounds) and all(each.passed for each in self.rounds)

    def as_json(self) -> dict[str, object]:
        return asdict(self)


class Torture:
    """A fleet under fire."""

    def __init__(self, ground: Ground, options: Options) -> None:
        self._ground = ground
        self._fleet = ground.fleet
        self._options = options
        missing = {fault.name: fault.missing(ground) for fault in FAULTS}
        self.report = Report(
            options.seed, options.store, {name: why for name, why in missing.items() if why}
        )
        self._possible = [fault for fault in FAULTS if not missing[fault.name]]
        targets = [self._fleet.target(host) for host in range(HOSTS)]
        self._traffic = Traffic(targets, options.rate, options.seed)
        self._rungs: Counter[str] = Counter()
        self._reader = Reader(self._fleet.bootstrap, self._fleet.prefix, PARTITIONS)

    def run(self, tell: Callable[[Round], None]) -> Report:
        """Go through all rounds, or until one fails."""
        try:
            for number, (fault, role) in enumerate(self._plan(), 1):
                self._ground.role = role
                done = self._round(number, fault)
                self.report.rounds.append(done)
                tell(done)
                if not done.passed:
                    break
        finally:
            self._traffic.stop()
            book = self._traffic.book
            self.report.statuses, self.report.rungs = dict(book.statuses), dict(book.rungs)
            self.report.moved, self.report.labels = book.moved, book.labels
        return self.report

    def _plan(self) -> Iterator[tuple[Fault, str]]:
        """Yield each round's fault: in the order given, or all in turn, shuffled each time."""
        names = [name for name in self._options.order if self._can(name)]
        for number in range(self._options.rounds):
            if self._options.order:
                name, _, role = names[number % len(names)].partition(":")
                yield BY_NAME[name], role
                continue
            at = number % len(self._possible)
            if at == 0:
                self._ground.rng.shuffle(self._possible)
            yield self._possible[at], ""

    def _can(self, name: str) -> bool:
        return BY_NAME[name.partition(":")[0]] in self._possible

    def _round(self, number: int, fault: Fault) -> Round:
        self._traffic.resume()
        time.sleep(WARM_S)
        begin_s = time.monotonic()
        done = Round(number, fault.name, "")
        done.target = fault.strike(self._ground)
        end_s = time.monotonic()
        done.fault_s = round(end_s - begin_s, 2)
        if self._recovers():
            done.recovery_s = round(time.monotonic() - end_s, 2)
        else:
            done.wrong.append(f"not recovered {RECOVER_S} s after the fault: {self._behind()}")
        if not self._traffic.pause(ANSWER_S):
            done.wrong.append(f"requests without an answer for {ANSWER_S} s")
        self._judge(done)
        return done

    def _recovers(self) -> bool:
        """Wait until all that is acknowledged now is in the states, while more comes."""
        acknowledged = self._traffic.acknowledged()

        def is_on_the_log() -> bool:
            found = self._reader.read()
            events = {found.first.get(request) for request in acknowledged}
            return None not in events and not found.waiting & events

        if not self._within(RECOVER_S, is_on_the_log):
            return False
        ends = dict(self._reader.found.ends)

        def is_folded() -> bool:
            return self._fleet.all_ready() and all(
                self._fleet.position(n) > offset for n, offset in ends.items()
            )

        return self._within(RECOVER_S, is_folded)

    def _behind(self) -> str:
        positions = [self._fleet.position(n) for n in range(PARTITIONS)]
        found = self._reader.found
        return (
            f"{len(found.waiting)} events without updates, {sorted(found.waiting)[:SHOWN]}, states"
            f" are at {positions}, not up: {self._fleet.not_ready()}"
        )

    def _settles(self) -> bool:
        """Wait until all of the log is in the states."""

        def is_settled() -> bool:
            found = self._reader.read()
            acknowledged = self._traffic.acknowledged()
            return (
                not found.waiting
                and all(request in found.first for request in acknowledged)
                and not self._different(found)
            )

        return self._within(RECOVER_S, is_settled)

    def _different(self, found: Found) -> list[str]:
        """Return which states are not what the log says, byte for byte."""
        wrong, states = [], found.states
        for number in range(PARTITIONS):
            rows = found.progress.items()
            expected = {key: row for (home, key), row in rows if home == number}
            expected |= {k: b for k, b in states.items() if k % (1 << 64) % PARTITIONS == number}
            stored = self._fleet.stored(number, list(expected))
            wrong += [
                f"state {key} in partition {number} " + ("differs" if key in stored else "is lost")
                for key, blob in expected.items()
                if stored.get(key) != blob
            ]
        return wrong

    def _judge(self, done: Round) -> None:
        """Let all of it settle and write down what is wrong."""
        if not self._settles():
            done.wrong.append(f"not settled after {RECOVER_S} s: {self._behind()}")
        found, acknowledged = self._reader.found, self._traffic.acknowledged()
        lost, twice, different = faults(found, acknowledged)
        with contextlib.suppress(StoreError):
            different += self._different(found)
        different += self._traffic.book.wrong
        done.lost, done.twice, done.different = len(lost), len(twice), len(different)
        done.wrong += lost[:SHOWN] + twice[:SHOWN] + different[:SHOWN]
        done.acknowledged = len(acknowledged)
        done.repeated, done.repeats, done.resent = found.repeated, found.repeats, found.resent
        done.exits = {role: count for role, count in self._fleet.exits.items() if count}
        rungs = self._traffic.rungs()
        done.rungs, self._rungs = dict(rungs - self._rungs), rungs

    @staticmethod
    def _within(wait_s: float, condition: Callable[[], bool]) -> bool:
        """Wait until a condition holds; what cannot be read holds not yet."""
        end_s = time.monotonic() + wait_s
        while True:
            with contextlib.suppress(StoreError, KafkaError, TimeoutError, OSError):
                if condition():
                    return True
            if time.monotonic() > end_s:
                return False
            time.sleep(LOOK_S)


@contextlib.contextmanager
def grounds(folder: Path, trained: Trained, options: Options) -> Iterator[Ground]:
    """Start everything; whatever happens, it is gone afterwards."""
    with contextlib.ExitStack() as stack:
        here = HUB if inside() else "127.0.0.1"
        kafka = KafkaCluster(folder / "kafka", options.brokers, address=here)
        stack.enter_context(kafka)
        redis = None
        store = f"lmdb://{folder}/states"
        if options.store == "redis":
            more = ("--bind", here, "127.0.0.1", "--protected-mode", "no")
            redis = stack.enter_context(RedisServer(folder / "redis", arguments=more))
            store = f"redis://{here}:{redis.port}/torture"
        second, disk = None, None
        if inside():
            second = SecondHost()
            stack.callback(second.close)
            disk = SmallDisk(folder / "1" / "journal", DISK_BYTES)
            stack.callback(disk.close)
        fleet = Fleet(
            folder, kafka.bootstrap, "torture", store, trained,
            second=second, replication=min(options.brokers, 3),
        )  # fmt: skip
        stack.callback(fleet.close)
        roles = [f"serve-{host}" for host in range(HOSTS)]
        fleet.ports |= dict(zip(roles, free_ports(HOSTS), strict=True))
        fleet.prepare()
        _create_topics(fleet)
        scorers = [role for role in ROLES if role.startswith("serve")]
        fleet.launch(*scorers)
        fleet.wait_ready(*scorers)
        others = [role for role in ROLES if role not in scorers]
        fleet.launch(*others)
        fleet.wait_ready(*others)
        fleet.keep()
        yield Ground(fleet, kafka, redis, second, disk, np.random.default_rng(options.seed))


def _create_topics(fleet: Fleet) -> None:
    with contextlib.suppress(LogError):  # a broker that has just started may be slow
        asyncio.run(create_topics(fleet.kafka))
        return
    asyncio.run(create_topics(fleet.kafka))
