"""Owns the run on real input: the Fraud Detection Handbook's last two weeks through gRPC Score.

Run with ``python -m tests.bench handbook``. Everything before them is loaded into the log in bulk,
labels are reported 7 days late, and every vector logged online is held against the backfill's.
FRAUD_HANDBOOK names the file; the README says where the public data is.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fraud.v1 import decision_pb2
from numpy.typing import NDArray

from featurizer.adapters import open_log, open_store
from featurizer.eventlog import Damage, Topic
from featurizer.features import FEATURES, SCHEMA_VERSION
from featurizer.worker import Worker, WorkerSettings
from loadgen.rows import to_ms
from tests.bench.claims import claim, spent
from tests.bench.serving import CLIENT_CPU, SERVER_CPU, started
from tests.handbook import FILE_ARGUMENTS, HANDBOOK
from trainer.bundle import load_bundle
from trainer.metrics import average_precision

TRAIN_FROM, ONLINE_FROM = "2018-08-08", "2018-08-22"
READ_BYTES = 8 << 20
# Bits are compared here: on a busy machine no call may fall to a lower rung, or fail.
BUDGET_MS, CALL_DEADLINE_S = 60_000, 60


class Online(NamedTuple):
    """What the log says of the online rows: by transaction id, the vector's bytes and the logit."""

    vectors: dict[str, bytes]
    logits: dict[str, float]
    partial: int


class Offline(NamedTuple):
    """The backfill's rows since ONLINE_FROM: ids, float32[n, features], bool[n]."""

    ids: list[str]
    features: NDArray[np.float32]
    is_fraud: NDArray[np.bool_]


def _decisions(url: str) -> Iterator[decision_pb2.Decision]:
    log = open_log(url, read_only=True)
    position = log.ends()[0]
    try:
        while (batch := log.read(position, READ_BYTES)).next_position != position:
            for index in np.flatnonzero(batch.topics == Topic.DECISIONS):
                yield decision_pb2.Decision.FromString(batch.value(int(index)))
            position = batch.next_position
    finally:
        log.close()


def read_online(url: str) -> Online:
    """Return what was decided, from the log."""
    vectors, logits, partial = dict[str, bytes](), dict[str, float](), 0
    for decision in _decisions(url):
        identity = decision.transaction.transaction_id
        vectors[identity], logits[identity] = decision.features, decision.logit
        partial += decision.assessment.rung != decision_pb2.RUNG_FULL
    return Online(vectors, logits, partial)


def read_offline(path: Path) -> Offline:
    """Return the backfill's rows since ONLINE_FROM, row group by row group: the rest is large."""
    since_ms = to_ms(ONLINE_FROM)
    ids: list[str] = []
    features, is_fraud = [], []
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches():
            late = batch.filter(pc.greater_equal(batch["event_time_ms"], since_ms))
            if len(late):
                ids.extend(late["transaction_id"].to_pylist())
                features.append(late["features"].flatten().to_numpy().reshape(-1, len(FEATURES)))
                is_fraud.append(late["is_fraud"].to_numpy(zero_copy_only=False).astype(np.bool_))
    return Offline(ids, np.concatenate(features), np.concatenate(is_fraud))


def _prepare(where: Path) -> float:
    """Load the log up to ONLINE_FROM and train; return the CPU seconds of the backfill."""
    vectors, log = str(where / "vectors.parquet"), f"file://{where}/log"
    took = spent(
        SERVER_CPU, "featurizer", "backfill", str(HANDBOOK), vectors, *FILE_ARGUMENTS,
        "--log", log, "--log-until", ONLINE_FROM,
    )  # fmt: skip
    spent(
        f"{SERVER_CPU},{CLIENT_CPU}", "trainer", "train", vectors, "--out", str(where / "bundle"),
        "--key", str(where / "key"), "--from", TRAIN_FROM, "--until", ONLINE_FROM,
    )  # fmt: skip
    return took.cpu_s


def _refuse(damage: Damage) -> None:
    raise RuntimeError(f"the log is damaged: {damage}")


