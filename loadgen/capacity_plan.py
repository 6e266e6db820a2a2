"""From what one core can do to what a load needs: hosts, partitions, brokers, shards, money.

Owns the arithmetic of a plan and which assumption moves it most. Must not measure anything: what
was not measured is a field of `Assumptions`, with where its default comes from.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final, NamedTuple

CHANGE: Final = 0.2
GIB: Final = 1 << 30
PARTITIONS_MAX: Final = 4_096  # of a cell: what KafkaSettings takes


@dataclass(frozen=True, slots=True)
class Target:
    """The load that is planned for. With ``zones`` above 1 one of them may fail."""

    calls_per_s: float
    p99_ms: float = 10.0
    zones: int = 3

    def __post_init__(self) -> None:
        if not (self.calls_per_s > 0 and self.p99_ms > 0 and self.zones >= 1):
            raise ValueError("a target is above 0 calls a second and ms, over at least one zone")

    @property
    def spare(self) -> float:
        """By how much more than the load there has to be, so that a zone may fail."""
        return self.zones / (self.zones - 1) if self.zones > 1 else 1.0


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What a plan takes for granted. Each is above 0.

    Measured by `python -m loadgen capacity`: ``calls_per_core_s``, what a core of scorers answers
    within the objective. From docs/performance.md, of a 2-core machine: the rate of a fold, the
    bytes of a decision with its transaction, the entities of a call, the bytes of a state. The
    rest is a guess, and what a user is to replace first: the rates of relay, split and a partition,
    ``entities_live`` that have a state, keys a second of a Redis shard, MB/s of a broker, the size
    of a host, and prices.
    ``host_share`` is the share of a scorer's host that its scorers get, beside relay, console and
    kernel. ``cell_calls_per_s`` is how large one cell may grow.
    """

    calls_per_core_s: float
    host_cores: float = 32.0
    host_share: float = 0.8
    relay_per_core_s: float = 20_000.0
    split_per_core_s: float = 30_000.0
    fold_per_core_s: float = 48_000.0
    partition_per_s: float = 10_000.0
    entities_per_call: float = 9.0
    entities_live: float = 500e6
    state_bytes: float = 1_500.0
    redis_keys_per_s: float = 400_000.0
    redis_gib: float = 32.0
    redis_copies: float = 2.0
    record_bytes: float = 4_500.0
    kafka_copies: float = 3.0
    broker_mb_s: float = 200.0
    broker_cores: float = 8.0
    worker_gib: float = 1.0
    cell_calls_per_s: float = 50_000.0
    core_hour: float = 0.04
    gib_hour: float = 0.005

    def __post_init__(self) -> None:
        for each in fields(self):
            if not getattr(self, each.name) > 0:
                raise ValueError(f"{each.name} must be above 0")


class Plan(NamedTuple):
    """What to run. Cores are of all roles; ``cost_per_hour`` is of cores and memory alone."""

    cells: int
    scorer_cores: int
    hosts: int
    stage_cores: int
    partitions: int
    brokers: int
    redis_shards: int
    memory_gib: int
    cores: int
    cost_per_hour: float

    def to_json(self) -> dict[str, Any]:
        """Return it as a dictionary of plain values."""
        return self._asdict()


def plan(target: Target, given: Assumptions) -> Plan:
    """Return what the target needs.

    Everything that answers or carries a call is there ``target.spare`` times, so that the zones
    that are left do it all at the objective. Stages are there as often, or states would fall
    behind. Counts are whole numbers of each cell.
    """
    wanted = _wanted(target, given)
    cells = math.ceil(wanted["cells"])
    each = {name: math.ceil(value / cells) * cells for name, value in wanted.items()}
    redis_cores = each["redis_shards"] * math.ceil(given.redis_copies)
    broker_cores = math.ceil(each["brokers"] * given.broker_cores)
    cores = math.ceil(each["hosts"] * given.host_cores) + each["stage_cores"]
    cores += redis_cores + broker_cores
    memory = math.ceil(wanted["memory_gib"])
    return Plan(
        cells=cells, scorer_cores=each["scorer_cores"], hosts=each["hosts"],
        stage_cores=each["stage_cores"], partitions=each["partitions"], brokers=each["brokers"],
        redis_shards=each["redis_shards"], memory_gib=memory, cores=cores,
        cost_per_hour=round(cores * given.core_hour + memory * given.gib_hour, 2),
    )  # fmt: skip


def _wanted(target: Target, given: Assumptions) -> dict[str, float]:
    """Return every quantity as it would be if it need not be whole."""
    rate, spare = target.calls_per_s, target.spare
    scorer_cores = rate * spare / given.calls_per_core_s
    hosts = scorer_cores / (given.host_cores * given.host_share)
    updates = rate / given.split_per_core_s + rate / given.fold_per_core_s
    # A relay is a part of a host, so it is in the host's share and not counted again; but a host
    # may be so fast that one relay, which is one core, is too slow for it.
    hosts = max(hosts, rate * spare / given.relay_per_core_s)
    written = rate * given.record_bytes * given.kafka_copies
    state_gib = given.entities_live * given.state_bytes / GIB
    keys = rate * given.entities_per_call * 2  # read by scorers, written by folds
    shards = max(state_gib / given.redis_gib, keys / given.redis_keys_per_s)
    memory = state_gib * given.redis_copies + scorer_cores * given.worker_gib
    return {
        "cells": max(rate / given.cell_calls_per_s, 1.0),
        "scorer_cores": scorer_cores,
        "hosts": max(hosts, target.zones),
        "stage_cores": updates * spare,
        "partitions": rate / given.partition_per_s,
        "brokers": max(written * spare / (given.broker_mb_s * 1e6), given.kafka_copies),
        "redis_shards": shards,
        "memory_gib": memory,
    }


def smooth_cost(target: Target, given: Assumptions) -> float:
    """Return the cost an hour before anything is rounded up to whole ones."""
    wanted = _wanted(target, given)
    cores = wanted["hosts"] * given.host_cores + wanted["stage_cores"]
    cores += wanted["redis_shards"] * given.redis_copies + wanted["brokers"] * given.broker_cores
    return cores * given.core_hour + wanted["memory_gib"] * given.gib_hour


class Effect(NamedTuple):
    """What an assumption does to the cost: its change with 20 % less and 20 % more of it."""

    name: str
    less: float
    more: float

    @property
    def size(self) -> float:
        """The larger of both changes."""
        return max(abs(self.less), abs(self.more))


def sensitivity(target: Target, given: Assumptions) -> list[Effect]:
    """Return the effects of all assumptions, the largest first."""
    before = smooth_cost(target, given)

    def effect(name: str) -> Effect:
        value = getattr(given, name)
        less, more = (
            smooth_cost(target, replace(given, **{name: value * factor})) / before - 1
            for factor in (1 - CHANGE, 1 + CHANGE)
        )
        return Effect(name, less, more)

    effects = [effect(each.name) for each in fields(given)]
    return sorted(effects, key=lambda each: (-each.size, each.name))


def with_settings(given: Assumptions, entries: list[str]) -> Assumptions:
    """Return the assumptions with NAME=NUMBER entries. Raises ValueError for another name."""
    values = asdict(given)
    for entry in entries:
        name, _, text = entry.partition("=")
        if name not in values:
            raise ValueError(f"{name!r} is no assumption: there are {', '.join(values)}")
        values[name] = float(text)
    return Assumptions(**values)
