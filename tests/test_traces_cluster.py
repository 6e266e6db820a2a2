"""A trace across Kafka: relay, split and fold link their batches to the calls in them."""

from __future__ import annotations

import asyncio
import urllib.error
from collections.abc import Iterator
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from fraud.v1 import fraud_service_pb2 as pb

from deploy.testing.kafka import KafkaCluster
from featurizer.adapters import directory_of
from featurizer.cluster import create_topics
from featurizer.eventlog_file import FileEventLog
from featurizer.spans import Context, score_context
from tests.clusters import Cluster, stopping
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

PAYMENTS = 30
SETTLE_S = 60.0
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
