"""Real Redis servers that tests share; a module that wants one imports its fixture by name.

They are small, so that a test can fill them, and keep what a test leaves: each takes a prefix of
its own. A test that breaks a server starts its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from deploy.testing.redis import RedisCluster, RedisServer, redis_missing

SMALL = ("--maxmemory", "11mb", "--maxmemory-policy", "noeviction")


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
