"""A scorer whose Redis is slow or gone answers one rung lower, and comes back by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fraud.v1 import decision_pb2
from fraud.v1 import fraud_service_pb2 as pb

from deploy.testing.kafka import KafkaCluster
from deploy.testing.redis import RedisServer
from featurizer.cluster import create_topics
from tests.clusters import Cluster, stopping
from tests.conftest import Connected, Payments, Trained, until
from tests.redis_servers import server_fixture  # noqa: F401 - a fixture
from tests.servers import kafka_fixture, prefix_fixture  # noqa: F401 - fixtures

BUDGET_MS = 5_000  # this machine is busy; what may be waited for is PATIENCE_MS
PATIENCE_MS = 100
TIMEOUT_S = 20.0
SETTLE_S = 60.0
CALLS = 10


@pytest.fixture(name="cluster")
def one_host(
    tmp_path: Path, kafka: KafkaCluster, prefix: str, trained: Trained, server: RedisServer
) -> Iterator[Cluster]:
    """A host, and the stages that give it states."""
    made = Cluster(
        tmp_path, kafka.bootstrap, prefix, f"{server.url}/{prefix}", trained,
        extra={"serve": ("--budget-ms", str(BUDGET_MS), "--wait-ms-max", "60000")},
        patience_ms=PATIENCE_MS,
    )  # fmt: skip
    asyncio.run(create_topics(made.kafka))
    with stopping(made):
        made.start("fold-0")
        until(lambda: all(made.has_states(n) for n in range(made.partitions)), "states", SETTLE_S)
        made.start("serve-0", "split-0", "relay-0")
        yield made


@pytest.mark.parametrize(
    ("strike", "undo"),
    [
        (RedisServer.pause, RedisServer.resume),
        (RedisServer.kill, RedisServer.start),
        (RedisServer.flush, lambda _: None),
    ],
    ids=["slow", "killed", "flushed"],
)
def test_answers_go_on_one_rung_lower(
    cluster: Cluster,
    server: RedisServer,
    strike: Callable[[RedisServer], None],
    undo: Callable[[RedisServer], None],
) -> None:
    payments = Payments()

    def score(client: Connected) -> decision_pb2.Assessment:
        request = pb.ScoreRequest(transaction=payments.one())
        answer: decision_pb2.Assessment = client.stub.Score(request, timeout=TIMEOUT_S).assessment
        return answer

    with cluster.client("serve-0") as client:
        until(lambda: score(client).rung == decision_pb2.RUNG_FULL, "all of it", SETTLE_S)
        strike(server)
        for _ in range(CALLS):
            answer = score(client)
            if answer.rung == decision_pb2.RUNG_FULL and strike is RedisServer.flush:
                break  # the fold has put its states there again
            assert answer.rung == decision_pb2.RUNG_PARTIAL
            assert answer.rung_cause == decision_pb2.RUNG_CAUSE_STATE_UNAVAILABLE
            assert answer.time_used.ToMilliseconds() < BUDGET_MS
            assert answer.model_version
        undo(server)
        until(lambda: score(client).rung == decision_pb2.RUNG_FULL, "all of it again", SETTLE_S)
