"""Real Redis servers for tests: one, or a cluster, on loopback, in a folder of its own.

Owns the servers' settings and their processes. Must not know what a test keeps there. Signals
only processes that it started, and those end with the thread that started them, however it ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

SLOTS = 16_384
START_S = 20.0
STOP_S = 10.0
COMMAND_S = 10.0
_POLL_S = 0.01
# Below the ports that the system gives to clients, so that none takes one while a server is down.
_PORTS = range(20_000, 32_000)
_PORT_ATTEMPTS = 20
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


def redis_missing() -> str:
    """Return "" where servers can be started, else what is missing."""
    missing = [name for name in ("redis-server", "redis-cli") if shutil.which(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else ""


class RedisServer:
    """One server, started at once. It keeps its port, and forgets all when it ends.

    ``append_only`` makes it keep a log on the disk and wait for it at each write. ``arguments``
    are further settings, as on the command line. Raises RuntimeError where it does not start.
    """

    def __init__(
        self,
        directory: Path,
        *,
        append_only: bool = False,
        arguments: Sequence[str] = (),
    ) -> None:
        self._directory = directory
        self._log = directory / "redis.log"
        self._arguments = [
            *("--bind", "127.0.0.1", "--daemonize", "no", "--save", "", "--dir", str(directory)),
            *("--appendonly", "yes" if append_only else "no", "--appendfsync", "always"),
            *arguments,
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0
        # Free when the server was made; it listens there where a test says so.
        self.tls_port = _free_port()
        directory.mkdir(parents=True, exist_ok=True)
        for _ in range(_PORT_ATTEMPTS):
            self.port = _free_port()
            with contextlib.suppress(RuntimeError):  # another took the port meanwhile
                self.start()
                return
        raise RuntimeError(f"redis-server does not start:\n{self._log.read_text()}")

    @property
    def url(self) -> str:
        """What a client connects to."""
        return f"redis://127.0.0.1:{self.port}"

    @property
    def running(self) -> bool:
        """Whether the process is there, stopped by a signal or not."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The id of its process. Raises RuntimeError where there is none."""
        if self._process is None or not self.running:
            raise RuntimeError(f"redis-server on port {self.port} does not run")
        return self._process.pid

    def start(self) -> None:
        """Start on the same port and wait until it answers. Raises RuntimeError."""
        if self.running:
            return
        program = shutil.which("redis-server") or "redis-server"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [program, "--port", str(self.port), *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a terminal's ^C reaches the tests alone
                preexec_fn=_die_with_parent(os.getpid()),  # noqa: PLW1509 - no thread needs a lock here
            )
        try:
            _wait(self._answers, START_S, f"redis-server on port {self.port}")
        except RuntimeError:
            self.kill()
            raise

    def stop(self) -> None:
        """End it in good order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a crash does."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Kill it and start it again: empty, but for what ``append_only`` kept."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """Stop it from running; the system still takes connections for it."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused server go on."""
        self._signal(signal.SIGCONT)

    def flush(self) -> None:
        """Delete all keys and scripts."""
        self.command("FLUSHALL")
        self.command("SCRIPT", "FLUSH")

    def command(self, *words: object) -> str:
        """Return what redis-cli prints for a command. Raises RuntimeError for an error."""
        program = shutil.which("redis-cli") or "redis-cli"
        done = subprocess.run(
            [program, "-e", "-p", str(self.port), *map(str, words)],
            check=False,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=COMMAND_S,
        )
        if done.returncode:
            raise RuntimeError(f"{words}: {(done.stdout + done.stderr).decode()}")
        return done.stdout.decode().strip()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.kill()

    def _answers(self) -> bool:
        if not self.running:
            raise RuntimeError(f"redis-server ended:\n{self._log.read_text()[-2_000:]}")
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as client:
                client.sendall(b"PING\r\n")
                return client.recv(64).startswith(b"+PONG")
        except OSError:
            return False

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self.running:
            self._process.send_signal(number)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._signal(number)
        self.resume()  # one that is paused would never hear of it
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait(STOP_S)


class RedisCluster:
    """Masters without replicas that share the slots evenly. Where one dies the others go on.

    Started at once, and ready when the constructor returns. ``arguments`` are for each server.
    """

    def __init__(self, directory: Path, nodes: int = 3, *, arguments: Sequence[str] = ()) -> None:
        self.nodes: list[RedisServer] = []
        self._starts = [SLOTS * node // nodes for node in range(nodes)] + [SLOTS]
        try:
            for node in range(nodes):
                self.nodes.append(_cluster_node(directory / f"node-{node}", arguments))
            self._join()
        except BaseException:
            self.kill()
            raise

    @property
    def urls(self) -> tuple[str, ...]:
        """What a client connects to; each node knows the others."""
        return tuple(node.url for node in self.nodes)

    def node_of(self, slot: int) -> RedisServer:
        """Return the node that has a slot."""
        return next(
            node
            for node, first, end in zip(self.nodes, self._starts, self._starts[1:], strict=False)
            if first <= slot < end
        )

    def wait_until_whole(self) -> None:
        """Wait until each node says that all of them are there."""
        for node in self.nodes:
            _wait(lambda node=node: self._is_whole(node), START_S, "the cluster")  # type: ignore[misc]

    def flush(self) -> None:
        """Delete all keys and scripts of all nodes."""
        for node in self.nodes:
            node.flush()

    def kill(self) -> None:
        """End all nodes."""
        for node in self.nodes:
            node.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.kill()

    def _join(self) -> None:
        for number, node in enumerate(self.nodes):
            first, end = self._starts[number : number + 2]
            node.command("CLUSTER", "ADDSLOTSRANGE", first, end - 1)
            node.command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node in self.nodes[1:]:
            bus = self.nodes[0].command("CONFIG", "GET", "cluster-port").split()[-1]
            node.command("CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port, bus)
        self.wait_until_whole()

    def _is_whole(self, node: RedisServer) -> bool:
        info = dict(line.split(":") for line in node.command("CLUSTER", "INFO").split())
        return (
            info["cluster_state"] == "ok"
            and info["cluster_slots_ok"] == str(SLOTS)
            and info["cluster_size"] == info["cluster_known_nodes"] == str(len(self.nodes))
        )


def _cluster_node(directory: Path, arguments: Sequence[str]) -> RedisServer:
    own = ["--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf"]
    own += ["--cluster-port", str(_free_port()), "--cluster-node-timeout", "1000"]
    own += ["--cluster-require-full-coverage", "no"]
    return RedisServer(directory, arguments=[*own, *arguments])


def _free_port() -> int:
    for _ in range(_PORT_ATTEMPTS):
        port = random.choice(_PORTS)
        with socket.socket() as taken, contextlib.suppress(OSError):
            taken.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no port is free")


def _wait(done: Callable[[], bool], timeout_s: float, what: str) -> None:
    until = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > until:
            raise RuntimeError(f"{what} was not ready within {timeout_s} s")
        time.sleep(_POLL_S)


def _die_with_parent(parent: int) -> Callable[[], None]:
    """Return what a server runs before it is one, so that it never outlives a killed test."""

    def before_exec() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent died before prctl could tell
            os._exit(1)

    return before_exec
