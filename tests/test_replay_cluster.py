"""Replay in Kafka mode: what hosts and the stream decided on shared states, to the byte."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from fraud.v1 import decision_pb2, transaction_pb2

from deploy.testing.kafka import KafkaCluster
from featurizer.adapters import (
    INDEX_SCHEMA,
    FollowedStates,
    FollowedStore,
    directory_of,
    follow_states,
    journal_number,
)
from featurizer.cluster import create_topics
from featurizer.eventlog_file import FileEventLog
from featurizer.eventlog_kafka import Consumer, Message, Producer
from featurizer.features import INDEX, SCHEMA_VERSION
from featurizer.hashing import SECRET_BYTES, IdHasher
from featurizer.splitter import read_all
from featurizer.store import StoreError
from fraudsvc.archive import Archive
from fraudsvc.calls import ScorerSettings
from fraudsvc.contract import ContractSettings
from fraudsvc.look_back_command import ReplayOptions, replay_many, replay_one_shared
from fraudsvc.policy import DEFAULT_POLICY, Policy, load_policy
from fraudsvc.replay import shared_states
from fraudsvc.replay.again import Kind
from fraudsvc.replay.judges import Places
from fraudsvc.replay.log import Span
from fraudsvc.replay.range import Summary
from fraudsvc.replay.shared_kernel import look_shared
from fraudsvc.scorer import Scorer
from fraudsvc.shared_tail import SharedTail
from tests.clusters import PARTITIONS, Cluster, stopping
from tests.conftest import Asked, Payments, Trained, call_now, decisions, until
from tests.servers import kafka_fixture  # noqa: F401 - a fixture
from tests.test_replay import LISTS
from trainer.bundle import Bundle, load_bundle, load_content, write_bundle

SETTLE_S = 60.0
START_S = 240.0  # in a new folder every process compiles its kernels first
STEPS = 240  # each a batch of up to 40 at one of the hosts
BEHIND = range(100, 140)  # steps in which the fold stands still
CAUGHT_UP = (10, 60, 160, 210)  # steps before which the states are waited for
STREAMED = 900


class NoStates:
    """Shared states that are away."""

    def read(self, keys: Sequence[int], homes: Sequence[int]) -> Sequence[bytes | None]:
        raise StoreError("the states are away")


class Site:
    """A host with scorers of this process; its relay is a process of its own."""

    def __init__(self, cluster: Cluster, number: str, states: FollowedStates) -> None:
        self.bundle: Bundle = cluster.trained.bundle
        self.policy: Policy = load_policy(DEFAULT_POLICY, INDEX)
        self.log = FileEventLog(cluster.folder / number / "journal", sync_interval_ms=1_000)
        self.index = FollowedStore(f"lmdb://{cluster.folder}/{number}/index", schema=INDEX_SCHEMA)
        self._states = states
        self._host = journal_number(cluster.journal(number))

    def scorer(self, states: Any = None, **settings: Any) -> Asked:
        """Return a new scorer, which knows nothing but journal, index and states."""
        bounds = ScorerSettings(**{"budget_ms": 60_000.0, **settings})
        tail = SharedTail(
            self.log, self.index, states or self._states, self._host, PARTITIONS, PARTITIONS,
            bounds.pending_max,
        )  # fmt: skip
        made = Scorer(
            self.log, tail, IdHasher(), lambda: self.bundle, lambda: self.policy,
            ContractSettings(max_age_days=None), bounds,
        )  # fmt: skip
        return Asked(made)

    def is_shipped(self) -> bool:
        """Whether the relay has sent all of the journal."""
        self.index.poll()
        snapshot = self.index.snapshot()
        try:
            return snapshot.position == self.log.ends()[1]
        finally:
            snapshot.close()

    def close(self) -> None:
        self.index.close()
        self.log.close()


class Lived(NamedTuple):
    """A cluster after a run, and how many decisions it made."""

    cluster: Cluster
    options: ReplayOptions
    decisions: int
    other: Path  # the other bundle


def options_of(cluster: Cluster, archive: Path) -> ReplayOptions:
    trained = cluster.trained
    places = Places(
        archive, cluster.folder / "models", trained.bundle_path, DEFAULT_POLICY,
        trained.public_key,
    )  # fmt: skip
    return ReplayOptions(cluster.kafka_url, places, bytes(SECRET_BYTES), processes=1)


def other_bundle(trained: Trained, path: Path) -> Bundle:
    """Return another bundle, on which the thresholds are lower."""
    content = load_content(
        trained.bundle_path, schema_version=SCHEMA_VERSION, public_key=trained.public_key
    )
    lower = replace(content.thresholds, review=content.thresholds.review / 2)
    write_bundle(path, replace(content, thresholds=lower), trained.key_path)
    return load_bundle(path, schema_version=SCHEMA_VERSION, public_key=trained.public_key)


def catch_up(scorer: Asked, payments: Payments) -> int:
    """Decide until the states are whole; return how often.

    What the other host shipped first is told of with the next update of this one's.
    """
    rungs: list[int] = []

    def is_whole() -> bool:
        rungs.append(scorer.score(payments.one(), call_now()).rung)
        return rungs[-8:] == [decision_pb2.RUNG_FULL] * 8

    until(is_whole, "the states", START_S)
    return len(rungs)


def live(cluster: Cluster, sites: Sequence[Site], bundles: Sequence[Bundle]) -> int:
    """Decide at the hosts; return how often. What is sent to both counts as the first that ships.

    With swaps, policy changes, restarts, labels, states that lag behind and none at all.
    """
    payments = Payments()
    rng, texts = payments.rng, [DEFAULT_POLICY.read_bytes(), DEFAULT_POLICY.read_bytes() + LISTS]
    policies = [load_policy(text, INDEX) for text in texts]
    scorers = [site.scorer() for site in sites]
    decided = 0
    for step in range(STEPS):
        number = int(rng.integers(len(sites)))
        site = sites[number]
        site.bundle, site.policy = bundles[step // 37 % 2], policies[step // 23 % 2]
        if step in CAUGHT_UP:
            scorers = [each.scorer() for each in sites]
            decided += sum(catch_up(each, payments) for each in scorers)
        if step % 50 == 49:
            scorers[number] = site.scorer(pending_max=60 if step in BEHIND else 4_096)
        if step in (BEHIND.start, BEHIND.stop):
            scorers = [each.scorer(pending_max=60) for each in sites]
            is_first = step == BEHIND.start
            cluster.signal("fold-0", signal.SIGSTOP if is_first else signal.SIGCONT)
        chosen = scorers[number]
        if step % 20 in (3, 4):
            chosen = site.scorer(full_ms=1e9) if step % 20 == 3 else site.scorer(NoStates())
        batch = [payments.one() for _ in range(int(rng.integers(1, 40)))]
        for result in chosen.score_batch(batch, call_now()):
            assert result.HasField("assessment")
        decided += len(batch)
        if step % 9 == 0:
            again = scorers[1 - number].score(batch[0], call_now())  # another host decides anew
            decided += 1
            assert again.decision_id
        known = payments.made[int(rng.integers(len(payments.made)))]
        scorers[number].report_labels([payments.label(known.transaction_id)])
        time.sleep(0.01)  # so that now and then the states catch up
    return decided


async def _send(cluster: Cluster, payments: Sequence[transaction_pb2.Transaction]) -> None:
    producer = Producer(cluster.kafka)
    await producer.start()
    messages = [Message(b"customer", each.SerializeToString()) for each in payments]
    await producer.send({(cluster.kafka.topic("payments"), 0): messages})
    await producer.stop()


async def _count(cluster: Cluster) -> int:
    """Return how many decisions Kafka has."""
    reader = Consumer(cluster.kafka)
    await reader.start()
    found = 0
    for number in range(PARTITIONS):
        async for _ in read_all(reader, (cluster.kafka.topic("decisions"), number), 0):
            found += 1
    await reader.stop()
    return found


def stream(cluster: Cluster) -> None:
    """Send payments through the stream, which is killed in the middle of them."""
    payments = Payments(7)
    some = [payments.one() for _ in range(STREAMED)]
    asyncio.run(_send(cluster, some[: STREAMED // 2]))
    time.sleep(0.5)
    cluster.kill("stream-0")
    asyncio.run(_send(cluster, some[STREAMED // 3 :]))  # some again: no event
    cluster.start("stream-0")


@pytest.fixture(scope="module")
def lived(
    tmp_path_factory: pytest.TempPathFactory, kafka: KafkaCluster, trained: Trained
) -> Iterator[Lived]:
    """Two hosts and a stream over one replica of the states, after a run with all that happens."""
    folder = tmp_path_factory.mktemp("replayed")
    cluster = Cluster(folder, kafka.bootstrap, "replay-test", f"lmdb://{folder}/states", trained)
    asyncio.run(create_topics(cluster.kafka))
    archive, other = Archive(folder / "archive"), folder / "other"
    bundles = [trained.bundle, other_bundle(trained, other)]
    archive.keep_bundle(bundles[1].model_version, other)
    text = DEFAULT_POLICY.read_bytes() + LISTS
    archive.keep_policy(load_policy(text, INDEX).version, text)
    states = follow_states(cluster.place)
    for number in "01":
        (folder / number).mkdir()
        FileEventLog(folder / number / "journal").close()
    with stopping(cluster):
        cluster.start("split-0", "fold-0", "relay-0", "relay-1", "stream-0")
        sites = [Site(cluster, number, states) for number in "01"]
        decided = live(cluster, sites, bundles)
        stream(cluster)
        until(lambda: all(site.is_shipped() for site in sites), "the relays", SETTLE_S)
        wanted = decided + STREAMED
        until(lambda: asyncio.run(_count(cluster)) >= wanted, "the decisions", SETTLE_S)
        yield Lived(cluster, options_of(cluster, folder / "archive"), wanted, other)
    for site in sites:
        site.close()
    states.close()


def replayed(options: ReplayOptions) -> Summary:
    return replay_many(Span(), options, lambda _position, _done: None)


def test_what_hosts_and_stream_decided_is_the_same_to_the_byte(lived: Lived) -> None:
    summary = replayed(lived.options)

    assert summary.is_same, summary
    assert summary.decisions == lived.decisions >= 5_000
    assert summary.repeats == 0
    assert summary.rungs["RULES_ONLY"] > 50
    assert summary.rungs["PARTIAL"] > 200
    assert summary.rungs["FULL"] > 2_000
    assert len(summary.bundles) == len(summary.policies) == 2


def test_another_kernel_is_found_and_named(lived: Lived, monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(*arguments: Any) -> None:
        look_shared(*arguments)
        arguments[-1][1][:, INDEX["card_count_1h"]] += np.float32(1)

    monkeypatch.setattr(shared_states, "look_shared", changed)
    summary = replayed(lived.options)

    assert summary.kinds[Kind.DIFFERENT.value] > 2_000
    assert summary.fields["features.card_count_1h"] == summary.kinds[Kind.DIFFERENT.value]
    assert all("another kernel" in cause for cause in summary.causes)


def test_a_bundle_or_policy_that_is_gone_or_changed_is_named(lived: Lived, tmp_path: Path) -> None:
    options, archive = lived.options, Archive(tmp_path / "archive")
    elsewhere = replace(options, places=replace(options.places, archive=tmp_path / "archive"))
    trained = lived.cluster.trained
    version = load_bundle(
        lived.other, schema_version=SCHEMA_VERSION, public_key=trained.public_key
    ).model_version
    text = DEFAULT_POLICY.read_bytes() + LISTS
    policy = load_policy(text, INDEX).version

    gone = replayed(elsewhere)
    archive.keep_bundle(version, lived.other)
    archive.keep_policy(policy, text)
    archive.policy_path(policy).write_bytes(text + b"# a word\n")
    leaves = archive.bundle_path(version) / "leaf_values.npy"
    data = leaves.read_bytes()
    leaves.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    changed = replayed(elsewhere)

    for found, what in ((gone, "is gone"), (changed, "is not as it was")):
        assert found.kinds[Kind.DIFFERENT.value] == 0
        assert found.kinds[Kind.GONE.value] > 2_000
        causes = " ".join(found.causes)
        assert f"bundle {version} {what}" in causes
        assert f"policy {policy} {what}" in causes


def test_one_decision_is_found_by_its_id(lived: Lived) -> None:
    log = FileEventLog(directory_of(lived.cluster.journal("1")), read_only=True)
    wanted = list(decisions(log).values())[-1].assessment.decision_id
    log.close()

    verdict = replay_one_shared(wanted, lived.options)

    assert verdict.is_same
    assert verdict.case.decision.assessment.decision_id == wanted
    unknown = wanted[:-1] + ("0" if wanted[-1] != "0" else "1")
    with pytest.raises(ValueError, match="Kafka has no decision"):
        replay_one_shared(unknown, lived.options)


def test_a_range_has_times(lived: Lived) -> None:
    now_ms = int(time.time() * 1_000)
    nothing = replay_many(Span(from_ms=now_ms), lived.options, lambda _position, _done: None)
    assert nothing.decisions == 0
    with pytest.raises(ValueError, match="a range has times"):
        replay_many(Span(first=5), lived.options, lambda _position, _done: None)
