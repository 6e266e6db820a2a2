"""What a client reads of an error, over a real connection too."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2 as details_pb  # type: ignore[import-untyped]
from google.rpc import status_pb2
from grpc_status import rpc_status  # type: ignore[import-untyped]

from fraudsvc.errors import (
    DOMAIN,
    REASONS,
    ServiceError,
    Violation,
    abort,
    from_exception,
    item_error,
    refusal,
    status_of,
)

FIELDS = (
    Violation("transaction.card.bin", "must be 6 to 8 digits"),
    Violation("a.b", "is required"),
)


def unpacked(status: status_pb2.Status, kind: type[Any]) -> list[Any]:
    found = []
    for packed in status.details:
        detail = kind()
        if packed.Unpack(detail):
            found.append(detail)
    return found


@pytest.mark.parametrize("reason", sorted(REASONS))
def test_every_reason_has_one_error_info(reason: str) -> None:
    status = status_of(ServiceError(reason))
    (info,) = unpacked(status, details_pb.ErrorInfo)
    assert (info.reason, info.domain) == (reason, DOMAIN)
    assert reason == reason.upper() == reason.strip("_")
    assert status.code in {code.value[0] for code in grpc.StatusCode}
    assert status.code != 0
    assert REASONS[reason].when
    assert len(unpacked(status, details_pb.RetryInfo)) == (status.code == 8)


def test_fields_at_fault_are_each_named_once() -> None:
    status = status_of(ServiceError("INVALID_TRANSACTION", FIELDS))
    (bad,) = unpacked(status, details_pb.BadRequest)
    assert [(v.field, v.description) for v in bad.field_violations] == [f[:2] for f in FIELDS]
    assert "transaction.card.bin must be 6 to 8 digits" in status.message


def test_an_item_error_tells_the_same() -> None:
    error = ServiceError("INVALID_LABEL", FIELDS)
    item, status = item_error(error), status_of(error)
    assert (item.code, item.message, item.reason) == (status.code, status.message, "INVALID_LABEL")
    assert [(v.field, v.description) for v in item.field_violations] == [f[:2] for f in FIELDS]


def test_card_numbers_have_a_reason_of_their_own() -> None:
    assert refusal("INVALID_TRANSACTION", FIELDS).reason == "INVALID_TRANSACTION"
    card = Violation("x", "looks like a card number", card_number=True)
    assert refusal("INVALID_TRANSACTION", (*FIELDS, card)).reason == "CARD_NUMBER_REFUSED"


def test_an_internal_exception_keeps_its_text() -> None:
    error = from_exception(RuntimeError("password is hunter2"))
    assert error.reason == "INTERNAL"
    assert b"hunter2" not in status_of(error).SerializeToString()
    known = ServiceError("LOG_UNAVAILABLE")
    assert from_exception(known) is known


def test_an_unknown_reason_is_refused() -> None:
    with pytest.raises(KeyError):
        ServiceError("SOMETHING_ELSE")


@pytest.fixture
def address() -> Iterator[str]:
    def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
        abort(context, ServiceError(request.decode(), FIELDS))

    handler = grpc.method_handlers_generic_handler(
        "test.Echo", {"Fail": grpc.unary_unary_rpc_method_handler(answer)}
    )
    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool, handlers=[handler])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(None).wait(5)


def test_a_client_gets_the_status_over_the_wire(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/test.Echo/Fail")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"OVERLOADED", timeout=10)
    status = rpc_status.from_call(caught.value)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert len(unpacked(status, details_pb.ErrorInfo)) == 1
    assert len(unpacked(status, details_pb.RetryInfo)) == 1
    assert len(unpacked(status, details_pb.BadRequest)) == 1
