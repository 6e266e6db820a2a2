"""Calls on connections of one's own, against gRPC's server: each ends once, as the server said."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.testing.certificates import write_set
from loadgen.certificates import Certificates
from loadgen.client import TargetUnreachableError
from loadgen.http2 import MESSAGE_MAX, Call, ProtocolError, Session, request_headers
from loadgen.in_flight import Ended, InFlight, Target
from loadgen.pacing import NS

METHOD = "tests.Echo/Say"
Answer = Callable[[bytes, grpc.ServicerContext], bytes]
Told = list[tuple[int, grpc.StatusCode, bytes]]


def echo(body: bytes, _: grpc.ServicerContext) -> bytes:
    return body[::-1]


def made(answer: Answer, threads: int, **options: int) -> grpc.Server:
    server = grpc.server(
        ThreadPoolExecutor(threads),
        options=[(f"grpc.{name}", value) for name, value in options.items()],
    )
    handler: Any = grpc.unary_unary_rpc_method_handler(answer)
    service, _, method = METHOD.partition("/")
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {method: handler}),)
    )
    return server


def serving(
    answer: Answer = echo, port: int = 0, threads: int = 8, **options: int
) -> tuple[grpc.Server, int]:
    """Start gRPC's own server with one method, from bytes to bytes."""
    server = made(answer, threads, **options)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    return server, port


@pytest.fixture
def port() -> Iterator[int]:
    server, port = serving()
    yield port
    server.stop(0).wait(5)


def target(port: int, **values: Any) -> Target:
    return Target(f"127.0.0.1:{port}", connections=values.pop("connections", 2), **values)


def teller(told: Told, number: int) -> Ended:
    return lambda status, answer: told.append((number, status, answer))


def send_all(calls: InFlight, bodies: list[bytes], told: Told) -> None:
    for number, body in enumerate(bodies):
        calls.send(number, body, teller(told, number))


def turn_until(calls: InFlight, over: Callable[[], bool], seconds: float = 20.0) -> None:
    end_ns = time.perf_counter_ns() + int(seconds * NS)
    while not over():
        assert time.perf_counter_ns() < end_ns, "it took too long"
        calls.turn(end_ns)


def answers(calls: InFlight, bodies: list[bytes]) -> Told:
    told: Told = []
    send_all(calls, bodies, told)
    turn_until(calls, lambda: len(told) >= len(bodies))
    return told


def bodies(count: int, size: int = 40) -> list[bytes]:
    return [f"{number:08d}".encode() * (size // 8) for number in range(count)]


def all_reversed(told: Told, sent: list[bytes]) -> bool:
    return sorted(told) == [(n, grpc.StatusCode.OK, body[::-1]) for n, body in enumerate(sent)]


@pytest.mark.parametrize(
    ("count", "size"), [(1, 8), (2_000, 40), (300, 15_000), (9, 60_000)],
    ids=["one", "many", "beyond the window", "beyond a frame"],
)  # fmt: skip
def test_every_call_gets_its_own_answer(port: int, count: int, size: int) -> None:
    """Windows are 64 KiB until the server has said more, frames 16 KiB."""
    sent = bodies(count, size)
    with InFlight(target(port), METHOD) as calls:
        assert all_reversed(answers(calls, sent), sent)
        with pytest.raises(ValueError, match="at most"):
            calls.send(0, bytes(MESSAGE_MAX + 1), print)


def test_more_calls_than_streams_wait_for_one() -> None:
    inside: list[int] = []
    most: list[int] = []

    def slow(body: bytes, _: grpc.ServicerContext) -> bytes:
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.002)
        inside.pop()
        return body[::-1]

    server, port = serving(slow, max_concurrent_streams=3)
    with InFlight(target(port, connections=1), METHOD) as calls:
        assert all_reversed(answers(calls, bodies(100)), bodies(100))
    assert 1 < max(most) <= 3
    server.stop(0).wait(5)


@pytest.mark.parametrize("status", [s for s in grpc.StatusCode if s is not grpc.StatusCode.OK])
def test_a_status_is_told_as_the_server_said_it(status: grpc.StatusCode) -> None:
    def refuse(body: bytes, context: grpc.ServicerContext) -> bytes:
        context.set_trailing_metadata((("seen", str(len(body))), ("seen-bin", body)))
        context.abort(status, "no: 'ü' %")

    server, port = serving(refuse)
    with InFlight(target(port), METHOD) as calls:
        told = answers(calls, bodies(5))
    assert [each[1:] for each in told] == [(status, b"")] * 5
    server.stop(0).wait(5)


def test_a_late_call_ends_at_its_deadline_and_the_next_is_answered() -> None:
    go_on = threading.Event()

    def stuck(body: bytes, _: grpc.ServicerContext) -> bytes:
        if body == b"stuck":
            go_on.wait(10)
        return body[::-1]

    server, port = serving(stuck)
    with InFlight(target(port, deadline_s=1.0), METHOD) as calls:
        began = time.perf_counter()
        told = answers(calls, [b"stuck", b"a", b"b"])
        took_s = time.perf_counter() - began
        assert {n: status for n, status, _ in told} == {
            0: grpc.StatusCode.DEADLINE_EXCEEDED, 1: grpc.StatusCode.OK, 2: grpc.StatusCode.OK,
        }  # fmt: skip
        assert told[-1][0] == 0
        assert 1.0 <= took_s < 5
        go_on.set()
        assert all_reversed(answers(calls, bodies(4)), bodies(4))
    server.stop(0).wait(5)


def test_giving_a_call_up_leaves_those_of_other_connections_alone() -> None:
    """Both have the first stream of their connection."""

    def slow(body: bytes, _: grpc.ServicerContext) -> bytes:
        time.sleep(3.0 if body == b"late" else 0.8)
        return body[::-1]

    server, port = serving(slow)
    told: Told = []
    with InFlight(target(port, deadline_s=1.0), METHOD) as calls:
        calls.send(0, b"late", teller(told, 0))
        end_ns = time.perf_counter_ns() + 6 * NS // 10
        while time.perf_counter_ns() < end_ns:
            calls.turn(end_ns)
        calls.send(1, b"good", teller(told, 1))
        turn_until(calls, lambda: len(told) == 2)
    assert told == [
        (0, grpc.StatusCode.DEADLINE_EXCEEDED, b""), (1, grpc.StatusCode.OK, b"doog"),
    ]  # fmt: skip
    server.stop(0).wait(5)


def test_a_server_that_went_fails_calls_at_once_and_is_found_again() -> None:
    server, port = serving()
    with InFlight(target(port), METHOD) as calls:
        assert all_reversed(answers(calls, bodies(4)), bodies(4))
        server.stop(0).wait(5)
        gone = answers(calls, bodies(4))
        while not all(status is grpc.StatusCode.UNAVAILABLE for _, status, _ in gone):
            gone = answers(calls, bodies(4))  # as long as it takes to see that it went
        server, _ = serving(port=port)
        back = answers(calls, bodies(4))
        end_s = time.monotonic() + 10
        while not all_reversed(back, bodies(4)):
            assert time.monotonic() < end_s
            calls.turn(time.perf_counter_ns() + NS // 100)
            back = answers(calls, bodies(4))
    server.stop(0).wait(5)


def test_no_call_fails_while_one_of_two_servers_stops_in_good_order() -> None:
    """It says goodbye: what it has begun it ends, and all else is made again elsewhere."""

    def slow(body: bytes, _: grpc.ServicerContext) -> bytes:
        time.sleep(0.001)
        return body[::-1]

    first, port = serving(slow, so_reuseport=1)
    second, _ = serving(slow, port=port, so_reuseport=1)
    told: Told = []
    sent = bodies(3_000)
    with InFlight(target(port, connections=8, retry=True), METHOD) as calls:
        for at in range(0, len(sent), 10):
            for number in range(at, at + 10):
                calls.send(number, sent[number], teller(told, number))
            calls.turn(time.perf_counter_ns() + NS // 1_000)
            if at == 1_000:
                stopped = first.stop(5)
        turn_until(calls, lambda: len(told) == len(sent))
    assert all_reversed(told, sent)
    assert stopped.wait(5)
    second.stop(0).wait(5)


def test_with_retry_a_call_is_made_again_and_without_it_is_not() -> None:
    seen: Counter[bytes] = Counter()

    def third_time(body: bytes, context: grpc.ServicerContext) -> bytes:
        seen[body] += 1
        if seen[body] < 3:
            context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
        return body[::-1]

    server, port = serving(third_time, threads=1)
    with InFlight(target(port), METHOD) as calls:
        [(_, status, _)] = answers(calls, [b"once"])
    assert (status, seen[b"once"]) == (grpc.StatusCode.UNAVAILABLE, 1)
    with InFlight(target(port, retry=True), METHOD) as calls:
        assert all_reversed(answers(calls, bodies(3)), bodies(3))
    assert [seen[body] for body in bodies(3)] == [3, 3, 3]
    server.stop(0).wait(5)


def test_by_mutual_tls_one_who_may_call_is_answered_and_a_stranger_is_not(tmp_path: Path) -> None:
    files = Certificates(tmp_path)
    write_set(tmp_path, 1)
    pair = files.server(0)
    server = made(echo, 2)
    credentials = grpc.ssl_server_credentials(
        [(pair.key.read_bytes(), pair.certificate.read_bytes())],
        files.authority.read_bytes(), require_client_auth=True,
    )  # fmt: skip
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    with InFlight(target(port, identity=files.caller), METHOD) as calls:
        assert all_reversed(answers(calls, bodies(500, 4_000)), bodies(500, 4_000))
    with (
        pytest.raises(TargetUnreachableError),
        InFlight(target(port, identity=files.stranger, connect_s=0.5), METHOD),
    ):
        pass
    server.stop(0).wait(5)


def test_who_speaks_something_else_is_no_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as plain:

        def talk() -> None:
            for _ in range(2):
                taken, _ = plain.accept()
                taken.sendall(b"SSH-2.0-OpenSSH_9.9\r\n" * 2_000)
                taken.close()

        talking = threading.Thread(target=talk, daemon=True)
        talking.start()
        port = plain.getsockname()[1]
        with (
            pytest.raises(TargetUnreachableError),
            InFlight(target(port, connect_s=0.4), METHOD),
        ):
            pass


@pytest.mark.parametrize("wrong", [{"connections": 0}, {"connections": 257}, {"deadline_s": 0.0}])
def test_impossible_targets_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        InFlight(target(1, **wrong), METHOD)


# One connection's bytes.


def exchange(port: int, sent: list[bytes]) -> list[bytes]:
    """Return what gRPC's server says to calls of a session, in pieces as they came."""
    session: Session[Call] = Session(headers(port))
    for body in sent:
        session.begin(Call(body))
    came: list[bytes] = []
    with socket.create_connection(("127.0.0.1", port), 5) as connection:
        ended = 0
        while ended < len(sent):
            connection.sendall(session.out)
            session.out.clear()
            came.append(connection.recv(1 << 16))
            ended += len(session.received(came[-1]))
    return came


def headers(port: int) -> bytes:
    return request_headers(f"127.0.0.1:{port}", METHOD, "http", 5_000)


@pytest.fixture(scope="module")
def recorded() -> Iterator[tuple[list[bytes], bytes]]:
    def some_refused(body: bytes, context: grpc.ServicerContext) -> bytes:
        if body.endswith(b"3"):
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        return body[::-1]

    server, port = serving(some_refused)
    sent = [f"call {n}".encode() * 3 for n in range(12)]
    yield sent, b"".join(exchange(port, sent))
    server.stop(0).wait(5)


def statuses(session: Session[Call], pieces: list[bytes]) -> dict[bytes, tuple[str, bytes]]:
    return {
        call.body: (status.name, answer)
        for piece in pieces
        for call, status, answer in session.received(piece)
    }


@given(cuts=st.lists(st.integers(0, 10_000), max_size=20))
def test_what_comes_may_be_cut_anywhere(
    recorded: tuple[list[bytes], bytes], cuts: list[int]
) -> None:
    sent, came = recorded
    ends = sorted({0, len(came), *(cut % len(came) for cut in cuts)})
    pieces = [came[a:b] for a, b in itertools.pairwise(ends)]
    session: Session[Call] = Session(headers(1))
    for body in sent:
        session.begin(Call(body))
    assert statuses(session, pieces) == {
        body: ("RESOURCE_EXHAUSTED", b"") if body.endswith(b"3") else ("OK", body[::-1])
        for body in sent
    }
    assert session.ready
    assert not session.calls


@settings(max_examples=300)
@given(at=st.integers(0, 10_000), value=st.integers(0, 255), data=st.binary(max_size=60))
def test_damaged_bytes_end_a_connection_and_nothing_else(
    recorded: tuple[list[bytes], bytes], at: int, value: int, data: bytes
) -> None:
    sent, came = recorded
    at %= len(came)
    session: Session[Call] = Session(headers(1))
    for body in sent:
        session.begin(Call(body))
    try:
        ended = statuses(session, [came[:at] + bytes([value]) + data + came[at + 1 :]])
    except ProtocolError:
        return
    assert ended.keys() <= set(sent)
