"""The connections to Redis, one server or a cluster, and the bounds of every call.

Is the only importer of redis. Must not know what is kept there: here it is commands and answers.

Redis may be gone or stopped at any time and is never waited for beyond a bound: a call uses one
connection to each node it needs, tries once, and after some failures in a row a breaker answers
for the node without asking it. No call follows a redirection: it fails, and the next one asks the
cluster anew who has which slot. (redis-py's own cluster client does that inside the call, and
sleeps 250 ms where the cluster is down.)
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from redis.backoff import NoBackoff
from redis.connection import Connection, parse_url
from redis.crc import key_slot
from redis.exceptions import ReadOnlyError, RedisError, ResponseError
from redis.retry import Retry
from redis.utils import HIREDIS_AVAILABLE

from featurizer.store import StoreError

READ_BUFFER_BYTES = 64 << 10
_LEAST_WAIT_S = 0.001


@dataclass(frozen=True, slots=True)
class RedisSettings:
    """Where the states are, and the bounds of every call.

    ``urls`` are ``redis://USER:PASSWORD@HOST:PORT``, or ``rediss://`` for TLS: one server, or some
    nodes of a cluster. ``prefix`` begins every key. A read ends within connect and socket timeout,
    whatever the server does; but where HOST is a name, a name server is waited for as the system
    does. ``breaker_failures`` in a row, and a node is not asked for ``breaker_open_ms``.
    ``scan_calls_max`` bounds one sweep.
    """

    urls: tuple[str, ...] = field(repr=False)
    prefix: str = "fraud"
    socket_timeout_ms: float = 15.0
    write_timeout_ms: float = 2_000.0
    connect_timeout_ms: float = 50.0
    breaker_failures: int = 3
    breaker_open_ms: float = 1_000.0
    state_bytes_max: int = 64 << 10
    write_bytes_max: int = 256 << 20
    keys_per_command: int = 1_000
    scan_calls_max: int = 64


class AnswerLost(StoreError):  # noqa: N818 - it names a state, as StoreStale
    """The command was sent, and its answer did not come: it may take effect, also later."""


def pack_argument(value: bytes) -> bytes:
    """Return one word of a command as Redis reads it."""
    return b"$%d\r\n%b\r\n" % (len(value), value)


def pack(words: Sequence[bytes]) -> bytes:
    """Return a command as Redis reads it. redis-py's way takes twice as long for large ones."""
    return b"*%d\r\n" % len(words) + b"".join(map(pack_argument, words))


class _Link:
    """One connection to one node, made when it is needed, and the breaker in front of it."""

    def __init__(
        self,
        options: dict[str, Any],
        settings: RedisSettings,
        timeout_s: float,
        clock: Callable[[], float],
    ) -> None:
        ours = {
            "socket_timeout": timeout_s,
            "socket_connect_timeout": settings.connect_timeout_ms / 1000,
            "socket_keepalive": True,
            "socket_read_size": READ_BUFFER_BYTES,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 3,
            "driver_info": None,
        }
        kind = options.get("connection_class", Connection)
        wanted = {name: value for name, value in options.items() if name != "connection_class"}
        self._connection: Any = kind(**{**wanted, **ours})
        self._settings = settings
        self._timeout_s = timeout_s
        self._clock = clock
        self._unread = 0
        self._retry_at = 0.0
        self._trouble: StoreError | None = None
        self.failures = 0
        self.name = f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"

    def admit(self) -> None:
        """Begin a call. Raises StoreError, without a look at the network, when it has no hope."""
        if self.failures >= self._settings.breaker_failures and self._clock() < self._retry_at:
            raise StoreError(f"{self.name} failed {self.failures} times in a row")
        self._trouble = None
        if self._unread:  # of a call that was interrupted; it would be taken for this one's answer
            self.close()

    def is_cluster(self) -> bool:
        """Return whether the node is one of a cluster, as it says when it is greeted."""
        try:
            self._connection.connect()
        except (RedisError, OSError) as error:
            raise self._fail(error, StoreError) from error
        mode: bytes = self._connection.handshake_metadata.get(b"mode", b"")
        return mode == b"cluster"

    def send(self, commands: Sequence[bytes], deadline: float, connect: bool = True) -> None:
        """Send packed commands in one piece; ``receive`` tells of any trouble."""
        if self._trouble is None:
            try:
                may_connect = connect and self._clock() < deadline
                if not may_connect and not self._connection.is_connected:
                    raise TimeoutError("the connection was lost, or there is no time left")
                self._connection.send_packed_command([b"".join(commands)])
                self._unread += len(commands)
            except (RedisError, OSError) as error:
                self._fail(error, StoreError)

    def receive(self, deadline: float) -> Any:
        """Return the next answer, or the StoreError that there is instead of one."""
        if self._trouble is not None:
            return self._trouble
        left_s = deadline - self._clock()
        try:
            if left_s >= self._timeout_s:  # the socket's own timeout, which need not be set
                answer = self._connection.read_response()
            else:
                answer = self._connection.read_response(timeout=max(left_s, _LEAST_WAIT_S))
        except ReadOnlyError as error:  # no master any more: ask the name server again
            return self._fail(error, StoreError)
        except ResponseError as error:
            answer = StoreError(f"{self.name}: {error}")
            answer.__cause__ = error
        except (RedisError, OSError) as error:
            return self._fail(error, AnswerLost)
        self._unread -= 1
        self.failures = 0
        return answer

    def close(self) -> None:
        """Let go of the connection; the next command makes another."""
        self._connection.disconnect()
        self._unread = 0

    def _fail(self, error: Exception, kind: type[StoreError]) -> StoreError:
        self.close()
        self.failures += 1
        self._retry_at = self._clock() + self._settings.breaker_open_ms / 1000
        self._trouble = kind(f"{self.name}: {error}")
        self._trouble.__cause__ = error
        return self._trouble


