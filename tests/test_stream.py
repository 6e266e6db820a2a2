"""The stream: payments through Kafka are decided as a scorer decides, once each, in order."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from fraud.v1 import decision_pb2

from deploy.testing.kafka import KafkaCluster
from featurizer.cluster import create_topics
from featurizer.eventlog_kafka import Consumer, Message, Producer
from featurizer.hashing import SPACE_REQUEST, IdHasher
from featurizer.splitter import read_all
from fraudsvc.dead_letters import DeadLetters
from tests import consoles
from tests.checker import check, gather
from tests.clusters import PARTITIONS, Cluster, stopping
from tests.conftest import Host, Payments, Trained, call_now, decisions, until
from tests.servers import kafka_fixture  # noqa: F401 - a fixture

DECIDED_S = 60.0
CARD_NUMBER = "4111111111111111"


@pytest.fixture(scope="module")
def cluster(
    tmp_path_factory: pytest.TempPathFactory, kafka: KafkaCluster, trained: Trained
) -> Iterator[Cluster]:
    """A stream, and the stages that keep its states."""
    folder = tmp_path_factory.mktemp("stream")
    made = Cluster(folder, kafka.bootstrap, "stream-test", f"lmdb://{folder}/states", trained)
    asyncio.run(create_topics(made.kafka))
    with stopping(made):
        made.start("stream-0", "split-0", "fold-0")
        yield made


async def _send(cluster: Cluster, values: Sequence[bytes], partition: int) -> None:
    producer = Producer(cluster.kafka)
    await producer.start()
    messages = [Message(b"customer", value) for value in values]
    await producer.send({(cluster.kafka.topic("payments"), partition): messages})
    await producer.stop()


def send(cluster: Cluster, values: Sequence[bytes], partition: int = 0) -> None:
    """Send payments as a payment company would: a serialised Transaction each."""
    asyncio.run(_send(cluster, values, partition))


async def _decisions(cluster: Cluster) -> list[decision_pb2.Decision]:
    reader = Consumer(cluster.kafka)
    await reader.start()
    found = [
        decision_pb2.Decision.FromString(record.value)
        for number in range(PARTITIONS)
        async for record in read_all(reader, (cluster.kafka.topic("decisions"), number), 0)
    ]
    await reader.stop()
    return found


def decided(cluster: Cluster, count: int) -> list[decision_pb2.Decision]:
    """Return the decisions, once there are ``count`` of them."""

    def enough() -> list[decision_pb2.Decision] | None:
        found = asyncio.run(_decisions(cluster))
        return found if len(found) >= count else None

    found: list[decision_pb2.Decision] = until(enough, f"{count} decisions", DECIDED_S)
    return found


def test_payments_are_decided_as_by_a_scorer(cluster: Cluster, host: Host) -> None:
    payments, scorer = Payments(), host.scorer()
    batch = [payments.one() for _ in range(200)]
    for each in batch:
        scorer.score(each, call_now())
    expected = {d.transaction.request_id: d for d in decisions(host.log).values()}

    data = [each.SerializeToString(deterministic=True) for each in batch]
    send(cluster, data[:70])
    send(cluster, data[60:120])  # ten again: no event
    decided(cluster, 120)
    cluster.kill("stream-0")
    send(cluster, data[110:])
    cluster.start("stream-0")
    found = decided(cluster, len(batch))

    assert len(found) == len(batch)
    for decision in found:
        other = expected[decision.transaction.request_id]
        assert decision.assessment.rung == decision_pb2.RUNG_FULL
        assert decision.features == other.features
        assert decision.contributions == other.contributions
        assert decision.assessment.decision_id == other.assessment.decision_id
        assert decision.assessment.reasons == other.assessment.reasons
        assert decision.assessment.outcome == other.assessment.outcome
    cluster.sent += batch


def test_every_update_counts_once(cluster: Cluster) -> None:
    batches = [[payments.one() for _ in range(150)] for payments in (Payments(5), Payments(6))]
    for number, batch in enumerate(batches):
        send(cluster, [each.SerializeToString(deterministic=True) for each in batch], number)
        cluster.sent += batch
    decided(cluster, len(cluster.sent))

    def all_folded() -> bool:
        found = gather(cluster.bootstrap, cluster.prefix, PARTITIONS)
        counted = {(each.host, each.position) for each in found.updates}
        states = cluster.states(list(found.states))
        return len(counted) == len(cluster.sent) and states == found.states

    until(all_folded, "every update in the states", DECIDED_S)
    hasher = IdHasher()
    acknowledged = [hasher.one(SPACE_REQUEST, each.request_id) for each in cluster.sent]
    found = gather(cluster.bootstrap, cluster.prefix, PARTITIONS)
    assert check(found, acknowledged, PARTITIONS) == []


def test_what_cannot_be_decided_is_a_dead_letter(cluster: Cluster, tmp_path: Path) -> None:
    good, poor, secret = (Payments(seed).one() for seed in (7, 8, 9))
    poor.currency_code = "XXQ"
    secret.merchant.merchant_id = CARD_NUMBER
    before = len(cluster.sent)

    send(cluster, [b"\xff\xffnothing", *(m.SerializeToString() for m in (poor, secret, good))])
    decided(cluster, before + 1)

    letters = DeadLetters(cluster.kafka)
    found = until(lambda: asyncio.run(letters.all()), "letters")
    assert [each.content.reason for each in found] == [
        "MALFORMED_MESSAGE", "INVALID_TRANSACTION", "CARD_NUMBER_REFUSED",
    ]  # fmt: skip
    assert all(CARD_NUMBER.encode() not in each.content.SerializeToString() for each in found)
    told = dead_letters(cluster, "list")
    assert "INVALID_TRANSACTION" in told
    assert "stream-test.payments-0" in told
    shown = dead_letters(cluster, "show", *[str(each.number) for each in found])
    assert "XXQ" in shown
    assert CARD_NUMBER not in shown
    resend_by_a_button(cluster, tmp_path / "data", str(found[1].number))
    again = until(lambda: asyncio.run(letters.all())[3:], "the letter's second end")
    assert again[0].content.reason == "INVALID_TRANSACTION"
    assert asyncio.run(letters.one(found[1].number)).resent == (again[0].content.offset,)
    refused = run_dead_letters(cluster, "resend", str(found[2].number))
    assert refused.returncode == 2
    assert "card number" in refused.stderr
    cluster.sent.append(good)


def resend_by_a_button(cluster: Cluster, data: Path, number: str) -> None:
    path = "/dead-letters?at=kafka"
    with consoles.console(data, "--kafka", cluster.kafka_url) as place:
        client = place.signed_in("cy", "lead")
        assert "Whatever came in could be used" in client.get("/dead-letters").text
        page = client.get(path).text
        assert page.count("Send again") == 2
        assert "MALFORMED_MESSAGE" in page
        sent = client.post("/dead-letters/resend", path, number=number, at="kafka")
        assert (sent.status, sent.headers["location"]) == (303, path)
        assert client.post("/dead-letters/resend", path, number=number, at="kafka").status == 409
        assert CARD_NUMBER not in client.get(path).text


def run_dead_letters(cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fraudsvc", "dead-letters", *arguments]
    return subprocess.run(
        [*command, "--kafka", cluster.kafka_url], capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip


def dead_letters(cluster: Cluster, *arguments: str) -> str:
    done = run_dead_letters(cluster, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout
