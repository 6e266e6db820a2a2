"""What only the Redis adapter can suffer: a server that stops, forgets, is full or is another's."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from deploy.testing.redis import RedisCluster, RedisServer
from featurizer.redis_layout import DISCARDING, Names
from featurizer.redis_nodes import slot_of
from featurizer.store import StoreError, StoreStale
from featurizer.store_redis import RedisSettings, RedisStates, RedisStore
from tests.redis_servers import need_redis, redis_server

__all__ = ["redis_server"]

PARTITIONS = 8
OPEN_MS = 200.0
# No call may take longer, on a machine however busy; without bounds it would be seconds.
LONG_S = 1.0
TIMES = {"socket_timeout_ms": 50.0, "write_timeout_ms": 100.0, "breaker_open_ms": OPEN_MS}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server of the test's own, to be broken."""
    need_redis()
    with RedisServer(tmp_path / "redis") as server:
        yield server


def settings_of(*urls: str, **settings: object) -> RedisSettings:
    return RedisSettings(urls, **{**TIMES, **settings})  # type: ignore[arg-type]


def open_store(server: RedisServer, partition: int = 0, schema: str = "one") -> RedisStore:
    return RedisStore(settings_of(server.url), partition, schema)


def open_states(server: RedisServer, schema: str = "one") -> RedisStates:
    return RedisStates(settings_of(server.url), PARTITIONS, schema)


def states_of(store: RedisStore, keys: list[int]) -> list[bytes | None]:
    return [None if s is None else bytes(s) for s in store.snapshot().get_many(keys)]


def close(*opened: RedisStore | RedisStates) -> None:
    for each in opened:
        each.close()


def fails_soon(call: Callable[[], object], error: type[StoreError] = StoreError) -> float:
    """Return how many seconds a call took to fail."""
    start = time.monotonic()
    with pytest.raises(error):
        call()
    took = time.monotonic() - start
    assert took < LONG_S
    return took


def succeeds(call: Callable[[], object]) -> bool:
    """Return whether a call raised nothing and returned something else than False."""
    try:
        return call() is not False
    except StoreError:
        return False


def until(call: Callable[[], object]) -> None:
    """Wait until a call succeeds."""
    end = time.monotonic() + 20
    while not succeeds(call):
        assert time.monotonic() < end
        time.sleep(0.02)


def is_stale(call: Callable[[], object]) -> bool:
    try:
        call()
    except StoreStale:
        return True
    return False


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


def test_a_read_from_a_stopped_server_ends_in_time_and_the_breaker_opens(
    server: RedisServer,
) -> None:
    store, states = open_store(server), open_states(server)
    store.write([(1, b"x")], [], 8)
    assert states.read([1], [0]) == [b"x"]

    server.pause()
    for _ in range(3):
        fails_soon(lambda: states.read([1], [0]))
    begun, refused = time.monotonic(), 0
    while time.monotonic() < begun + OPEN_MS / 2000:
        with pytest.raises(StoreError, match="3 times in a row"):
            states.read([1], [0])
        refused += 1
    assert refused > 50  # each would wait for the server, were it asked
    time.sleep(OPEN_MS / 1000)
    with pytest.raises(StoreError, match="imeout"):
        states.read([1], [0])  # one call asks
    with pytest.raises(StoreError, match="4 times in a row"):
        states.read([1], [0])

    server.resume()
    until(lambda: states.read([1], [0]) == [b"x"])
    close(store, states)


def test_a_reader_waits_for_no_server_and_finds_it_when_it_is_there(server: RedisServer) -> None:
    server.kill()
    states = open_states(server)
    for _ in range(10):
        fails_soon(lambda: states.read([1], [0]))
    fails_soon(lambda: open_store(server))

    server.start()
    open_store(server).close()
    until(lambda: states.read([1], [0]) == [None])
    states.close()


def test_an_address_that_answers_nothing_costs_no_more_than_the_bounds() -> None:
    states = RedisStates(settings_of("redis://10.255.255.1:6379"), 1, "one")
    fails_soon(lambda: states.read([1], [0]))
    states.close()


def test_an_answer_that_came_too_late_is_nobody_elses(server: RedisServer) -> None:
    store, states = open_store(server), open_states(server)
    store.write([(1, b"one"), (2, b"two")], [], 8)
    assert states.read([1], [0]) == [b"one"]

    server.pause()
    fails_soon(lambda: states.read([1], [0]))
    server.resume()
    until(lambda: states.read([2], [0]) == [b"two"])
    close(store, states)