class Nodes:
    """Which node has which of ``slots``. To ``ask``, enter it: for one thread at a time."""

    def __init__(
        self,
        settings: RedisSettings,
        timeout_ms: float,
        slots: Iterable[int],
        clock: Callable[[], float],
    ) -> None:
        if not all(url.startswith(("redis://", "rediss://")) for url in settings.urls):
            raise ValueError("the states want URLs such as redis://HOST:PORT")
        if not HIREDIS_AVAILABLE:
            raise StoreError("hiredis is not installed, and without it Redis is too slow")
        self._settings = settings
        self._timeout_s = timeout_ms / 1000
        self._slots = frozenset(slots)
        self._clock = clock
        seeds = [parse_url(url) for url in settings.urls]  # type: ignore[no-untyped-call]
        self._options = seeds[0]
        self._seeds = [_Link(seed, settings, self._timeout_s, clock) for seed in seeds]
        self._links = {link.name: link for link in self._seeds}
        self._owners: dict[int, _Link] = {}
        self._lock = threading.Lock()
        self._due = True
        self._closed = False
        self._deadline = 0.0
        self.is_cluster = False

    def __enter__(self) -> Self:
        if not self._lock.acquire(timeout=self._timeout_s):
            raise StoreError("another thread's call takes too long")
        self._deadline = self._clock() + self._timeout_s + self._settings.connect_timeout_ms / 1000
        try:
            if self._closed:
                raise StoreError("the store is closed")
            if self._due:
                self._learn()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def ask(self, asked: Sequence[tuple[int, bytes]], *, connect: bool = True) -> list[Any]:
        """Return the answers to packed commands, each for a slot; all are sent at once.

        Without ``connect`` they go by the connections that there are, or fail.
        """
        missing = [slot for slot, _ in asked if slot not in self._owners]
        if missing:
            self._due = True
            raise StoreError(f"no node has slot {missing[0]}")
        batches: dict[_Link, list[bytes]] = {}
        for slot, command in asked:
            batches.setdefault(self._owners[slot], []).append(command)
        for link in batches:
            link.admit()
        for link, commands in batches.items():
            link.send(commands, self._deadline, connect)
        answers = [self._owners[slot].receive(self._deadline) for slot, _ in asked]
        for answer in answers:
            if isinstance(answer, StoreError):
                self._due = True
                raise answer
        return answers

    def close(self) -> None:
        """Let go of all connections."""
        with self._lock:
            self._closed = True
            for link in self._links.values():
                link.close()

    def _learn(self) -> None:
        """Ask the node that failed least who has which slot."""
        asked = min(self._links.values(), key=lambda link: link.failures)
        asked.admit()
        self.is_cluster = asked.is_cluster()
        if not self.is_cluster:
            if len(self._seeds) > 1:
                raise StoreError(f"{asked.name} is one server, and several are given")
            self._owners = dict.fromkeys(self._slots, asked)
            self._due = False
            return
        asked.send([pack([b"CLUSTER", b"SLOTS"])], self._deadline)
        ranges = asked.receive(self._deadline)
        if isinstance(ranges, StoreError):
            raise ranges
        named = {link.name: link for link in self._seeds}
        self._owners = {}
        for first, last, (host, port, *_), *_ in ranges:
            link = self._link((host or b"").decode() or asked.name.rpartition(":")[0], port)
            named[link.name] = link
            self._owners.update((slot, link) for slot in self._slots if first <= slot <= last)
        for name in self._links.keys() - named.keys():
            self._links[name].close()
        self._links = named
        self._due = False

    def _link(self, host: str, port: int) -> _Link:
        known = self._links.get(f"{host}:{port}")
        options = {**self._options, "host": host, "port": port}
        return known or _Link(options, self._settings, self._timeout_s, self._clock)


def slot_of(key: bytes) -> int:
    """Return the slot of a cluster that a key is in."""
    return key_slot(key)
