"""Answers one unary method on the thread that gRPC polls with: what is ready, at once.

Owns calls from their arrival to their status, and the bound on how many wait. Must not know what an
answer is made of.

gRPC's own server hands each call to a pool, where it waits for its message until the polling thread
has it, answers, and leaves the end to the polling thread: four changes of thread a call, which cost
as much as all the rest of gRPC. A decision never waits for anything but its one append, and
decisions are made one after the other, so nothing is won by a pool. Here what has come is looked
at between two answers. What came meanwhile is answered in order and together, so that the busier
the server, the less each costs.

Reaches into what grpc keeps to itself (its version is pinned, see docs/decisions/0031): the core's
server and queue, and that the polling thread calls whatever a completed operation is tagged with.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import grpc
from grpc import _server as grpc_server
from grpc._cython import cygrpc  # type: ignore[attr-defined]

_log = logging.getLogger(__name__)
_NOTHING_ELSE: tuple[None, tuple[()]] = (None, ())  # what the polling thread wants of a tag
_NO_FLAGS = 0
# The core looks at one socket at a time, and what it found may only be told the next time. Leaving
# after the first that told nothing left calls in the sockets, where they waited unseen and unshed:
# at twice the capacity up to 80 ms.
_IDLE_LOOKS = 3
_AT_ONCE = 0.0  # a deadline that has passed
_FOR_EVER_S = 1e9
_NO_MESSAGE = (cygrpc.StatusCode.unimplemented, b"a unary call has exactly one message", ())
_BROKEN = (cygrpc.StatusCode.internal, b"internal error", ())
_Ending = tuple[int, bytes, Sequence[tuple[str, Any]]]
_OK: _Ending = (cygrpc.StatusCode.ok, b"", ())


class TurnContext:
    """What an answer is told of its call, as by ``grpc.ServicerContext``.

    ``arrival_ns`` is when it came at the earliest, ns of ``time.perf_counter_ns``.
    """

    __slots__ = ("_deadline_ns", "_event", "arrival_ns")

    def __init__(self, event: Any, arrival_ns: int) -> None:
        self._event = event
        self.arrival_ns = arrival_ns
        # gRPC tells it by the time of day of just now, which may be set while the call waits.
        remaining_s = event.call_details.deadline - time.time_ns() / 1e9
        self._deadline_ns = time.perf_counter_ns() + int(min(remaining_s, _FOR_EVER_S) * 1e9)

    def time_remaining(self) -> float:
        """Return the seconds until the caller's deadline, at least 0; many where there is none."""
        return max(self._deadline_ns - time.perf_counter_ns(), 0) / 1e9

    def invocation_metadata(self) -> Sequence[tuple[str, Any]]:
        """Return what came beside the request."""
        found: Sequence[tuple[str, Any]] = self._event.invocation_metadata
        return found

    def peer_identities(self) -> Sequence[bytes] | None:
        """Return the alternative names of the connection's certificate, else its common name."""
        found: Sequence[bytes] | None = cygrpc.peer_identities(self._event.call)
        return found

    def auth_context(self) -> Mapping[str, Sequence[bytes]]:
        """Return all that the connection's certificate says."""
        found = cygrpc.auth_context(self._event.call) or {}
        return {key.decode(): value for key, value in found.items()}


class _Waiting(NamedTuple):
    """A call whose message is here."""

    context: TurnContext
    call: Any
    body: bytes


