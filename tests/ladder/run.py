"""Makes what the ladder stands on, and climbs it in turns.

Owns processes, files and time. Must not know what a step does.
"""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import redis
from catboost import CatBoost

from deploy.testing.kafka import KafkaCluster
from deploy.testing.redis import RedisServer
from featurizer.adapters import open_log, open_store
from featurizer.features import INDEX, SCHEMA_VERSION
from fraudsvc.policy import DEFAULT_POLICY, load_policy
from fraudsvc.serve import GC_THRESHOLD
from tests.ladder.ways import Answer, Decider, Places, Producer, Step, Way, ladder
from trainer.bundle import load_bundle

COMMAND_S, CAUGHT_UP_S = 600.0, 120.0
TOPIC = "ladder"
DAY_MS = 86_400_000
TOLERANCE = 1e-6
FIRST_MS_MIN, LAST_MS_MAX = 8.0, 0.6


class Size(NamedTuple):
    """How much is measured: days and customers of the world, payments, rounds."""

    days: int = 12
    customers: int = 1_500
    rate: int = 6_000
    payments: int = 300
    rounds: int = 8
    iterations: int = 300


class Taken(NamedTuple):
    """What a step took: ms of each call, and ms of CPU of this process for a call."""

    step: Step
    calls_ms: Any
    cpu_ms: float

    def percentile(self, share: float) -> float:
        return float(np.quantile(self.calls_ms, share))


class WrongError(AssertionError):
    """A step came to another decision."""


def _run(*arguments: str) -> None:
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=COMMAND_S)
    if done.returncode:
        raise RuntimeError(f"{arguments[:2]}: {done.stderr[-2000:]}")


def prepare(where: Path, size: Size) -> tuple[list[bytes], int]:
    """Make world, log, states and bundle; return the last day's transactions and its end, ms."""
    from loadgen.rows import HistoryRow, Span, read_rows  # noqa: PLC0415 - after the arguments

    world, vectors = where / "world.parquet", where / "vectors.parquet"
    _run(
        "loadgen", "world", "--days", str(size.days), "--customers", str(size.customers),
        "--rate", str(size.rate), "--fraud-rate", "0.01", "--seed", "1", "--out", str(world),
    )  # fmt: skip
    rows = [row for row in read_rows(world, {}, None) if isinstance(row, HistoryRow)]
    live_ms = rows[0].event_ms // DAY_MS * DAY_MS + (size.days - 1) * DAY_MS
    until = time.strftime("%Y-%m-%d", time.gmtime(live_ms / 1000))
    log = ("--log", f"file://{where}/log", "--log-until", until)
    _run("featurizer", "backfill", str(world), str(vectors), *log)
    _run(
        "trainer", "train", str(vectors), "--out", str(where / "bundle"), "--key",
        str(where / "key"), "--until", until, "--iterations", str(size.iterations),
        "--frauds-min", "5",
    )  # fmt: skip
    _fold(where)
    found: list[bytes] = []
    for number, row in enumerate(read_rows(world, {}, None, Span(live_ms, None))):
        if len(found) == size.payments:
            break
        if isinstance(row, HistoryRow):
            row.transaction.request_id = f"00000000-0000-4000-8000-{number:012x}"
            found.append(row.transaction.SerializeToString(deterministic=True))
    return found, live_ms + DAY_MS


