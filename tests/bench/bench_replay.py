"""Owns how fast history is made again: replay of a range, and a backtest over it.

Run with ``python -m tests.bench replay``. Scorers in this process write the log in batches, with
the world of the other measurements, and with swaps, policy changes, restarts, states that lag
behind and none at all; then both commands run over it, on all cores.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import count, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NoReturn

from fraud.v1 import fraud_service_pb2 as pb
from fraud.v1 import label_pb2, transaction_pb2

from featurizer.adapters import open_log, open_store
from featurizer.eventlog import EventLog
from featurizer.features import INDEX, SCHEMA_VERSION
from featurizer.hashing import SECRET_BYTES, IdHasher
from featurizer.store import StoreError
from featurizer.worker import Worker, WorkerSettings
from fraudsvc.archive import Archive
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
from trainer.bundle import load_bundle, load_content, write_bundle

BATCH = 1_024
DECISIONS = 200_000
BACKTESTED = 1_000_000
NO_DEADLINE_MS = 1e9
REPLAY_S_MIN = 20_000.0
BACKTEST_MILLION_S_MAX = 120.0
# What happens to the run, by the number of its batch: how often, or from where to where.
BUNDLE_EVERY, POLICY_EVERY, RESTART_EVERY, LABELS_EVERY = 40, 30, 50, 7
BEHIND, TOO_LATE, WITHOUT_STATES = range(60, 76), range(100, 103), range(120, 123)
PENDING_MAX = 2_048
LOADED_BYTES = 32 << 20
LIST = b"""
[[lists]]
code = "WATCHED"
action = "review"
field = "customer_id"
values = ["customer-1"]
"""


class _NoStates:
    """A store that is away."""

    def snapshot(self) -> NoReturn:
        raise StoreError("there are no states")


class _Life:
    """A run with swaps, policy changes, restarts and what degrades decisions; no two batches alike.

    Owns what is in force when. ``where`` has a bundle and its key; both bundles are archived.
    """

    def __init__(self, where: Path) -> None:
        self._log_url = f"file://{where}/log"
        self._log = open_log(self._log_url)
        self._store = open_store(f"lmdb://{where}/store", schema=SCHEMA_VERSION)
        self._worker = Worker(self._log, self._store, WorkerSettings(), lambda _damage: None)
        archive, key = Archive(where / "archive"), (where / "key.pub").read_bytes()
        paths = [where / "bundle", _stricter(where, key)]
        self._bundles = [
            load_bundle(path, schema_version=SCHEMA_VERSION, public_key=key) for path in paths
        ]
        texts = [DEFAULT_POLICY.read_bytes(), DEFAULT_POLICY.read_bytes() + LIST]
        self._policies = [load_policy(text, INDEX) for text in texts]
        for bundle, path in zip(self._bundles, paths, strict=True):
            archive.keep_bundle(bundle.model_version, path)
        for policy, text in zip(self._policies, texts, strict=True):
            archive.keep_policy(policy.version, text)
        self._bundle, self._policy = self._bundles[0], self._policies[0]
        self._logs: list[EventLog] = []
        self._scorer = self._started(range(0))

    def decide(self, number: int, batch: Sequence[bytes]) -> None:
        """Decide the next batch."""
        self._bundle = self._bundles[number // BUNDLE_EVERY % 2]
        self._policy = self._policies[number // POLICY_EVERY % 2]
        special = (BEHIND, TOO_LATE, WITHOUT_STATES)
        turns = {edge for each in special for edge in (each.start, each.stop)}
        if number in turns or number % RESTART_EVERY == 0:
            own = next((each for each in special if number in each), range(0))
            self._scorer = self._started(own)
        while number not in BEHIND and self._worker.step():
            pass
        now_ns = time.perf_counter_ns()
        self._scorer.score_batch(batch, Call(now_ns, now_ns + int(NO_DEADLINE_MS * MS)))
        if number % LABELS_EVERY == 0:
            self._scorer.report_labels([_label_of(each) for each in batch[::50]])

    def close(self) -> None:
        """End it."""
        for log in (self._log, *self._logs):
            log.close()
        self._store.close()

    def _started(self, during: range) -> Scorer:
        late = during == TOO_LATE
        settings = ScorerSettings(
            budget_ms=1.0 if late else NO_DEADLINE_MS, full_ms=NO_DEADLINE_MS if late else 0.0,
            pending_max=PENDING_MAX if during == BEHIND else ScorerSettings().pending_max,
        )  # fmt: skip
        store = _NoStates() if during == WITHOUT_STATES else self._store
        self._logs.append(log := open_log(self._log_url))
        return Scorer(
            log, local_tail(log, store, settings), IdHasher(), lambda: self._bundle,
            lambda: self._policy, ContractSettings(max_age_days=None), settings,
        )  # fmt: skip


def _stricter(where: Path, key: bytes) -> Path:
    """Write another bundle, on which more is reviewed."""
    path = where / "stricter"
    content = load_content(where / "bundle", schema_version=SCHEMA_VERSION, public_key=key)
    lower = replace(content.thresholds, review=content.thresholds.review / 2)
    write_bundle(path, replace(content, thresholds=lower), where / "key")
    return path


def _label_of(payment: bytes) -> label_pb2.Label:
    made = transaction_pb2.Transaction.FromString(payment)
    label = label_pb2.Label(
        transaction_id=made.transaction_id, verdict=label_pb2.VERDICT_LEGITIMATE,
        source=label_pb2.LABEL_SOURCE_ANALYST,
    )  # fmt: skip
    label.label_time.CopyFrom(made.event_time)
    return label


def write_log(where: Path, requests: Sequence[pb.ScoreRequest]) -> None:
    """Decide payments again and again, each time as other payments, until there are enough."""
    life = _Life(where)
    payments = islice(_payments(requests), DECISIONS)
    for number in count():
        if not (batch := list(islice(payments, BATCH))):
            break
        life.decide(number, batch)
    life.close()


def _payments(requests: Sequence[pb.ScoreRequest]) -> Iterator[bytes]:
    for number in count():
        for request in requests:
            made = request.transaction
            made.request_id = f"{number:08x}{made.request_id[8:]}"
            made.transaction_id = f"{number}-{made.transaction_id.rpartition('-')[2]}"
            yield made.SerializeToString(deterministic=True)


def measured(where: Path) -> tuple[float, float, bool]:
    """Return decisions a second of a replay, the seconds that a backtest of a million takes.

    And if all came out the same. The log is run through again until a million were decided.
    """
    places = Places(
        where / "archive", where / "models", where / "bundle", DEFAULT_POLICY,
        (where / "key.pub").read_bytes(),
    )  # fmt: skip
    options = ReplayOptions(f"file://{where}/log", places, bytes(SECRET_BYTES))
    replay_many(Span(0, LOADED_BYTES), options, lambda _position, _done: None)  # loads the kernels
    start = time.perf_counter()
    summary = replay_many(Span(), options, lambda _position, _done: None)
    replay_s = summary.decisions / (time.perf_counter() - start)
    change = BacktestOptions(Change(rule="amount_reference > 100000"))
    start, decided = time.perf_counter(), 0
    while decided < BACKTESTED:
        decided += backtest(Span(), options, change, lambda _position, _done: None)["decisions"]
    backtest_s = (time.perf_counter() - start) * BACKTESTED / decided
    return replay_s, backtest_s, summary.is_same


def rows() -> list[dict[str, Any]]:
    """Return one row per claim: name, value, unit, baseline, ratio, target, met."""
    with tempfile.TemporaryDirectory() as directory:
        where = Path(directory)
        requests = live_requests(where / "world.parquet", prepare(where))
        write_log(where, requests)
        os.sync()  # else the disk writes while it is read
        with ProcessPoolExecutor(1, get_context("spawn")) as fresh:  # as the commands are
            replay_s, backtest_s, same = fresh.submit(measured, where).result()
    cores = len(os.sched_getaffinity(0))
    return [
        claim(
            f"decisions replayed on {cores} cores, every byte compared",
            round(replay_s), "decisions/s", at_least=REPLAY_S_MIN, right=same,
        ),
        claim(
            f"backtest of a million decisions on {cores} cores", round(backtest_s, 1), "s",
            at_most=BACKTEST_MILLION_S_MAX,
        ),
    ]  # fmt: skip


if __name__ == "__main__":
    print(f"seed {SEED}")
    for row in rows():
        print(row)
