"""Telemetry of a role: which traces are kept, what is counted, and what a collector costs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fraud.v1 import decision_pb2
from hypothesis import given
from hypothesis import strategies as st

from featurizer.eventlog import Batch, Topic
from featurizer.kept import RANDOM_BITS, Column, KeepRule, scan
from featurizer.metering import (
    BY_NAME,
    METRICS,
    SLOTS,
    CallMeter,
    Meters,
    families_of,
    merged,
    open_meters,
    read_all,
    read_appends,
)
from featurizer.otlp import SpanQueue, is_wanted
from featurizer.spans import ATTRIBUTES, Context, Kind, Span, context_of, score_context
from featurizer.tracing import Tracer
from tests.conftest import free_port

ID = "0f8fad5b-d9cb-869f-a165-70867728950e"
HEX = st.text("0123456789abcdef", min_size=32, max_size=32)


def batch_of(values: list[bytes]) -> Batch:
    """Return a batch of decisions as a read of the log gives it."""
    lengths = np.array([len(each) for each in values], np.int64)
    starts = np.cumsum(lengths) - lengths
    topics = np.full(len(values), Topic.DECISIONS, np.uint8)
    numbers = np.arange(len(values), dtype=np.int64)
    return Batch(b"".join(values), topics, numbers, starts, lengths, numbers, numbers, 1)


decisions = st.builds(
    lambda outcome, rung, cause, score, trace, steps, shared: decision_pb2.Decision(
        assessment=decision_pb2.Assessment(
            outcome=outcome, rung=rung, rung_cause=cause, score=score, decision_id=ID,
            trace_id=trace, model_version="m-1",
            reasons=[decision_pb2.Reason(code="A", text="é" * 90)],
        ),
        features=bytes(1200), step_ns=steps, traceparent="x", scorer="host/1", shared=shared,
    ),
    st.integers(0, 3), st.integers(0, 3), st.integers(0, 4), st.none() | st.floats(0, 1), HEX,
    st.lists(st.integers(0, (1 << 32) - 1), max_size=4),
    st.none() | st.builds(decision_pb2.Shared, number=st.integers(0, (1 << 64) - 1)),
)  # fmt: skip


@given(st.lists(decisions, max_size=5), st.integers(0, 1 << 40), st.integers(1, 1 << 41))
def test_a_scan_finds_what_parsing_does(
    made: list[decision_pb2.Decision], used_ns: int, received_ms: int
) -> None:
    for each in made:
        each.assessment.time_used.FromNanoseconds(used_ns)
        each.receive_time.FromMilliseconds(received_ms)
    found = scan(batch_of([each.SerializeToString(deterministic=True) for each in made]))
    for i, each in enumerate(made):
        told, row = each.assessment, found.rows[i]
        assert (row[Column.OUTCOME], row[Column.RUNG]) == (told.outcome, told.rung)
        assert row[Column.CAUSE] == told.rung_cause
        assert (row[Column.USED_NS], row[Column.RECEIVED_MS]) == (used_ns, received_ms)
        assert (found.decision_id(i), found.trace_id(i)) == (ID, told.trace_id)
        assert row[Column.RANDOM] == int(told.trace_id[-RANDOM_BITS // 4 :], 16)
        steps = row[Column.STEP : Column.STEP + row[Column.STEPS]].tolist()
        assert steps == list(each.step_ns)
        assert found.shared(i) == each.shared
        assert (row[Column.SHARED_AT] > 0) == each.HasField("shared")
        assert (
            found.scores[i] == told.score if told.HasField("score") else np.isnan(found.scores[i])
        )


@given(st.binary(max_size=200))
def test_no_bytes_break_a_scan(data: bytes) -> None:
    scan(batch_of([data, b"", data[::-1]]))


def a_decision(**told: object) -> bytes:
    assessment = decision_pb2.Assessment(
        outcome=decision_pb2.OUTCOME_APPROVE, rung=decision_pb2.RUNG_FULL, decision_id=ID,
        trace_id="1" * 32,
    )  # fmt: skip
    for name, value in told.items():
        setattr(assessment, name, value)
    return decision_pb2.Decision(assessment=assessment).SerializeToString()


def test_all_but_plain_approvals_are_kept_and_a_share_of_those() -> None:
    slow = decision_pb2.Decision.FromString(a_decision())
    slow.assessment.time_used.FromMilliseconds(30)
    rows = scan(
        batch_of(
            [
                a_decision(), a_decision(outcome=decision_pb2.OUTCOME_REVIEW),
                a_decision(rung=decision_pb2.RUNG_PARTIAL), slow.SerializeToString(),
                a_decision(trace_id="0" * 18 + "f" * 14),
            ]
        )
    ).rows  # fmt: skip
    rule = KeepRule(share=0.01)
    assert rule.keeps(rows).tolist() == [False, True, True, True, True]
    assert [rule.why(row) for row in rows[1:]] == ["outcome", "degraded", "slow", "share"]
    assert KeepRule(share=0.0).keeps(rows)[4] == False  # noqa: E712 - numpy's
    assert KeepRule(share=1.0).keeps(rows).all()
    random = np.random.default_rng(1).bytes(16 * 4_000)
    many = [a_decision(trace_id=random[16 * i : 16 * i + 16].hex()) for i in range(4_000)]
    assert 0.2 < KeepRule(share=0.25).keeps(scan(batch_of(many)).rows).mean() < 0.3
    with pytest.raises(ValueError, match="between 0 and 1"):
        KeepRule(share=1.5)


def test_a_traceparent_is_read_as_the_standard_says() -> None:
    good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03"
    assert context_of(good) == Context("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7")
    assert context_of(Context("a" * 32, "b" * 16).traceparent()) == Context("a" * 32, "b" * 16)
    for bad in (
        "",
        "ff" + good[2:],
        good[:-3],
        good.replace("4b", "zz"),
        "00-" + "0" * 32 + good[35:],
    ):
        assert context_of(bad) is None


def test_a_batch_without_kept_traces_makes_no_span() -> None:
    taken: list[Span] = []
    tracer = Tracer("fraud-relay", taken.append, KeepRule(share=0.0))
    batch = batch_of([a_decision(), a_decision(outcome=decision_pb2.OUTCOME_DECLINE)])
    kept = tracer.kept_of(batch)
    assert kept == {1: score_context("1" * 32, ID)}
    tracer.batch("send", "transactions", 1, [])
    tracer.batch("send", "transactions", 1, [*kept.values()])
    [span] = taken
    assert (span.name, span.kind, tuple(span.links)) == (
        "send transactions", Kind.PRODUCER, tuple(kept.values()),
    )  # fmt: skip
    ours = {row.name for row in ATTRIBUTES}
    assert {name for name in span.attributes if name.startswith("fraud.")} <= ours
    assert Tracer("fraud-relay").kept_of(batch) == {}
    slow = decision_pb2.Decision.FromString(a_decision())
    slow.assessment.time_used.FromMilliseconds(30)
    late = batch_of([slow.SerializeToString()])
    assert tracer.kept_and_why(late) == {0: (score_context("1" * 32, ID), "slow")}
    assert tracer.patient().kept_of(late) == {}, "nobody waited"


def test_meters_survive_a_kill_and_go_on(tmp_path: Path) -> None:
    code = (
        "import sys, os, pathlib, featurizer.metering as m;"
        "meters = m.open_meters(pathlib.Path(sys.argv[1]), 'serve');"
        "m.CallMeter(meters).note('Score', 'OK', 30_000_000);"
        "meters.appended(4711, 12_000); print('counted', flush=True); sys.stdin.read()"
    )
    for _ in range(2):  # the second goes on in the file of the first
        with subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        ) as counting:  # fmt: skip
            assert counting.stdout is not None
            assert counting.stdout.readline() == b"counted\n"
            counting.send_signal(signal.SIGKILL)
    [reading] = read_all(tmp_path)
    assert reading.process == "serve-0"
    [appends] = read_appends(tmp_path)
    assert sorted({int(frame) for _, frame in appends if frame}) == [4711]
    found = {f.metric.name: f for f in families_of(reading.values)}
    calls = {tuple(s.values()): v for s, v in found["fraud_calls_total"].series}
    assert calls["Score", "OK"] == [2.0]
    [(_, took)] = [
        each for each in found["fraud_call_seconds"].series if each[0]["method"] == "Score"
    ]
    bounds = BY_NAME["fraud_call_seconds"].buckets
    assert took[bounds.index(0.05)] == 2.0
    assert took[-1] == pytest.approx(0.06)


def test_two_processes_of_a_role_count_in_files_of_their_own(tmp_path: Path) -> None:
    first, second = (open_meters(tmp_path, "serve") for _ in range(2))
    first.add("fraud_spans_total", "sent", by=2)
    second.add("fraud_spans_total", "sent")
    second.put("fraud_lag_seconds", "fold", value=5.0)
    first.put("fraud_lag_seconds", "fold", value=3.0)
    readings = list(read_all(tmp_path))
    assert [each.process for each in readings] == ["serve-0", "serve-1"]
    together = {f.metric.name: f for f in families_of(merged([r.values for r in readings]))}
    sent = {s["what"]: v for s, v in together["fraud_spans_total"].series}
    lags = {s["consumer"]: v for s, v in together["fraud_lag_seconds"].series}
    assert (sent["sent"], lags["fold"]) == ([3.0], [5.0])
    (tmp_path / "torn-0.meters").write_bytes(b"half")
    assert len(list(read_all(tmp_path))) == 2
    for each in (first, second):
        each.close()


def test_every_metric_can_be_counted() -> None:
    meters = Meters()
    for family in meters.families():
        for labels, values in family.series:
            assert meters.slot(family.metric.name, *labels.values()) >= 0
            assert all(value == 0.0 for value in values)
    assert len(meters.values) == SLOTS
    assert len({row.name for row in METRICS}) == len(METRICS)
    meters.observe("fraud_score", np.array([0.0, 0.95, 0.95]))
    [(_, counts)] = meters.families()[[r.name for r in METRICS].index("fraud_score")].series
    assert counts[0] == 1.0
    assert counts[-2] == 2.0
    assert counts[-1] == pytest.approx(1.9)
    CallMeter(meters).note("Score", "A_NEW_CODE", 1)
    assert meters.values[meters.slot("fraud_calls_total", "Score", "OTHER")] == 1.0


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4317"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x:4317"}, True),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://x:4317"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4317", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4317", "OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_the_standard_variables_say_whether_to_export(
    environment: dict[str, str], wanted: bool
) -> None:
    assert is_wanted(environment, "TRACES") == wanted
    with pytest.raises(ValueError, match="OTLP over gRPC"):
        is_wanted({**environment, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
                   "OTEL_SDK_DISABLED": "", "OTEL_TRACES_EXPORTER": "otlp"}, "TRACES")  # fmt: skip


def test_a_collector_that_is_gone_costs_a_count_and_no_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    where = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}"}
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", where["OTEL_EXPORTER_OTLP_ENDPOINT"])
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    counts = {"sent": 0, "dropped": 0}

    def count(what: str, spans: int) -> None:
        counts[what] += spans

    queue = SpanQueue(where, count, queue_max=100)
    span = Span(Context("1" * 32, "2" * 16), "", "a", Kind.INTERNAL, 1, 2)
    for _ in range(1_000):
        queue.put(span)
    assert counts["dropped"] >= 1_000 - 100 - 512, "what does not fit is dropped at once"
    queue.close()
    deadline = time.monotonic() + 30
    while sum(counts.values()) < 1_000 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert counts == {"sent": 0, "dropped": 1_000}
