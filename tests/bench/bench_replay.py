"""Owns how fast history is made again: replay of a range, and a backtest over it.

Run with ``python -m tests.bench replay``. A scorer in this process writes the log in batches, with
the world of the other measurements; then both commands run over it, on all cores.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

from fraud.v1 import fraud_service_pb2 as pb

from featurizer.adapters import open_log, open_store
from featurizer.features import INDEX, SCHEMA_VERSION
from featurizer.hashing import SECRET_BYTES, IdHasher
from featurizer.worker import Worker, WorkerSettings
from fraudsvc.backtest.run import Change
from fraudsvc.calls import MS, Call, ScorerSettings
from fraudsvc.contract import ContractSettings
from fraudsvc.look_back_command import BacktestOptions, ReplayOptions, backtest, replay_many
from fraudsvc.policy import DEFAULT_POLICY, load_policy
from fraudsvc.replay.judges import Places
from fraudsvc.replay.log import Span
from fraudsvc.scorer import Scorer
from fraudsvc.tail import local_tail
from tests.bench.bench_score import live_requests, prepare
from tests.bench.claims import SEED, claim
from trainer.bundle import load_bundle

BATCH = 1_024
DECISIONS = 200_000
NO_DEADLINE_MS = 1e9
REPLAY_S_MIN = 20_000.0
BACKTEST_MILLION_S_MAX = 120.0


def write_log(where: Path, requests: Sequence[pb.ScoreRequest]) -> None:
    """Decide payments again and again, each time as other payments, until there are enough."""
    log = open_log(f"file://{where}/log")
    store = open_store(f"lmdb://{where}/store", schema=SCHEMA_VERSION)
    worker = Worker(log, store, WorkerSettings(), lambda _damage: None)
    key = (where / "key.pub").read_bytes()
    bundle = load_bundle(where / "bundle", schema_version=SCHEMA_VERSION, public_key=key)
    policy = load_policy(DEFAULT_POLICY, INDEX)
    settings = ScorerSettings(budget_ms=NO_DEADLINE_MS)
    scorer = Scorer(
        log, local_tail(log, store, settings), IdHasher(), lambda: bundle, lambda: policy,
        ContractSettings(max_age_days=None), settings,
    )  # fmt: skip
    payments = islice(_payments(requests), DECISIONS)
    while batch := list(islice(payments, BATCH)):
        while worker.step():
            pass
        now_ns = time.perf_counter_ns()
        scorer.score_batch(batch, Call(now_ns, now_ns + int(NO_DEADLINE_MS * MS)))
    log.close()
    store.close()


def _payments(requests: Sequence[pb.ScoreRequest]) -> Iterator[bytes]:
    for number in count():
        for request in requests:
            made = request.transaction
            made.request_id = f"{number:08x}{made.request_id[8:]}"
            made.transaction_id = f"{number}-{made.transaction_id.rpartition('-')[2]}"
            yield made.SerializeToString(deterministic=True)


def measured(where: Path) -> tuple[float, float, bool]:
    """Return decisions a second of a replay and of a backtest, and if all came out the same."""
    places = Places(
        where / "archive", where / "models", where / "bundle", DEFAULT_POLICY,
        (where / "key.pub").read_bytes(),
    )  # fmt: skip
    options = ReplayOptions(f"file://{where}/log", places, bytes(SECRET_BYTES))
    start = time.perf_counter()
    summary = replay_many(Span(), options, lambda _position, _done: None)
    replay_s = summary.decisions / (time.perf_counter() - start)
    change = BacktestOptions(Change(rule="amount_reference > 100000"))
    start = time.perf_counter()
    found = backtest(Span(), options, change, lambda _position, _done: None)
    return replay_s, found["decisions"] / (time.perf_counter() - start), summary.is_same


def rows() -> list[dict[str, Any]]:
    """Return one row per claim: name, value, unit, baseline, ratio, target, met."""
    with tempfile.TemporaryDirectory() as directory:
        where = Path(directory)
        requests = live_requests(where / "world.parquet", prepare(where))
        write_log(where, requests)
        replay_s, backtest_s, same = measured(where)
    cores = len(os.sched_getaffinity(0))
    return [
        claim(
            f"decisions replayed on {cores} cores, every byte compared",
            round(replay_s), "decisions/s", at_least=REPLAY_S_MIN, right=same,
        ),
        claim(
            f"backtest of a million decisions on {cores} cores", round(1e6 / backtest_s, 1), "s",
            at_most=BACKTEST_MILLION_S_MAX,
        ),
    ]  # fmt: skip


if __name__ == "__main__":
    print(f"seed {SEED}")
    for row in rows():
        print(row)