def catch_up(where: Path) -> tuple[int, float]:
    """Fold the log into the store; return its entries and the CPU seconds of this process.

    Here and not in the featurizer's own process: that is given no ten minutes to become ready.
    """
    store = open_store(f"lmdb://{where}/store", schema=SCHEMA_VERSION)
    log = open_log(f"file://{where}/log", read_only=True)
    start, entries = time.process_time(), 0
    worker = Worker(log, store, WorkerSettings(), _refuse)
    while taken := worker.step():
        entries += taken
    cpu_s = time.process_time() - start
    store.close()
    log.close()
    return entries, cpu_s


def _replay(where: Path) -> tuple[dict[str, Any], float]:
    """Send the two weeks; return the replay's figures and how long it took, s."""
    places = ["--log", f"file://{where}/log", "--store", f"lmdb://{where}/store"]
    serve = [
        "fraudsvc", "serve", *places, "--bundle", str(where / "bundle"),
        "--public-key", str(where / "key.pub"), "--address", "127.0.0.1:0", "--max-age-days", "0",
        "--budget-ms", str(BUDGET_MS),
    ]  # fmt: skip
    out = where / "replay.json"
    with (
        started("featurizer", ["featurizer", "run", *places], where, CLIENT_CPU),
        started("serve", serve, where, SERVER_CPU) as scorer,
    ):
        start = time.perf_counter()
        spent(
            CLIENT_CPU, "loadgen", "replay", str(HANDBOOK), *FILE_ARGUMENTS,
            "--target", f"127.0.0.1:{scorer.port}", "--from", ONLINE_FROM, "--earlier-labels",
            "--deadline", str(CALL_DEADLINE_S), "--json", str(out),
        )  # fmt: skip
        took_s = time.perf_counter() - start
    figures: dict[str, Any] = json.loads(out.read_text())
    return figures, took_s


def _compare(where: Path) -> list[dict[str, Any]]:
    online = read_online(f"file://{where}/log")
    offline = read_offline(where / "vectors.parquet")
    bundle = load_bundle(
        where / "bundle", schema_version=SCHEMA_VERSION,
        public_key=(where / "key.pub").read_bytes(),
    )  # fmt: skip
    there = [online.vectors.get(identity) for identity in offline.ids]
    differing = sum(
        vector != row.tobytes() for vector, row in zip(there, offline.features, strict=True)
    )
    logits = np.array([online.logits.get(identity, np.nan) for identity in offline.ids])
    wanted = bundle.model.logits(offline.features)
    found = average_precision(np.nan_to_num(logits, nan=-np.inf), offline.is_fraud)
    expected = average_precision(wanted, offline.is_fraud)
    rows, name = len(offline.ids), "Handbook, last two weeks over gRPC"
    return [
        claim(f"{name}: vectors that differ from the backfill's, of {rows:,}", differing, "vectors",
              baseline=0, at_most=0, right=len(online.vectors) == rows),
        claim(f"{name}: scores that differ from the model on the backfill's vectors",
              int((logits != wanted).sum()), "scores", baseline=0, at_most=0),
        claim(f"{name}: average precision online, against offline", found, "AP",
              baseline=expected, ratio=found / expected, at_least=expected,
              right=found == expected),
        claim(f"{name}: answers below rung FULL", online.partial, "answers", at_most=0),
    ]  # fmt: skip


def rows() -> list[dict[str, Any]]:
    """Return one row per claim: name, value, unit, baseline, ratio, target, met."""
    if not HANDBOOK.exists():
        return [claim("Handbook, last two weeks over gRPC: the file is not there", None, "vectors")]
    with tempfile.TemporaryDirectory() as directory:
        where = Path(directory)
        backfill_cpu_s = _prepare(where)
        entries, folding_cpu_s = catch_up(where)
        figures, took_s = _replay(where)
        events = 2 * pq.read_metadata(HANDBOOK).num_rows
        latency = figures["latency_us"]
        return [
            *_compare(where),
            claim("Handbook, whole: backfill, events put on the log too",
                  round(events / backfill_cpu_s), "events/s of CPU"),
            claim("Handbook, log of all before the last two weeks into an empty store",
                  round(entries / folding_cpu_s), "events/s of CPU"),
            claim("Handbook, last two weeks over gRPC: one call at a time, p50", latency["p50"],
                  "µs"),
            claim("Handbook, last two weeks over gRPC: took", round(took_s, 1), "s"),
        ]  # fmt: skip


if __name__ == "__main__":
    for row in rows():
        print(row)
