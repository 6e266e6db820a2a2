"""Shared fixtures of the decision path: a trained bundle, payments, a host, roles as processes.

Owns how tests build and run the system. Must not assert what the system should do.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import hypothesis
import numpy as np
import pytest
from fraud.v1 import (
    decision_pb2,
    fraud_service_pb2,
    fraud_service_pb2_grpc,
    label_pb2,
    transaction_pb2,
)
from numpy.typing import NDArray

from featurizer.arena import Arena
from featurizer.backfill import backfill, read_history
from featurizer.eventlog import Batch, Damage, EventLog, Topic
from featurizer.eventlog_file import FileEventLog
from featurizer.features import FEATURES, INDEX, SCHEMA_VERSION
from featurizer.former_ids import FormerIds
from featurizer.hashing import SECRET_BYTES, IdHasher
from featurizer.records import RECORD, Kind
from featurizer.store_lmdb import LmdbStore
from featurizer.worker import Worker, WorkerSettings
from fraudsvc.calls import Call, Clocks, ScorerSettings
from fraudsvc.contract import Checker, ContractSettings
from fraudsvc.models import Canary
from fraudsvc.payment import Payment
from fraudsvc.policy import DEFAULT_POLICY, Policy, load_policy
from fraudsvc.scorer import Scorer
from fraudsvc.server import Server, ServerSettings
from fraudsvc.tail import local_tail
from loadgen.columns import SCHEMA
from loadgen.history import HistoryWriter
from loadgen.world import World, WorldSettings
from trainer.bundle import Bundle, load_bundle, write_bundle
from trainer.signing import create_key, public_path
from trainer.train import Settings, train
from trainer.vectors import read_vectors

SEED = int(os.environ.get("FRAUD_TEST_SEED", "20261127"))
START_MS = 1_750_000_000_000
SHED_PAUSE_S = 0.05
WAIT_S = 30.0
START_S = 240.0  # the first start after a change compiles every kernel
MAP_BYTES = 1 << 28
FAST = Settings(
    trees=40, depth=4, frauds_min=5, borders=64, fine_borders=256, threads=2, check_rows=32
)
WORLD = WorldSettings(seed=3, customers=200, rate_per_day=800.0, fraud_rate=0.02)
WORLD_DAYS = 20

# No test asserts a time: the first call of a kernel compiles it, and a busy machine is no failure.
hypothesis.settings.register_profile("no_deadline", deadline=None)
hypothesis.settings.load_profile("no_deadline")


class Trained(NamedTuple):
    """A world's history, and a bundle learnt from its vectors."""

    history: Path
    bundle_path: Path
    key_path: Path
    public_key: bytes
    bundle: Bundle


