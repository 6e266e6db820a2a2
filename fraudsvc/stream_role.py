"""The stream as a process: what a lane is given, and what is looked at while it runs.

Must not read the environment: the options come from __main__.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from featurizer.adapters import follow_states
from featurizer.cluster import practise as practise_folds
from featurizer.cluster import run_until_stopped, schema_number
from featurizer.features import INDEX
from featurizer.hashing import IdHasher
from featurizer.kafka_settings import KafkaSettings
from featurizer.places import StorePlace
from featurizer.stage import Stage, StageSettings
from featurizer.telemetry import Telemetry
from fraudsvc.archive import Archive
from fraudsvc.batch_writer import BatchWriter
from fraudsvc.calls import Clocks
from fraudsvc.contract import ContractSettings
from fraudsvc.intake import Intake
from fraudsvc.models import BundleFile, read_key
from fraudsvc.policy import PolicyFile
from fraudsvc.practice import practise, practise_batch
from fraudsvc.stream import PAYMENTS, Judges, StreamLane, StreamSettings, lane_number
from fraudsvc.stream_states import StreamStates

POLL_S = 1.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """Where things are, and who we are in the group; ``pending_max`` bounds a lane's records."""

    kafka: KafkaSettings
    store: StorePlace
    policy: Path
    bundle: Path
    archive: Path
    public_key: Path
    secret: bytes
    instance: str = ""
    ready_file: Path | None = None
    pending_max: int = 65_536
    contract: ContractSettings = field(default_factory=ContractSettings)
    stream: StreamSettings = field(default_factory=StreamSettings)
    telemetry: Telemetry = field(default_factory=Telemetry)


def run_stream(options: StreamOptions) -> int:
    """Decide the payments of the partitions that the group gives us, until stopped."""
    kafka, place = options.kafka, options.store
    if (place.partitions, place.inputs) != (kafka.entity_partitions, kafka.event_partitions):
        raise ValueError("the store's partitions and inputs must be Kafka's entities and events")
    archive = Archive(options.archive)
    policy = PolicyFile(
        options.policy, INDEX, lambda e: _log.error("policy refused: %s", e),
        on_load=archive.keep_policy,
    )  # fmt: skip
    bundle = BundleFile(
        options.bundle, read_key(options.public_key), lambda e: _log.error("bundle refused: %s", e),
        archive.keep_bundle,
    )  # fmt: skip
    practise(policy.current)
    practise_batch(policy.current)
    practise_folds(kafka, schema_number())
    hasher, states = IdHasher(options.secret), follow_states(place)
    judges = Judges(
        Intake(hasher, options.contract),
        BatchWriter(hasher.key, random.SystemRandom().getrandbits(64)),
        lambda: bundle.current, lambda: policy.current, Clocks(),
    )  # fmt: skip

    def lane(number: int) -> StreamLane:
        host = lane_number(kafka.prefix, number)
        own = StreamStates(states, host, place.partitions, place.inputs, options.pending_max)
        return StreamLane(number, kafka, own, judges, options.stream, options.telemetry.tracer)

    settings = StageSettings(f"{kafka.prefix}.stream", (PAYMENTS,), options.instance)
    if options.ready_file is not None:
        options.ready_file.write_text(str(os.getpid()))
    look = _Looks(policy.poll, bundle.poll, states.poll)
    try:
        return run_until_stopped(
            lambda stopping: Stage(kafka, settings, lane).run(lambda: look() or stopping())
        )
    finally:
        states.close()


class _Looks:
    """Looks now and then whether files were replaced; says nothing."""

    def __init__(self, *polls: Callable[[], object]) -> None:
        self._polls = polls
        self._at_s = 0.0

    def __call__(self) -> bool:
        now_s = time.monotonic()
        if now_s - self._at_s >= POLL_S:
            self._at_s = now_s
            for poll in self._polls:
                poll()
        return False
