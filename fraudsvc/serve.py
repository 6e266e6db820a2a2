"""The scorer role: one process that opens everything, warms up, serves, and drains.

Owns the order of start and stop. Must not read the environment: the options come from __main__.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fraud.v1 import model_event_pb2

from featurizer.adapters import (
    INDEX_SCHEMA,
    FollowedStates,
    FollowedStore,
    directory_of,
    follow_states,
    journal_number,
    open_log,
)
from featurizer.eventlog import Entry, EventLog, LogError, Topic
from featurizer.features import INDEX, SCHEMA_VERSION
from featurizer.former_ids import FormerIds
from featurizer.hashing import IdHasher
from featurizer.metering import CallMeter, Meters
from featurizer.places import StorePlace
from featurizer.store import StoreError
from fraudsvc.archive import Archive
from fraudsvc.callers.certificates import Certificates
from fraudsvc.callers.gate import Gate
from fraudsvc.callers_command import CallerOptions
from fraudsvc.calls import ScorerSettings
from fraudsvc.cardnumbers import holds_card_number
from fraudsvc.contract import ContractSettings
from fraudsvc.journal_tail import JournalTail
from fraudsvc.models import BundleFile, read_key
from fraudsvc.noted_log import NotedLog
from fraudsvc.policy import PolicyFile
from fraudsvc.practice import practise, practise_batch
from fraudsvc.scorer import Scorer
from fraudsvc.server import Guard, Server, ServerSettings
from fraudsvc.shared_tail import SharedTail, compile_kernels
from fraudsvc.supervisor import Change, Role, Supervisor
from fraudsvc.tail import local_tail
from fraudsvc.topology import cpu_flags

POLL_S = 1.0
STORE_WAIT_S = 10.0  # then calls are answered without states
STORE_LOOK_S = 0.05
GC_THRESHOLD = 20_000  # new objects between two collections of the youngest; Python's usual is 700
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """Where things are and how the scorer is bound; the defaults are those of embedded mode."""

    log: str
    store: StorePlace
    index: str
    address: str
    policy: Path
    bundle: Path
    archive: Path
    public_key: Path
    secret: bytes
    cpus: frozenset[int] = frozenset()
    ready_file: Path | None = None
    poll_s: float = POLL_S
    sync_interval_ms: int = 50
    log_bytes_max: int | None = None
    contract: ContractSettings = field(default_factory=ContractSettings)
    scorer: ScorerSettings = field(default_factory=ScorerSettings)
    server: ServerSettings = field(default_factory=ServerSettings)
    callers: CallerOptions = field(default_factory=CallerOptions)


def _wait_for_store(store: FollowedStore, stopping: threading.Event) -> None:
    """Give the featurizer, which may have started with us, time to make the store."""
    deadline_s = time.monotonic() + STORE_WAIT_S
    while not stopping.is_set():
        try:
            store.snapshot().close()
        except StoreError as error:
            if time.monotonic() > deadline_s:
                _log.error("serving without a store: %s", error)
                return
            stopping.wait(STORE_LOOK_S)
            store.poll()
        else:
            return


@dataclass(slots=True)
class _Followed:
    """The state of now, and what has to be looked at now and then for it."""

    tail: JournalTail
    index: FollowedStore
    states: FollowedStates | None

    def poll(self) -> None:
        self.index.poll()
        if self.states is not None:
            self.states.poll()

    def close(self) -> None:
        self.index.close()
        if self.states is not None:
            self.states.close()


def _follow(log: EventLog, options: ServeOptions) -> _Followed:
    """Follow one host's own store, or the states that hosts share."""
    place, scorer = options.store, options.scorer
    if not place.partitions:
        store = FollowedStore(place.url, schema=SCHEMA_VERSION)
        return _Followed(local_tail(log, store, scorer), store, None)
    index = FollowedStore(options.index, schema=INDEX_SCHEMA)
    states = follow_states(place)
    tail = SharedTail(
        log, index, states, journal_number(options.log), place.partitions, place.inputs,
        scorer.pending_max,
    )  # fmt: skip
    compile_kernels()
    return _Followed(tail, index, states)