def train_tiny(folder: Path) -> Trained:
    """Take a tiny world through backfill and trainer."""
    history, vectors, key = folder / "history.parquet", folder / "vectors.parquet", folder / "key"
    with HistoryWriter(history, SCHEMA) as writer:
        for table in World(WORLD).days(WORLD_DAYS):
            writer.write(table)
    backfill(read_history(history, IdHasher(), {}), vectors, Arena())
    content = train(read_vectors(vectors), FAST, lambda _done, _all: None)
    create_key(key)
    write_bundle(folder / "bundle", content, key)
    public = public_path(key).read_bytes()
    bundle = load_bundle(folder / "bundle", schema_version=SCHEMA_VERSION, public_key=public)
    return Trained(history, folder / "bundle", key, public, bundle)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A tiny world through backfill and trainer, once a session."""
    return train_tiny(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="session")
def bundle(trained: Trained) -> Bundle:
    return trained.bundle


class Payments:
    """Seeded payments of few entities, so that every one meets states of those before."""

    def __init__(self, seed: int = SEED, start_ms: int = START_MS, step_ms: int = 90_000) -> None:
        print(f"SEED={seed}")
        self.rng = np.random.default_rng(seed)
        self.time_ms = start_ms
        self._step_ms = step_ms
        self.made: list[transaction_pb2.Transaction] = []

    def _pick(self, kind: str, few: int, absent: float = 0.2) -> str:
        return "" if self.rng.random() < absent else f"{kind}-{self.rng.integers(few)}"

    def one(self, **more: Any) -> transaction_pb2.Transaction:
        """Return the next payment; ``more`` replaces top-level fields."""
        rng = self.rng
        late_ms = int(rng.choice([0, 0, 0, 600_000, 86_400_000]))
        self.time_ms += int(rng.integers(0, self._step_ms))
        made = transaction_pb2.Transaction(
            request_id=str(uuid.UUID(bytes=rng.bytes(16), version=4)),
            transaction_id=f"t-{len(self.made)}-t{rng.integers(1 << 40):x}",
            customer_id=f"customer-{rng.integers(6)}",
            terminal_id=self._pick("terminal", 4), device_id=self._pick("device", 8),
            ip_address="" if rng.random() < 0.3 else f"10.0.{rng.integers(4)}.{rng.integers(9)}",
            amount_minor=int(rng.choice([100, 2_500, 40_000])) + int(rng.integers(900)),
            currency_code=str(rng.choice(["USD", "EUR", "JPY"])),
            channel=int(rng.integers(7)),  # type: ignore[arg-type]
            cvv_result=int(rng.choice([0, 1, 2])),  # type: ignore[arg-type]
        )  # fmt: skip
        made.card.token = self._pick("card", 9)
        made.card.bin = "" if rng.random() < 0.2 else f"40000{rng.integers(3)}"
        made.merchant.merchant_id = self._pick("merchant", 5)
        made.event_time.FromMilliseconds(self.time_ms - late_ms)
        for name, value in more.items():
            setattr(made, name, value)
        self.made.append(made)
        return made

    def label(self, transaction_id: str) -> label_pb2.Label:
        """Return a verdict that is known now."""
        label = label_pb2.Label(
            transaction_id=transaction_id,
            verdict=int(self.rng.integers(1, 3)),  # type: ignore[arg-type]
            source=label_pb2.LABEL_SOURCE_CHARGEBACK,
        )
        label.label_time.FromMilliseconds(self.time_ms)
        return label


def call_now(budget_s: float = 60.0, **more: Any) -> Call:
    """Return a call that has just arrived."""
    now_ns = time.perf_counter_ns()
    return Call(now_ns, now_ns + int(budget_s * 1e9), **more)


def accepted(transaction: transaction_pb2.Transaction, now_ms: int) -> Payment:
    """Return a valid transaction as the scorer has it once it was checked."""
    record = np.zeros(1, RECORD)
    checker = Checker(IdHasher(), ContractSettings(max_age_days=None))
    assert checker.check(transaction, now_ms, record) == []
    data = transaction.SerializeToString(deterministic=True)
    return Payment(data, record, record.view(np.int64), now_ms)


class Asked:
    """A scorer that is asked, and answers, in messages; the bytes are the service's own form."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self.report_labels = scorer.report_labels
        self.get_decision = scorer.get_decision

    def score(
        self, transaction: transaction_pb2.Transaction, call: Call, *, validate_only: bool = False
    ) -> decision_pb2.Assessment:
        answer = self.scorer.score(
            transaction.SerializeToString(), call, validate_only=validate_only
        )
        return decision_pb2.Assessment.FromString(answer)

    def score_batch(
        self, transactions: Sequence[transaction_pb2.Transaction], call: Call
    ) -> list[fraud_service_pb2.ScoreResult]:
        answers = self.scorer.score_batch([t.SerializeToString() for t in transactions], call)
        return [fraud_service_pb2.ScoreResult.FromString(answer) for answer in answers]

    def score_several(
        self, transactions: Sequence[transaction_pb2.Transaction], calls: Sequence[Call]
    ) -> list[decision_pb2.Assessment | str]:
        """Return each answer, or the reason of the error."""
        answers = self.scorer.score_several([t.SerializeToString() for t in transactions], calls)
        return [
            decision_pb2.Assessment.FromString(each) if isinstance(each, bytes) else each.reason
            for each in answers
        ]


