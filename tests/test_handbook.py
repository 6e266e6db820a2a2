"""Real input: what the service logged online is what the backfill computes, in every bit.

The slice is of the public Handbook data where it is at hand, else of a generated world. Its first
part enters the log as history, the rest goes through gRPC with labels seven days late.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from fraud.v1 import decision_pb2, label_pb2, transaction_pb2
from fraud.v1 import fraud_service_pb2 as pb
from numpy.typing import NDArray

from featurizer.backfill import backfill, order_events, read_history
from featurizer.eventlog_file import FileEventLog
from featurizer.features import FEATURES, SCHEMA_VERSION
from featurizer.hashing import IdHasher
from featurizer.load import LoggedArena
from fraudsvc.policy import DEFAULT_POLICY
from loadgen.columns import SCHEMA
from loadgen.history import HistoryWriter
from loadgen.rows import request_id
from loadgen.world import World, WorldSettings
from tests.conftest import FAST, Connected, connected, decisions, process
from tests.handbook import COLUMNS, HANDBOOK, LABEL_DELAY_DAYS
from trainer.bundle import Bundle, load_bundle, write_bundle
from trainer.metrics import average_precision
from trainer.signing import create_key, public_path
from trainer.train import train
from trainer.vectors import read_vectors

DAY_MS = 86_400_000
DELAY_MS = LABEL_DELAY_DAYS * DAY_MS
ROWS = 20_000
ONLINE_ROWS = 4_000
TERMINALS_ONE_IN = 28  # few terminals over many days, so that late labels meet later payments
TIMEOUT_S = 20.0


def write_slice(out: Path) -> None:
    """Write 20,000 rows in event order under the documented columns."""
    if HANDBOOK.exists():
        terminals = pq.read_table(HANDBOOK, columns=["TERMINAL_ID"])["TERMINAL_ID"].to_numpy()
        chosen = np.flatnonzero(terminals.astype(np.int64) % TERMINALS_ONE_IN == 3)[:ROWS]
        rows = pq.read_table(HANDBOOK, columns=list(COLUMNS.values())).take(chosen)
        table = pa.table({ours: rows[theirs] for ours, theirs in COLUMNS.items()})
        for name in ("transaction_id", "customer_id", "terminal_id"):
            table = table.set_column(
                table.schema.get_field_index(name), name, pc.cast(table[name], pa.string())
            )
        pq.write_table(table, out)
        return
    world = WorldSettings(seed=9, customers=300, rate_per_day=ROWS / 25, fraud_rate=0.02)
    with HistoryWriter(out.with_suffix(".world"), SCHEMA) as writer:
        for table in World(world).days(30):
            writer.write(table)
    table = pq.read_table(out.with_suffix(".world"), columns=list(COLUMNS))
    pq.write_table(table.slice(0, ROWS), out)


class Slice(NamedTuple):
    """What was made offline: vectors float32[n, features], events in order, the first online."""

    folder: Path
    ids: list[str]
    columns: dict[str, list[object]]
    times_ms: NDArray[np.int64]
    is_fraud: NDArray[np.bool_]
    vectors: dict[str, bytes]
    order: NDArray[np.int64]
    until_ms: int
    bundle: Bundle


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Slice:
    """Backfill the slice, its first part onto the log, and train on that part."""
    folder = tmp_path_factory.mktemp("handbook")
    write_slice(folder / "history.parquet")
    table = pq.read_table(folder / "history.parquet")
    history = read_history(folder / "history.parquet", IdHasher(), {}, DELAY_MS)
    assert history.bad_rows == 0
    times_ms = history.records["event_time_ms"]
    until_ms = int(np.sort(times_ms)[-ONLINE_ROWS])
    log = FileEventLog(folder / "log")
    backfill(history, folder / "vectors.parquet", LoggedArena(log, until_ms, 1 << 30))
    log.close()
    content = train(
        read_vectors(folder / "vectors.parquet", until_ms=until_ms), FAST, lambda _d, _a: None
    )
    create_key(folder / "key")
    write_bundle(folder / "bundle", content, folder / "key")
    made = pq.read_table(folder / "vectors.parquet")
    flat = made["features"].combine_chunks().flatten().to_numpy().reshape(-1, len(FEATURES))
    names = made["transaction_id"].to_pylist()
    return Slice(
        folder, table["transaction_id"].to_pylist(),
        {name: table[name].to_pylist() for name in table.column_names}, times_ms,
        history.is_fraud == 1, {n: v.tobytes() for n, v in zip(names, flat, strict=True)},
        order_events(history), until_ms,
        load_bundle(
            folder / "bundle", schema_version=SCHEMA_VERSION,
            public_key=public_path(folder / "key").read_bytes(),
        ),
    )  # fmt: skip


def to_transaction(part: Slice, row: int) -> transaction_pb2.Transaction:
    columns = part.columns
    made = transaction_pb2.Transaction(
        request_id=request_id(part.ids[row]), transaction_id=part.ids[row],
        customer_id=str(columns["customer_id"][row]),
        terminal_id=str(columns["terminal_id"][row] or ""),
        amount_minor=int(str(columns["amount_minor"][row])), currency_code="USD",
    )  # fmt: skip
    made.event_time.FromMilliseconds(int(part.times_ms[row]))
    return made


def to_label(part: Slice, row: int) -> label_pb2.Label:
    verdict = label_pb2.VERDICT_FRAUD if part.is_fraud[row] else label_pb2.VERDICT_LEGITIMATE
    label = label_pb2.Label(
        transaction_id=part.ids[row], verdict=verdict, source=label_pb2.LABEL_SOURCE_CHARGEBACK
    )
    label.label_time.FromMilliseconds(int(part.times_ms[row]) + DELAY_MS)
    return label


@pytest.fixture(scope="module")
def client(prepared: Slice) -> Iterator[Connected]:
    """The two roles as processes over the history's log."""
    folder = prepared.folder
    places = ("--log", f"file://{folder}/log", "--store", f"lmdb://{folder}/store")
    with process(
        folder / "out", "featurizer", "run", *places, "--ready-file", str(folder / "folded")
    ) as featurizer:
        featurizer.wait_for(folder / "folded")
        with process(
            folder / "out", "fraudsvc", "serve", *places, "--address", "127.0.0.1:0",
            "--policy", str(DEFAULT_POLICY), "--bundle", str(folder / "bundle"),
            "--public-key", str(public_path(folder / "key")), "--max-age-days", "0",
            "--budget-ms", "60000", "--wait-ms-max", "60000", "--ready-file", str(folder / "port"),
        ) as serve:  # fmt: skip
            serve.wait_for(folder / "port")
            with connected(int((folder / "port").read_text())) as connection:
                yield connection
            assert serve.stop() == 0
        assert featurizer.stop() == 0


