"""Takes the transactions out of a request's bytes, without parsing them.

Owns the outer messages of Score and ScoreBatch. Must not know what a transaction holds. A body of
anything but transactions one after the other (``validate_only``, unknown fields) is parsed.
"""

from __future__ import annotations

from fraud.v1 import fraud_service_pb2 as pb
from google.protobuf.message import DecodeError

from fraudsvc.errors import ServiceError

_TAG = 0x0A  # field 1, a message, in both requests


def _plain(body: bytes) -> list[bytes] | None:
    """Return the messages of a body that has nothing but fields 1; None for another."""
    found, at, end = [], 0, len(body)
    while at + 1 < end:
        size, start = body[at + 1], at + 2
        if size > 127 and start < end:
            size, start = size & 127 | body[start] << 7, start + 1  # larger ones are parsed
        stop = start + size
        if body[at] != _TAG or body[start - 1] > 127 or stop > end:
            return None
        found.append(body[start:stop])
        at = stop
    return found if at == end else None


def read_score(body: bytes) -> tuple[bytes, bool]:
    """Return the transaction's bytes of a ScoreRequest, and its validate_only.

    Raises ServiceError for bytes that are no such message.
    """
    found = _plain(body)
    if found is not None and len(found) == 1:
        return found[0], False
    try:
        request = pb.ScoreRequest.FromString(body)
    except DecodeError:
        raise ServiceError("MALFORMED_MESSAGE") from None
    return request.transaction.SerializeToString(deterministic=True), request.validate_only


def read_batch(body: bytes) -> tuple[list[bytes], bool]:
    """Return each transaction's bytes of a ScoreBatchRequest, and its validate_only.

    Raises ServiceError for bytes that are no such message.
    """
    found = _plain(body)
    if found is not None:
        return found, False
    try:
        request = pb.ScoreBatchRequest.FromString(body)
    except DecodeError:
        raise ServiceError("MALFORMED_MESSAGE") from None
    each = [t.SerializeToString(deterministic=True) for t in request.transactions]
    return each, request.validate_only
