"""Real Redis servers that tests share; a module that wants one imports its fixture by name.

They are small, so that a test can fill them, and keep what a test leaves: each takes a prefix of
its own. A test that breaks a server starts its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.testing.redis import RedisCluster, RedisServer, redis_missing
from featurizer.store import StoreError, StoreStale
from featurizer.store_redis import RedisSettings, RedisStates, RedisStore

SMALL = ("--maxmemory", "11mb", "--maxmemory-policy", "noeviction")

PARTITIONS = 8
OPEN_MS = 1_000.0
# No call may take longer, on a machine however busy; without bounds it would be for ever.
LONG_S = 5.0
TIMES = {"socket_timeout_ms": 250.0, "write_timeout_ms": 500.0, "breaker_open_ms": OPEN_MS}


def settings_of(*urls: str, **settings: object) -> RedisSettings:
    """Return settings whose bounds a test can wait for."""
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


def fails_soon(call: Callable[[], object]) -> None:
    """Check that a call fails, and does not take long to."""
    start = time.monotonic()
    with pytest.raises(StoreError):
        call()
    assert time.monotonic() - start < LONG_S


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
    """Return whether a call says that the states are gone; other errors are raised."""
    try:
        call()
    except StoreStale:
        return True
    return False


def need_redis() -> None:
    """Skip the test where Redis is missing; in CI fail it."""
    missing = redis_missing()
    if missing and os.environ.get("CI"):
        pytest.fail(f"CI must have it: {missing}")
    if missing:
        pytest.skip(missing)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One server for all tests of the session."""
    need_redis()
    with RedisServer(tmp_path_factory.mktemp("redis"), arguments=SMALL) as server:
        yield server


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """Three nodes for all tests of the session."""
    need_redis()
    with RedisCluster(tmp_path_factory.mktemp("redis-cluster"), arguments=SMALL) as cluster:
        yield cluster


@pytest.fixture(name="server")
def server_fixture(tmp_path: Path) -> Iterator[RedisServer]:
    """A server of the test's own, to be broken."""
    need_redis()
    with RedisServer(tmp_path / "redis") as server:
        yield server
