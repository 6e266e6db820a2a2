"""Bytes that are no transaction, or not in their shortest form: left, and never read beyond."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys

import numpy as np
import pytest
from fraud.v1 import transaction_pb2 as pb
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from fraudsvc.contract import ContractSettings
from fraudsvc.wire.fields import BYTES, FIELDS, FIXED64, VARINT
from tests.test_contract import NOW_MS, full
from tests.test_wire import PAIR, REPLAY, SEED, Pair, row, transactions


def mutated(data: bytes, rng: random.Random, other: bytes) -> bytes:
    """Return the bytes after one change: a byte, a cut, a repeat, another message behind."""
    at, size = rng.randrange(len(data)), rng.randrange(1, 9)
    rest = data[at + size :]
    changes = (
        lambda: data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :],
        lambda: data[:at] + rng.randbytes(size) + rest,
        lambda: data[:at] + rest,
        lambda: data[:at],
        lambda: data[:at] + data[at : at + size] * 2 + rest,
        lambda: data + other[: rng.randrange(len(other))],
        lambda: data[:at] + b"\x80" * rng.randrange(12) + b"\x00" + rest,
        lambda: data + rng.randbytes(size),
    )
    return rng.choice(changes)()


def test_changed_bytes_agree_with_the_checker() -> None:
    rng = random.Random(SEED + 2)
    made = [each.SerializeToString() for _, each in transactions(SEED + 2, 1_500, 0.0)]
    parsed = 0
    for data in made:
        for _ in range(10):
            bad = mutated(data, rng, rng.choice(made))
            accepted = REPLAY.agree(bad)
            try:
                pb.Transaction.FromString(bad)
                parsed += 1
            except DecodeError:
                assert not accepted
    print(f"{parsed} of {10 * len(made)} could be parsed")
    assert parsed > len(made)


@settings(max_examples=300)
@given(st.binary(max_size=400))
def test_any_bytes_are_left_without_a_crash(data: bytes) -> None:
    assert not PAIR.agree(data)


# Shapes of the wire that no parser gives back


def varint(number: int) -> bytes:
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def field(number: int, wire: int, payload: bytes) -> bytes:
    return varint(number << 3 | wire) + payload


BEHIND: dict[str, bytes] = {
    "an unknown field": field(99, VARINT, b"\x01"),
    "an unknown message": field(25, BYTES, b"\x00"),
    "a repeated field": field(24, BYTES, b"\x00"),
    "an earlier field": field(12, VARINT, b"\x05"),
    "a group": field(30, 3, b"") + field(30, 4, b""),
    "field number zero": b"\x00\x00",
    "a cut tag": b"\x80",
    "a cut varint": field(25, VARINT, b"\xff"),
    "a tag of five bytes": b"\xf8\xff\xff\xff\x7f\x00",
}


@pytest.mark.parametrize("extra", BEHIND.values(), ids=BEHIND)
def test_what_stands_behind_is_left(extra: bytes) -> None:
    assert not PAIR.agree(full().SerializeToString() + extra)


NEEDLESS: dict[str, bytes] = {
    "a long number": field(14, VARINT, b"\x82\x00"),
    "a long tag": b"\xf0\x00" + b"\x02",
    "a written zero": field(14, VARINT, b"\x00"),
    "an empty text": field(22, BYTES, b"\x00"),
    "a false flag": field(16, VARINT, b"\x00"),
    "a flag of two": field(16, VARINT, b"\x02"),
    "a number of ten bytes": field(14, VARINT, b"\x82" + b"\x80" * 8 + b"\x01"),
    "a zero coordinate": field(24, BYTES, b"\x09" + field(1, FIXED64, bytes(8))),
    "a cut coordinate": field(24, BYTES, b"\x08" + field(1, FIXED64, bytes(7))),
    "a part longer than the rest": field(24, BYTES, b"\x09"),
    "a part of 2 GiB": field(24, BYTES, b"\xff\xff\xff\xff\x07"),
    "another wire type": field(14, FIXED64, struct.pack("<q", 2)),
}


@pytest.mark.parametrize("extra", NEEDLESS.values(), ids=NEEDLESS)
def test_what_is_not_in_its_shortest_form_is_left(extra: bytes) -> None:
    small = full()
    for name in pb.Transaction.DESCRIPTOR.fields_by_name:
        if FIELDS[f"transaction.{name}"].number > 13:
            small.ClearField(name)
    assert PAIR.agree(small.SerializeToString())
    assert PAIR.agree(small.SerializeToString() + field(14, VARINT, b"\x02"))
    assert not PAIR.agree(small.SerializeToString() + extra)


# Without the compiler: the same kernels as Python, on bytes that refuse any index outside them


class Guarded(bytes):
    def __getitem__(self, index: object) -> int:  # type: ignore[override]
        assert isinstance(index, (int, np.integer))
        assert 0 <= index < len(self), f"read at {index} of {len(self)}"
        return super().__getitem__(int(index))


def walk_interpreted() -> None:
    """Run in a process of its own with NUMBA_DISABLE_JIT=1; see the test below."""
    rng = random.Random(SEED + 4)
    made = [each.SerializeToString() for _, each in transactions(SEED + 4, 150, 0.01)]
    pair, taken = Pair(ContractSettings()), 0
    for data in made:
        for bad in (data, mutated(data, rng, rng.choice(made)), data[: rng.randrange(len(data))]):
            out, expected = row(), row()
            record = out.view(np.recarray)
            with np.errstate(over="ignore"):
                accepted = pair.acceptor.accept(Guarded(bad), NOW_MS, record)
                if accepted:
                    message = pb.Transaction.FromString(bad)
                    assert not pair.checker.check(message, NOW_MS, expected)
            assert out.tobytes() == expected.tobytes()
            taken += accepted
    assert taken > 100, taken
    print(f"took {taken}")


def test_no_read_is_outside_the_bytes() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from tests.test_wire_scan import walk_interpreted as w; w()"],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"}, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "took" in done.stdout
