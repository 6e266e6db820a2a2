"""A log written once more: every entry where it was, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featurizer.eventlog import Batch, Entry, LogError, Topic
from featurizer.eventlog_file import FileEventLog
from featurizer.rewrite import drafted, leave_out, rewrite_segments, unwritten
from featurizer.segments import list_segments, read_format, segment_path

SEGMENT_BYTES = 4096


def fill(folder: Path) -> Path:
    """Write frames alone and in groups, of one entry and of several, over some segments."""
    rng = np.random.default_rng(11)
    log = FileEventLog(folder, segment_bytes=SEGMENT_BYTES)
    for number in range(60):
        sizes = rng.integers(1, 200, (rng.integers(1, 4), rng.integers(1, 4)))
        log.append([[Entry(Topic.LABELS, number, bytes(rng.bytes(n))) for n in f] for f in sizes])
    log.close()
    return folder


def rewritten(source: Path, target: Path, edit: object = lambda _batch, _data: None) -> int:
    with unwritten(source), drafted(target) as draft:
        return rewrite_segments(source, draft, edit, lambda _done, _all: None)  # type: ignore[arg-type]


def read(folder: Path) -> tuple[list[tuple[int, ...]], list[bytes], list[tuple[int, int]]]:
    """Return place, frame, topic and key of each entry, its bytes, and the damage."""
    log = FileEventLog(folder, read_only=True)
    position, places, values, lost = log.ends()[0], [], list[bytes](), []
    while (batch := log.read(position, 1 << 14)).next_position != position:
        columns = (batch.positions, batch.frames, batch.topics, batch.keys)
        places += list(zip(*(each.tolist() for each in columns), strict=True))
        values += [batch.value(i) for i in range(len(batch.topics))]
        lost += [(each.position, each.length) for each in batch.damage]
        position = batch.next_position
    log.close()
    return places, values, lost


def test_nothing_changes_but_the_salt(tmp_path: Path) -> None:
    source = fill(tmp_path / "log")
    end = rewritten(source, tmp_path / "new")
    assert len(list_segments(source)) > 5
    assert list_segments(tmp_path / "new") == list_segments(source)
    assert read(tmp_path / "new") == read(source)
    assert read_format(tmp_path / "new").salt != read_format(source).salt
    logs = [FileEventLog(each) for each in (source, tmp_path / "new")]
    assert not logs[1].opened_damage
    assert [each.append([[Entry(Topic.LABELS, 1, b"next")]])[0] for each in logs] == [end, end]
    for each in logs:
        each.close()


def test_an_entry_that_is_left_out_moves_no_other(tmp_path: Path) -> None:
    source = fill(tmp_path / "log")

    def edit(batch: Batch, data: bytearray) -> None:
        last = np.append(batch.frames[1:] != batch.frames[:-1], True)
        for entry in np.flatnonzero(last & (batch.keys % 5 == 0)).tolist():
            leave_out(batch, data, entry)

    rewritten(source, tmp_path / "new", edit)
    places, values, _ = read(source)
    frames = [frame for _, frame, _, _ in places]
    gone = [
        key % 5 == 0 and frame not in frames[i + 1 : i + 2]
        for i, (_, frame, _, key) in enumerate(places)
    ]
    kept = [i for i, is_gone in enumerate(gone) if not is_gone]
    assert 20 < len(kept) < len(places)
    made = read(tmp_path / "new")
    assert made == ([places[i] for i in kept], [values[i] for i in kept], [])


def test_only_the_last_entry_of_a_frame_can_be_left_out(tmp_path: Path) -> None:
    log = FileEventLog(tmp_path / "log")
    log.append([[Entry(Topic.LABELS, 1, b"one"), Entry(Topic.LABELS, 2, b"two")]])
    log.close()
    with pytest.raises(LogError, match="is not the last of its frame"):
        rewritten(tmp_path / "log", tmp_path / "new", lambda b, data: leave_out(b, data, 0))
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_damage_stays_where_it_was_and_says_nothing_any_more(tmp_path: Path) -> None:
    source = fill(tmp_path / "log")
    middle = Path(segment_path(source, list_segments(source)[2]))
    data = bytearray(middle.read_bytes())
    data[1_000:1_008] = b"damaged!"
    middle.write_bytes(data)
    rewritten(source, tmp_path / "new")
    assert read(tmp_path / "new") == read(source)
    [(position, length)] = read(source)[2]
    made = Path(segment_path(tmp_path / "new", list_segments(source)[2])).read_bytes()
    first = position - list_segments(source)[2]
    assert made[first : first + length] == bytes(length)


def test_a_torn_tail_is_not_taken_along(tmp_path: Path) -> None:
    source = fill(tmp_path / "log")
    newest = Path(segment_path(source, list_segments(source)[-1]))
    newest.write_bytes(newest.read_bytes() + b"torn by a crash!")
    rewritten(source, tmp_path / "new")
    assert read(tmp_path / "new")[0] == read(source)[0]
    assert not FileEventLog(tmp_path / "new").opened_damage


def test_what_is_there_or_in_use_is_refused(tmp_path: Path) -> None:
    source = fill(tmp_path / "log")
    (tmp_path / "other").mkdir()
    with pytest.raises(LogError, match="other is there already"):
        rewritten(source, tmp_path / "other")
    log = FileEventLog(source)
    with pytest.raises(LogError, match="is in use: stop the roles that write to it"):
        rewritten(source, tmp_path / "new")
    log.close()
    with drafted(tmp_path / "new") as draft:
        with pytest.raises(LogError, match="is being written by another process"):
            rewritten(source, tmp_path / "new")
        assert draft.is_dir()
    assert {path.name for path in tmp_path.iterdir()} == {"log", "other", "new"}
