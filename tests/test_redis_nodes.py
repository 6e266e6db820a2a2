"""The bounds of calls to Redis: servers that stop, are gone or move, alone and in a cluster."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from deploy.testing.certificates import write_certificates
from deploy.testing.redis import RedisCluster, RedisServer
from featurizer.redis_layout import Names
from featurizer.redis_nodes import slot_of
from featurizer.store import StoreError, StoreStale
from featurizer.store_redis import RedisSettings, RedisStates, RedisStore
from tests.redis_servers import (
    OPEN_MS,
    PARTITIONS,
    close,
    fails_soon,
    is_stale,
    need_redis,
    open_states,
    open_store,
    redis_server,
    server_fixture,
    settings_of,
    states_of,
    until,
)

__all__ = ["redis_server", "server_fixture"]


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
    while time.monotonic() < begun + OPEN_MS / 5000:
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


def test_a_server_with_tls_is_trusted_by_its_certificate(tmp_path: Path) -> None:
    need_redis()
    (tmp_path / "other").mkdir()
    files, others = write_certificates(tmp_path), write_certificates(tmp_path / "other")
    with RedisServer(tmp_path / "redis") as server:
        server.command(
            *("CONFIG", "SET", "tls-cert-file", files.server, "tls-key-file", files.server),
            *("tls-auth-clients", "no", "tls-port", server.tls_port),
        )
        url = f"rediss://127.0.0.1:{server.tls_port}?ssl_ca_certs="
        store = RedisStore(settings_of(url + str(files.authority)), 0, "one")
        store.write([(1, b"x")], [], 8)
        assert states_of(store, [1]) == [b"x"]
        store.close()
        with pytest.raises(StoreError, match="CERTIFICATE_VERIFY_FAILED"):
            RedisStore(settings_of(url + str(others.authority)), 0, "one")


def test_urls_of_no_redis_are_refused(redis_server: RedisServer) -> None:
    for url in ("lmdb://store", "unix:///tmp/redis.sock", "localhost:6379"):
        with pytest.raises(ValueError, match="redis://HOST:PORT"):
            RedisStates(RedisSettings((url,)), 1, "one")
    with pytest.raises(StoreError, match="one server, and several are given"):
        RedisStore(RedisSettings((redis_server.url, redis_server.url + "/1")), 0, "one")
