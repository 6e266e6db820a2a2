"""Calls of gRPC on one HTTP/2 connection, as bytes in and out; nothing is sent or read here.

Owns frames (RFC 9113), headers (RFC 7541, decoded by hpack) and what gRPC makes of them ("gRPC over
HTTP2"). Must not know sockets or time.

The server is told to keep no table of headers. So every call has the same bytes of headers, and
those that come back mean the same each time: what was decoded once is looked up.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import Final, Generic, TypeVar

import grpc
from hpack import Decoder, Encoder, HPACKError

_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW, _CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
_END_STREAM, _ACK, _END_HEADERS, _PADDED, _PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
_TABLE_SIZE, _STREAMS_MAX, _INITIAL_WINDOW, _FRAME_MAX = 1, 3, 4, 5
_REFUSED: Final = 7
_CANCEL: Final = 8
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_FRAME: Final = struct.Struct(">HBBBI")  # length (two and one bytes), type, flags, stream
_SETTING: Final = struct.Struct(">HI")
_NUMBER: Final = struct.Struct(">I")
_MESSAGE: Final = struct.Struct(">BI")  # compressed, length
_WINDOW_MAX: Final = (1 << 31) - 1
_WINDOW_USUAL: Final = 65_535
_FRAME_USUAL: Final = 16_384
# What a stream may send before its answer begins, without what a message has around it.
MESSAGE_MAX: Final = _WINDOW_USUAL - _MESSAGE.size
_STREAM_MAX: Final = (1 << 31) - 1
_KNOWN_MAX: Final = 4_096  # blocks of headers that are remembered
_STATUSES: Final = {status.value[0]: status for status in grpc.StatusCode}
# What gRPC makes of a stream that the server resets; others are INTERNAL.
_RESETS: Final = {
    _CANCEL: grpc.StatusCode.CANCELLED,
    11: grpc.StatusCode.RESOURCE_EXHAUSTED,
    12: grpc.StatusCode.PERMISSION_DENIED,
}


class ProtocolError(ConnectionError):
    """The other side does not speak as agreed; the connection is of no more use."""


class Call:
    """One call: its message, its stream once it has one, and what came of its answer so far."""

    __slots__ = ("answer", "body", "stream")

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.stream = 0
        self.answer = b""


def request_headers(authority: str, method: str, scheme: str, timeout_ms: int) -> bytes:
    """Return the block of headers of each call of ``method``, a full name."""
    return Encoder().encode(
        [
            (":method", "POST"), (":scheme", scheme), (":path", f"/{method}"),
            (":authority", authority), ("te", "trailers"), ("content-type", "application/grpc"),
            ("grpc-timeout", f"{timeout_ms}m"),
        ],
        huffman=False,
    )  # fmt: skip


_Call = TypeVar("_Call", bound=Call)
# A call that ended, its status, and its answer, b"" without one.
End = tuple[_Call, grpc.StatusCode, bytes]


class Session(Generic[_Call]):
    """One connection from its first byte to its last.

    ``out`` is what is to be sent, taken from by who sends. ``ready`` is set once the server has
    said its settings; ``closing`` when it takes no more calls, and the next needs another
    connection. ``calls`` are those without an end, by stream.
    """

    def __init__(self, headers: bytes) -> None:
        self.out = bytearray(_PREFACE)
        self.ready = self.closing = False
        self.calls: dict[int, _Call] = {}
        # Waiting for the server to have room: for a stream, or for bytes.
        self.held: deque[_Call] = deque()
        self._headers = headers
        self._next = 1
        self._in = b""
        self._block: tuple[int, int, bytes] | None = None  # stream, flags, headers so far
        self._taken = 0
        self._room = self._stream_room = _WINDOW_USUAL
        self._streams_max = _STREAM_MAX
        self._frame_max = _FRAME_USUAL
        self._known: dict[bytes, grpc.StatusCode] = {}
        settings = _SETTING.pack(_TABLE_SIZE, 0) + _SETTING.pack(_INITIAL_WINDOW, _WINDOW_MAX)
        self._frame(_SETTINGS, 0, 0, settings)
        self._frame(_WINDOW, 0, 0, _NUMBER.pack(_WINDOW_MAX - _WINDOW_USUAL))

    def begin(self, call: _Call) -> None:
        """Send a call, or hold it until the server has room. Its message has MESSAGE_MAX bytes."""
        if self.held or not self._fits(call):
            self.held.append(call)
        else:
            self._begin(call)

    def cancel(self, call: _Call) -> None:
        """Give a call up; it has no end."""
        if self.calls.get(call.stream) is call:  # other connections have streams of that number
            del self.calls[call.stream]
            self._frame(_RESET, 0, call.stream, _NUMBER.pack(_CANCEL))
        elif call in self.held:
            self.held.remove(call)

    def unbegun(self) -> list[_Call]:
        """Return the calls that the server has not seen, and forget them."""
        held = list(self.held)
        self.held.clear()
        return held

    def received(self, data: bytes) -> list[End[_Call]]:
        """Take what came; return the calls that it ended. Raises ProtocolError."""
        self._in = data = self._in + data if self._in else data
        ends: list[End[_Call]] = []
        at, size = 0, len(data)
        while size - at >= 9:
            high, low, kind, flags, stream = _FRAME.unpack_from(data, at)
            stop = at + 9 + (high << 8 | low)
            if stop > at + 9 + _FRAME_USUAL:
                raise ProtocolError("a frame is longer than agreed")
            if stop > size:
                break
            try:
                self._take(kind, flags, stream & _STREAM_MAX, data[at + 9 : stop], ends)
            except (struct.error, IndexError) as error:
                raise ProtocolError("a frame is too short for what it is") from error
            at = stop
        self._in = data[at:]
        self._give_back(at)
        while self.held and self._fits(self.held[0]):
            self._begin(self.held.popleft())
        return ends

    def _fits(self, call: _Call) -> bool:
        size = len(call.body) + _MESSAGE.size
        return (
            size <= self._room
            and size <= self._stream_room
            and len(self.calls) < self._streams_max
            and not self.closing
        )

    def _begin(self, call: _Call) -> None:
        call.stream = stream = self._next
        self._next = stream + 2
        self.closing = self.closing or self._next > _STREAM_MAX
        self.calls[stream] = call
        self._frame(_HEADERS, _END_HEADERS, stream, self._headers)
        body = _MESSAGE.pack(0, len(call.body)) + call.body
        self._room -= len(body)
        most = self._frame_max
        for at in range(0, len(body) - most, most):
            self._frame(_DATA, 0, stream, body[at : at + most])
        self._frame(_DATA, _END_STREAM, stream, body[(len(body) - 1) // most * most :])

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        size = len(payload)
        self.out += _FRAME.pack(size >> 8, size & 255, kind, flags, stream)
        self.out += payload

    def _give_back(self, size: int) -> None:
        """Let the server send as much again; seldom, as its room is large."""
        self._taken += size
        if self._taken > _WINDOW_MAX // 2:
            self._frame(_WINDOW, 0, 0, _NUMBER.pack(self._taken))
            self._taken = 0

    def _take(
        self, kind: int, flags: int, stream: int, payload: bytes, ends: list[End[_Call]]
    ) -> None:
        if kind == _DATA:
            call = self.calls.get(stream)
            if call is not None:
                call.answer += _inner(flags, payload)
                if flags & _END_STREAM:  # without a status
                    self._end(stream, grpc.StatusCode.UNKNOWN, ends)
        elif kind in (_HEADERS, _CONTINUATION):
            self._take_headers(kind, flags, stream, payload, ends)
        elif kind == _RESET:
            self._take_reset(stream, _NUMBER.unpack(payload)[0], ends)
        elif kind == _GOAWAY:
            self._take_farewell(_NUMBER.unpack_from(payload)[0] & _STREAM_MAX, ends)
        else:
            self._take_control(kind, flags, stream, payload)

    def _take_control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _SETTINGS and not flags & _ACK:
            for name, value in _SETTING.iter_unpack(payload):
                if name == _STREAMS_MAX:
                    self._streams_max = value
                elif name == _INITIAL_WINDOW:
                    self._stream_room = value
                elif name == _FRAME_MAX:
                    self._frame_max = value
            self.ready = True
            self._frame(_SETTINGS, _ACK, 0, b"")
        elif kind == _PING and not flags & _ACK:
            self._frame(_PING, _ACK, 0, payload)
        elif kind == _WINDOW and stream == 0:
            self._room += _NUMBER.unpack(payload)[0]

    def _take_headers(
        self, kind: int, flags: int, stream: int, payload: bytes, ends: list[End[_Call]]
    ) -> None:
        if kind == _HEADERS:
            payload = _inner(flags, payload)[5 if flags & _PRIORITY else 0 :]
        else:
            if self._block is None or self._block[0] != stream:
                raise ProtocolError("headers go on that have not begun")
            flags |= self._block[1]
            payload = self._block[2] + payload
        if not flags & _END_HEADERS:
            self._block = (stream, flags, payload)
            return
        self._block = None
        # The first headers of an answer say nothing; the last, which end it, its status.
        if flags & _END_STREAM:
            self._end(stream, self._status(payload), ends)

    def _status(self, block: bytes) -> grpc.StatusCode:
        known = self._known.get(block)
        if known is None:
            try:
                headers = {str(name): str(value) for name, value in Decoder().decode(block)}
            except HPACKError as error:
                raise ProtocolError(f"headers that cannot be read: {error}") from error
            code = headers.get("grpc-status", "")
            number = int(code) if code.isdigit() else grpc.StatusCode.UNKNOWN.value[0]
            known = _STATUSES.get(number, grpc.StatusCode.UNKNOWN)
            if len(self._known) < _KNOWN_MAX:
                self._known[block] = known
        return known

    def _end(self, stream: int, status: grpc.StatusCode, ends: list[End[_Call]]) -> None:
        call = self.calls.pop(stream, None)
        if call is None:  # given up before
            return
        answer = b""
        if status is grpc.StatusCode.OK:
            compressed, size = _MESSAGE.unpack_from(call.answer.ljust(5, b"\1"))
            answer = call.answer[5:]
            if compressed or size != len(answer):
                status, answer = grpc.StatusCode.INTERNAL, b""
        ends.append((call, status, answer))

    def _take_reset(self, stream: int, code: int, ends: list[End[_Call]]) -> None:
        """End a call; one that the server has not begun is made again, as gRPC's clients do.

        Its own counts a stream for a moment after it has ended it, and then refuses another.
        """
        if code == _REFUSED and stream in self.calls:
            call = self.calls.pop(stream)
            call.stream, call.answer = 0, b""
            self.held.append(call)
        else:
            self._end(stream, _RESETS.get(code, grpc.StatusCode.INTERNAL), ends)

    def _take_farewell(self, last: int, ends: list[End[_Call]]) -> None:
        """Take no more calls: the server ends those that it has begun, and not the others."""
        self.closing = True
        for stream in [each for each in self.calls if each > last]:
            self._end(stream, grpc.StatusCode.UNAVAILABLE, ends)


def _inner(flags: int, payload: bytes) -> bytes:
    """Return a payload without its padding."""
    return payload[1 : len(payload) - payload[0]] if flags & _PADDED else payload