class Turns:
    """Answers ``method`` (its full name) of ``server``, which has not been started.

    At most ``calls_max`` calls are in it at once; one more is told ``full``. ``answer`` gets the
    bytes of at most ``together_max`` requests, each with its context, and returns the bytes of the
    response or a status for each. ``on_full`` is called for each that is refused.
    """

    def __init__(
        self,
        server: grpc.Server,
        method: str,
        answer: Callable[[Sequence[tuple[bytes, TurnContext]]], Sequence[bytes | grpc.Status]],
        calls_max: int,
        together_max: int,
        full: grpc.Status,
        on_full: Callable[[], object],
    ) -> None:
        self._method = method
        self._answer = answer
        self._calls_max = calls_max
        self._together_max = together_max
        self._full = _ending_of(full)
        self._on_full = on_full
        self._state: Any = server._state  # type: ignore[attr-defined]
        server._cy_server.register_method(method)  # type: ignore[attr-defined]
        self._inside = 0
        self._ready: deque[_Waiting] = deque()
        self._busy_since_ns = 0  # when the answer that is being made was begun; 0 for none

    def start(self) -> None:
        """Take calls, now that the server was started."""
        for _ in range(self._calls_max):
            self._ask()

    def _ask(self) -> None:
        """Ask for one more call; what none is there for waits in gRPC's core, unseen."""
        queue = self._state.completion_queue
        try:
            self._state.server.request_registered_call(queue, queue, self._method, self._arrived)
        except ValueError:  # it is shutting down
            return

    def _arrived(self, event: Any) -> tuple[None, tuple[()]]:
        """Take a call in, and begin to receive its message."""
        if not event.success:  # it is shutting down
            return _NOTHING_ELSE
        self._ask()
        if self._inside >= self._calls_max:
            _end(event.call, self._full)
            self._on_full()
            return _NOTHING_ELSE
        self._inside += 1
        # What is seen between two answers may have come as early as the first of them was begun.
        context = TurnContext(event, self._busy_since_ns or time.perf_counter_ns())

        def received(message: Any) -> tuple[None, tuple[()]]:
            body = message.batch_operations[0].message()
            if body is None:  # the caller has gone, or sent none
                self._inside -= 1
                _end(event.call, _NO_MESSAGE)
                return _NOTHING_ELSE
            self._ready.append(_Waiting(context, event.call, body))
            if not self._busy_since_ns:
                self._answer_all()
            return _NOTHING_ELSE

        operation = cygrpc.ReceiveMessageOperation(_NO_FLAGS)
        event.call.start_server_batch((operation,), received)
        return _NOTHING_ELSE

    def _answer_all(self) -> None:
        """Answer what is ready, and look between two answers at what else has come."""
        ready = self._ready
        while ready:
            self._busy_since_ns = time.perf_counter_ns()
            some = [ready.popleft() for _ in range(min(len(ready), self._together_max))]
            self._answer_some(some)
            self._inside -= len(some)
            self._look()
        self._busy_since_ns = 0

    def _answer_some(self, some: Sequence[_Waiting]) -> None:
        """Answer calls."""
        try:
            answers = self._answer([(each.body, each.context) for each in some])
        except Exception:  # noqa: BLE001 - whatever it is, the polling thread lives on
            _log.exception("calls failed")
            answers = ()
        for waiting, answer in zip_longest(some, answers):
            if isinstance(answer, bytes):
                _end(waiting.call, _OK, answer)
            else:
                _end(waiting.call, _BROKEN if answer is None else _ending_of(answer))

    def _look(self) -> None:
        """Have gRPC do what there is to be done, without waiting."""
        queue = self._state.completion_queue
        idle = 0
        while idle < _IDLE_LOOKS:
            event = queue.poll(_AT_ONCE)
            if event.completion_type == cygrpc.CompletionType.queue_timeout:
                idle += 1
                continue
            idle = 0
            # It cannot say that the server has ended: a call is still inside or was just answered.
            grpc_server._process_event_and_continue(self._state, event)


def _ending_of(status: grpc.Status) -> _Ending:
    code, _ = status.code.value
    return code, status.details.encode(), tuple(status.trailing_metadata or ())


def _end(call: Any, ending: _Ending, answer: bytes | None = None) -> None:
    """End a call with a status, and a message where there is one."""
    parts = _parts(ending)
    if answer is not None:
        parts = (*parts, cygrpc.SendMessageOperation(answer, _NO_FLAGS))
    try:
        call.start_server_batch(parts, _ended)
    except Exception:  # noqa: BLE001 - whatever it is, the polling thread lives on
        _log.exception("a call could not be ended")


def _parts(ending: _Ending) -> tuple[Any, ...]:
    """Return what every answer has: headers, none of them ours, a status, and a wait for its end.

    A call that is let go before its end was received is cancelled.
    """
    code, details, metadata = ending
    return (
        cygrpc.SendInitialMetadataOperation(None, _NO_FLAGS),
        cygrpc.SendStatusFromServerOperation(metadata, code, details, _NO_FLAGS),
        cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS),
    )


def _ended(_: Any) -> tuple[None, tuple[()]]:
    return _NOTHING_ELSE
