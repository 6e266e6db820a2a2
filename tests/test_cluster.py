"""Several hosts over a real Kafka: one state, whoever was asked, and nothing twice."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import pytest
from fraud.v1 import decision_pb2, transaction_pb2
from fraud.v1 import fraud_service_pb2 as pb

from deploy.testing.kafka import KafkaCluster
from deploy.testing.redis import RedisServer
from featurizer.adapters import directory_of
from featurizer.cluster import create_topics, rebuild
from featurizer.eventlog_file import FileEventLog
from featurizer.hashing import SPACE_REQUEST, IdHasher
from featurizer.records import RECORD
from featurizer.state import POSITION
from tests.checker import Found, check, gather
from tests.clusters import PARTITIONS, Cluster, stopping
from tests.conftest import (
    Connected,
    Host,
    Payments,
    Trained,
    accepted,
    call_now,
    decisions,
    score_patiently,
    until,
)
from tests.redis_servers import redis_server  # noqa: F401 - a fixture
from tests.servers import kafka_fixture, prefix_fixture  # noqa: F401 - fixtures

SETTLE_S = 60.0
APART = 30
AT_ONCE = 120


@pytest.fixture(scope="module", params=["lmdb", "redis"])
def cluster(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    kafka: KafkaCluster,
    trained: Trained,
) -> Iterator[Cluster]:
    """Two hosts, and one of each stage."""
    folder, kind = tmp_path_factory.mktemp("hosts"), request.param
    store = f"lmdb://{folder}/states"
    if kind == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        store = f"{server.url}/hosts"
    made = Cluster(folder, kafka.bootstrap, f"hosts-{kind}", store, trained)
    asyncio.run(create_topics(made.kafka))
    with stopping(made):
        made.start("serve-0", "serve-1", "split-0", "fold-0")
        made.start("relay-0", "relay-1")
        yield made


@pytest.fixture(scope="module")
def sent(cluster: Cluster) -> list[transaction_pb2.Transaction]:
    """What the hosts of a cluster acknowledged so far."""
    assert not cluster.sent
    return cluster.sent


def score(client: Connected, transaction: transaction_pb2.Transaction) -> decision_pb2.Assessment:
    return score_patiently(client, pb.ScoreRequest(transaction=transaction))


def without_position(blob: bytes) -> bytes:
    words = np.frombuffer(blob, np.int64).copy()
    words[POSITION] = 0
    return words.tobytes()


def are_like(cluster: Cluster, expected: dict[int, bytes]) -> bool:
    found = cluster.states(list(expected))
    return {key: without_position(blob) for key, blob in found.items()} == expected


def settled(cluster: Cluster, requests: int) -> Found:
    """Return what is on the log once all of it has been folded."""

    def all_there() -> Found | None:
        found = gather(cluster.bootstrap, cluster.prefix, PARTITIONS)
        counted = {(each.host, each.position) for each in found.updates}
        there = cluster.states(list(found.states))
        return found if len(counted) >= requests and there == found.states else None

    result: Found = until(all_there, "every update in the states", SETTLE_S)
    return result


def hashed(payments: Sequence[transaction_pb2.Transaction]) -> list[int]:
    hasher = IdHasher()
    return [hasher.one(SPACE_REQUEST, each.request_id) for each in payments]


def journalled(cluster: Cluster) -> dict[str, decision_pb2.Decision]:
    found: dict[str, decision_pb2.Decision] = {}
    for number in "01":
        log = FileEventLog(directory_of(cluster.journal(number)), read_only=True)
        found |= {d.transaction.request_id: d for d in decisions(log).values()}
        log.close()
    return found


def test_vectors_are_those_of_one_host(
    cluster: Cluster, host: Host, sent: list[transaction_pb2.Transaction]
) -> None:
    payments, embedded = Payments(), host.scorer()
    with cluster.client("serve-0") as first, cluster.client("serve-1") as second:
        for i in range(APART):
            payment = payments.one()
            answer = score((first, second)[i % 2], payment)
            assert answer.rung == decision_pb2.RUNG_FULL
            sent.append(payment)
            embedded.score(payment, call_now())
            host.fold()
            record = accepted(payment, host.now_ms).record
            keys = [key for key in record["entities"][0].tolist() if key]
            expected = {k: without_position(b) for k, b in host.states(keys).items()}
            until(partial(are_like, cluster, expected), "the states to be as on one host")

    logged = journalled(cluster)
    mine = {d.transaction.request_id: d.features for d in decisions(host.log).values()}
    assert {name: decision.features for name, decision in logged.items()} == mine
    assert len(mine) == APART


def test_every_update_counts_once(
    cluster: Cluster, sent: list[transaction_pb2.Transaction]
) -> None:
    batches = [[payments.one() for _ in range(AT_ONCE)] for payments in (Payments(1), Payments(2))]

    def drive(role: str, batch: Sequence[transaction_pb2.Transaction]) -> None:
        with cluster.client(role) as client:
            for payment in batch:
                score(client, payment)
                score(client, payment)  # a repeat is answered, and is no event

    threads = [
        threading.Thread(target=drive, args=(f"serve-{n}", batch))
        for n, batch in enumerate(batches)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for batch in batches:
        sent += batch

    found = settled(cluster, len(sent))

    assert check(found, hashed(sent), PARTITIONS) == []
    assert len(found.transactions) == len(sent) == APART + 2 * AT_ONCE
    customers = {np.frombuffer(each.value, RECORD)["entities"][0][0] for each in found.transactions}
    assert len(customers) > 3


def test_a_rebuild_gives_the_same_states(cluster: Cluster) -> None:
    told: list[tuple[int, int, int]] = []

    found = rebuild(cluster.kafka, cluster.place, None, lambda *how_far: told.append(how_far))

    assert sorted(found) == list(range(PARTITIONS))
    assert all(each.states == each.equal > 0 for each in found.values())
    assert all(each.different == () for each in found.values())
    assert all(0 < done <= total for _, done, total in told)
