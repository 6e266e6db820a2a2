"""The shared tail: what this host appended counts at once, though it was shipped and not folded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from featurizer.eventlog import Entry, Topic
from featurizer.eventlog_file import FileEventLog
from featurizer.progress import SHIPPED_KEY, pack_progress
from featurizer.records import RECORD, Entity
from featurizer.relay import ids_of, note_sources
from featurizer.state import POSITION, ROW_WORDS
from featurizer.store import StoreError
from featurizer.store_lmdb import LmdbStore
from featurizer.worker import records_of
from fraudsvc.shared_tail import SharedTail

PARTITIONS = 2
KINDS = 2
HOST = 9


class Nothing:
    """States that no fold has written to yet; they count how often they are read."""

    def __init__(self) -> None:
        self.reads = 0
        self.is_away = False

    def read(
        self,
        keys: Sequence[int],
        homes: Sequence[int],
    ) -> Sequence[bytes | None]:
        self.reads += 1
        if self.is_away:
            raise StoreError("the states are away")
        return [None] * len(keys)


class Journal:
    """A host's journal and the index that a relay keeps of it."""

    def __init__(self, folder: Path, segment_bytes: int = 1 << 20) -> None:
        self.log = FileEventLog(folder / "log", segment_bytes=segment_bytes)
        self.index = LmdbStore(folder / "index", schema="index", min_free_bytes=0)
        self._shipped = np.full((PARTITIONS, PARTITIONS * KINDS), -1, np.int64)
        self._requests = 0

    def append(self, customer: int) -> None:
        """Append as another worker of this host does."""
        self._requests += 1
        record = record_of(customer)
        record["request"] = record["transaction"] = self._requests
        self.log.append([[Entry(Topic.TRANSACTIONS, customer, record.tobytes())]])

    def ship(self) -> None:
        """Note in the index that all of it is on its way."""
        snapshot = self.index.snapshot()
        position = snapshot.position
        snapshot.close()
        position = max(position, self.log.ends()[0])
        while (batch := self.log.read(position, 1 << 20)).next_position != position:
            position = batch.next_position
            records, positions, _ = records_of(batch)
            note_sources(records, positions, self._shipped, PARTITIONS)
            rows = [(SHIPPED_KEY, pack_progress(self._shipped))]
            self.index.write(rows, ids_of(batch), position)


def record_of(customer: int) -> np.ndarray:
    record = np.zeros(1, RECORD)
    record["kind"], record["event_time_ms"] = 1, 1_750_000_000_000
    record["entities"][0, Entity.CUSTOMER] = customer
    return record


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    made = Journal(tmp_path)
    yield made
    made.index.close()
    made.log.close()


def tail_of(journal: Journal, states: Nothing | None = None, pending_max: int = 64) -> SharedTail:
    return SharedTail(
        journal.log, journal.index, states or Nothing(), HOST, PARTITIONS, PARTITIONS, pending_max
    )


def load(tail: SharedTail, customer: int) -> tuple[bool, bytes]:
    """Return whether the state is whole, and the state."""
    rows = np.zeros((len(Entity), ROW_WORDS), np.int64)
    snapshot = tail.refresh()
    try:
        whole = tail.load(snapshot, record_of(customer), rows)
    finally:
        snapshot.close()
    return whole, rows[Entity.CUSTOMER].tobytes()


def test_what_another_worker_appended_counts_though_it_was_shipped_first(journal: Journal) -> None:
    journal.append(5)
    tail, other = tail_of(journal), tail_of(journal)
    assert load(tail, 5) == load(other, 5)
    journal.append(5)
    before = load(other, 5)
    journal.ship()

    after = load(tail, 5)

    assert before == after
    assert after[0]


def test_a_scorer_that_starts_knows_what_is_not_folded_yet(journal: Journal) -> None:
    old = tail_of(journal)
    for _ in range(3):
        journal.append(7)
    known = load(old, 7)
    journal.ship()

    assert load(tail_of(journal), 7) == known
    assert known[0]
    snapshot = journal.index.snapshot()
    assert tail_of(journal).find(2, snapshot) is not None
    snapshot.close()


def test_where_the_journal_is_kept_no_more_the_states_are_stale(tmp_path: Path) -> None:
    journal = Journal(tmp_path, segment_bytes=4096)
    while journal.log.ends()[1] < 3 * 4096:
        journal.append(5)
    journal.ship()
    for path in sorted((tmp_path / "log").glob("*.seg"))[:-1]:
        path.unlink()
    log = FileEventLog(tmp_path / "log", read_only=True)
    tail = SharedTail(log, journal.index, Nothing(), HOST, PARTITIONS, PARTITIONS)

    whole, _ = load(tail, 5)

    assert not whole
    log.close()
    journal.index.close()
    journal.log.close()


def test_states_of_several_are_read_at_once_and_are_those_of_one(journal: Journal) -> None:
    states = Nothing()
    tail = tail_of(journal, states)
    for customer in (5, 6, 5, 7, 5):
        journal.append(customer)
    records = np.concatenate([record_of(customer) for customer in (5, 8, 6, 5)])

    with closing(tail.refresh()) as snapshot:
        prepared = tail.prepare(snapshot, records)

    assert prepared is not None
    assert states.reads == 1
    for i, customer in enumerate((5, 8, 6)):
        rows = np.zeros((len(Entity), ROW_WORDS), np.int64)
        prepared.arena.lend(records[i : i + 1], rows)
        rows[Entity.CUSTOMER, POSITION] = prepared.stored[i, Entity.CUSTOMER]
        assert load(tail_of(journal), customer) == (True, rows[Entity.CUSTOMER].tobytes())
    assert prepared.stored.shape == (4, len(Entity))
    assert np.diff(prepared.positions).tolist() == [2, 2, 2]  # each with a decision in between


def test_what_was_read_for_several_is_not_read_again_for_each(journal: Journal) -> None:
    states = Nothing()
    tail = tail_of(journal, states, pending_max=2)
    for _ in range(5):
        journal.append(5)
    rows = np.zeros((len(Entity), ROW_WORDS), np.int64)

    with closing(tail.refresh()) as snapshot:
        assert tail.prepare(snapshot, np.concatenate([record_of(5), record_of(6)])) is None
        assert not tail.load(snapshot, record_of(5), rows)  # three are pending no more
        assert states.reads == 1
        tail.load(snapshot, record_of(7), rows)
    assert states.reads == 2
    load(tail, 5)  # refreshed: the states are of another time
    assert states.reads == 3


def test_states_that_are_away_are_asked_for_once(journal: Journal) -> None:
    states = Nothing()
    tail = tail_of(journal, states)
    journal.append(5)
    rows = np.zeros((len(Entity), ROW_WORDS), np.int64)
    states.is_away = True

    with closing(tail.refresh()) as snapshot:
        for ask in (
            lambda: tail.prepare(snapshot, record_of(5)),
            lambda: tail.load(snapshot, record_of(5), rows),
        ):
            with pytest.raises(StoreError, match="away"):
                ask()
    assert states.reads == 1
    states.is_away = False
    assert load(tail, 5)[0]