def test_threads_share_a_reader(server: RedisServer) -> None:
    store, states = open_store(server), open_states(server)
    store.write([(key, b"%d" % key) for key in range(50)], [], 8)
    wrong: list[object] = []

    def read(key: int) -> None:
        for _ in range(200):
            found = states.read([key], [0])
            if found != [b"%d" % key]:
                wrong.append((key, found))

    threads = [threading.Thread(target=read, args=[key]) for key in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert wrong == []
    close(store, states)


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


def test_of_two_that_write_by_turns_the_last_opened_goes_on(server: RedisServer) -> None:
    stores = []
    for n in range(5):
        stores.append(open_store(server))
        stores[n].write([(1, b"%d" % n)], [], n)
        for old in stores[:n]:
            fails_soon(partial(old.write, [(1, b"old")], [], 99))
    assert states_of(stores[-1], [1]) == [b"4"]
    close(*stores)


def test_a_write_whose_answer_was_lost_is_found_out(server: RedisServer) -> None:
    store = open_store(server)
    store.write([(1, b"one")], [], 8)
    for n in range(2, 8):
        server.pause()
        threading.Timer(0.05 * (n % 4), server.resume).start()
        taken = succeeds(partial(store.write, [(1, b"%d" % n)], [(n, n)], 8))
        server.resume()
        until(partial(store.write, [(2, b"%d" % n)], [], 8))

        first, second = states_of(store, [1, 2])
        assert second == b"%d" % n
        if taken:
            assert first == b"%d" % n
        time.sleep(0.05)
        assert states_of(store, [1, 2]) == [first, second], "an older write came later"
    store.close()


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


def test_a_password_is_sent_and_not_shown(server: RedisServer) -> None:
    server.command("ACL", "SETUSER", "fold", "on", ">open:sesame", "~*", "&*", "+@all")
    server.command("ACL", "SETUSER", "default", "resetpass", "off")
    url = server.url.replace("//", "//fold:open%3Asesame@")
    settings = settings_of(url)
    assert "sesame" not in repr(settings)

    store = RedisStore(settings, 0, "one")
    store.write([(1, b"x")], [], 8)
    assert states_of(store, [1]) == [b"x"]
    store.close()
    with pytest.raises(StoreError, match="authenticated"):
        open_store(server)


def test_without_hiredis_there_is_no_store() -> None:
    code = (
        "import sys; sys.modules['hiredis'] = None\n"
        "from featurizer.store_redis import RedisSettings, RedisStates\n"
        "RedisStates(RedisSettings(('redis://localhost',)), 1, 'one')"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert "StoreError: hiredis is not installed" in done.stderr


# A cluster.


def test_a_cluster_that_lost_a_node_serves_the_others(tmp_path: Path) -> None:
    need_redis()
    with RedisCluster(tmp_path / "cluster") as cluster:
        settings = settings_of(*cluster.urls)
        stores = [RedisStore(settings, partition, "one") for partition in range(PARTITIONS)]
        for store in stores:
            store.write([(1, b"x")], [], 8)
        states = RedisStates(settings, PARTITIONS, "one")
        assert states.read([1] * PARTITIONS, list(range(PARTITIONS))) == [b"x"] * PARTITIONS

        owners = [cluster.node_of(slot_of(Names("fraud", p).label)) for p in range(PARTITIONS)]
        dead = owners[0]
        alive = next(p for p, owner in enumerate(owners) if owner is not dead)
        dead.kill()
        for _ in range(10):
            fails_soon(lambda: states.read([1, 1], [0, alive]))
            fails_soon(lambda: stores[0].write([(1, b"y")], [], 16))
            assert states.read([1], [alive]) == [b"x"]
        stores[alive].write([(1, b"y")], [], 16)
        assert states.read([1], [alive]) == [b"y"]

        dead.start()
        until(lambda: is_stale(lambda: states.read([1], [0])))
        until(lambda: is_stale(stores[0].snapshot))
        close(*stores, states)


def test_a_slot_that_moved_is_found_again(tmp_path: Path) -> None:
    need_redis()
    with RedisCluster(tmp_path / "cluster") as cluster:
        settings = settings_of(cluster.urls[0])
        store, states = RedisStore(settings, 0, "one"), RedisStates(settings, 1, "one")
        assert states.read([1], [0]) == [None]
        slot = slot_of(Names("fraud", 0).label)
        owner = cluster.node_of(slot)
        heir = next(node for node in cluster.nodes if node is not owner)
        RedisStore.discard(settings, 0)
        name = heir.command("CLUSTER", "MYID")
        for node in (heir, owner, *cluster.nodes):
            node.command("CLUSTER", "SETSLOT", slot, "NODE", name)

        with pytest.raises(StoreError):
            states.read([1], [0])
        with pytest.raises(StoreStale):
            states.read([1], [0])
        store.close()
        store = RedisStore(settings, 0, "one")
        store.write([(1, b"x")], [], 8)
        assert heir.command("DBSIZE") == "2"
        until(lambda: states.read([1], [0]) == [b"x"])
        store.close()
        states.close()
