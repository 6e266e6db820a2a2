"""The shared tail: what this host appended counts at once, though it was shipped and not folded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from featurizer.eventlog import Entry, Topic
from featurizer.eventlog_file import FileEventLog
from featurizer.progress import SHIPPED_KEY, pack_progress
from featurizer.records import RECORD, Entity
from featurizer.relay import ids_of, note_sources
from featurizer.state import ROW_WORDS
from featurizer.store_lmdb import LmdbStore
from featurizer.worker import records_of
from fraudsvc.shared_tail import SharedTail

PARTITIONS = 2
KINDS = 2
HOST = 9


class Nothing:
    """States that no fold has written to yet."""

    def read(
        self,
        keys: Sequence[int],
        homes: Sequence[int],
    ) -> Sequence[bytes | None]:
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


def tail_of(journal: Journal) -> SharedTail:
    return SharedTail(journal.log, journal.index, Nothing(), HOST, PARTITIONS, PARTITIONS)


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
