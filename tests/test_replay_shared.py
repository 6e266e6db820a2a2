"""Replay of shared states, however far relays, splits and folds were behind when it was decided.

The stages take their turns at random in this process, by their own functions; only the sending is
not theirs. With real brokers and processes: test_replay_cluster.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from fraud.v1 import transaction_pb2
from numpy.typing import NDArray

from featurizer.adapters import journal_number, open_index
from featurizer.arena import Arena
from featurizer.cluster import schema_number
from featurizer.eventlog_file import FileEventLog
from featurizer.eventlog_kafka import ORIGIN_HEADER, Message, Partition
from featurizer.features import INDEX
from featurizer.folder import UPDATES
from featurizer.hashing import SECRET_BYTES, IdHasher
from featurizer.kafka_settings import KafkaSettings
from featurizer.progress import NONE, SHIPPED_KEY, pack_progress, progress_key
from featurizer.records import Entity
from featurizer.records import Kind as Kinds
from featurizer.relay import ids_of, messages_of, note_sources
from featurizer.splitter import INPUTS, Repeats, fresh, places_of, well_formed
from featurizer.state import RING_EVENTS
from featurizer.store import StoreError
from featurizer.updates import KINDS, PLACE_BITS, pack, sources_of, take_new
from featurizer.worker import records_of
from fraudsvc.calls import ScorerSettings
from fraudsvc.contract import ContractSettings
from fraudsvc.policy import DEFAULT_POLICY, Policy, load_policy
from fraudsvc.replay import shared_states
from fraudsvc.replay.again import Kind
from fraudsvc.replay.judges import Places
from fraudsvc.replay.log import Span
from fraudsvc.replay.range import Summary
from fraudsvc.replay.shared_kernel import look_shared
from fraudsvc.replay.shared_range import SharedJob, replay_shared
from fraudsvc.replay.spool import TOPICS, Filling
from fraudsvc.scorer import Scorer
from fraudsvc.shared_tail import SharedTail
from tests.conftest import SEED, Asked, Payments, Trained, call_now

EVENTS, ENTITIES = 2, 3  # partitions
STEPS = 400
REMEMBERED = 500  # requests of a partition
KAFKA = KafkaSettings("nowhere:1", "replay", event_partitions=EVENTS, entity_partitions=ENTITIES)


DAY_MS = 86_400_000


@dataclass
class Entry:
    """A record of a topic."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


class Shared:
    """Topics, and the states that are made of them; each stage goes on when it is told to."""

    def __init__(self) -> None:
        self.topics: dict[Partition, list[Entry]] = defaultdict(list)
        self._blobs: list[dict[int, bytes]] = [{} for _ in range(ENTITIES)]
        self._arenas = [Arena(1 << 28) for _ in range(ENTITIES)]
        self._progress: dict[tuple[int, int], NDArray[np.int64]] = {}
        self._done: dict[Partition, int] = defaultdict(int)
        self._last: dict[Partition, dict[int, int]] = defaultdict(dict)
        self._repeats = [Repeats(REMEMBERED) for _ in range(EVENTS)]
        self._written: dict[int, dict[Partition, tuple[int, dict[int, int]]]] = defaultdict(dict)
        self._met = np.full((ENTITIES, EVENTS * KINDS), NONE, np.int64)
        self.is_away = False

    def send(self, batches: dict[Partition, list[Message]]) -> None:
        for (topic, partition), messages in batches.items():
            kept = self.topics[topic.removeprefix("replay."), partition]
            kept += [
                Entry(len(kept) + i, 0, each.key, each.value, [(ORIGIN_HEADER, each.origin)])
                for i, each in enumerate(messages)
            ]

    def split(self, partition: int, most: int) -> None:
        """Split at most so many records of each input."""
        for name, kind in INPUTS.items():
            at = (name, partition)
            some = self.topics[at][self._done[at] :][:most]
            self._done[at] += len(some)
            rows, origins, fit = well_formed(some, kind)
            places = places_of(fit, origins)
            repeats = self._repeats[partition] if kind == Kinds.TRANSACTION else None
            keep = fresh(rows, places, self._last[at], repeats)
            rows, places = rows[keep], places[keep]
            if len(rows):
                source = (partition, schema_number())
                for home, value in pack(rows, places, ENTITIES, source).items():
                    self.send({(KAFKA.topic(UPDATES), home): [Message(b"", value)]})

    def write_progress(self, partition: int) -> None:
        places = [(name, partition) for name in INPUTS]
        self._written[partition] = {at: (self._done[at], dict(self._last[at])) for at in places}

    def begin_anew(self, partition: int) -> None:
        """Split on from the progress, as after a crash: some of it is written again."""
        for name in INPUTS:
            done, last = self._written[partition].get((name, partition), (0, {}))
            self._done[name, partition], self._last[name, partition] = done, dict(last)
        repeats = self._repeats[partition] = Repeats(REMEMBERED)
        done = self._done["transactions", partition]
        some = self.topics["transactions", partition][max(0, done - REMEMBERED) : done]
        rows, _, fit = well_formed(some, INPUTS["transactions"])
        for row, entry in zip(rows, fit, strict=True):
            repeats.is_new(int(row["request"]), entry.offset)

    def fold(self, partition: int, most: int) -> None:
        """Fold at most so many arrays."""
        at = (UPDATES, partition)
        for entry in self.topics[at][self._done[at] :][:most]:
            self._done[at] += 1
            value, met = entry.value or b"", self._met[partition]
            source, rows, positions = take_new(value, entry.offset, schema_number(), met)
            self._arenas[partition].apply(rows, positions)
            for host, number, last in sources_of(rows, source):
                none = np.full(EVENTS * KINDS, NONE, np.int64)
                row = self._progress.setdefault((partition, host), none)
                row[number] = max(int(row[number]), last)
                as_of = int(positions[rows["host"] == host][-1])
                self._blobs[partition][progress_key(host)] = pack_progress(row, as_of)
        self._blobs[partition].update(self._arenas[partition].states(dirty_only=True))
        self._arenas[partition].clean()

    def read(self, keys: Sequence[int], homes: Sequence[int]) -> list[bytes | None]:
        if self.is_away:
            raise StoreError("the states are away")
        return [self._blobs[home].get(key) for key, home in zip(keys, homes, strict=True)]