def send(part: Slice, client: Connected) -> tuple[dict[str, decision_pb2.Assessment], int]:
    """Send the last part in order: labels when they became known, then what came after."""
    answers: dict[str, decision_pb2.Assessment] = {}
    applied = 0
    times = np.where(part.order < 0, part.times_ms[~part.order] + DELAY_MS, 0)
    times = np.where(part.order >= 0, part.times_ms[part.order], times)
    online = part.order[times >= part.until_ms]
    last = int(np.flatnonzero(online >= 0)[-1])
    for is_label, group in groupby(online[: last + 1].tolist(), lambda event: event < 0):
        if not is_label:
            for row in group:
                request = pb.ScoreRequest(transaction=to_transaction(part, row))
                reply = client.stub.Score(request, timeout=TIMEOUT_S)
                answers[part.ids[row]] = reply.assessment
            continue
        labels = [to_label(part, ~event) for event in group]
        told = client.stub.ReportLabels(pb.ReportLabelsRequest(labels=labels), timeout=TIMEOUT_S)
        assert {result.status for result in told.results} == {pb.LABEL_STATUS_APPLIED}
        applied += len(labels)
    return answers, applied


def test_online_vectors_and_precision_equal_those_of_the_backfill(
    prepared: Slice, client: Connected
) -> None:
    part = prepared
    answers, applied = send(part, client)
    assert len(answers) >= ONLINE_ROWS
    assert applied > 1_000
    log = FileEventLog(part.folder / "log", read_only=True)
    logged = {d.transaction.transaction_id: d for d in decisions(log).values()}
    log.close()
    assert logged.keys() == answers.keys()
    assert {d.assessment.rung for d in logged.values()} == {decision_pb2.RUNG_FULL}
    different = [name for name, d in logged.items() if d.features != part.vectors[name]]
    assert different == []

    rows = [row for row, name in enumerate(part.ids) if name in answers]
    stacked = np.stack([np.frombuffer(part.vectors[part.ids[r]], np.float32) for r in rows])
    logits = part.bundle.model.logits(stacked)
    offline = part.bundle.calibration.probabilities(logits)
    online = np.array([answers[part.ids[r]].score for r in rows])
    assert online.tolist() == offline.tolist()
    told = np.array([logged[part.ids[r]].logit for r in rows])
    fraud = part.is_fraud[rows]
    assert fraud.sum() >= 10
    precision = average_precision(told, fraud)
    assert precision == average_precision(logits, fraud)
    print(f"{len(rows)} rows, 0 differing, average precision {precision:.4f} online and offline")
