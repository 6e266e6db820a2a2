"""The roles of several hosts as processes: topics, relay, split, fold; and rebuilding the states.

Owns how each is wired and how it stops. Must not read the environment: the options come from
__main__.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from featurizer.adapters import (
    discard_partition,
    journal_number,
    open_index,
    open_log,
    open_partition,
    read_partition,
)
from featurizer.arena import Arena
from featurizer.eventlog_kafka import TopicSize, ensure_topics
from featurizer.features import SCHEMA_VERSION
from featurizer.folder import UPDATES, FoldLane
from featurizer.kafka_settings import KafkaSettings
from featurizer.places import StorePlace
from featurizer.rebuild import Compared, rebuild_partition, scratch_place
from featurizer.records import RECORD
from featurizer.relay import Relay, RelaySettings, RelayStatus
from featurizer.splitter import INPUTS, SplitLane, SplitSettings
from featurizer.stage import Lane, Stage, StageSettings
from featurizer.store import Store, StoreStale
from featurizer.telemetry import Telemetry
from featurizer.topics import DAY_MS, TOPICS
from featurizer.updates import pack, unpack

_log = logging.getLogger(__name__)


def schema_number(schema: str = SCHEMA_VERSION) -> int:
    """Return 64 bits of a schema version, as it stands in packed updates."""
    digest = hashlib.sha256(schema.encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


async def create_topics(kafka: KafkaSettings) -> list[str]:
    """Create the topics that are missing; return their names. Raises LogError."""
    counts = {"events": kafka.event_partitions, "entities": kafka.entity_partitions, "one": 1}
    sizes = {row: TopicSize(counts[row.partitions], kafka.replication) for row in TOPICS}
    return await ensure_topics(kafka, sizes)


def practise(kafka: KafkaSettings, schema: int) -> None:
    """Compile the kernels now: a member of a group that compiles is taken for dead."""
    record = np.zeros(1, RECORD)
    record["kind"], record["entities"] = 1, 1
    places = np.ones((1, 3), np.int64)
    for value in pack(record, places, kafka.entity_partitions, (0, schema)).values():
        _, rows = unpack(value, schema)
        Arena(1 << 20).apply(rows, np.arange(1, len(rows) + 1))


def run_until_stopped(work: Callable[[Callable[[], bool]], object]) -> int:
    """Run a coroutine function until SIGTERM or SIGINT; return the exit status."""
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    gc.collect()
    gc.freeze()  # a batch makes thousands of objects: to look through all others, too, took 0.2 s
    asyncio.run(work(lambda: stopping))  # type: ignore[arg-type]  # a coroutine
    return 0


@dataclass(frozen=True, slots=True)
class RelayOptions:
    """Where the journal, its index and Kafka are, and where to write the metrics.

    What is shipped may be dropped from the journal when it is beyond ``retain_bytes`` or older
    than ``retain_days``; until then a scorer finds its answers there.
    """

    kafka: KafkaSettings
    log: str
    index: str
    metrics_file: Path | None = None
    ready_file: Path | None = None
    retain_bytes: int | None = None
    retain_days: float | None = None
    telemetry: Telemetry = field(default_factory=Telemetry)


def run_relay(options: RelayOptions) -> int:
    """Ship the journal until stopped."""
    days = options.retain_days
    journal = open_log(
        options.log, retain_bytes=options.retain_bytes,
        retain_ms=None if days is None else round(days * DAY_MS),
    )  # fmt: skip
    index = open_index(options.index)
    try:
        relay = Relay(
            journal, index, options.kafka, journal_number(options.log), RelaySettings(),
            lambda status: _tell(status, options), journal.drop_oldest,
            tracer=options.telemetry.tracer,
        )  # fmt: skip
        if options.ready_file is not None:
            options.ready_file.write_text(str(relay.position))
        return run_until_stopped(relay.run)
    finally:
        index.close()
        journal.close()


METRICS = (
    ("fraud_relay_backlog_bytes", "gauge", "of the journal that are not shipped yet"),
    ("fraud_relay_oldest_seconds", "gauge", "age of the oldest byte that is not shipped yet"),
    ("fraud_relay_records_per_second", "gauge", "shipped since the last look"),
    ("fraud_relay_errors_total", "counter", "sends that failed and were tried again"),
)


def _tell(status: RelayStatus, options: RelayOptions) -> None:
    """Set the gauges; write the metrics as Prometheus' textfile collector reads them, too."""
    values = (status.backlog_bytes, status.oldest_age_ms / 1000, status.records_per_s)
    meters, path = options.telemetry.meters, options.metrics_file
    meters.put("fraud_position", "relay", value=status.shipped_position)
    meters.put("fraud_backlog_bytes", "relay", value=status.backlog_bytes)
    meters.put("fraud_lag_seconds", "relay", value=status.oldest_age_ms / 1000)
    if path is None:
        return
    lines = []
    for (name, kind, meaning), value in zip(METRICS, (*values, status.errors), strict=True):
        lines += [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}", f"{name} {value:g}"]
    draft = path.with_suffix(".new")
    draft.write_text("\n".join(lines) + "\n")
    draft.replace(path)


