"""The driver and the replay against a small real server: due times, stalls, order, labels."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fraud.v1 import (
    decision_pb2,
    fraud_service_pb2,
    fraud_service_pb2_grpc,
    label_pb2,
)
from hypothesis import given
from hypothesis import strategies as st

from loadgen.__main__ import main
from loadgen.client import SCORE, connect
from loadgen.driver import Driver, DriveSettings, Prepared, prepare, request
from loadgen.in_flight import InFlight, Target
from loadgen.pacing import NS, due_times_ns
from loadgen.replay import Replayer, ReplaySettings, entities_of
from loadgen.rows import HistoryRow, read_rows, request_id, to_transaction
from loadgen.tally import Snapshot

SEED = 3
MINUTE_MS = 60_000


class RecordingServer(fraud_service_pb2_grpc.FraudServiceServicer):
    """A scorer that approves small amounts, remembers all it was told, and can stall or refuse."""

    def __init__(self) -> None:
        self.requests: list[fraud_service_pb2.ScoreRequest] = []
        # What arrived, in order: transaction ids, and "label ID" for labels.
        self.seen: list[str] = []
        self.labels: list[label_pb2.Label] = []
        self.stalled = threading.Event()
        self.resume = threading.Event()
        self.refuse: list[grpc.StatusCode] = []
        self.delay_s = 0.0
        self.busy: list[frozenset[tuple[str, str]]] = []
        self.clashes = 0
        self.lock = threading.Lock()

    def end_stall(self) -> None:
        self.stalled.clear()
        self.resume.set()

    def Score(  # noqa: N802
        self, request: fraud_service_pb2.ScoreRequest, context: grpc.ServicerContext
    ) -> fraud_service_pb2.ScoreResponse:
        if self.stalled.is_set():
            self.resume.wait(10)
        entities = entities_of(request.transaction)
        with self.lock:
            if self.refuse:
                context.abort(self.refuse.pop(), "refused by the test")
            self.requests.append(request)
            self.seen.append(request.transaction.transaction_id)
            self.clashes += any(not entities.isdisjoint(other) for other in self.busy)
            self.busy.append(entities)
        time.sleep(self.delay_s)
        with self.lock:
            self.busy.remove(entities)
        small = request.transaction.amount_minor < 1_000
        outcome = decision_pb2.OUTCOME_APPROVE if small else decision_pb2.OUTCOME_DECLINE
        return fraud_service_pb2.ScoreResponse(
            assessment=decision_pb2.Assessment(
                outcome=outcome,
                score=0.25,
                rung=decision_pb2.RUNG_FULL,
                decision_id=f"of {request.transaction.request_id}",
            )
        )

    def ReportLabels(  # noqa: N802
        self, request: fraud_service_pb2.ReportLabelsRequest, _: grpc.ServicerContext
    ) -> fraud_service_pb2.ReportLabelsResponse:
        self.labels.extend(request.labels)
        self.seen.extend(f"label {label.transaction_id}" for label in request.labels)
        applied = fraud_service_pb2.LabelResult(status=fraud_service_pb2.LABEL_STATUS_APPLIED)
        return fraud_service_pb2.ReportLabelsResponse(results=[applied] * len(request.labels))


@pytest.fixture
def scorer() -> Iterator[tuple[RecordingServer, str]]:
    servicer = RecordingServer()
    server = grpc.server(ThreadPoolExecutor(32))
    add = fraud_service_pb2_grpc.add_FraudServiceServicer_to_server
    add(servicer, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"127.0.0.1:{port}"
    servicer.resume.set()
    server.stop(0).wait(5)


def row(number: int, minute: int, **values: object) -> dict[str, object]:
    return {
        "transaction_id": f"t{number}",
        "event_time": minute * MINUTE_MS,
        "customer_id": f"c{number}",
        "amount_minor": 500,
    } | values


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, path)
    return path


def replayed(target: str, path: Path, settings: ReplaySettings) -> tuple[Replayer, Snapshot]:
    with connect(target, 1, 5) as (channel,):
        replayer = Replayer(channel, settings)
        *_, last = replayer.run(read_rows(path, {}))
    return replayer, last


def driven(target: str, requests: list[Prepared], settings: DriveSettings) -> Snapshot:
    with InFlight(Target(target, 2), SCORE) as calls:
        *_, last = Driver(calls, requests, settings).run()
    return last


def some_requests(fraud: bool | None = None, amount_minor: int = 500) -> list[Prepared]:
    values = row(1, 1, amount_minor=amount_minor, bin="411111")
    return prepare([HistoryRow(1, MINUTE_MS, to_transaction(values), is_fraud=fraud)])


# When calls are due.


@given(st.floats(0.5, 5_000), st.floats(0.01, 4), st.sampled_from(["poisson", "constant"]))
def test_due_times_ascend_within_the_run(rate: float, seconds: float, arrivals: str) -> None:
    due = due_times_ns(rate, seconds, arrivals, SEED)  # type: ignore[arg-type]
    assert np.all(np.diff(due) >= 0)
    if len(due):
        assert due[0] >= 0
        assert due[-1] < seconds * NS + 1


def test_constant_arrivals_are_evenly_spaced() -> None:
    due = due_times_ns(250.0, 2.0, "constant", SEED)
    assert len(due) == 500
    assert np.ptp(np.diff(due)) <= 1
    assert due[1] == 4_000_000


def test_poisson_arrivals_have_the_rate_and_the_spread() -> None:
    print(f"seed {SEED}")
    due = due_times_ns(1_000.0, 100.0, "poisson", SEED)
    gaps = np.diff(due) / NS
    assert gaps.mean() == pytest.approx(1e-3, rel=0.02)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.02)  # exponential gaps


@pytest.mark.parametrize(("rate", "seconds"), [(0, 1), (1, 0), (-1, 1), (1e9, 1e9)])
def test_impossible_runs_are_refused(rate: float, seconds: float) -> None:
    with pytest.raises(ValueError, match=r"above 0|at most"):
        due_times_ns(rate, seconds, "constant", SEED)


# Driving.


def test_requests_are_whole_and_in_their_shortest_form() -> None:
    (prepared,) = some_requests()
    run = uuid.UUID(int=SEED)
    bodies = [request(prepared.rest, run.hex, n, 1_500) for n in (0, 1)]
    first, second = (fraud_service_pb2.ScoreRequest.FromString(body) for body in bodies)
    assert first.SerializeToString(deterministic=True) == bodies[0]
    assert first.transaction.card.bin == "411111"
    assert first.transaction.amount_minor == 500
    assert first.transaction.event_time.ToMilliseconds() == 1_500
    assert uuid.UUID(first.transaction.request_id) != uuid.UUID(second.transaction.request_id)
    assert first.transaction.transaction_id != second.transaction.transaction_id


@pytest.mark.parametrize(
    "shape", [{"rate_per_s": 300.0}, {"closed": 3}, {"closed": 3, "in_flight_max": 1}]
)
def test_every_call_is_counted_once(
    scorer: tuple[RecordingServer, str], shape: dict[str, float]
) -> None:
    server, target = scorer
    settings = DriveSettings(seconds=0.6, seed=SEED, **shape)  # type: ignore[arg-type]
    last = driven(target, some_requests(fraud=True), settings)
    assert last.sent == last.answered == len(server.requests) > 20
    assert last.in_flight == 0
    assert last.statuses == {"OK": last.sent}
    assert last.outcomes == {"APPROVE": last.sent}
    assert last.rungs == {"FULL": last.sent}
    assert last.fraud_missed == last.sent
    assert len({r.transaction.request_id for r in server.requests}) == last.sent


def test_warm_up_is_sent_but_not_counted(scorer: tuple[RecordingServer, str]) -> None:
    server, target = scorer
    settings = DriveSettings(rate_per_s=200, seconds=0.3, warmup_s=0.3, arrivals="constant")
    last = driven(target, some_requests(), settings)
    assert len(server.requests) == 120
    assert last.sent == 60


def test_fraud_caught_and_false_alarms_are_told_apart(scorer: tuple[RecordingServer, str]) -> None:
    _, target = scorer
    requests = some_requests(True, 5_000) + some_requests(False, 5_000) + some_requests(False, 5)
    settings = DriveSettings(rate_per_s=150, seconds=0.4, arrivals="constant")
    last = driven(target, requests, settings)
    assert (last.fraud_caught, last.fraud_missed) == (20, 0)
    assert (last.false_alarms, last.honest_approved) == (20, 20)


@pytest.mark.parametrize("in_flight_max", [1, 2, 1_000])
def test_a_stall_shows_in_every_call_that_was_due_meanwhile(
    scorer: tuple[RecordingServer, str], in_flight_max: int
) -> None:
    """Coordinated omission: one stuck call must not hide the others that should have been sent."""
    server, target = scorer
    server.stalled.set()
    stall_s = 0.5
    threading.Timer(stall_s, server.end_stall).start()
    settings = DriveSettings(
        rate_per_s=100, seconds=1.0, arrivals="constant", in_flight_max=in_flight_max
    )
    last = driven(target, some_requests(), settings)
    # Half of all calls fell due in the stall and waited for its rest, from 0 to all of it.
    assert last.latency_us["max"] > 0.8 * stall_s * 1e6
    assert last.latency_us["p90"] > 0.5 * stall_s * 1e6
    assert last.answered == last.sent == 100
    assert last.within_budget < 0.7


def test_shed_calls_do_not_make_the_answers_look_fast(
    scorer: tuple[RecordingServer, str],
) -> None:
    server, target = scorer
    server.refuse = [grpc.StatusCode.RESOURCE_EXHAUSTED] * 30
    settings = DriveSettings(rate_per_s=100, seconds=0.6, arrivals="constant")
    last = driven(target, some_requests(), settings)
    assert last.statuses == {"RESOURCE_EXHAUSTED": 30, "OK": 30}
    assert last.within_budget <= 0.5
    assert last.within_budget_accepted >= last.within_budget
    assert last.shed_latency_us["max"] > 0


def test_a_driver_can_be_left_early(scorer: tuple[RecordingServer, str]) -> None:
    server, target = scorer
    settings = DriveSettings(rate_per_s=100, seconds=600, snapshot_s=0.1)
    with InFlight(Target(target, 1), SCORE) as calls:
        for snapshot in Driver(calls, some_requests(), settings).run():
            if snapshot.answered:
                break
    assert 0 < len(server.requests) < 10_000


def test_an_absent_target_is_one_line_and_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--target", "127.0.0.1:1", "--connect-timeout", "0.3"]
    assert main(["drive", *arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "no server answers at 127.0.0.1:1" in line


def test_drive_writes_its_figures(scorer: tuple[RecordingServer, str], tmp_path: Path) -> None:
    _, target = scorer
    out = tmp_path / "figures.json"
    arguments = ["--target", target, "--rate", "50", "--seconds", "0.3", "--customers", "50"]
    assert main(["drive", *arguments, "--json", str(out)]) == 0
    figures = json.loads(out.read_text())
    assert set(figures["latency_us"]) == {"p50", "p90", "p99", "p99.9", "max"}
    assert figures["answered"] == figures["sent"]


# Replay.


def test_a_replay_keeps_the_files_order_and_labels_come_when_known(
    scorer: tuple[RecordingServer, str], tmp_path: Path
) -> None:
    server, target = scorer
    rows = [
        row(0, 0, is_fraud=True, label_time=2 * MINUTE_MS, label_source="CHARGEBACK"),
        row(1, 1, is_fraud=False, label_time=2 * MINUTE_MS - 1, label_source=None),
        row(2, 2, is_fraud=True, label_time=99 * MINUTE_MS, label_source="ISSUER"),
        row(3, 3, is_fraud=None, label_time=None, label_source=None),
    ]
    path = write(tmp_path / "h.parquet", rows)
    replayer, last = replayed(target, path, ReplaySettings(labels=True))
    assert server.seen == ["t0", "t1", "label t1", "label t0", "t2", "t3"]
    assert [label.verdict for label in server.labels] == [
        label_pb2.VERDICT_LEGITIMATE,
        label_pb2.VERDICT_FRAUD,
    ]
    assert server.labels[1].source == label_pb2.LABEL_SOURCE_CHARGEBACK
    assert server.labels[1].label_time.ToMilliseconds() == 2 * MINUTE_MS
    assert replayer.labels_left == 1
    assert replayer.label_statuses == {"APPLIED": 2}
    assert last.answered == 4


def test_a_repeated_replay_asks_the_same_questions(
    scorer: tuple[RecordingServer, str], tmp_path: Path
) -> None:
    server, target = scorer
    path = write(tmp_path / "h.parquet", [row(n, n) for n in range(5)])
    for _ in range(2):
        replayed(target, path, ReplaySettings())
    assert server.requests[:5] == server.requests[5:]
    assert server.requests[0].transaction.request_id == request_id("t0")
    assert uuid.UUID(request_id("t0")).version == 5


def test_calls_that_share_an_entity_are_never_in_flight_together(
    scorer: tuple[RecordingServer, str], tmp_path: Path
) -> None:
    server, target = scorer
    server.delay_s = 0.003
    rng = np.random.default_rng(SEED)
    rows = [
        row(n, n, customer_id=f"c{rng.integers(30)}", ip=f"10.0.{rng.integers(20)}.{n % 9}")
        for n in range(150)
    ]
    path = write(tmp_path / "h.parquet", rows)
    _, last = replayed(target, path, ReplaySettings(in_flight=8))
    assert last.answered == 150
    assert server.clashes == 0
    for shared in ("customer_id", "ip_address"):
        by_entity: dict[str, list[int]] = {}
        for got in server.requests:
            name = getattr(got.transaction, shared)
            by_entity.setdefault(name, []).append(int(got.transaction.transaction_id[1:]))
        assert all(numbers == sorted(numbers) for numbers in by_entity.values())


@pytest.mark.parametrize("in_flight", [1, 4])
def test_a_shed_or_lost_call_is_sent_again(
    scorer: tuple[RecordingServer, str], tmp_path: Path, in_flight: int
) -> None:
    server, target = scorer
    server.refuse = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED]
    path = write(tmp_path / "h.parquet", [row(n, n, bin="411111") for n in range(3)])
    replayer, last = replayed(target, path, ReplaySettings(in_flight=in_flight))
    assert server.seen == ["t0", "t1", "t2"]
    assert last.statuses == {"OK": 3}
    assert replayer.problem_count == 0


def test_a_refused_row_is_told_by_line_and_gets_no_answer(
    scorer: tuple[RecordingServer, str], tmp_path: Path
) -> None:
    server, target = scorer
    server.refuse = [grpc.StatusCode.INVALID_ARGUMENT]
    rows = [row(0, 0), row(1, 1), row(2, 2, amount_minor=None)]
    replayer, _ = replayed(target, write(tmp_path / "h.parquet", rows), ReplaySettings())
    assert [p.line for p in replayer.problems] == [1, 3]
    assert replayer.problems[0].reason == "INVALID_ARGUMENT: refused by the test"
    assert server.seen == ["t1"]


def test_speed_is_a_multiple_of_the_streams_own(
    scorer: tuple[RecordingServer, str], tmp_path: Path
) -> None:
    _, target = scorer
    path = write(tmp_path / "h.parquet", [row(n, n) for n in range(4)])
    begin = time.perf_counter()
    replayed(target, path, ReplaySettings(speed=600.0))
    assert time.perf_counter() - begin >= 3 * 60 / 600  # never faster than asked


def test_replay_shifts_times_and_writes_answers(
    scorer: tuple[RecordingServer, str], tmp_path: Path
) -> None:
    server, target = scorer
    history = write(tmp_path / "h.parquet", [row(n, n, is_fraud=n == 2) for n in range(4)])
    out = tmp_path / "answers.parquet"
    begin_ms = time.time_ns() // 1_000_000
    arguments = ["--target", target, str(history), "--shift-to-now", "--out", str(out)]
    assert main(["replay", *arguments, "--from", "1970-01-01T00:01"]) == 0
    moved = [r.transaction.event_time.ToMilliseconds() for r in server.requests]
    assert np.diff(moved).tolist() == [MINUTE_MS] * 2
    assert begin_ms <= moved[-1] <= time.time_ns() // 1_000_000
    answers = pq.read_table(out)
    assert answers["transaction_id"].to_pylist() == ["t1", "t2", "t3"]
    assert answers["event_time"].cast(pa.int64()).to_pylist() == [n * MINUTE_MS for n in (1, 2, 3)]
    assert answers["is_fraud"].to_pylist() == [False, True, False]
    assert answers["decision_id"].to_pylist() == [f"of {request_id(f't{n}')}" for n in (1, 2, 3)]
    assert set(answers["outcome"].to_pylist()) == {"APPROVE"}
    assert set(answers["score"].to_pylist()) == {0.25}
    assert min(answers["latency_us"].to_pylist()) > 0


def test_labels_of_earlier_rows_are_reported_when_asked_for(
    scorer: tuple[RecordingServer, str], tmp_path: Path
) -> None:
    server, target = scorer
    rows = [
        row(0, 0, is_fraud=True, label_time=1 * MINUTE_MS),
        row(1, 1, is_fraud=True, label_time=5 * MINUTE_MS),
        row(2, 4, is_fraud=False, label_time=None),
        row(3, 6, is_fraud=False, label_time=None),
    ]
    path = write(tmp_path / "h.parquet", rows)
    arguments = ["--target", target, str(path), "--earlier-labels", "--from", "1970-01-01T00:03"]
    assert main(["replay", *arguments]) == 0
    assert server.seen == ["t2", "label t1", "t3"]


@pytest.mark.parametrize("change", [{"in_flight": 0}, {"speed": 0.0}, {"tries": 0}])
def test_replay_settings_out_of_range_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        ReplaySettings(**change)  # type: ignore[arg-type]
