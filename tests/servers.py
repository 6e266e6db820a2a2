"""Real servers that tests share; a module imports the fixtures it wants.

    from tests.servers import kafka_fixture, prefix_fixture  # noqa: F401 - as kafka and prefix

Owns whether a missing program skips a test (at home) or fails it (where CI is set). Must not know
what a test does with a server; one that breaks a server starts its own.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
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


@contextlib.contextmanager
def slow_to_greet(port: int, seconds: float) -> Iterator[str]:
    """Yield the address of a door to a server, whose every connection is let in so much later."""
    with socket.create_server(("127.0.0.1", 0)) as door:

        def let_in(client: socket.socket) -> None:
            time.sleep(seconds)
            with client, socket.create_connection(("127.0.0.1", port)) as server:
                back = threading.Thread(target=_pass_on, args=(server, client), daemon=True)
                back.start()
                _pass_on(client, server)
                back.join()

        def open_door() -> None:
            with contextlib.suppress(OSError):  # closed
                while True:
                    client, _ = door.accept()
                    threading.Thread(target=let_in, args=(client,), daemon=True).start()

        threading.Thread(target=open_door, daemon=True).start()
        yield f"127.0.0.1:{door.getsockname()[1]}"
        door.shutdown(socket.SHUT_RDWR)


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    for each in (source, target):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
