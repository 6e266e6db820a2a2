"""A card number by every door of the gRPC port, and the search for it in all that was kept.

Owns what the number may look like in a file, and the drill that looks for it. Must not know what
the service's files mean.
"""

from __future__ import annotations

import base64
import errno
import os
import struct
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import grpc
from fraud.v1 import fraud_service_pb2, label_pb2, transaction_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from loadgen.client import bytes_method
from loadgen.faults import CALL_S, Figures, Scene
from loadgen.rows import timestamp

NUMBER: Final = "4111" + "1" * 12
GROUPS: Final = "-".join([NUMBER[:4]] + [NUMBER[4:8]] * 3)
CONTROL: Final = "control-7f3a9c"  # goes in as a customer, and must be found
KEPT_S: Final = 3.0  # until what was sent has gone its way
_Made = TypeVar("_Made", transaction_pb2.Transaction, label_pb2.Label)
_METADATA: Final = ("traceparent", "tracestate", "x-card", "baggage")


def forms() -> list[bytes]:
    """Return what the number may look like in a file: digits, groups, hex, Base64, eight bytes."""
    text = NUMBER.encode()
    found = [text, GROUPS.encode(), GROUPS.replace("-", " ").encode(), text.hex().encode()]
    for shift in range(3):  # Base64 depends on where a text begins
        coded = base64.b64encode(b"\0" * shift + text).rstrip(b"=")
        found.append(coded[(shift * 8 + 5) // 6 : -1])
    return [*found, struct.pack("<q", int(NUMBER))]


def holders(folder: Path, wanted: Sequence[bytes]) -> dict[str, bytes]:
    """Return the files of a folder that hold one of some texts, and what stands around it."""
    found = {}
    for path in folder.rglob("*"):
        data = written(path) if path.is_file() and not path.is_symlink() else b""
        at = max(data.find(form) for form in wanted)
        if at >= 0:
            found[str(path)] = data[max(0, at - 200) : at + 40]
    return found


def written(path: Path) -> bytes:
    """Return what a file holds, without the holes of a map that is larger than its content."""
    parts, at = [], 0
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:  # dropped meanwhile
        return b""
    try:
        while True:
            at = os.lseek(descriptor, at, os.SEEK_DATA)
            stop = os.lseek(descriptor, at, os.SEEK_HOLE)
            parts.append(os.pread(descriptor, stop - at, at))
            at = stop
    except OSError as error:
        if error.errno != errno.ENXIO:  # no more data
            raise
    finally:
        os.close(descriptor)
    return b"".join(parts)


def texts(message: Message) -> Iterator[tuple[Message, Any]]:
    """Yield every text field of a message, and of those in it, which are made for that."""
    for field in message.DESCRIPTOR.fields:
        if field.type == FieldDescriptor.TYPE_STRING:
            yield message, field
        elif field.name in ("card", "merchant", "email"):
            yield from texts(getattr(message, field.name))


def card_number(scene: Scene) -> Figures:
    """Send a card number in every text field of every method; then look for it in every file.

    Redis is asked to write a file for it. What is found of a payment that was kept shows that the
    search finds.
    """
    data = scene.system.folder
    folders = [data.parent if scene.system.owned else data]
    with scene.lasting():
        sent, kept = _send(scene.channel)
        scene.stop.wait(KEPT_S)
        if scene.system.servers is not None:
            scene.system.servers.dump_redis()
            folders.append(scene.system.servers.folder)
        found = [holders(folder, forms()) for folder in folders]
        controls = [holders(folder, [CONTROL.encode()]) for folder in folders]
    return {
        "card_numbers_sent": float(sent), "wrong_status": float(kept),
        "card_numbers": float(sum(map(len, found))), "controls": float(sum(map(len, controls))),
    }  # fmt: skip


def _send(channel: grpc.Channel) -> tuple[int, int]:
    """Return how many calls were made with the number in them, and how many were accepted."""
    score, batch, labels, read = (
        bytes_method(channel, name) for name in ("Score", "ScoreBatch", "ReportLabels",
                                                 "GetDecision")
    )  # fmt: skip
    good = fraud_service_pb2.ScoreRequest(transaction=_payment()).SerializeToString()
    score(good, timeout=CALL_S, metadata=tuple((name, NUMBER) for name in _METADATA))
    sent = accepted = 0
    for number in (NUMBER, GROUPS, f"tok {NUMBER}"):
        for payment in _each_field(_payment, number):
            request = fraud_service_pb2.ScoreRequest(transaction=payment)
            accepted += _is_ok(score, request)
            _is_ok(batch, fraud_service_pb2.ScoreBatchRequest(transactions=[payment]))
            sent += 2
        for label in _each_field(_label, number):
            _is_ok(labels, fraud_service_pb2.ReportLabelsRequest(labels=[label]))
            sent += 1
        _is_ok(read, fraud_service_pb2.GetDecisionRequest(decision_id=number))
    return sent, accepted


def _is_ok(method: Callable[..., bytes], request: Message) -> bool:
    try:
        method(request.SerializeToString(), timeout=CALL_S)
    except grpc.RpcError:
        return False
    return True


def _each_field(make: Callable[[], _Made], number: str) -> Iterator[_Made]:
    """Yield a message for each of its text fields, with the number there."""
    for at in range(len(list(texts(make())))):
        made = make()
        message, field = list(texts(made))[at]
        setattr(message, field.name, number)
        yield made


def _payment() -> transaction_pb2.Transaction:
    return transaction_pb2.Transaction(
        request_id=str(uuid.uuid4()), transaction_id=f"drill_{uuid.uuid4().hex[:12]}",
        customer_id=CONTROL, amount_minor=1250, currency_code="EUR",
        event_time=timestamp(time.time_ns() // 1_000_000),
    )  # fmt: skip


def _label() -> label_pb2.Label:
    return label_pb2.Label(
        transaction_id="drill_label", verdict=label_pb2.VERDICT_FRAUD, reporter="drill",
        source=label_pb2.LABEL_SOURCE_ANALYST, label_time=timestamp(time.time_ns() // 1_000_000),
    )  # fmt: skip
