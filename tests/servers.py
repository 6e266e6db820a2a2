"""Real servers that tests share; a module imports the fixtures it wants.

    from tests.servers import kafka_fixture, prefix_fixture  # noqa: F401 - as kafka and prefix

Owns whether a missing program skips a test (at home) or fails it (where CI is set). Must not know
what a test does with a server; one that breaks a server starts its own.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import pytest

from deploy.testing.kafka import KafkaCluster, kafka_missing


def need(missing: str) -> None:
    """Skip the test for what is missing; in CI fail it."""
    if missing and os.environ.get("CI"):
        pytest.fail(f"CI must have it: {missing}")
    if missing:
        pytest.skip(missing)


@pytest.fixture(scope="session", name="kafka")
def kafka_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    """One broker for all tests of the session."""
    need(kafka_missing())
    with KafkaCluster(tmp_path_factory.mktemp("kafka") / "cluster") as cluster:
        yield cluster


@pytest.fixture(name="prefix")
def prefix_fixture() -> str:
    """What the names of this test's topics begin with, so that no other test sees them."""
    return f"test-{uuid.uuid4().hex[:12]}"
