"""A practice run before the port opens: real decisions on a log and a store that are thrown away.

Compiles or loads every kernel and touches every page of code that a call will need, the append
and a bundle that comes later included, so that the first caller waits no longer than the last.
"""

from __future__ import annotations

import tempfile
import uuid
from pathlib import Path

import numpy as np
from fraud.v1 import fraud_service_pb2, label_pb2, transaction_pb2

from featurizer.adapters import open_log, open_store
from featurizer.arena import Arena
from featurizer.features import FEATURES, NAMES, SCHEMA_VERSION
from featurizer.hashing import IdHasher
from featurizer.records import RECORD, Kind
from featurizer.worker import Worker, WorkerSettings
from fraudsvc.assess import Sheet
from fraudsvc.batch_states import BatchStates
from fraudsvc.calls import Call, Clocks, ScorerSettings
from fraudsvc.contract import ContractSettings
from fraudsvc.policy import Policy
from fraudsvc.scorer import Scorer
from fraudsvc.tail import local_tail
from trainer.bundle import Bundle
from trainer.calibration import Calibration
from trainer.model import Model
from trainer.thresholds import Thresholds
from trainer.trees import Trees

CALLS = 200
DEADLINE_NS = 60_000_000_000
NEVER_FULL_MS = 1e9
ARENA_BYTES = 1 << 20


def _bundle() -> Bundle:
    """Return the smallest model there is."""
    trees = Trees(
        n_features=len(FEATURES), depths=np.array([1]), split_features=np.zeros(1, np.int32),
        split_borders=np.zeros(1, np.float32), leaf_values=np.array([-1.0, 1.0]),
        leaf_weights=np.ones(2), scale=1.0, bias=0.0,
    )  # fmt: skip
    knots = np.array([[-1.0, 1.0], [0.1, 0.9]])
    return Bundle(
        "practice", SCHEMA_VERSION, NAMES, Model(trees), Calibration(knots), Thresholds(0.5, 0.8),
        {},
    )  # fmt: skip


def _request(number: int, now_ms: int) -> fraud_service_pb2.ScoreRequest:
    """Return a request with every field that has an entity behind it."""
    few = number % 7
    transaction = transaction_pb2.Transaction(
        request_id=str(uuid.uuid4()), transaction_id=f"practice-{number}",
        customer_id=f"customer-{few}" if few else "beyond ASCII, so the judge's: ç",
        terminal_id=f"terminal-{few}", device_id=f"device-{few}",
        ip_address=f"192.0.2.{few}", amount_minor=100 + number, currency_code="EUR",
        billing_region_code="AT", shipping_region_code="AT",
    )  # fmt: skip
    transaction.card.token, transaction.card.bin = f"token-{few}", "400000"
    transaction.merchant.merchant_id = f"merchant-{few}"
    transaction.email.address_hash = f"address-{few}"
    transaction.position.latitude_degrees = 48.2
    transaction.event_time.FromMilliseconds(now_ms)
    return fraud_service_pb2.ScoreRequest(transaction=transaction)


def _label(number: int, now_ms: int) -> label_pb2.Label:
    label = label_pb2.Label(
        transaction_id=f"practice-{number}", verdict=label_pb2.VERDICT_FRAUD,
        source=label_pb2.LABEL_SOURCE_ANALYST,
    )  # fmt: skip
    label.label_time.FromMilliseconds(now_ms)
    return label


def practise(policy: Policy) -> None:
    """Decide CALLS transactions on every rung, with labels and folds in between."""
    clocks, bundle = Clocks(), _bundle()
    with tempfile.TemporaryDirectory(prefix="fraudsvc-practice-") as directory:
        log = open_log(f"file://{Path(directory)}/log")
        store = open_store(f"lmdb://{Path(directory)}/store", schema=SCHEMA_VERSION)
        worker = Worker(log, store, WorkerSettings(), lambda _: None)
        usual, late = (
            Scorer(
                log,
                local_tail(log, store, settings),
                IdHasher(),
                lambda: bundle,
                lambda: policy,
                ContractSettings(),
                settings,
            )
            for settings in (ScorerSettings(), ScorerSettings(full_ms=NEVER_FULL_MS))
        )
        for number in range(CALLS):
            now_ms, now_ns = clocks.now_ms(), clocks.monotonic_ns()
            request = _request(number, now_ms)
            data = request.transaction.SerializeToString(deterministic=True)
            scorer = late if number % 10 == 9 else usual
            call = Call(now_ns, now_ns + DEADLINE_NS)
            if number % 10 == 4:
                scorer.score_batch([data], call)
            else:
                scorer.score(data, call)
            if number % 50 == 49:
                scorer.report_labels([_label(number, now_ms)])
                worker.step()
        store.close()
        log.close()


def practise_batch(policy: Policy) -> None:
    """Compile what decisions on states that were read at once would have to wait for.

    A stream's group takes it for dead while it compiles, and a scorer's callers would be late.
    """
    records = np.zeros(1, RECORD)
    records["kind"], records["entities"] = Kind.TRANSACTION, 1
    stored, positions = np.zeros(records["entities"].shape, np.int64), np.ones(1, np.int64)
    arena, again = Arena(ARENA_BYTES), BatchStates(Arena(ARENA_BYTES))
    Sheet(1).fill(arena, records, positions, stored, _bundle(), policy.table)
    keys, blobs = zip(*arena.states(), strict=True)
    again.put(np.array(keys, np.int64), blobs, np.zeros(len(keys), np.int64))
    again.catch_up(records, positions + 1, np.ones(1, np.int64))
