from __future__ import annotations

import struct

import google_crc32c
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from featurizer.entries import Packed, body_of, put_entry_head
from featurizer.eventlog import Batch, Entry, Topic
from featurizer.frames import (
    TORN_FILLER,
    FrameScanner,
    encode_append,
    encode_frame,
    encode_seal,
    find_seal,
)

SALT = 0xDEADBEEF
ORIGIN = 1 << 40

entries = st.builds(
    Entry,
    st.sampled_from(Topic),
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.binary(max_size=60),
)
frames = st.lists(entries, min_size=1, max_size=4)
calls = st.lists(frames, min_size=1, max_size=4)
garbage = st.binary(min_size=1, max_size=12).map(lambda text: text * 8)


def decode(data: bytes, final: bool = True, salt: int = SALT) -> Batch:
    scanner = FrameScanner(salt)
    found = scanner.scan(data, final, ORIGIN)
    return scanner.batch(data, found, ORIGIN, found.next_position, ())


def entries_of(batch: Batch) -> list[Entry]:
    return [
        Entry(Topic(batch.topics[i]), int(batch.keys[i]), batch.value(i))
        for i in range(len(batch.topics))
    ]


def test_the_format_is_the_documented_one() -> None:
    body = struct.pack("<BBHIq", 2, 1, 0, 3, -5) + b"abc" + bytes(5)
    crc = google_crc32c.extend(SALT, struct.pack("<IHH", 24, 1, 0) + body)

    data = encode_frame([Entry(Topic.DECISIONS, -5, b"abc")], SALT)

    assert data == b"FRL1" + struct.pack("<IIHH", 24, crc, 1, 0) + body


def test_the_checksum_is_crc_32c() -> None:
    # RFC 3720, B.4: 32 bytes of zeros. Our kernel must agree with the library that says so.
    assert google_crc32c.value(bytes(32)) == 0x8A9136AA
    assert (
        len(entries_of(decode(encode_frame([Entry(Topic.LABELS, 0, bytes(32))], 0), salt=0))) == 1
    )


