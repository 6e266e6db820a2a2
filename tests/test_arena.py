"""The arena against one fold and one view at a time, and at the bounds of its memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from featurizer.arena import Arena
from featurizer.arena_kernels import GROWTH_WORDS
from featurizer.arena_memory import SIZES_WORDS
from featurizer.features import FEATURES, OPS
from featurizer.fold import fold
from featurizer.records import RECORD, Entity, Kind
from featurizer.slots import LINES, SLOTS
from featurizer.state import ROW_WORDS, check_blob, length
from featurizer.view import view
from tests.test_kernel import random_records

SEED = 20261125
EVENTS = 3_000


class OneByOne:
    """States in a dictionary, one call of the kernel per record and entity."""

    def __init__(self) -> None:
        self.states: dict[int, NDArray[np.int64]] = {}
        self.lines = np.zeros((LINES, SLOTS))

    def view(self, record: Any, out: NDArray[np.float32]) -> int:
        rows = np.zeros((len(Entity), ROW_WORDS), np.int64)
        for e in Entity:
            if (state := self.states.get(int(record["entities"][e]))) is not None:
                rows[e] = state
        return int(view(rows, record, OPS, self.lines, out))

    def fold(self, record: Any, position: int) -> None:
        for e in Entity:
            if key := int(record["entities"][e]):
                state = self.states.setdefault(key, np.zeros(ROW_WORDS, np.int64))
                fold(state, int(e), record, position)

    def run(self, records: NDArray[Any], positions: NDArray[np.int64]) -> NDArray[np.float32]:
        out = np.zeros((len(records), len(FEATURES)), np.float32)
        for i, record in enumerate(records):
            if record["kind"] == Kind.TRANSACTION:
                record["flags"] |= self.view(record, out[i])
            self.fold(record, int(positions[i]))
        return out

    def blobs(self) -> dict[int, bytes]:
        return {key: s[: int(length(s))].tobytes() for key, s in self.states.items()}


def positions_of(records: NDArray[Any]) -> NDArray[np.int64]:
    return np.arange(1, len(records) + 1) * 8


def records_of(n: int, seed: int = SEED) -> NDArray[Any]:
    print(f"SEED={seed}")
    return random_records(seed, n)


@pytest.fixture(scope="module")
def expected() -> tuple[NDArray[Any], NDArray[np.float32], dict[int, bytes]]:
    records, one = records_of(EVENTS), OneByOne()
    out = one.run(records, positions_of(records))
    return records, out, one.blobs()


@pytest.mark.parametrize("states", [1, 1 << 12])
@pytest.mark.parametrize("batch", [7, EVENTS])
def test_a_batch_equals_one_by_one(states: int, batch: int, expected: Any) -> None:
    marked, vectors, blobs = expected
    records, arena = records_of(EVENTS), Arena(states=states)
    out = np.zeros((EVENTS, len(FEATURES)), np.float32)
    start_rows = len(arena._index)
    for start in range(0, EVENTS, batch):
        part = slice(start, start + batch)
        arena.run(records[part], positions_of(records)[part], out[part])
    assert out.tobytes() == vectors.tobytes()
    np.testing.assert_array_equal(records["flags"], marked["flags"])
    assert dict(arena.states()) == blobs
    assert len(arena) == len(blobs)
    assert states > 1 or len(arena._index) > start_rows  # it grew in the middle


def test_folding_alone_makes_the_states_of_marked_records(expected: Any) -> None:
    marked, _, blobs = expected
    arena = Arena()
    arena.run(marked.copy(), positions_of(marked))
    assert dict(arena.states()) == blobs


@pytest.mark.parametrize("bytes_max", [60_000, 400_000])
def test_out_of_memory_keeps_what_came_before(bytes_max: int) -> None:
    records, one = records_of(EVENTS), OneByOne()
    out = np.full((EVENTS, len(FEATURES)), -1, np.float32)
    arena = Arena(bytes_max=bytes_max, states=16)
    with pytest.raises(MemoryError, match=f"more than {bytes_max} bytes"):
        arena.run(records, positions_of(records), out)
    viewed = np.flatnonzero((out != -1).any(axis=1))
    done = int(viewed[-1]) + 1
    assert 5 < done < EVENTS
    assert arena.used_bytes <= bytes_max
    # Labels right after the last view may be in too; the states say how many.
    got = dict(arena.states())
    one.run(records_of(EVENTS)[:done], positions_of(records)[:done])
    while one.blobs() != got and records["kind"][done] == Kind.FEEDBACK:
        one.fold(records[done], 8 * (done + 1))
        done += 1
    assert one.blobs() == got
    assert all(key in arena for key in got)
    absent = set(records["entities"].ravel().tolist()) - set(got) - {0}
    assert bytes_max > 60_000 or absent  # else every entity had been seen by then
    assert set(arena.missing(records["entities"].ravel())) == absent


def test_states_come_back_as_they_were_put(expected: Any) -> None:
    _, _, blobs = expected
    arena = Arena(states=2)
    for key, blob in blobs.items():
        arena.put(key, blob)
    assert dict(arena.states()) == blobs
    assert arena.states(dirty_only=True) == []
    for key, blob in reversed(blobs.items()):
        arena.put(key, memoryview(blob))
    assert dict(arena.states()) == blobs
    assert len(arena) == len(blobs)


def test_a_run_may_go_on_from_stored_states(expected: Any) -> None:
    _, vectors, blobs = expected
    records, half = records_of(EVENTS), EVENTS // 2
    first, second = Arena(), Arena()
    out = np.zeros((EVENTS, len(FEATURES)), np.float32)
    first.run(records[:half], positions_of(records)[:half], out[:half])
    for key, blob in first.states():
        second.put(key, blob)
    second.run(records[half:], positions_of(records)[half:], out[half:])
    assert out.tobytes() == vectors.tobytes()
    assert dict(second.states()) == blobs


def test_only_states_that_changed_are_dirty() -> None:
    records = records_of(400)
    arena = Arena()
    arena.run(records[:200], positions_of(records)[:200])
    assert arena.states(dirty_only=True) == arena.states()
    arena.clean()
    assert arena.states(dirty_only=True) == []
    arena.run(records[200:210], positions_of(records)[200:210])
    touched = set(records["entities"][200:210].ravel().tolist()) - {0}
    assert {key for key, _ in arena.states(dirty_only=True)} == touched


def test_states_are_in_the_order_of_unsigned_keys() -> None:
    records = records_of(50)
    records["entities"][:, 0] *= -1
    arena = Arena()
    arena.run(records, positions_of(records))
    keys = [key % 2**64 for key, _ in arena.states()]
    assert keys == sorted(keys)
    assert keys[-1] >= 2**63


def test_feedback_takes_the_marks_of_its_transaction_in_the_batch() -> None:
    records = records_of(4)
    records["kind"] = [Kind.TRANSACTION, Kind.TRANSACTION, Kind.FEEDBACK, Kind.FEEDBACK]
    records["flags"] = [1, 2, 0, 5]
    arena = Arena()
    marks_of = np.array([-1, -1, 1, -1])
    arena.run(records, positions_of(records), None, marks_of)
    assert records["flags"].tolist() == [1, 2, 2, 5]


def test_what_is_no_state_is_refused_and_changes_nothing(expected: Any) -> None:
    _, _, blobs = expected
    key, blob = next(iter(blobs.items()))
    arena = Arena()
    for bad in (b"", blob[:-8], b"\x07" + blob[1:], bytes(ROW_WORDS * 8 + 8)):
        with pytest.raises(ValueError, match="state"):
            arena.put(key, bad)
    assert (len(arena), arena.states(), key in arena) == (0, [], False)


def test_other_records_are_refused() -> None:
    with pytest.raises(ValueError, match="dtype RECORD"):
        Arena().run(np.zeros(1, RECORD.descr[:3]), np.ones(1, np.int64))


def test_cleared_it_is_as_new() -> None:
    records = records_of(300)
    arena = Arena(states=4)
    arena.run(records, positions_of(records))
    arena.clear()
    assert (len(arena), arena.used_bytes, arena.states()) == (0, 0, [])


def test_one_fold_never_outgrows_the_room_that_is_kept_for_it() -> None:
    records, one = records_of(EVENTS, SEED + 1), OneByOne()
    most = 0
    for i, record in enumerate(records):
        before = {key: int(length(s)) for key, s in one.states.items()}
        one.fold(record, 8 * (i + 1))
        for key in set(record["entities"].tolist()) - {0}:
            most = max(most, int(length(one.states[key])) - before.get(key, 32))
    print(f"a fold adds at most {most} of {GROWTH_WORDS} words")
    assert 0 < most <= GROWTH_WORDS
    assert SIZES_WORDS[0] >= 32 + GROWTH_WORDS
    assert all(check_blob(blob) == "" for blob in one.blobs().values())


@pytest.mark.parametrize("states", [1, 3, 1_000])
def test_the_index_takes_any_number_of_states(states: int, expected: Any) -> None:
    _, _, blobs = expected
    records, arena = records_of(EVENTS), Arena(states=states)
    arena.run(records, positions_of(records), np.zeros((EVENTS, len(FEATURES)), np.float32))
    assert dict(arena.states()) == blobs