def _fold(where: Path) -> None:
    """Let a featurizer fold the log into the store."""
    ready = where / "folded"
    command = [
        sys.executable, "-m", "featurizer", "run", "--log", f"file://{where}/log",
        "--store", f"lmdb://{where}/store", "--ready-file", str(ready),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + CAUGHT_UP_S
        while not ready.exists():
            if time.monotonic() > deadline or process.poll() is not None:
                raise RuntimeError("the featurizer did not fold the history")
            time.sleep(0.2)
    finally:
        process.terminate()
        process.wait(30)


@contextlib.contextmanager
def places(where: Path) -> Iterator[Places]:
    """Start Kafka and Redis and open all else."""
    public_key = (where / "key.pub").read_bytes()
    bundle = load_bundle(where / "bundle", schema_version=SCHEMA_VERSION, public_key=public_key)
    model = CatBoost()
    model.load_model(str(where / "bundle" / "base.cbm"))
    with contextlib.ExitStack() as stack:
        kafka = stack.enter_context(KafkaCluster(where / "kafka"))
        server = stack.enter_context(RedisServer(where / "redis"))
        url = f"kafka://{kafka.bootstrap}/{TOPIC}?event_partitions=1&entity_partitions=1"
        _run("featurizer", "topics", "--kafka", url)
        producer = Producer(kafka.bootstrap)
        stack.callback(producer.close)
        log = open_log(f"file://{where}/journal")
        stack.callback(log.close)
        store = open_store(f"lmdb://{where}/store", schema=SCHEMA_VERSION, read_only=True)
        stack.callback(store.close)
        features = redis.Redis.from_url(server.url)
        stack.callback(features.close)
        policy = load_policy(DEFAULT_POLICY.read_bytes(), INDEX)
        yield Places(
            bundle, model, policy, store, log, features, producer, f"{TOPIC}.decisions"
        )  # fmt: skip


@contextlib.contextmanager
def process_as(way: Way) -> Iterator[None]:
    """Set gc and cores as the way has them."""
    cores, threshold = os.sched_getaffinity(0), gc.get_threshold()
    if not way.unfrozen:
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD)
    if not way.unpinned:
        os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
        gc.set_threshold(*threshold)
        gc.unfreeze()


def climb(at: Places, transactions: Sequence[bytes], now_ms: int, rounds: int) -> list[Taken]:
    """Return what each step took, all steps in turn in each round after one to warm up.

    Raises WrongError where a step gives another score or outcome than the first.
    """
    decider, steps = Decider(at), ladder()
    try:
        decider.prepare(transactions, now_ms)
        first = _round(decider, steps[0], transactions, now_ms)[0]
        calls: dict[str, list[float]] = {step.name: [] for step in steps}
        cpu: dict[str, list[float]] = {step.name: [] for step in steps}
        for number in range(rounds + 1):
            for step in steps:
                answers, taken, used = _round(decider, step, transactions, now_ms)
                _compare(step, answers, first)
                if number:
                    calls[step.name] += taken
                    cpu[step.name].append(used)
    finally:
        decider.close()
    return [Taken(s, np.array(calls[s.name]), median(cpu[s.name])) for s in steps]


def _round(
    decider: Decider, step: Step, transactions: Sequence[bytes], now_ms: int
) -> tuple[list[Answer], list[float], float]:
    answers, taken = [], []
    with process_as(step.way):
        before_ns = time.process_time_ns()
        for number, body in enumerate(transactions):
            start_ns = time.perf_counter_ns()
            answers.append(decider.decide(number, body, now_ms, step.way))
            taken.append((time.perf_counter_ns() - start_ns) / 1e6)
        used = (time.process_time_ns() - before_ns) / 1e6 / len(transactions)
    decider.exported.clear()
    return answers, taken, used


def _compare(step: Step, answers: Sequence[Answer], first: Sequence[Answer]) -> None:
    for number, (answer, wanted) in enumerate(zip(answers, first, strict=True)):
        near = abs(answer.probability - wanted.probability) <= TOLERANCE
        if not near or answer.outcome != wanted.outcome:
            raise WrongError(f"{step.name}: payment {number} got {answer}, not {wanted}")


def rows(taken: Sequence[Taken]) -> list[dict[str, Any]]:
    """Return the rows of bench.json: one a step, its p99 against the first step's."""
    first, last = taken[0].percentile(0.99), len(taken) - 1
    found: list[dict[str, Any]] = []
    for number, each in enumerate(taken):
        p99 = each.percentile(0.99)
        target, met = None, None
        if number == 0:
            target, met = f">= {FIRST_MS_MIN:g}", p99 >= FIRST_MS_MIN
        if number == last:
            target, met = f"<= {LAST_MS_MAX:g}", p99 <= LAST_MS_MAX
        found.append({
            "name": f"ladder {number}: {each.step.name}: p99 inside the service",
            "value": round(p99, 3), "unit": "ms", "baseline": round(first, 3),
            "ratio": round(p99 / first, 4), "target": target, "met": met,
            "p50": round(each.percentile(0.5), 3), "p999": round(each.percentile(0.999), 3),
            "cpu_ms": round(each.cpu_ms, 3), "calls": len(each.calls_ms),
        })  # fmt: skip
    return found
