"""Calls of one method on connections of its own, any number at once, all in the caller's thread.

Owns sockets, connections that break and come back, deadlines and retries. Must not know when calls
are made, nor what is in them.

A call takes a fraction of the CPU that it takes by grpc's client, which is what one core needs to
send twice of what another can answer (docs/decisions/0036).
"""

from __future__ import annotations

import heapq
import itertools
import random
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

import grpc

from loadgen.client import CONNECTIONS_MAX, Identity, TargetUnreachableError
from loadgen.http2 import MESSAGE_MAX, Call, End, Session, request_headers
from loadgen.pacing import NS

_LOOK_NS: Final = NS // 100  # how late a deadline, a retry or a new connection may be
_READ_BYTES: Final = 1 << 18
_CONNECT_S: Final = 5.0  # one attempt; a server that is far or busy takes its time
_PAUSES_NS: Final = (0, NS // 10, NS // 5, NS // 2)  # before each attempt; the last goes on
# AIP-194 for UNAVAILABLE; CANCELLED is what gRPC's server ends by what it has not begun on closing.
_RETRIED: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
_ATTEMPTS: Final = 5
_BACKOFF_S: Final = (0.1, 1.0)  # doubled up to

Ended = Callable[[grpc.StatusCode, bytes], object]


class Target(NamedTuple):
    """Whom to call, HOST:PORT, and how; by mutual TLS with an ``identity``.

    Connecting may take ``connect_s``, a call ``deadline_s``. With ``retry`` a call that gets
    UNAVAILABLE or CANCELLED is made again up to four times, and its time goes on.
    """

    address: str
    connections: int = 4
    connect_s: float = 5.0
    deadline_s: float = 5.0
    retry: bool = False
    identity: Identity | None = None


class _Sent(Call):
    """A call with its deadline (ns), whom to tell, and how often it was made."""

    __slots__ = ("attempts", "deadline_ns", "ended", "over")

    def __init__(self, body: bytes, deadline_ns: int, ended: Ended) -> None:
        super().__init__(body)
        self.deadline_ns, self.ended = deadline_ns, ended
        self.attempts = 0
        self.over = False


class _Way(NamedTuple):
    """How a connection is made: to where, the name in its certificate, and the headers sent."""

    family: int
    address: tuple[object, ...]
    host: str
    tls: ssl.SSLContext | None
    headers: bytes


class _Connection:
    """A socket and what is said on it. ``broken`` once it is of no more use."""

    def __init__(self, way: _Way, poll: select.epoll) -> None:
        self.session: Session[_Sent] = Session(way.headers)
        self.broken = False
        self._way, self._poll = way, poll
        self._linked = self._greeted = False
        self._given_up_ns = time.perf_counter_ns() + int(_CONNECT_S * NS)
        self._wants = select.EPOLLOUT
        self._socket = socket.socket(way.family, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.number = self._socket.fileno()
        poll.register(self.number, self._wants)
        try:
            self._socket.connect(way.address)
        except BlockingIOError:
            pass
        except OSError:
            self.broken = True

    def close(self) -> None:
        """Close it; the calls on it are its session's."""
        self._poll.unregister(self.number)
        self._socket.close()

    def look(self, now_ns: int) -> None:
        """Give up what takes too long to connect."""
        self.broken = self.broken or (not self.session.ready and now_ns > self._given_up_ns)

    def flush(self) -> None:
        """Send what there is to send, as far as it goes."""
        if not self._greeted or self.broken or not self.session.out:
            return
        try:
            sent = self._socket.send(self.session.out)
            del self.session.out[:sent]
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            pass
        except OSError:
            self.broken = True
        self._want(select.EPOLLIN | (select.EPOLLOUT if self.session.out else 0))

    def happened(self) -> list[End[_Sent]]:
        """Go on with what is possible now; return the calls that ended."""
        try:
            if not self._greeted:
                self._connect()
            return self._read() if self._greeted else []
        except (ssl.SSLWantReadError, BlockingIOError):
            self._want(select.EPOLLIN)
        except ssl.SSLWantWriteError:
            self._want(select.EPOLLOUT)
        except OSError:
            self.broken = True
        return []

    def _connect(self) -> None:
        if not self._linked:
            error = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                raise ConnectionError(error)
            self._linked = True
            if self._way.tls is not None:
                self._socket = self._way.tls.wrap_socket(
                    self._socket, server_hostname=self._way.host, do_handshake_on_connect=False
                )
        if isinstance(self._socket, ssl.SSLSocket):
            self._socket.do_handshake()
        self._greeted = True
        self._want(select.EPOLLIN)
        self.flush()

    def _read(self) -> list[End[_Sent]]:
        ended: list[End[_Sent]] = []
        while True:
            try:
                data = self._socket.recv(_READ_BYTES)
                ended += self.session.received(data)
            except (BlockingIOError, ssl.SSLWantReadError):
                return ended
            except OSError:  # what is wrong with the protocol is one, too
                data = b""
            if not data:
                self.broken = True
                return ended
            # TLS may keep what was read already; of a socket the poll tells again.
            if len(data) < _READ_BYTES and self._way.tls is None:
                return ended

    def _want(self, wants: int) -> None:
        if wants != self._wants:
            self._wants = wants
            self._poll.modify(self.number, wants)


class _Place:
    """One of the connections in turn: what it is now, and when it is made again."""

    def __init__(self) -> None:
        self.connection: _Connection | None = None
        self.failures = 0
        self.again_ns = 0


class InFlight:
    """Calls of ``method``, a full name, from entering to leaving.

    Entering waits until every connection is ready. Raises TargetUnreachableError where that takes
    more than the target's ``connect_s``, OSError for a name that is unknown, ValueError for a
    number out of range. Nothing happens outside of `turn`.
    """

    def __init__(self, target: Target, method: str) -> None:
        if not 1 <= target.connections <= CONNECTIONS_MAX:
            raise ValueError(
                f"connections must be 1 to {CONNECTIONS_MAX}, not {target.connections}"
            )
        if not target.deadline_s > 0:
            raise ValueError("deadline_s must be above 0")
        self._target, self._method = target, method
        self._places = [_Place() for _ in range(target.connections)]
        self._connections: dict[int, _Connection] = {}
        self._ended: deque[End[_Sent]] = deque()
        self._deadlines: deque[_Sent] = deque()
        self._again: list[tuple[int, int, int, _Sent]] = []
        self._order = itertools.count()

    def __enter__(self) -> InFlight:
        self._way = _way(self._target, self._method)
        self._poll = select.epoll()
        end_ns = time.perf_counter_ns() + int(self._target.connect_s * NS)
        while not all(each.connection and each.connection.session.ready for each in self._places):
            if time.perf_counter_ns() > end_ns:
                self._leave()
                raise TargetUnreachableError(
                    f"no server answers at {self._target.address} in {self._target.connect_s:g} s"
                )
            self.turn(end_ns)
        return self

    def __exit__(self, *_: object) -> None:
        self._leave()

    def _leave(self) -> None:
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()
        self._poll.close()

    def send(self, number: int, body: bytes, ended: Ended) -> None:
        """Make call ``number`` of a run, which says on which connection it goes.

        ``ended`` is called once, by `turn`, with the status and the answer's bytes, b"" where there
        is none. Raises ValueError for a message that is larger than MESSAGE_MAX.
        """
        if len(body) > MESSAGE_MAX:
            raise ValueError(f"a message of {len(body)} bytes; at most {MESSAGE_MAX}")
        call = _Sent(body, time.perf_counter_ns() + int(self._target.deadline_s * NS), ended)
        self._deadlines.append(call)
        self._begin(number % len(self._places), call)

    def turn(self, until_ns: int) -> None:
        """Send what is to be sent and tell of what ended, at the latest at ``until_ns``."""
        now_ns = time.perf_counter_ns()
        self._attend(now_ns)
        wait_ns = 0 if self._ended else min(until_ns - now_ns, _LOOK_NS)
        # An epoll's own wait counts in milliseconds.
        if wait_ns > 0:
            select.select([self._poll], [], [], wait_ns / NS)
        for number, _ in self._poll.poll(0):
            connection = self._connections[number]
            for call, status, answer in connection.happened():
                self._end(call, status, answer)
        while self._ended:
            call, status, answer = self._ended.popleft()
            call.ended(status, answer)

    def _attend(self, now_ns: int) -> None:
        """See to all that is due, and send."""
        deadlines = self._deadlines
        while deadlines and (deadlines[0].over or deadlines[0].deadline_ns <= now_ns):
            self._give_up(deadlines.popleft())
        while self._again and self._again[0][0] <= now_ns:
            *_, at, call = heapq.heappop(self._again)
            if not call.over:
                self._begin(at, call)
        for place in self._places:
            if place.connection is None and place.again_ns <= now_ns:
                self._open(place)
        for connection in list(self._connections.values()):
            connection.flush()
            connection.look(now_ns)
            if connection.broken or (connection.session.closing and not connection.session.calls):
                self._close(connection, now_ns)

    def _begin(self, at: int, call: _Sent) -> None:
        place = self._places[at]
        call.attempts += 1
        if place.connection is not None and place.connection.session.closing:
            left = place.connection.session.unbegun()
            self._open(place)  # the other goes on with the calls that it has
            for each in left:
                place.connection.session.begin(each)
        if place.connection is None and place.again_ns <= time.perf_counter_ns():
            self._open(place)
        if place.connection is None:
            self._end(call, grpc.StatusCode.UNAVAILABLE, b"")
        else:
            place.connection.session.begin(call)

    def _open(self, place: _Place) -> None:
        place.connection = _Connection(self._way, self._poll)
        self._connections[place.connection.number] = place.connection

    def _close(self, connection: _Connection, now_ns: int) -> None:
        """Take a connection away; its calls end, and its place gets another a little later."""
        connection.close()
        del self._connections[connection.number]
        session = connection.session
        for place in self._places:
            if place.connection is connection:
                place.connection = None
                place.failures = 0 if session.ready else place.failures + 1
                place.again_ns = now_ns + _PAUSES_NS[min(place.failures, len(_PAUSES_NS) - 1)]
        for call in (*session.calls.values(), *session.unbegun()):
            self._end(call, grpc.StatusCode.UNAVAILABLE, b"")

    def _end(self, call: _Sent, status: grpc.StatusCode, answer: bytes) -> None:
        """End a call, or make it again later."""
        if self._target.retry and status in _RETRIED and call.attempts < _ATTEMPTS:
            first_s, most_s = _BACKOFF_S
            wait_s = random.uniform(0.8, 1.2) * min(first_s * 2 ** (call.attempts - 1), most_s)
            due_ns = time.perf_counter_ns() + int(wait_s * NS)
            if due_ns < call.deadline_ns:
                order = next(self._order)
                at = order % len(self._places)
                call.stream, call.answer = 0, b""
                heapq.heappush(self._again, (due_ns, order, at, call))
                return
        self._is_over(call, status, answer)

    def _give_up(self, call: _Sent) -> None:
        if call.over:
            return
        for connection in self._connections.values():
            connection.session.cancel(call)
        self._is_over(call, grpc.StatusCode.DEADLINE_EXCEEDED, b"")

    def _is_over(self, call: _Sent, status: grpc.StatusCode, answer: bytes) -> None:
        call.over = True
        self._ended.append((call, status, answer))


def _way(target: Target, method: str) -> _Way:
    """Return how to get there. Raises OSError for a name or a file that is not known."""
    host, _, port = target.address.rpartition(":")
    host = host.strip("[]")
    (family, *_, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    tls = None if target.identity is None else target.identity.context()
    headers = request_headers(
        target.address, method, "http" if tls is None else "https", int(target.deadline_s * 1000)
    )
    return _Way(family, address, host, tls, headers)