@dataclass(frozen=True, slots=True)
class _Entry:
    """Who may come in, and what has to be looked at now and then for it."""

    guard: Guard
    certificates: Certificates | None = None

    @classmethod
    def open(cls, options: CallerOptions) -> _Entry:
        if options.tls is None:
            return cls(Guard())
        certificates = Certificates(options.tls, _log.warning)
        gate = None
        if options.callers is not None:
            gate = Gate(options.callers, lambda e: _log.error("callers refused: %s", e))
        return cls(Guard(certificates.credentials(), gate), certificates)

    def poll(self, meters: Meters) -> None:
        if self.guard.gate is not None:
            self.guard.gate.poll()
        if self.certificates is not None:
            meters.put("fraud_certificate_expiry_seconds", value=self.certificates.until_s)


def serve(options: ServeOptions, meters: Meters) -> int:
    """Serve until SIGTERM or SIGINT; return the exit status. Calls are counted in ``meters``."""
    if options.cpus:
        os.sched_setaffinity(0, options.cpus)
    entry = _Entry.open(options.callers)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    log = open_log(
        options.log, sync_interval_ms=options.sync_interval_ms, bytes_max=options.log_bytes_max
    )
    followed = _follow(log, options)
    archive = Archive(options.archive)
    policy = PolicyFile(
        options.policy, INDEX, lambda e: _log.error("policy refused: %s", e),
        on_load=archive.keep_policy,
        # Where own ids look like card numbers, lists of them may too.
        holds_secret=lambda data: not options.contract.exempt_fields and holds_card_number(data),
    )  # fmt: skip
    bundle = BundleFile(
        options.bundle, read_key(options.public_key), lambda e: _log.error("bundle refused: %s", e),
        archive.keep_bundle,
    )  # fmt: skip
    scorer = Scorer(
        NotedLog(log, meters.appended), followed.tail, IdHasher(options.secret),
        lambda: bundle.current,
        lambda: policy.current, options.contract, options.scorer, canary=lambda: bundle.canary,
        request_now=FormerIds(directory_of(options.log)).now,
    )  # fmt: skip
    practise(policy.current)
    if options.store.partitions:
        practise_batch(policy.current)
    _wait_for_store(followed.index, stopping)
    server = Server(scorer, options.address, options.server, CallMeter(meters).note, entry.guard)
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
    server.start()
    if options.ready_file is not None:
        options.ready_file.write_text(str(server.port))
    _log.info("serving on port %d", server.port)
    told = _tell_loaded(log, bundle, options.scorer.name, "")
    while not stopping.wait(options.poll_s):
        policy.poll()
        bundle.poll()
        told = _tell_loaded(log, bundle, options.scorer.name, told)
        followed.poll()
        entry.poll(meters)
    server.stop()
    log.close()
    followed.close()
    return 0


def _tell_loaded(log: EventLog, bundle: BundleFile, scorer: str, told: str) -> str:
    """Put it on the log when another bundle is in use than ``told``; return which one is."""
    if bundle.current is None or bundle.current.model_version == told:
        return told
    event = model_event_pb2.ModelEvent(
        change=model_event_pb2.MODEL_CHANGE_LOADED, model_version=bundle.current.model_version,
        previous_version=told, author=scorer,
    )  # fmt: skip
    began_ns, ended_ns = bundle.loading_ns
    event.learning.start_time.FromNanoseconds(began_ns)
    event.learning.end_time.FromNanoseconds(ended_ns)
    event.event_time.FromNanoseconds(ended_ns)
    try:
        log.append([[Entry(Topic.MODELS, 0, event.SerializeToString())]])
    except LogError as error:  # it decides by it all the same
        _log.error("not on the log: %s", error)
    return bundle.current.model_version


def serve_workers(
    argv: Sequence[str], workers: int, pin: bool, on_change: Callable[[Change], None]
) -> int:
    """Run ``argv`` as ``workers`` processes on one port, each on its own core with ``pin``."""
    roles = [
        Role(f"serve-{i}", [*argv, "--workers", "1", *cpus])
        for i, cpus in enumerate(cpu_flags(workers, pin))
    ]
    return 0 if Supervisor(roles, on_change).run() else 1


def host_name() -> str:
    """Return what stands in every decision as its scorer: host and process."""
    return f"{socket.gethostname()}/{os.getpid()}"