class Site:
    """A host: its journal, what of it is shipped, and scorers."""

    def __init__(self, folder: Path, shared: Shared, trained: Trained) -> None:
        self.log = FileEventLog(folder / "journal", sync_interval_ms=1_000)
        self._index = open_index(f"lmdb://{folder}/index")
        self._host = journal_number(f"file://{folder}/journal")
        self._shipped = 0
        self._sources = np.full((ENTITIES, EVENTS * KINDS), NONE, np.int64)
        self._shared, self._bundle = shared, trained.bundle
        self.policy: Policy = load_policy(DEFAULT_POLICY, INDEX)

    def scorer(self, **settings: Any) -> Asked:
        bounds = ScorerSettings(**{"budget_ms": 60_000.0, **settings})
        tail = SharedTail(
            self.log, self._index, self._shared, self._host, ENTITIES, EVENTS, bounds.pending_max
        )
        made = Scorer(
            self.log, tail, IdHasher(), lambda: self._bundle, lambda: self.policy,
            ContractSettings(max_age_days=None), bounds,
        )  # fmt: skip
        return Asked(made)

    def relay(self, size: int, *, twice: bool = False) -> None:
        """Ship a piece of the journal, as the relay does; ``twice`` as after a lost answer."""
        batch = self.log.read(self._shipped, size)
        messages = messages_of(batch, self._host, KAFKA, {})
        for _ in range(2 if twice else 1):
            self._shared.send(messages)
        records, positions, _ = records_of(batch)
        note_sources(records, positions, self._sources, EVENTS)
        rows = [(SHIPPED_KEY, pack_progress(self._sources))]
        self._index.write(rows, ids_of(batch), batch.next_position)
        self._shipped = batch.next_position

    def ship(self) -> None:
        """Ship all that is left."""
        while self._shipped < self.log.ends()[1]:
            self.relay(1 << 20)

    def close(self) -> None:
        self._index.close()
        self.log.close()


def at_random(shared: Shared, sites: Sequence[Site]) -> int:
    """Decide at random hosts while the stages go on at random; return how often."""
    payments = Payments(SEED)
    rng, decided = payments.rng, 0
    scorers = [site.scorer() for site in sites]
    for step in range(STEPS):
        number = int(rng.integers(len(sites)))
        scorer, shared.is_away = scorers[number], rng.random() < 0.03
        if rng.random() < 0.04:
            scorers[number] = sites[number].scorer(pending_max=int(rng.choice([20, 4_096])))
        batch = [payments.one() for _ in range(int(rng.integers(1, 8)))]
        if rng.random() < 0.5:
            scorer.score_several(batch, [call_now() for _ in batch])
        else:
            scorer.score_batch(batch, call_now())
        decided += len(batch)
        if rng.random() < 0.1:  # a retry elsewhere is decided anew, and counts once
            scorers[1 - number].score(batch[0], call_now())
            decided += 1
        known = payments.made[int(rng.integers(len(payments.made)))]
        scorer.report_labels([payments.label(known.transaction_id)])
        go_on(shared, sites, rng, busy=step // 80 % 2 == 0)  # now and then all are far behind
    for site in sites:
        site.ship()
    return decided


def go_on(shared: Shared, sites: Sequence[Site], rng: np.random.Generator, *, busy: bool) -> None:
    """Let some of the stages take a step."""
    for site in sites:
        if rng.random() < (0.5 if busy else 0.1):
            site.relay(int(rng.choice([1 << 12, 1 << 16])), twice=rng.random() < 0.1)
    for partition in range(EVENTS):
        if rng.random() < 0.1:
            shared.write_progress(partition)
        if rng.random() < 0.05:
            shared.begin_anew(partition)
    for turn, partitions in ((shared.split, EVENTS), (shared.fold, ENTITIES)):
        for partition in range(partitions):
            if rng.random() < (0.6 if busy else 0.05):
                turn(partition, int(rng.choice([1, 5, 100])))


class Lived(NamedTuple):
    """What a run left, and how many decisions it made."""

    job: SharedJob
    decisions: int


def lived(folder: Path, trained: Trained, live: Callable[[Shared, Sequence[Site]], int]) -> Lived:
    """Live, and lay out what the topics have; some of it is split no more."""
    shared, sites = Shared(), []
    for number in "01":
        (folder / number).mkdir()
        sites.append(Site(folder / number, shared, trained))
    try:
        decided = live(shared, sites)
    finally:
        for site in sites:
            site.close()
    (folder / "spool").mkdir()
    filling = Filling(KAFKA, folder / "spool", schema_number())
    for name in TOPICS:
        for partition in range(ENTITIES if name == UPDATES else EVENTS):
            filling.take(name, partition, shared.topics[name, partition])
    places = Places(
        folder / "archive", folder / "models", trained.bundle_path, DEFAULT_POLICY,
        trained.public_key,
    )  # fmt: skip
    return Lived(SharedJob(filling.finish(), places, bytes(SECRET_BYTES), Span()), decided)


def replayed(job: SharedJob) -> Summary:
    return replay_shared(job, 1, lambda _position, _done: None)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, trained: Trained) -> Lived:
    """One run, for all tests."""
    return lived(tmp_path_factory.mktemp("lived"), trained, at_random)