class Interrupted:
    """A real log that lets another worker write just before an append."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self.before: list[object] = []

    def append(self, frames: object) -> list[int]:
        while self.before:
            self.before.pop()()  # type: ignore[operator]
        return self._log.append(frames)  # type: ignore[arg-type]

    def read(self, position: int, max_bytes: int) -> Batch:
        return self._log.read(position, max_bytes)

    def ends(self) -> tuple[int, int]:
        return self._log.ends()

    def close(self) -> None:
        self._log.close()


@dataclass
class Host:
    """One host's log, store and featurizer, whose steps the test takes; any number of scorers."""

    folder: Path
    bundle: Bundle | None
    read_bytes: int = 16 << 10
    now_ms: int = START_MS + 400 * 86_400_000
    canary: Canary | None = None
    secret: bytes = bytes(SECRET_BYTES)
    monotonic_ns: Callable[[], int] = time.perf_counter_ns
    damage: list[Damage] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)  # closed, decisions wait

    def __post_init__(self) -> None:
        self.gate.set()
        self.policy = load_policy(DEFAULT_POLICY, INDEX)
        self.log = self.open_log()
        self.store = LmdbStore(
            self.folder / "store", schema=SCHEMA_VERSION, map_bytes=MAP_BYTES, min_free_bytes=0
        )
        settings = WorkerSettings(read_bytes=self.read_bytes)
        self.worker = Worker(self.log, self.store, settings, self.damage.append)

    def open_log(self) -> FileEventLog:
        return FileEventLog(self.folder / "log", sync_interval_ms=1_000)

    def scorer(self, log: EventLog | None = None, **settings: Any) -> Asked:
        """Return a new scorer, which knows nothing but log and store."""
        # A busy machine must not decide which rung a test sees.
        bounds = ScorerSettings(**{"budget_ms": 60_000.0, "states_bytes_max": 8 << 20, **settings})
        log = log or self.log
        made = Scorer(
            log, local_tail(log, self.store, bounds), IdHasher(self.secret), lambda: self.bundle,
            self._policy_now, ContractSettings(max_age_days=None), bounds,
            Clocks(lambda: self.now_ms, self.monotonic_ns), canary=lambda: self.canary,
            request_now=FormerIds(self.folder / "log").now,
        )  # fmt: skip
        return Asked(made)

    def _policy_now(self) -> Policy:
        self.gate.wait(WAIT_S)
        return self.policy

    def fold(self, steps: int | None = None) -> None:
        """Let the featurizer take some steps, or all it can."""
        taken = 0
        while (steps is None or taken < steps) and self.worker.step():
            taken += 1

    def states(self, keys: Sequence[int]) -> dict[int, bytes]:
        """Return those states that are in the store."""
        with contextlib.closing(self.store.snapshot()) as snapshot:
            blobs = snapshot.get_many(keys)
            return {k: bytes(b) for k, b in zip(keys, blobs, strict=True) if b is not None}

    def close(self) -> None:
        self.store.close()
        self.log.close()


class Overtaken(NamedTuple):
    """A batch during whose append another scorer of the host appended a payment, or its item 7."""

    slow: Asked
    quick: Asked
    items: list[transaction_pb2.Transaction]
    answers: list[decision_pb2.Assessment]
    won: decision_pb2.Assessment


def overtake(host: Host, payments: Payments, *, repeats_one: bool) -> Overtaken:
    """Let one scorer decide a batch of 20 while another is faster."""
    log = Interrupted(host.open_log())
    slow, quick = host.scorer(log), host.scorer()
    for scorer in (slow, quick):
        scorer.score(payments.one(), call_now())
    items = [payments.one(customer_id="one") for _ in range(20)]
    taken = items[7] if repeats_one else payments.one(customer_id="one")
    won: list[decision_pb2.Assessment] = []
    log.before.append(lambda: won.append(quick.score(taken, call_now())))
    answers = [result.assessment for result in slow.score_batch(items, call_now())]
    return Overtaken(slow, quick, items, answers, won[0])


@pytest.fixture
def host(tmp_path: Path, bundle: Bundle) -> Iterator[Host]:
    made = Host(tmp_path, bundle)
    yield made
    made.close()


class Logged(NamedTuple):
    """One entry as it stands in the log."""

    topic: Topic
    frame: int
    position: int
    value: bytes


def read_all(log: EventLog) -> list[Logged]:
    """Return every entry of the log."""
    found: list[Logged] = []
    position = log.ends()[0]
    while (batch := log.read(position, 1 << 20)).next_position != position:
        found += [
            Logged(Topic(t), int(batch.frames[i]), int(batch.positions[i]), batch.value(i))
            for i, t in enumerate(batch.topics.tolist())
        ]
        position = batch.next_position
    return found


def first_records(entries: Sequence[Logged]) -> tuple[NDArray[Any], NDArray[np.int64], list[int]]:
    """Return the records that count, in log order: the first of each request.

    With their positions, and their places: the position of the frame, for the first in a frame.
    """
    seen: set[int] = set()
    rows, positions, places = [], [], []
    for entry in entries:
        if entry.topic not in (Topic.TRANSACTIONS, Topic.FEEDBACK):
            continue
        record = np.frombuffer(entry.value, RECORD)
        request = int(record["request"][0])
        if entry.topic == Topic.TRANSACTIONS and request:
            if request in seen:
                continue
            seen.add(request)
        rows.append(record)
        positions.append(entry.position)
        places.append(entry.position - 1)
    records = np.concatenate(rows) if rows else np.zeros(0, RECORD)
    return records, np.array(positions, np.int64), places


