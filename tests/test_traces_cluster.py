"""A trace across Kafka: relay, split and fold link their batches to the calls in them.

And the stream, whose spans are read back from an OpenTelemetry Collector.
"""

from __future__ import annotations

import asyncio
import math
import urllib.error
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fraud.v1 import decision_pb2, transaction_pb2
from fraud.v1 import fraud_service_pb2 as pb

from deploy.testing.kafka import KafkaCluster
from featurizer.adapters import directory_of
from featurizer.cluster import create_topics
from featurizer.eventlog_file import FileEventLog
from featurizer.eventlog_kafka import Consumer, Message, Producer
from featurizer.kept import KeepRule, scan
from featurizer.spans import APPEND, ATTRIBUTES, SHARED_STEPS, STEPS, Context, score_context
from featurizer.splitter import read_all
from fraudsvc.stream import FRAME_BITS
from tests.clusters import PARTITIONS, Cluster, stopping
from tests.conftest import (
    Payments,
    Trained,
    decisions,
    free_port,
    process,
    score_patiently,
    until,
)
from tests.consoles import Place
from tests.servers import kafka_fixture, prefix_fixture  # noqa: F401 - fixtures
from tests.test_telemetry import batch_of
from tests.test_traces import Parted, assert_in_order, collector, from_collector, parted

PAYMENTS = 30
SETTLE_S = 60.0
SHARE = 0.5  # of plain approvals
STREAMED = 120
STAGES = (
    "fraud-relay send traced.transactions",
    "fraud-split process traced.transactions",
    "fraud-fold process traced.entity-updates",
)


@pytest.fixture
def traced(
    tmp_path: Path, kafka: KafkaCluster, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Cluster, Place]]:
    """One host over Kafka with a console of its own, to which every stage tells its spans."""
    monkeypatch.setenv("FRAUD_TRACE_SHARE", "1.0")
    made = Cluster(tmp_path, kafka.bootstrap, "traced", f"lmdb://{tmp_path}/states", trained)
    made.extra["serve"] = ("--wait-ms-max", "60000")  # a busy machine must not decide what is shed
    asyncio.run(create_topics(made.kafka))
    otlp = f"127.0.0.1:{free_port()}"
    with stopping(made):
        made.start("serve-0")
        console = process(
            tmp_path / "console", "fraudsvc", "console", "--log", made.journal("0"),
            "--index", f"lmdb://{tmp_path}/0/index", "--store", made.store_url,
            "--read-model", f"sqlite:///{tmp_path}/readmodel.sqlite", "--http", "127.0.0.1:0",
            "--otlp", otlp, "--ready-file", str(tmp_path / "port"),
        )  # fmt: skip
        with console as running:
            running.wait_for(tmp_path / "port")
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{otlp}")
            made.start("relay-0", "split-0", "fold-0")
            yield made, Place(tmp_path / "0", int((tmp_path / "port").read_text()))


def spans_of(place: Place, trace_id: str) -> list[dict[str, Any]]:
    """Return a trace from the console's API; nothing while it has none."""
    try:
        found: list[dict[str, Any]] = place.get_json(f"/api/traces/{trace_id}")["spans"]
    except urllib.error.HTTPError as error:
        if error.code != HTTPStatus.NOT_FOUND:
            raise
        return []
    return found


def links_of(span: dict[str, Any]) -> set[Context]:
    return {Context(each["trace_id"], each["span_id"]) for each in span["links"]}


def linked(place: Place, call: Context) -> dict[str, list[dict[str, Any]]]:
    """Return the spans that link to a call, by who did what."""
    found: dict[str, list[dict[str, Any]]] = {}
    for span in spans_of(place, call.trace_id):
        if call in links_of(span):
            found.setdefault(f"{span['service']} {span['name']}", []).append(span)
    return found


def is_whole(place: Place, call: Context) -> bool:
    return set(STAGES) <= set(linked(place, call))


def test_every_stage_links_to_the_calls_it_worked_on(traced: tuple[Cluster, Place]) -> None:
    cluster, place = traced
    payments = Payments()
    with cluster.client("serve-0") as client:
        for _ in range(PAYMENTS):
            score_patiently(client, pb.ScoreRequest(transaction=payments.one()))
    log = FileEventLog(directory_of(cluster.journal("0")), read_only=True)
    made = [decision.assessment for decision in decisions(log).values()]
    log.close()
    assert len(made) == PAYMENTS
    for told in made:
        call = score_context(told.trace_id, told.decision_id)
        until(partial(is_whole, place, call), "every stage", SETTLE_S)
        found = linked(place, call)
        [relayed], [split] = found[STAGES[0]], found[STAGES[1]]
        assert relayed["kind"] == "PRODUCER"
        for fold in found[STAGES[2]]:
            assert Context(split["trace_id"], split["span_id"]) in links_of(fold)
            assert fold["attributes"]["messaging.system"] == "kafka"
            assert fold["kind"] == "CONSUMER"