def test_every_decision_is_the_same_to_the_byte(run: Lived) -> None:
    summary = replayed(run.job)

    assert summary.is_same, summary
    assert summary.decisions == run.decisions > 1_500
    assert summary.rungs["FULL"] > 500
    assert summary.rungs["PARTIAL"] > 100


def of_one_pair(shared: Shared, sites: Sequence[Site]) -> int:
    """Repeat a payment at the other host, too old for a repeat of it to be seen in its states."""
    payments, [first, second] = Payments(SEED), sites
    scorers = [site.scorer() for site in sites]

    def pay(site: Site, merchant: str, *, is_late: bool = False) -> transaction_pb2.Transaction:
        paid = payments.one(customer_id="customer-0")
        paid.card.token, paid.merchant.merchant_id = "card-0", merchant
        paid.event_time.FromMilliseconds(payments.time_ms - (80 * DAY_MS if is_late else 0))
        scorers[sites.index(site)].score(paid, call_now())
        return paid

    def settle() -> None:
        for site in sites:
            site.ship()
        for turn, partitions in ((shared.split, EVENTS), (shared.fold, ENTITIES)):
            for partition in range(partitions):
                turn(partition, 1_000)

    for _ in range(RING_EVENTS[Entity.PAIR] + 1):
        pay(first, "merchant-0")
    late = pay(first, "merchant-0", is_late=True)
    settle()
    scorers[1].score(late, call_now())  # split leaves it out
    for number in range(6):  # each partition gets later ones; none is of the pair
        pay(second, f"merchant-{number + 1}")
    settle()
    pay(second, "merchant-0")
    settle()
    return len(payments.made) + 1


def test_a_repeat_that_its_states_cannot_tell_is_folded_as_it_was(
    tmp_path: Path, trained: Trained
) -> None:
    run = lived(tmp_path, trained, of_one_pair)

    summary = replayed(run.job)

    assert summary.is_same, summary
    assert summary.decisions == run.decisions
    assert summary.rungs["FULL"] == run.decisions


def test_another_fold_of_a_journals_own_records_is_found(
    run: Lived, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without what the scorers had folded on top of what was stored, the vectors are others."""

    def without(rows: Any, cases: Any, journal: Any, *more: Any) -> None:
        *arrays, before, newest = journal
        look_shared(rows, cases, (*arrays, np.full_like(before, -1), newest), *more)

    monkeypatch.setattr(shared_states, "look_shared", without)
    summary = replayed(run.job)

    # A state of which nothing was stored is not there at all then, and has no version.
    assert summary.kinds[Kind.DIFFERENT.value] > 100
    by_cause = {cause.partition(":")[0]: count for cause, count in summary.causes.items()}
    assert by_cause["another kernel"] > 10


def test_updates_that_are_gone_are_told(run: Lived) -> None:
    """As after Kafka's retention: what was folded of them cannot be had."""
    job, cut = run.job, 1 << 5
    spool = job.spool
    found = spool.folder.parent / "cut"
    found.mkdir()
    for path in spool.folder.iterdir():
        (found / path.name).symlink_to(path)
    for partition in range(ENTITIES):
        rows, at = spool.updates(partition)
        for name, array in (("rows", rows), ("at", at)):
            path = found / f"updates-{partition}.{name}.npy"
            path.unlink()
            np.save(path, array[at >> PLACE_BITS >= cut])
    summary = replayed(job._replace(spool=spool._replace(folder=found, log_begins=cut)))

    assert summary.log_begins == cut
    assert summary.kinds[Kind.DIFFERENT.value] == 0
    assert summary.kinds[Kind.GONE.value] > 50
    assert {cause.partition(":")[0] for cause in summary.causes} == {f"the log begins at {cut}"}