@dataclass(frozen=True, slots=True)
class StageOptions:
    """Where Kafka and, for a fold, the states are; who we are in the group."""

    kafka: KafkaSettings
    store: StorePlace | None = None
    instance: str = ""
    ready_file: Path | None = None
    telemetry: Telemetry = field(default_factory=Telemetry)


def run_split(options: StageOptions) -> int:
    """Split records by entity until stopped."""
    kafka = options.kafka
    settings = SplitSettings(kafka.entity_partitions, schema_number())
    return _run_stage(
        options, "split", f"{kafka.prefix}.split", tuple(INPUTS),
        lambda n: SplitLane(n, kafka, settings, options.telemetry.tracer),
    )  # fmt: skip


def run_fold(options: StageOptions) -> int:
    """Fold updates into the states until stopped."""
    kafka, place = options.kafka, options.store
    if place is None or place.partitions != kafka.entity_partitions:
        raise ValueError("the store's URL must name as many partitions as Kafka's entities have")
    if place.inputs != kafka.event_partitions:
        raise ValueError("the store's URL must name as many inputs as Kafka's events have")
    group = f"{kafka.prefix}.fold"
    if place.redis is None:  # a replica of this host alone
        where = hashlib.sha256(str(Path(place.url).absolute()).encode()).hexdigest()[:12]
        group += f".{socket.gethostname()}.{where}"
    return _run_stage(
        options, "fold", group, (UPDATES,),
        lambda n: FoldLane(
            n, kafka, place.inputs, schema_number(), _opener(place),
            tracer=options.telemetry.tracer,
        ),
    )  # fmt: skip


def _opener(place: StorePlace) -> Callable[[int], Store]:
    def open_or_discard(partition: int) -> Store:
        try:
            return open_partition(place, partition)
        except StoreStale as error:
            _log.warning("partition %d is made anew from the log: %s", partition, error)
            discard_partition(place, partition)
            return open_partition(place, partition)

    return open_or_discard


def _run_stage(
    options: StageOptions, name: str, group: str, topics: Sequence[str], lane: Callable[[int], Lane]
) -> int:
    practise(options.kafka, schema_number())
    settings = StageSettings(group, topics, options.instance)
    if options.ready_file is not None:
        options.ready_file.write_text(str(os.getpid()))
    gauge = options.telemetry.meters.values
    place = options.telemetry.meters.slot("fraud_lag_seconds", name)

    def lags(lag_s: float) -> None:
        gauge[place] = lag_s

    stage = Stage(options.kafka, settings, lane, lags)
    return run_until_stopped(stage.run)


def rebuild(
    kafka: KafkaSettings,
    place: StorePlace,
    into: StorePlace | None,
    tell: Callable[[int, int, int], None],
) -> dict[int, Compared]:
    """Make the states of every partition again and compare them; return what was found of each.

    They are kept in ``into`` where it is given. ``tell`` gets a partition, how far it is, and of
    how much.
    """
    directory, scratch = scratch_place(place)
    found: dict[int, Compared] = {}
    with directory:
        for number in range(place.partitions):
            live = read_partition(place, number)
            try:
                work = rebuild_partition(
                    number, kafka, live, into or scratch, schema_number(), partial(tell, number)
                )
                found[number] = asyncio.run(work)
            finally:
                live.close()
    return found
