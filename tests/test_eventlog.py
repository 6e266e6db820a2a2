"""What every EventLog keeps; an adapter joins by a factory in FACTORIES."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from featurizer.eventlog import Entry, EventLog, LogError, Topic
from featurizer.eventlog_file import FileEventLog
from featurizer.eventlog_kafka import TopicSize
from featurizer.eventlog_partition import KafkaEventLog
from featurizer.kafka_settings import KafkaSettings
from featurizer.topics import DAY_MS, TopicRow
from tests.servers import kafka_fixture  # noqa: F401 - a fixture

ROW = TopicRow("log", "-", "one", DAY_MS, False, "tests")

# What opens a log for the test with this folder.
Factory = Callable[[Path, pytest.FixtureRequest], EventLog]


def open_kafka(path: Path, request: pytest.FixtureRequest) -> EventLog:
    bootstrap = request.getfixturevalue("kafka").bootstrap
    return KafkaEventLog(KafkaSettings(bootstrap, prefix=path.name), ROW, TopicSize(1, 1))


FACTORIES: dict[str, Factory] = {
    "file": lambda path, _: FileEventLog(path / "log"),
    "file-rolling": lambda path, _: FileEventLog(path / "log", segment_bytes=4096),
    "kafka": open_kafka,
}


@pytest.fixture(params=FACTORIES)
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], EventLog]:
    """Open the log of this test; twice gives the same log again."""
    factory = FACTORIES[request.param]
    return lambda: factory(tmp_path, request)


@pytest.fixture
def log(opened: Callable[[], EventLog]) -> Iterator[EventLog]:
    log = opened()
    yield log
    log.close()


def read_all(log: EventLog, position: int = 0, max_bytes: int = 1 << 16) -> list[tuple[int, Entry]]:
    """Read to the end: each entry with its frame's position."""
    found = []
    while True:
        batch = log.read(position, max_bytes)
        assert batch.damage == ()
        for i in range(len(batch.topics)):
            entry = Entry(Topic(batch.topics[i]), int(batch.keys[i]), batch.value(i))
            found.append((int(batch.frames[i]), entry))
        if batch.next_position == position:
            return found
        position = batch.next_position


def random_frames(seed: int, count: int) -> list[list[Entry]]:
    print(f"seed {seed}")
    source = random.Random(seed)
    return [
        [
            Entry(
                source.choice(list(Topic)),
                source.getrandbits(64) - (1 << 63),
                source.randbytes(source.randrange(400)),
            )
            for _ in range(source.randint(1, 4))
        ]
        for _ in range(count)
    ]


def test_an_empty_log_has_nothing_to_read(log: EventLog) -> None:
    oldest, end = log.ends()

    batch = log.read(oldest, 1000)

    assert oldest == end
    assert len(batch.topics) == 0
    assert batch.next_position == end


def test_what_was_appended_is_read_in_order(log: EventLog) -> None:
    frames = random_frames(1, 200)

    positions = [log.append([frame])[0] for frame in frames]

    expected = [(p, e) for p, frame in zip(positions, frames, strict=True) for e in frame]
    assert read_all(log) == expected
    assert positions == sorted(set(positions))


def test_frames_of_one_call_follow_each_other(log: EventLog) -> None:
    frames = random_frames(2, 60)

    positions = []
    for start in range(0, 60, 6):
        positions += log.append(frames[start : start + 6])[:-1]

    expected = [(p, e) for p, frame in zip(positions, frames, strict=True) for e in frame]
    assert read_all(log) == expected


@pytest.mark.parametrize("max_bytes", [1, 4096, 5000, 1 << 20])
def test_the_size_of_a_read_does_not_change_what_is_read(log: EventLog, max_bytes: int) -> None:
    for frame in random_frames(3, 100):
        log.append([frame, frame])
    log.append([[Entry(Topic.MODELS, 0, bytes(100_000))]])

    assert read_all(log, max_bytes=max_bytes) == read_all(log)


def test_entries_have_unique_growing_positions(log: EventLog) -> None:
    for frame in random_frames(4, 20):
        log.append([frame])

    batch = log.read(0, 1 << 20)

    assert len(batch.positions) > 1
    assert (batch.positions[1:] > batch.positions[:-1]).all()
    assert (batch.frames <= batch.positions).all()
    assert batch.next_position > batch.positions[-1]


def test_reading_begins_at_any_frame(log: EventLog) -> None:
    frames = random_frames(5, 40)
    positions = log.append(frames[:20])[:-1] + [log.append([frame])[0] for frame in frames[20:]]

    for index, position in enumerate(positions):
        found = read_all(log, position)
        assert found[0] == (position, frames[index][0])
        assert len(found) == sum(len(frame) for frame in frames[index:])


def test_a_reader_follows(log: EventLog) -> None:
    position = log.ends()[1]
    for frame in random_frames(6, 50):
        log.append([frame])
        batch = log.read(position, 1 << 16)
        while len(batch.topics) == 0:
            assert batch.next_position > position
            batch = log.read(batch.next_position, 1 << 16)
        assert [batch.value(i) for i in range(len(batch.topics))] == [e.value for e in frame]
        position = batch.next_position


def test_ends_tell_where_the_next_frame_goes(log: EventLog) -> None:
    for frame in random_frames(7, 10):
        log.append([frame])

    oldest, end = log.ends()

    assert oldest == 0
    assert log.read(end, 1000).next_position == end
    assert log.append([[Entry(Topic.LABELS, 1, b"next")]])[0] == end


def test_a_closed_log_refuses_and_an_opened_one_goes_on(opened: Callable[[], EventLog]) -> None:
    first = opened()
    frames = random_frames(8, 30)
    positions = [first.append([frame])[0] for frame in frames[:15]]
    first.close()
    first.close()
    with pytest.raises(LogError):
        first.append([frames[0]])
    with pytest.raises(LogError):
        first.read(0, 1000)

    second = opened()
    positions += [second.append([frame])[0] for frame in frames[15:]]

    assert positions == sorted(set(positions))
    assert [e for _, e in read_all(second)] == [e for frame in frames for e in frame]
    second.close()


BAD_FRAMES = {
    "no entries": [],
    "key too large": [Entry(Topic.LABELS, 1 << 63, b"")],
    "topic too large": [(256, 0, b"")],
    "too many entries": [Entry(Topic.LABELS, 0, b"")] * 65_536,
    "too many bytes": [Entry(Topic.LABELS, 0, bytes(16 << 20))],
}


@pytest.mark.parametrize("bad", BAD_FRAMES.values(), ids=BAD_FRAMES.keys())
def test_a_bad_frame_is_refused_with_all_of_its_call(log: EventLog, bad: list[Entry]) -> None:
    good = [Entry(Topic.LABELS, 1, b"good")]

    with pytest.raises(LogError):
        log.append([good, bad])
    log.append([])

    assert read_all(log) == []
    log.append([good])
    assert len(read_all(log)) == 1


@pytest.mark.parametrize("position", [-8, 4, 1 << 40])
def test_a_position_that_is_none_is_refused(log: EventLog, position: int) -> None:
    log.append([[Entry(Topic.LABELS, 1, b"x")]])

    with pytest.raises(LogError):
        log.read(position, 1000)
