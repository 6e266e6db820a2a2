"""What only the Redis adapter can suffer: a server that stops, forgets, is full or is another's."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from deploy.testing.redis import RedisServer
from featurizer.redis_layout import DISCARDING, Names
from featurizer.store import StoreError, StoreStale
from featurizer.store_redis import RedisSettings, RedisStore
from tests.redis_servers import (
    PARTITIONS,
    close,
    fails_soon,
    need_redis,
    open_states,
    open_store,
    redis_server,
    server_fixture,
    settings_of,
    states_of,
    succeeds,
    until,
)

__all__ = ["redis_server", "server_fixture"]


# Reading.


def test_states_of_all_partitions_are_read_with_their_positions(server: RedisServer) -> None:
    stores = [open_store(server, partition) for partition in range(PARTITIONS)]
    for partition, store in enumerate(stores):
        store.write([(partition, b"state %d" % partition)], [], 8 * partition)
    states = open_states(server)

    found, positions = states.read_at([5, 2, 5, 99], [5, 2, 5, 7])
    assert found == [b"state 5", b"state 2", b"state 5", None]
    assert positions == {5: 40, 2: 16, 7: 56}
    assert states.read([1, 1], [1, 2]) == [b"state 1", None]
    assert states.read([], []) == []
    with pytest.raises(StoreError, match="64 bits"):
        states.read([1 << 63], [0])
    close(*stores, states)
    with pytest.raises(StoreError, match="closed"):
        states.read([1], [1])


def test_a_reader_tells_states_that_are_missing_or_not_its_own(server: RedisServer) -> None:
    open_store(server, 0).close()
    states, others = open_states(server), open_states(server, "two")

    assert states.read([1], [0]) == [None]
    with pytest.raises(StoreStale, match="partition 1: the states are gone"):
        states.read([1, 2], [0, 1])
    with pytest.raises(StoreStale, match="schema one, not two"):
        others.read([1], [0])
    server.flush()
    with pytest.raises(StoreStale):
        states.read([1], [0])
    close(states, others)


# Writing.


def test_a_writer_that_was_replaced_changes_nothing(server: RedisServer) -> None:
    zombie = open_store(server)
    zombie.write([(1, b"old")], [(5, 8)], 8)
    snapshot = zombie.snapshot()
    successor = open_store(server)

    for _ in range(2):
        with pytest.raises(StoreError, match="another process"):
            zombie.write([(1, b"zombie")], [(6, 16)], 16)
    assert states_of(successor, [1]) == [b"old"]
    successor.write([(1, b"new")], [], 8)
    with pytest.raises(StoreError, match="another process"):
        zombie.write([(1, b"zombie")], [], 24)
    with pytest.raises(StoreError, match="another process"):
        zombie.sweep(1 << 62, 1 << 62, 10)

    assert states_of(successor, [1]) == [b"new"]
    assert successor.snapshot().find_many([5, 6]) == [8, None]
    assert successor.snapshot().position == 8
    assert [bytes(s) for s in snapshot.get_many([1]) if s] == [b"new"]  # reading is no harm
    close(zombie, successor)


@pytest.mark.parametrize("at", range(1, 13))
def test_a_writer_that_is_replaced_in_the_middle_of_a_write(
    redis_server: RedisServer, at: int
) -> None:
    settings = RedisSettings((redis_server.url,), f"race-{at}")
    first = RedisStore(settings, 0, "one")
    first.write([(1, b"old")], [], 8)
    looks = -1000  # not while the store is opened
    successors: list[RedisStore] = []

    def clock() -> float:  # is looked at before and after each step of a write
        nonlocal looks
        looks += 1
        if looks == at:
            successors.append(RedisStore(settings, 0, "one"))
        return time.monotonic()

    zombie = RedisStore(settings, 0, "one", clock=clock)
    looks = 0
    written = succeeds(partial(zombie.write, [(1, b"zombie")], [(7, 8)], 16))
    successor = successors[0] if successors else RedisStore(settings, 0, "one")

    assert written == (states_of(successor, [1]) == [b"zombie"])
    assert successor.snapshot().position == (16 if written else 8)
    successor.write([(1, b"new")], [], 16)
    fails_soon(partial(zombie.write, [(1, b"zombie")], [], 24))
    assert states_of(successor, [1]) == [b"new"]
    close(first, zombie, successor)


def test_of_two_that_write_by_turns_the_last_opened_goes_on(server: RedisServer) -> None:
    stores = []
    for n in range(5):
        stores.append(open_store(server))
        stores[n].write([(1, b"%d" % n)], [], n)
        for old in stores[:n]:
            fails_soon(partial(old.write, [(1, b"old")], [], 99))
    assert states_of(stores[-1], [1]) == [b"4"]
    close(*stores)


@pytest.mark.parametrize("at", range(1, 13))
def test_a_write_whose_answer_was_lost_is_found_out(server: RedisServer, at: int) -> None:
    looks = -1000

    def clock() -> float:
        nonlocal looks
        looks += 1
        if looks == at:
            server.pause()
        return time.monotonic()

    settings = settings_of(server.url, write_timeout_ms=100.0, breaker_failures=1_000)
    store, states = RedisStore(settings, 0, "one", clock=clock), open_states(server)
    store.write([(1, b"one")], [], 8)
    looks = 0
    written = succeeds(partial(store.write, [(1, b"two")], [(7, 8)], 16))
    looks = 1000
    server.resume()
    until(partial(store.write, [(2, b"three")], [], 16))

    found = states.read([1, 2], [0, 0])
    print(f"written {written}, found {found}")
    assert found[1] == b"three"
    assert found[0] == b"two" or (found[0] == b"one" and not written)
    time.sleep(0.05)
    assert states.read([1, 2], [0, 0]) == found, "what was lost came later"
    close(store, states)


@pytest.mark.parametrize("lose", [RedisServer.flush, RedisServer.restart])
def test_a_server_that_forgot_makes_the_store_stale(
    server: RedisServer, lose: Callable[[RedisServer], None]
) -> None:
    store = open_store(server)
    store.write([(1, b"x")], [(5, 8)], 8)
    snapshot = store.snapshot()

    lose(server)

    succeeds(store.snapshot)  # finds the connection closed
    with pytest.raises(StoreStale, match="gone"):
        store.write([(1, b"y")], [], 16)
    with pytest.raises(StoreStale, match="gone"):
        store.snapshot()
    with pytest.raises(StoreStale, match="gone"):
        snapshot.get_many([1])
    assert server.command("DBSIZE") == "0"
    store.close()

    anew = open_store(server)
    assert anew.snapshot().position == 0
    anew.write([(1, b"z")], [], 8)
    with pytest.raises(StoreError):
        snapshot.get_many([1])
    anew.close()


def test_a_server_that_kept_its_log_goes_on(tmp_path: Path) -> None:
    need_redis()
    with RedisServer(tmp_path / "redis", append_only=True) as server:
        store = open_store(server)
        store.write([(1, b"x")], [(5, 8)], 8)
        server.restart()

        until(partial(store.write, [(2, b"y")], [], 16))
        assert states_of(store, [1, 2]) == [b"x", b"y"]
        store.close()


def test_scripts_that_the_server_forgot_are_sent_again(server: RedisServer) -> None:
    store = open_store(server)
    store.write([(1, b"x")], [(5, 8)], 8)
    server.command("SCRIPT", "FLUSH")

    store.write([(1, b"y")], [(5, 16)], 16)
    assert store.sweep(0, 9, 10) == 1
    store.close()
    second = open_store(server)
    assert states_of(second, [1]) == [b"y"]
    second.close()


def test_a_full_server_refuses_and_can_still_be_opened_swept_and_deleted(
    server: RedisServer,
) -> None:
    store = open_store(server)
    store.write([(key, bytes(8) + bytes(8)) for key in range(10)], [(5, 8)], 8)
    server.command("CONFIG", "SET", "maxmemory", 1)

    with pytest.raises(StoreError, match="maxmemory"):
        store.write([(1, b"new"), (99, b"x")], [(6, 8)], 16)
    assert states_of(store, [1, 99]) == [bytes(16), None]
    assert store.snapshot().find_many([5, 6]) == [8, None]
    assert store.snapshot().position == 8
    store.close()

    store = open_store(server)
    assert store.sweep(1, 0, 5) == 5
    server.command("CONFIG", "SET", "maxmemory", 0)
    store.write([(1, b"new")], [], 16)
    assert states_of(store, [1]) == [b"new"]
    server.command("CONFIG", "SET", "maxmemory", 1)
    RedisStore.discard(settings_of(server.url), 0)
    assert server.command("DBSIZE") == "0"
    store.close()


def test_a_server_that_drops_what_it_likes_is_refused(server: RedisServer) -> None:
    server.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    with pytest.raises(StoreError, match="noeviction"):
        open_store(server)


def test_another_schema_is_stale(server: RedisServer) -> None:
    store = open_store(server)
    store.write([(1, b"x")], [], 8)
    with pytest.raises(StoreStale, match="schema one, not two"):
        open_store(server, schema="two")

    RedisStore.discard(settings_of(server.url), 0)
    with pytest.raises(StoreStale):
        store.write([(1, b"y")], [], 16)
    other = open_store(server, schema="two")
    with pytest.raises(StoreStale, match="schema two, not one"):
        store.snapshot()
    assert states_of(other, [1]) == [None]
    close(store, other)


def test_discard_deletes_one_partition_and_no_other(redis_server: RedisServer) -> None:
    settings = RedisSettings((redis_server.url,), "discard", keys_per_command=10)
    stores = [RedisStore(settings, partition, "one") for partition in (1, 11)]
    for store in stores:
        store.write([(key, b"x") for key in range(100)], [(key, 8) for key in range(100)], 8)
    zombie = stores[0]

    RedisStore.discard(settings, 1)

    with pytest.raises(StoreStale):
        zombie.snapshot()
    anew = RedisStore(settings, 1, "one")
    assert anew.snapshot().position == 0
    assert states_of(anew, list(range(100))) == [None] * 100
    assert anew.snapshot().find_many(list(range(100))) == [None] * 100
    assert states_of(stores[1], [99]) == [b"x"]
    close(*stores, anew)


def test_a_partition_that_is_half_deleted_is_not_opened(server: RedisServer) -> None:
    store, states = open_store(server), open_states(server)
    store.write([(1, b"x")], [], 8)
    label = Names("fraud", 0).label.decode()
    server.command("SET", label, DISCARDING.decode() + "12345678")

    for call in (store.snapshot, lambda: open_store(server), lambda: states.read([1], [0])):
        with pytest.raises(StoreStale, match="being deleted"):
            call()
    RedisStore.discard(settings_of(server.url), 0)
    server.command("SET", label, "something else")
    with pytest.raises(StoreStale, match="format"):
        open_store(server)
    close(store, states)


@pytest.mark.parametrize("prefix", ["", "a*", "{a}", "a:b", "x" * 65])
def test_a_prefix_that_could_be_a_pattern_is_refused(prefix: str) -> None:
    with pytest.raises(StoreError, match="prefix"):
        Names(prefix, 0)