def recomputed(log: EventLog) -> tuple[dict[int, bytes], dict[int, bytes]]:
    """Fold the whole log into an Arena: the vector by place, and the state by key."""
    records, positions, places = first_records(read_all(log))
    out = np.zeros((len(records), len(FEATURES)), np.float32)
    arena = Arena()
    arena.run(records, positions, out)
    kinds = records["kind"].tolist()
    vectors = {f: out[i].tobytes() for i, f in enumerate(places) if kinds[i] == Kind.TRANSACTION}
    return vectors, dict(arena.states())


def decisions(log: EventLog) -> dict[int, decision_pb2.Decision]:
    """Return every decision in the log by the place of its transaction."""
    return {
        entry.position - 2: decision_pb2.Decision.FromString(entry.value)
        for entry in read_all(log)
        if entry.topic == Topic.DECISIONS
    }


def free_port() -> int:
    """Return a port that nothing listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def until(condition: Callable[[], Any], what: str = "it", wait_s: float = WAIT_S) -> Any:
    """Return what ``condition`` gives once it is true."""
    end = time.monotonic() + wait_s
    while not (found := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"waited {wait_s} s for {what}")
        time.sleep(0.01)
    return found


def channel_to(port: int) -> grpc.Channel:
    """Return a connection of its own, which another channel's does not serve."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 200)]
    return grpc.insecure_channel(f"127.0.0.1:{port}", options)


class Connected(NamedTuple):
    """A client of a server."""

    port: int
    channel: grpc.Channel
    stub: fraud_service_pb2_grpc.FraudServiceStub


@contextlib.contextmanager
def connected(port: int, wait_s: float = WAIT_S) -> Iterator[Connected]:
    """Yield a client once the server answers; with no ``wait_s`` at once."""
    with channel_to(port) as channel:
        if wait_s:
            grpc.channel_ready_future(channel).result(wait_s)
        stub = fraud_service_pb2_grpc.FraudServiceStub(channel)  # type: ignore[no-untyped-call]
        yield Connected(port, channel, stub)


@contextlib.contextmanager
def serving(asked: Asked, **settings: Any) -> Iterator[tuple[Server, Connected]]:
    """Serve in this process."""
    # A busy machine must not decide what is shed.
    bounds = ServerSettings(**{"wait_ms_max": 60_000.0, "linger_s": 0.0, **settings})
    server = Server(asked.scorer, "127.0.0.1:0", bounds)
    server.start()
    try:
        with connected(server.port) as client:
            yield server, client
    finally:
        server.stop()


class Process:
    """A role as a process; its output goes to a file."""

    def __init__(self, output: Path, *argv: str) -> None:
        self._output = output
        with output.open("ab") as file:
            self.popen = subprocess.Popen(
                (sys.executable, "-m", *argv), stdout=file, stderr=file, stdin=subprocess.DEVNULL
            )

    @property
    def said(self) -> str:
        return self._output.read_text(errors="replace")

    def wait_for(self, ready: Path) -> None:
        """Return once the ready file is there; raise where the process ends before."""

        def is_ready() -> bool:
            if self.popen.poll() is not None:
                raise RuntimeError(f"ended with {self.popen.returncode}: {self.said}")
            return ready.exists() and bool(ready.read_text())

        until(is_ready, ready.name, START_S)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and return the exit status."""
        if self.popen.poll() is None:
            self.popen.send_signal(number)
        return self.popen.wait(WAIT_S)


@contextlib.contextmanager
def process(output: Path, *argv: str) -> Iterator[Process]:
    """Run a role; whatever happens it is gone afterwards."""
    started = Process(output, *argv)
    try:
        yield started
    finally:
        started.stop(signal.SIGKILL)


def score_patiently(
    client: Connected, request: fraud_service_pb2.ScoreRequest, metadata: Any = ()
) -> decision_pb2.Assessment:
    """Score as a client should: a call that is shed, as on a busy machine, is sent again."""
    while True:
        try:
            answer: decision_pb2.Assessment
            answer = client.stub.Score(request, timeout=WAIT_S, metadata=metadata).assessment
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise
            time.sleep(SHED_PAUSE_S)
        else:
            return answer
