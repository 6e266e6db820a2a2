"""What only the file adapter can suffer: kills, cuts, flips, a full disk, many writers."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest

from featurizer.eventlog import Batch, Damage, Entry, LogError, Topic
from featurizer.eventlog_file import FileEventLog

# Appends (writer, number) in calls of 1 to 3 frames, and writes each acknowledged number and
# position to its output as two 64-bit integers.
WRITER = """
import os, random, struct, sys
from featurizer.eventlog import Entry, Topic
from featurizer.eventlog_file import FileEventLog

directory, writer, first, count, segment_bytes = sys.argv[1], *map(int, sys.argv[2:])
log = FileEventLog(directory, segment_bytes=segment_bytes, sync_interval_ms=5)
source = random.Random(writer)
number = first
while number < first + count:
    numbers = range(number, min(number + source.randint(1, 3), first + count))
    values = [struct.pack("<qq", writer, n) + random.Random(n).randbytes(n % 300) for n in numbers]
    positions = log.append([[Entry(Topic.LABELS, writer, v), Entry(Topic.MODELS, n, v)]
                            for n, v in zip(numbers, values)])
    for n, position in zip(numbers, positions):
        os.write(1, struct.pack("<qq", n, position))
    number = numbers.stop
log.close()
"""


def start_writer(
    directory: Path, writer: int, first: int, count: int, segment_bytes: int
) -> subprocess.Popen[bytes]:
    numbers = map(str, (writer, first, count, segment_bytes))
    command = [sys.executable, "-c", WRITER, str(directory), *numbers]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def acknowledged(output: bytes) -> dict[int, int]:
    """Return number to position; the last pair may be cut by a kill."""
    whole = len(output) // 16 * 16
    numbers = [int.from_bytes(output[i : i + 8], "little") for i in range(0, whole, 8)]
    return dict(zip(numbers[::2], numbers[1::2], strict=True))


def written_by(batch: Batch) -> Iterator[tuple[int, int, int]]:
    """Yield (writer, number, frame position), after checking that nothing else is in the frames."""
    assert len(batch.topics) % 2 == 0
    for i in range(0, len(batch.topics), 2):
        value = batch.value(i)
        writer, number = (int.from_bytes(value[at : at + 8], "little") for at in (0, 8))
        assert value[16:] == random.Random(number).randbytes(number % 300)
        assert batch.value(i + 1) == value
        assert (int(batch.keys[i]), int(batch.keys[i + 1])) == (writer, number)
        assert batch.frames[i] == batch.frames[i + 1]
        yield writer, number, int(batch.frames[i])


def read_to_end(log: FileEventLog, position: int = 0) -> list[Batch]:
    batches = []
    while (batch := log.read(position, 1 << 16)).next_position != position:
        batches.append(batch)
        position = batch.next_position
    return batches


def values_of(batches: list[Batch]) -> list[bytes]:
    return [batch.value(i) for batch in batches for i in range(len(batch.topics))]


def damage_of(batches: list[Batch]) -> list[Damage]:
    return [damage for batch in batches for damage in batch.damage]


def one(value: bytes) -> list[list[Entry]]:
    return [[Entry(Topic.LABELS, 1, value)]]


def segments(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.seg"))


def fill(directory: Path, values: list[bytes], segment_bytes: int = 1 << 20) -> list[int]:
    log = FileEventLog(directory, segment_bytes=segment_bytes)
    positions = [log.append(one(value))[0] for value in values]
    log.close()
    return positions


def test_a_kill_between_any_two_writes_loses_and_invents_nothing(tmp_path: Path) -> None:
    seed = 20
    print(f"seed {seed}")
    source = random.Random(seed)
    first = 0
    for _ in range(8):
        child = start_writer(tmp_path, 0, first, 1_000_000, 65_536)
        assert child.stdout is not None
        output = child.stdout.read(16)
        time.sleep(source.uniform(0, 0.05))
        child.kill()
        output += child.stdout.read()
        child.communicate()
        assert len(output) >= 16
        acks = acknowledged(output)

        log = FileEventLog(tmp_path)
        found = [row for batch in read_to_end(log) for row in written_by(batch)]
        log.close()
        numbers = [number for _, number, _ in found]
        assert numbers == list(range(len(numbers)))
        assert len(numbers) - 3 <= first + len(acks) <= len(numbers)
        assert acks.items() <= {number: position for _, number, position in found}.items()
        first = len(numbers)


def test_processes_that_append_at_once_share_one_order(tmp_path: Path) -> None:
    writers, count = 3, 3000
    FileEventLog(tmp_path, segment_bytes=16_384).close()
    children = [start_writer(tmp_path, w, 0, count, 16_384) for w in range(writers)]
    live = FileEventLog(tmp_path, read_only=True)
    followed: list[tuple[int, int, int]] = []
    position = 0
    deadline = time.monotonic() + 60
    while len(followed) < writers * count and time.monotonic() < deadline:
        batch = live.read(position, 20_000)
        assert batch.damage == ()
        followed += written_by(batch)
        position = batch.next_position
    outputs = [child.communicate(timeout=60)[0] for child in children]
    live.close()

    again = FileEventLog(tmp_path, read_only=True)
    batches = read_to_end(again)
    again.close()

    assert followed == [row for batch in batches for row in written_by(batch)]
    assert damage_of(batches) == []
    for writer in range(writers):
        own = [(number, at) for w, number, at in followed if w == writer]
        assert [number for number, _ in own] == list(range(count))
        assert dict(own) == acknowledged(outputs[writer])
    assert len(segments(tmp_path)) > 20


def test_a_segment_cut_at_every_byte_of_its_last_frame(tmp_path: Path) -> None:
    values = [b"first", b"second " * 3, b"third " * 5]
    positions = fill(tmp_path / "whole", values)
    size = segments(tmp_path / "whole")[0].stat().st_size
    for length in range(positions[2], size):
        directory = tmp_path / str(length)
        shutil.copytree(tmp_path / "whole", directory)
        os.truncate(segments(directory)[0], length)

        follower = FileEventLog(directory, read_only=True)
        assert values_of(read_to_end(follower)) == values[:2]
        assert follower.ends() == (0, positions[2])
        log = FileEventLog(directory)
        cut = length - positions[2]
        assert [(d.position, d.length) for d in log.opened_damage] == (
            [(positions[2], cut)] if cut else []
        )
        assert log.append(one(b"next"))[0] == positions[2]
        assert values_of(read_to_end(follower, positions[2])) == [b"next"]
        log.close()
        follower.close()


def test_a_tail_torn_while_others_write_is_passed_by(tmp_path: Path) -> None:
    # Given a log that a second process keeps open, so that nobody may cut its tail
    first = FileEventLog(tmp_path)
    first.append(one(b"before"))
    end = first.ends()[1]
    whole = segments(tmp_path)[0].read_bytes()

    for torn in range(1, len(whole)):
        # when a write is torn and another one follows,
        with segments(tmp_path)[0].open("ab") as file:
            file.write(whole[:torn])
        assert len(first.read(end, 4096).topics) == 0
        second = FileEventLog(tmp_path)
        position, _ = second.append(one(b"after"))
        # then it is read, and only the torn bytes and the tries to align are reported.
        batch = first.read(end, 4096)
        assert values_of([batch]) == [b"after"]
        assert [(d.position, d.length) for d in batch.damage] == [(end, position - end)]
        end = batch.next_position
        second.close()
    first.close()


@pytest.mark.parametrize("rolled", [False, True], ids=["newest", "sealed"])
def test_every_flipped_bit_costs_one_frame_at_most(tmp_path: Path, rolled: bool) -> None:
    values = [b"first", b"second " * 3, b"third"]
    positions = fill(tmp_path, values)
    segment = segments(tmp_path)[0]
    if rolled:
        log = FileEventLog(tmp_path, segment_bytes=4096)
        log.append(one(bytes(4096)))
        values += [bytes(4096), b"in the next"]
        log.append(one(values[-1]))
        log.close()
        assert len(segments(tmp_path)) == 2
    whole = segment.read_bytes()
    log = FileEventLog(tmp_path, read_only=True)

    for bit in range(positions[1] * 8, positions[2] * 8):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << (bit % 8)
        segment.write_bytes(flipped)
        batches = read_to_end(log)
        assert values_of(batches) == [values[0], *values[2:]]
        assert [(d.position, d.length) for d in damage_of(batches)] == [
            (positions[1], positions[2] - positions[1])
        ]
    log.close()


def test_a_flipped_bit_of_a_seal_hides_nothing(tmp_path: Path) -> None:
    values = [bytes([n]) * 2000 for n in range(10)]
    fill(tmp_path, values, segment_bytes=4096)
    first, second = segments(tmp_path)[:2]
    whole = first.read_bytes()
    end = int(second.stem)

    for bit in range(8 * (end - 16), 8 * end):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << (bit % 8)
        first.write_bytes(flipped)
        log = FileEventLog(tmp_path, read_only=True)
        batches = read_to_end(log)
        log.close()
        assert values_of(batches) == values
        assert [(d.position, d.length) for d in damage_of(batches)] == [(end - 16, 16)]


def test_a_missing_segment_is_reported(tmp_path: Path) -> None:
    values = [bytes([n]) * 2000 for n in range(12)]
    positions = fill(tmp_path, values, segment_bytes=4096)
    _, second, third = segments(tmp_path)[:3]
    start, stop = int(second.stem), int(third.stem)
    second.unlink()

    log = FileEventLog(tmp_path, read_only=True)
    batches = read_to_end(log)

    kept = [v for v, p in zip(values, positions, strict=True) if not start <= p < stop]
    assert values_of(batches) == kept
    assert [(d.position, d.length) for d in damage_of(batches)] == [(start, stop - start)]
    assert log.read(start, 4096).next_position == stop
    log.close()


def test_stragglers_after_a_seal_do_not_exist(tmp_path: Path) -> None:
    values = [bytes([n]) * 2000 for n in range(5)]
    fill(tmp_path, values, segment_bytes=4096)
    sealed, newest = segments(tmp_path)
    straggler = sealed.read_bytes()[:2032]
    for has_next in (True, False):
        with sealed.open("ab") as file:
            file.write(straggler)
        if not has_next:
            newest.unlink()
        log = FileEventLog(tmp_path, read_only=True)
        expected = values if has_next else values[:4]
        assert values_of(read_to_end(log)) == expected
        assert values_of(read_to_end(log, int(newest.stem))) == (values[4:] if has_next else [])
        log.close()

    log = FileEventLog(tmp_path)
    assert log.append(one(b"goes on"))[0] == int(newest.stem)
    log.close()


def test_the_oldest_segments_are_dropped_by_size_and_by_age(tmp_path: Path) -> None:
    values = [bytes([n]) * 2000 for n in range(40)]
    fill(tmp_path, values, segment_bytes=4096)
    before = len(segments(tmp_path))
    behind = FileEventLog(tmp_path, read_only=True)
    position = behind.read(0, 4096).next_position

    by_size = FileEventLog(tmp_path, segment_bytes=4096, retain_bytes=20_000)
    dropped = by_size.drop_oldest()
    oldest, end = by_size.ends()
    assert dropped == before - len(segments(tmp_path)) > 0
    assert 0 < sum(path.stat().st_size for path in segments(tmp_path)) <= 20_000
    assert (
        values_of(read_to_end(by_size, oldest))
        == values[-len(values_of(read_to_end(by_size, oldest))) :]
    )
    with pytest.raises(LogError, match="too old"):
        by_size.read(0, 4096)
    for _ in range(20):
        by_size.append(one(bytes(2000)))
    assert sum(path.stat().st_size for path in segments(tmp_path)) <= 20_000 + 8192
    by_size.close()

    with pytest.raises(LogError, match="too old"):
        read_to_end(behind, position)
    behind.close()

    an_hour_on = FileEventLog(
        tmp_path, retain_ms=60_000, now_ms=lambda: time.time_ns() // 1_000_000 + 3_600_000
    )
    an_hour_on.drop_oldest()
    assert len(segments(tmp_path)) == 1
    assert an_hour_on.ends()[1] > end
    an_hour_on.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 256 KiB."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mount, unmount = (shutil.which(name) or "/bin/false" for name in ("mount", "umount"))
    command = [mount, "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(directory)]
    if subprocess.run(command, capture_output=True, timeout=10, check=False).returncode:
        if "CI" in os.environ:
            pytest.fail("a tmpfs must be mountable in CI")
        pytest.skip("mounting a tmpfs needs root")
    yield directory
    subprocess.run([unmount, "-l", str(directory)], timeout=10, check=True)


@pytest.mark.parametrize("frames_per_call", [1, 3])
@pytest.mark.parametrize("segment_bytes", [1 << 20, 16_384])
def test_a_full_disk(small_disk: Path, frames_per_call: int, segment_bytes: int) -> None:
    (small_disk / "ballast").write_bytes(bytes(100_000))
    log = FileEventLog(small_disk, segment_bytes=segment_bytes)
    expected: list[bytes] = []

    def append(n: int) -> None:
        values = [b"%d.%d" % (n, i) + bytes(n % 997 + 1000) for i in range(frames_per_call)]
        log.append([[Entry(Topic.LABELS, n, value)] for value in values])
        expected.extend(values)

    def append_until_full(numbers: Iterator[int]) -> None:
        with pytest.raises(LogError):
            deque(map(append, numbers), maxlen=0)

    numbers = itertools.count()
    append_until_full(numbers)
    append_until_full(itertools.islice(numbers, 5))
    assert values_of(read_to_end(log)) == expected
    (small_disk / "ballast").write_bytes(bytes(60_000))
    append_until_full(numbers)
    (small_disk / "ballast").unlink()
    before = len(expected)
    for n in itertools.islice(numbers, 10):
        append(n)

    assert len(expected) == before + 10 * frames_per_call
    assert values_of(read_to_end(log)) == expected
    log.close()
    reopened = FileEventLog(small_disk)
    assert values_of(read_to_end(reopened)) == expected
    reopened.close()


def test_an_error_of_the_disk_is_told_by_the_next_append(tmp_path: Path) -> None:
    log = FileEventLog(tmp_path, sync_interval_ms=1)
    log.append(one(b"x"))
    assert log._writer is not None
    descriptor = log._writer._descriptor
    kept = os.dup(descriptor)
    null = os.open("/dev/null", os.O_RDWR)  # takes writes, and refuses to sync
    os.dup2(null, descriptor)
    log._syncer.dirty = True
    deadline = time.monotonic() + 10
    while log._syncer.error is None and time.monotonic() < deadline:
        time.sleep(0.001)
    os.dup2(kept, descriptor)

    with pytest.raises(LogError, match="disk failed"):
        log.append(one(b"y"))

    assert values_of(read_to_end(log)) == [b"x"]
    with pytest.raises(LogError, match="disk failed"):
        log.close()
    os.close(kept)
    os.close(null)


def test_who_joins_takes_the_segment_size_of_who_was_first(tmp_path: Path) -> None:
    first = FileEventLog(tmp_path, segment_bytes=4096)
    second = FileEventLog(tmp_path, segment_bytes=1 << 20)
    for _ in range(10):
        first.append(one(bytes(1000)))
        second.append(one(bytes(1000)))

    assert len(segments(tmp_path)) >= 4
    assert len(values_of(read_to_end(first))) == 20
    first.close()
    second.close()


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b'{"version":2,"salt":1,"segment_bytes":4096}']
)
@pytest.mark.parametrize("read_only", [False, True])
def test_another_format_is_refused_and_left_alone(
    tmp_path: Path, content: bytes, read_only: bool
) -> None:
    fill(tmp_path, [b"x"])
    (tmp_path / "FORMAT").write_bytes(content)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    with pytest.raises(LogError):
        FileEventLog(tmp_path, read_only=read_only)

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_segments_without_a_format_and_a_directory_without_a_log(tmp_path: Path) -> None:
    fill(tmp_path / "log", [b"x"])
    (tmp_path / "log" / "FORMAT").unlink()

    with pytest.raises(LogError, match="no FORMAT"):
        FileEventLog(tmp_path / "log")
    with pytest.raises(LogError):
        FileEventLog(tmp_path / "none", read_only=True)
    assert not (tmp_path / "none").exists()


def test_a_reader_does_not_append(tmp_path: Path) -> None:
    fill(tmp_path, [b"x"])
    log = FileEventLog(tmp_path, read_only=True)

    with pytest.raises(LogError):
        log.append(one(b"y"))

    assert values_of(read_to_end(log)) == [b"x"]
    log.close()


def test_a_bounded_log_refuses_until_somebody_dropped_enough(tmp_path: Path) -> None:
    frame = [Entry(Topic.LABELS, 1, bytes(1_000))]
    log = FileEventLog(tmp_path, segment_bytes=4096, bytes_max=20_000)
    keeper = FileEventLog(tmp_path, segment_bytes=4096, retain_bytes=0)
    positions = []
    while log.ends()[1] <= 20_000:
        positions += log.append([frame])[:1]
    refused = 0
    for _ in range(5):  # the segment that is not full yet takes some more
        try:
            positions += log.append([frame])[:1]
        except LogError:
            refused += 1
    end = log.ends()[1]
    assert refused

    assert 20_000 < end < 30_000
    assert keeper.drop_oldest(before=positions[1]) == 0
    with pytest.raises(LogError, match="full"):
        log.append([frame])
    assert keeper.drop_oldest(before=positions[-1]) > 0
    assert log.append([frame])[0] == end
    assert log.ends()[0] <= positions[-1]
    log.close()
    keeper.close()