@given(frames)
def test_entries_that_a_kernel_wrote_make_the_same_frame(frame: list[Entry]) -> None:
    memory = np.zeros(sum(24 + len(each.value) for each in frame), np.uint8)
    words, at = memory[: len(memory) // 8 * 8].view(np.int64), 0
    for topic, key, value in frame:
        at = put_entry_head(words, at, topic, key, len(value))
        memory[at : at + len(value)] = np.frombuffer(value, np.uint8)
        at += len(value) + (-len(value) & 7)

    packed = Packed(memory[:at].tobytes(), len(frame))

    assert [*packed] == frame
    assert packed[-1] == frame[-1]
    assert packed[1:] == frame[1:]
    assert encode_frame(packed, SALT) == encode_frame(frame, SALT)
    assert packed.body == body_of(frame)


@given(st.lists(calls, max_size=5))
def test_frames_round_trip(appends: list[list[list[Entry]]]) -> None:
    data = b""
    positions = []
    for call in appends:
        encoded, offsets, enough = encode_append(call, SALT)
        assert enough <= len(encoded)
        positions += [ORIGIN + len(data) + offset for offset in offsets]
        data += encoded

    batch = decode(data)

    assert entries_of(batch) == [e for call in appends for frame in call for e in frame]
    assert list(dict.fromkeys(batch.frames.tolist())) == positions
    assert batch.next_position == ORIGIN + len(data)
    assert batch.damage == ()


@given(st.lists(st.tuples(garbage, frames), min_size=1, max_size=5))
def test_garbage_between_frames_is_skipped_and_reported(
    parts: list[tuple[bytes, list[Entry]]],
) -> None:
    data = b""
    expected = []
    for noise, frame in parts:
        expected.append((ORIGIN + len(data), len(noise)))
        data += noise + encode_frame(frame, SALT)

    batch = decode(data)

    assert entries_of(batch) == [e for _, frame in parts for e in frame]
    assert [(d.position, d.length) for d in batch.damage] == expected


@given(st.lists(frames, min_size=2, max_size=4), frames, st.data())
def test_a_group_cut_anywhere_does_not_exist(
    group: list[list[Entry]], after: list[Entry], data: st.DataObject
) -> None:
    encoded, _, enough = encode_append(group, SALT)
    cut = data.draw(st.integers(0, enough - 1))
    block = encoded[:cut] + TORN_FILLER * (-cut & 7) + encode_frame(after, SALT)

    assert entries_of(decode(encoded[:cut])) == []
    batch = decode(block)
    assert entries_of(batch) == after
    assert sum(d.length for d in batch.damage) == cut + (-cut & 7)


@given(st.lists(frames, min_size=2, max_size=4), st.data())
def test_a_group_lacking_only_what_it_can_spare_exists(
    group: list[list[Entry]], data: st.DataObject
) -> None:
    encoded, _, enough = encode_append(group, SALT)
    cut = data.draw(st.integers(enough, len(encoded)))

    assert entries_of(decode(encoded[:cut])) == [e for frame in group for e in frame]


@given(frames, frames, st.data())
def test_a_frame_cut_anywhere_does_not_exist(
    frame: list[Entry], after: list[Entry], data: st.DataObject
) -> None:
    encoded = encode_frame(frame, SALT)
    cut = data.draw(st.integers(1, len(encoded) - 1))
    block = encoded[:cut] + TORN_FILLER * (-cut & 7) + encode_frame(after, SALT)

    batch = decode(block)

    assert entries_of(decode(encoded[:cut])) == []
    assert entries_of(batch) == after
    assert [(d.position, d.length) for d in batch.damage] == [(ORIGIN, cut + (-cut & 7))]


def test_two_groups_cut_short_before_a_whole_one() -> None:
    def group(name: str) -> list[list[Entry]]:
        return [[Entry(Topic.LABELS, 0, f"{name}{i}".encode())] for i in range(3)]

    torn = [encode_append(group(name), SALT)[0][:-64] for name in "ab"]
    whole = encode_append(group("c"), SALT)[0]

    batch = decode(b"".join(torn) + whole)

    assert entries_of(batch) == [e for frame in group("c") for e in frame]
    assert sum(d.length for d in batch.damage) == len(torn[0] + torn[1])


def test_every_flipped_bit_of_a_group_costs_one_frame() -> None:
    group = [[Entry(Topic.LABELS, i, bytes([i]) * 9)] for i in range(4)]
    after = [Entry(Topic.MODELS, 9, b"after")]
    encoded, offsets, _ = encode_append(group, SALT)
    bounds = [*offsets, len(encoded) - 48, len(encoded) - 24, len(encoded)]
    whole = encoded + encode_frame(after, SALT)

    for bit in range(len(encoded) * 8):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << (bit % 8)
        batch = decode(bytes(flipped))
        hit = next(i for i in range(6) if bit // 8 < bounds[i + 1])
        assert entries_of(batch) == [f[0] for i, f in enumerate(group) if i != hit] + after
        assert [(d.position - ORIGIN, d.length) for d in batch.damage] == [
            (bounds[hit], bounds[hit + 1] - bounds[hit])
        ]


@given(frames)
def test_a_frame_inside_a_value_or_of_another_log_is_none(frame: list[Entry]) -> None:
    foreign = encode_frame(frame, SALT + 1)
    outer = bytearray(encode_frame([Entry(Topic.DEAD_LETTERS, 0, foreign)], SALT))
    outer[0] ^= 1

    assert entries_of(decode(foreign)) == []
    assert entries_of(decode(bytes(outer))) == []


@given(st.lists(calls, min_size=1, max_size=3), st.data())
def test_a_block_that_ends_inside_a_frame_stops_before_it(
    appends: list[list[list[Entry]]], data: st.DataObject
) -> None:
    log = b"".join(encode_append(call, SALT)[0] for call in appends)
    cut = data.draw(st.integers(0, len(log)))

    first = decode(log[:cut], final=False)
    second = decode(log[first.next_position - ORIGIN :])

    assert entries_of(first) + entries_of(second) == entries_of(decode(log))
    assert first.damage == ()


@given(st.binary(max_size=400))
@settings(max_examples=300)
def test_noise_is_never_a_frame(noise: bytes) -> None:
    batch = decode(noise)

    assert len(batch.topics) == 0
    assert batch.next_position == ORIGIN


def test_nothing_after_a_seal_exists() -> None:
    frame = encode_frame([Entry(Topic.LABELS, 0, b"x")], SALT)
    seal = encode_seal(SALT)

    batch = decode(frame + seal + frame)

    assert len(batch.topics) == 1
    assert batch.next_position == ORIGIN + len(frame + seal)
    assert find_seal(frame + seal + frame, SALT) == len(frame + seal)
    assert find_seal(frame, SALT) is None


def test_columns_have_the_stated_types() -> None:
    batch = decode(encode_frame([Entry(Topic.LABELS, -1, b"abc")], SALT))

    assert batch.topics.dtype == np.uint8
    columns = (batch.keys, batch.starts, batch.lengths, batch.positions, batch.frames)
    assert {column.dtype for column in columns} == {np.dtype(np.int64)}
    assert batch.positions.tolist() == [ORIGIN + 1]
