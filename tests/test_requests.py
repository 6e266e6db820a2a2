"""What is taken out of a request's bytes is what the parser finds in them."""

from __future__ import annotations

import pytest
from fraud.v1 import fraud_service_pb2 as pb
from fraud.v1.transaction_pb2 import Transaction
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from fraudsvc.errors import ServiceError
from fraudsvc.requests import read_batch, read_score
from tests.test_contract import full

MESSAGE = full().SerializeToString(deterministic=True)
SMALL = Transaction(customer_id="c").SerializeToString()


@given(st.integers(0, 40_000), st.booleans())
def test_a_transaction_of_any_length_is_taken_out(length: int, validate_only: bool) -> None:
    transaction = full()
    transaction.device_id = "d" * length
    request = pb.ScoreRequest(transaction=transaction, validate_only=validate_only)
    whole = transaction.SerializeToString(deterministic=True)
    assert read_score(request.SerializeToString()) == (whole, validate_only)


def test_parts_that_follow_one_another_merge() -> None:
    first, second = full(), full()
    second.Clear()
    second.amount_minor = 7
    body = b"".join(pb.ScoreRequest(transaction=t).SerializeToString() for t in (first, second))
    first.amount_minor = 7
    assert read_score(body) == (first.SerializeToString(deterministic=True), False)


@given(st.lists(st.sampled_from([b"", MESSAGE, SMALL]), max_size=5), st.booleans())
def test_a_batch_is_taken_apart(items: list[bytes], validate_only: bool) -> None:
    tail = b"\x10\x01" if validate_only else b""
    request = pb.ScoreBatchRequest()
    for item in items:
        request.transactions.add().MergeFromString(item)
    found, only = read_batch(request.SerializeToString() + tail)
    assert ([bytes(each) for each in found], only) == (items, validate_only)


@settings(max_examples=500)
@given(st.one_of(st.binary(max_size=40), st.binary(max_size=20).map(lambda b: b"\x0a\x02" + b)))
def test_any_bytes_are_read_as_the_parser_reads_them(body: bytes) -> None:
    try:
        expected = pb.ScoreRequest.FromString(body)
    except DecodeError:
        # What is inside a transaction is for whoever checks it.
        with pytest.raises((ServiceError, DecodeError)):
            Transaction.FromString(read_score(body)[0])
        return
    data, validate_only = read_score(body)
    assert validate_only == expected.validate_only
    assert Transaction.FromString(data) == expected.transaction


@pytest.mark.parametrize("cut", range(1, len(MESSAGE), 7))
def test_a_cut_request_is_refused(cut: int) -> None:
    body = pb.ScoreRequest(transaction=full()).SerializeToString()[:-cut]
    with pytest.raises(ServiceError, match="MALFORMED_MESSAGE"):
        read_score(body)
