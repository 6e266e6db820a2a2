"""The table of the wire against the contract and the checker's own bounds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fraud.v1 import transaction_pb2
from google.protobuf.descriptor import FieldDescriptor

from fraudsvc import contract
from fraudsvc.wire.fields import BYTES, FIELDS, FIXED64, VARINT, Shape, Slot

WIRE_TYPES = {
    FieldDescriptor.TYPE_STRING: BYTES, FieldDescriptor.TYPE_MESSAGE: BYTES,
    FieldDescriptor.TYPE_DOUBLE: FIXED64, FieldDescriptor.TYPE_INT64: VARINT,
    FieldDescriptor.TYPE_INT32: VARINT, FieldDescriptor.TYPE_ENUM: VARINT,
    FieldDescriptor.TYPE_BOOL: VARINT,
}  # fmt: skip


def fields_of(message: Any, prefix: str) -> Iterator[tuple[str, int, int]]:
    for field in message.fields:
        yield prefix + field.name, field.number, WIRE_TYPES[field.type]
        if field.message_type is not None:
            yield from fields_of(field.message_type, f"{prefix}{field.name}.")


def test_the_table_is_the_contracts() -> None:
    table = {(path, field.number, field.wire) for path, field in FIELDS.items()}
    assert table == set(fields_of(transaction_pb2.Transaction.DESCRIPTOR, "transaction."))
    slots = [field.slot for field in FIELDS.values()]
    assert sorted([*slots, Slot.TRANSACTION]) == list(Slot)


def test_bounds_of_texts_and_enums_are_the_checkers() -> None:
    texts = {path: row.most for path, row in FIELDS.items() if row.shape == Shape.PRINTABLE}
    assert texts == contract._TEXTS
    assert {path: FIELDS[path].most for path in contract._ENUMS} == contract._ENUMS


def test_a_message_always_has_a_higher_slot_than_the_one_it_is_in() -> None:
    for path, field in FIELDS.items():
        parent = FIELDS.get(path.rpartition(".")[0])
        above = Slot.TRANSACTION if parent is None else parent.slot
        assert above >= Slot.TRANSACTION
        if field.slot > Slot.TRANSACTION:
            assert field.slot > above
