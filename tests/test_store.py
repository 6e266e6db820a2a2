"""What every Store keeps; an adapter joins by a factory in FACTORIES."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurizer.store import Store, StoreError
from featurizer.store_lmdb import LmdbStore
from featurizer.store_redis import RedisSettings, RedisStore
from tests.redis_servers import redis_cluster, redis_server

# Given a folder that is the test's own and the request, for servers that tests share.
Factory = Callable[[Path, pytest.FixtureRequest], Store]


def open_redis(path: Path, request: pytest.FixtureRequest) -> RedisStore:
    server = request.getfixturevalue("redis_server")
    return RedisStore(RedisSettings((server.url,), path.name), 3, "one")


def open_redis_cluster(path: Path, request: pytest.FixtureRequest) -> RedisStore:
    cluster = request.getfixturevalue("redis_cluster")
    return RedisStore(RedisSettings(cluster.urls, path.name), 3, "one")


FACTORIES: dict[str, Factory] = {
    "lmdb": lambda path, _: LmdbStore(path / "store", schema="one", map_bytes=8 << 20),
    "lmdb-commit": lambda path, _: LmdbStore(
        path / "store", schema="one", map_bytes=8 << 20, sync="commit"
    ),
    "redis": open_redis,
    "redis-cluster": open_redis_cluster,
}
# Those whose snapshots are of one moment; the others' may see newer states than their position.
VERSIONED = ("lmdb", "lmdb-commit")

LEAST, GREATEST = -(1 << 63), (1 << 63) - 1

__all__ = ["redis_cluster", "redis_server"]


@pytest.fixture(params=FACTORIES)
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Store]:
    """Open the store of this test; after a close it is the same store again."""
    factory = FACTORIES[request.param]
    return lambda: factory(tmp_path, request)


@pytest.fixture
def store(opened: Callable[[], Store]) -> Iterator[Store]:
    store = opened()
    yield store
    store.close()


def states_of(store: Store, keys: list[int]) -> list[bytes | None]:
    snapshot = store.snapshot()
    found = [None if state is None else bytes(state) for state in snapshot.get_many(keys)]
    snapshot.close()
    return found


def places_of(store: Store, ids: list[int]) -> list[int | None]:
    snapshot = store.snapshot()
    found = snapshot.find_many(ids)
    snapshot.close()
    return found


def position_of(store: Store) -> int:
    snapshot = store.snapshot()
    position = snapshot.position
    snapshot.close()
    return position


def state(event_time_ms: int) -> bytes:
    return struct.pack("<qq", 1, event_time_ms) + b"rest"


def test_an_empty_store_knows_nothing(store: Store) -> None:
    assert position_of(store) == 0
    assert states_of(store, [1, 0, LEAST]) == [None, None, None]
    assert places_of(store, [1]) == [None]
    assert states_of(store, []) == []


def test_what_was_written_is_found_in_the_order_asked(store: Store) -> None:
    keys = [5, -1, 0, LEAST, GREATEST, 7, -7]
    store.write([(key, b"state %d" % key) for key in keys], [(3, 80), (-3, 16)], 96)

    asked = [7, 8, LEAST, 7, -1]
    assert states_of(store, asked) == [b"state %d" % key if key != 8 else None for key in asked]
    assert places_of(store, [-3, 3, 4]) == [16, 80, None]
    assert position_of(store) == 96


def test_the_last_state_and_the_first_place_stay(store: Store) -> None:
    store.write([(1, b"a"), (2, b"x"), (1, b"b")], [(9, 8), (9, 16)], 24)
    store.write([(1, b"c")], [(9, 32), (8, 40)], 48)

    assert states_of(store, [1, 2]) == [b"c", b"x"]
    assert places_of(store, [9, 8]) == [8, 40]


@pytest.mark.parametrize("opened", VERSIONED, indirect=True)
def test_a_snapshot_with_versions_stays_at_its_position(store: Store) -> None:
    store.write([(1, b"old")], [(5, 8)], 8)
    before = store.snapshot()
    store.write([(1, b"new"), (2, b"two")], [(6, 16)], 16)
    after = store.snapshot()

    assert (before.position, after.position) == (8, 16)
    old, none = before.get_many([1, 2])
    new, two = after.get_many([1, 2])
    assert old is not None
    assert new is not None
    assert two is not None
    assert (bytes(old), none, bytes(new), bytes(two)) == (b"old", None, b"new", b"two")
    assert (before.find_many([6]), after.find_many([6])) == ([None], [16])
    before.close()
    after.close()


def test_a_snapshot_is_never_ahead_of_the_states_that_it_reads(store: Store) -> None:
    store.write([(1, state(8)), (2, state(8))], [(5, 8)], 8)
    before = store.snapshot()
    store.write([(1, state(16)), (3, state(16))], [(5, 16), (6, 16)], 16)
    after = store.snapshot()

    for snapshot, least in ((before, 8), (after, 16)):
        assert snapshot.position == least
        first, second, third = snapshot.get_many([1, 2, 3])
        assert first is not None
        assert second is not None
        assert bytes(first) in [state(position) for position in (8, 16) if position >= least]
        assert bytes(second) == state(8)
        assert third is not None or least == 8
        assert snapshot.find_many([5]) == [8]
        snapshot.close()


def test_a_closed_store_keeps_what_was_written(opened: Callable[[], Store]) -> None:
    first = opened()
    first.write([(1, b"kept")], [(2, 8)], 16)
    first.close()
    first.close()

    second = opened()
    assert states_of(second, [1]) == [b"kept"]
    assert places_of(second, [2]) == [8]
    assert position_of(second) == 16
    second.close()


def test_a_closed_store_refuses(opened: Callable[[], Store]) -> None:
    store = opened()
    store.close()

    with pytest.raises(StoreError):
        store.snapshot()
    with pytest.raises(StoreError):
        store.write([(1, b"x")], [], 8)


BAD_WRITES: dict[str, tuple[list[tuple[int, bytes]], list[tuple[int, int]], int]] = {
    "position goes back": ([(1, b"new")], [], 99),
    "position is negative": ([(1, b"new")], [], -1),
    "key outside int64": ([(1, b"new"), (1 << 63, b"x")], [], 200),
    "id outside int64": ([(1, b"new")], [(1 << 63, 8)], 200),
    "state too large": ([(1, b"new"), (2, bytes(1 << 20))], [], 200),
    "store full": ([(1, b"new")] + [(key, bytes(60_000)) for key in range(200)], [], 200),
}


@pytest.mark.parametrize("bad", BAD_WRITES.values(), ids=BAD_WRITES.keys())
def test_a_write_that_fails_changes_nothing(
    store: Store, bad: tuple[list[tuple[int, bytes]], list[tuple[int, int]], int]
) -> None:
    store.write([(1, b"old")], [(7, 8)], 100)

    with pytest.raises(StoreError):
        store.write(*bad)

    assert states_of(store, [1, 2]) == [b"old", None]
    assert position_of(store) == 100
    store.write([(1, b"newer")], [(7, 16)], 100)
    assert states_of(store, [1]) == [b"newer"]
    assert places_of(store, [7]) == [8]


def test_a_sweep_drops_what_is_old(store: Store) -> None:
    times = {key: key * 10 for key in range(-5, 6)}
    states = [(key, state(time_ms)) for key, time_ms in times.items()]
    store.write([*states, (77, b"short")], [(n, n * 8) for n in range(10)], 100)

    dropped = store.sweep(20, 32, 1000)

    assert dropped == 7 + 4
    kept = [key for key, found in zip(times, states_of(store, list(times)), strict=True) if found]
    assert kept == [2, 3, 4, 5]
    assert states_of(store, [77]) == [b"short"]
    assert places_of(store, [3, 4]) == [None, 32]
    assert position_of(store) == 100
    assert store.sweep(20, 32, 1000) == 0


@pytest.mark.parametrize("limit", [1, 3, 7])
def test_a_sweep_walks_on_and_begins_again(store: Store, limit: int) -> None:
    store.write([(key, state(0)) for key in range(-10, 10)], [(n, 8) for n in range(20)], 8)

    drops = [store.sweep(1, 16, limit) for _ in range(-(-20 // limit))]
    assert max(drops) <= 2 * limit
    assert sum(drops) == 40
    store.write([(-10, state(0))], [], 8)
    assert sum(store.sweep(1, 16, limit) for _ in range(2)) == 1


keys = st.one_of(st.integers(-3, 3), st.integers(LEAST, GREATEST))
writes = st.tuples(
    st.lists(st.tuples(keys, st.binary(max_size=50)), max_size=8),
    st.lists(st.tuples(keys, st.integers(0, GREATEST)), max_size=8),
)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(writes, max_size=6))
def test_a_store_is_a_dictionary(
    store: Store, batches: list[tuple[list[tuple[int, bytes]], list[tuple[int, int]]]]
) -> None:
    # One store for all examples: what an earlier one left is read first.
    asked = [key for states, ids in batches for key, _ in (*states, *ids)]
    expected_states = dict(zip(asked, states_of(store, asked), strict=True))
    expected_places = dict(zip(asked, places_of(store, asked), strict=True))
    for states, ids in batches:
        store.write(states, ids, 8)
        expected_states.update(states)
        for id_, place in ids:
            if expected_places[id_] is None:
                expected_places[id_] = place

    assert states_of(store, asked) == [expected_states[key] for key in asked]
    assert places_of(store, asked) == [expected_places[key] for key in asked]