@pytest.fixture
def streamed(
    tmp_path: Path, kafka: KafkaCluster, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Cluster, Path]]:
    """A stream, split and fold, and a Collector to which each tells its spans."""
    with collector(tmp_path) as (endpoint, out):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        monkeypatch.setenv("FRAUD_TRACE_SHARE", str(SHARE))
        monkeypatch.delenv("FRAUD_METRICS", raising=False)
        made = Cluster(tmp_path, kafka.bootstrap, "told", f"lmdb://{tmp_path}/states", trained)
        asyncio.run(create_topics(made.kafka))
        with stopping(made):
            made.start("stream-0", "split-0", "fold-0")
            yield made, out


def producer_of(number: int) -> Context | None:
    """Return the span that sent a payment; every third was sent by who traces nothing."""
    return Context(f"{number + 1:032x}", f"{number + 1:016x}") if number % 3 else None


async def send(cluster: Cluster, payments: Sequence[transaction_pb2.Transaction]) -> None:
    producer = Producer(cluster.kafka)
    await producer.start()
    for number, each in enumerate(payments):
        sender = producer_of(number)
        message = Message(
            b"customer", each.SerializeToString(), traces=() if sender is None else (sender,)
        )
        await producer.send({(cluster.kafka.topic("payments"), number % PARTITIONS): [message]})
    await producer.stop()


async def decided(cluster: Cluster) -> list[bytes]:
    reader = Consumer(cluster.kafka)
    await reader.start()
    found = [
        record.value
        for number in range(PARTITIONS)
        async for record in read_all(reader, (cluster.kafka.topic("decisions"), number), 0)
    ]
    await reader.stop()
    return found


def all_decided(cluster: Cluster, count: int) -> list[bytes]:
    found = asyncio.run(decided(cluster))
    return found if len(found) >= count else []


def test_every_kept_payment_of_the_stream_has_its_whole_trace_in_a_collector(
    streamed: tuple[Cluster, Path],
) -> None:
    cluster, out = streamed
    payments = Payments()
    sent = [payments.one() for _ in range(STREAMED)]
    asyncio.run(send(cluster, sent))
    values = until(partial(all_decided, cluster, STREAMED), "decisions", SETTLE_S)
    senders = {each.request_id: producer_of(number) for number, each in enumerate(sent)}

    rule = KeepRule(share=SHARE, slow_ms=math.inf)
    kept = [decision_pb2.Decision.FromString(values[i]) for i in np.flatnonzero(
        rule.keeps(scan(batch_of(values)).rows)
    ).tolist()]  # fmt: skip
    assert 0 < len(kept) < STREAMED
    until(partial(are_told, out, kept, senders), "the Collector", SETTLE_S)
    told = from_collector(out).values()
    ids = {s.attributes["fraud.decision.id"] for s in told if "fraud.outcome" in s.attributes}
    assert ids == {decision.assessment.decision_id for decision in kept}, "no other is told"


def are_told(
    out: Path, kept: Sequence[decision_pb2.Decision], senders: Mapping[str, Context | None]
) -> bool:
    spans = parted(from_collector(out))
    try:
        for decision in kept:
            assert_payment_whole(spans, decision, senders[decision.transaction.request_id])
    except (AssertionError, ValueError, KeyError) as error:
        print(error)
        return False
    return True


def assert_payment_whole(
    spans: Parted, decision: decision_pb2.Decision, sender: Context | None
) -> None:
    """It is in its sender's trace; the read that it was decided in, and its folds, link to it."""
    told = decision.assessment
    own = spans.one(score_context(told.trace_id, told.decision_id))
    assert own.name == "process told.payments"
    assert own.attributes["messaging.operation.type"] == "process"
    assert int(own.attributes["messaging.kafka.offset"]) == decision.log_position >> FRAME_BITS
    assert (own.parent, own.links) == (("", ()) if sender is None else (sender.span_id, (sender,)))
    assert sender is None or told.trace_id == sender.trace_id
    assert set(spans.below(own)) == set(STEPS[2:])
    assert assert_in_order(spans, own, STEPS[2:]) == own.end_ns
    linked = {each.name: each for each in spans.linked[own.context]}
    assert set(linked) == {
        "decide told.payments", "process told.transactions", "process told.entity-updates",
    }  # fmt: skip
    read = linked["decide told.payments"]
    assert int(read.attributes["messaging.batch.message_count"]) == decision.shared.items
    assert assert_in_order(spans, read, (*SHARED_STEPS, APPEND)) == read.end_ns
    assert read.start_ns <= own.start_ns <= own.end_ns <= read.end_ns
    assert (
        linked["process told.transactions"].context in linked["process told.entity-updates"].links
    )
    ours = {row.name for row in ATTRIBUTES}
    for span in (own, *linked.values()):
        assert {name for name in span.attributes if name.startswith("fraud.")} <= ours, span
