"""A log's segments once more in another directory, edited in place: each frame where it was.

Owns that every position means in the new log what it meant in the old one, and that the new one is
there whole or not at all. Must not know what is edited, nor why. Only reads the old one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from bisect import bisect_right
from collections.abc import Callable, Iterator
from pathlib import Path

from featurizer.entries import ALIGNMENT_BYTES, ENTRY_HEADER
from featurizer.eventlog import Batch, LogError
from featurizer.eventlog_file import try_lock
from featurizer.frames import FRAME_HEADER, HEADER_BYTES, MAGIC, checked_frame
from featurizer.segments import (
    Format,
    SegmentReader,
    list_segments,
    read_format,
    segment_path,
    sync_directory,
    write_format,
)

READ_BYTES = 4 << 20
DRAFT_SUFFIX = ".draft"

# Is given a batch and its bytes, in which the entries stand where the batch says.
Edit = Callable[[Batch, bytearray], None]
Tell = Callable[[int, int], None]  # bytes done, and of how many


@contextlib.contextmanager
def unwritten(directory: Path) -> Iterator[None]:
    """Keep writers off a log while the block runs. Raises LogError where it has one now."""
    try:
        lock = os.open(directory / "LOCK", os.O_RDONLY)
    except FileNotFoundError:  # a copy, which nobody has opened for writing
        yield
        return
    try:
        if not try_lock(lock, fcntl.LOCK_EX):
            raise LogError(f"{directory} is in use: stop the roles that write to it")
        yield
    finally:
        os.close(lock)


@contextlib.contextmanager
def drafted(target: Path) -> Iterator[Path]:
    """Yield a directory that becomes ``target`` where the block ends well, and goes otherwise.

    What a killed process left of one is deleted. Raises LogError where there is a ``target``
    already, or another process that makes it.
    """
    _refuse(target)
    draft = target.with_name(target.name + DRAFT_SUFFIX)
    draft.mkdir(parents=True, exist_ok=True)
    lock = os.open(draft / "LOCK", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not try_lock(lock, fcntl.LOCK_EX):
            raise LogError(f"{draft} is being written by another process")
        for path in draft.iterdir():
            if path.name != "LOCK":
                path.unlink()
        try:
            yield draft
            sync_directory(draft)
            _refuse(target)
            draft.rename(target)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        sync_directory(target.parent)
    finally:
        os.close(lock)


def rewrite_segments(source: Path, draft: Path, edit: Edit, tell: Tell) -> int:
    """Write what ``source`` holds to ``draft``, edited; return the position after it.

    Bytes that are damaged become zeros, and what follows the last whole frame is left out. The new
    segments are as old as the old ones, so that they are dropped when those would have been.
    Raises LogError and OSError, and what ``edit`` raises.
    """
    salt, firsts = secrets.randbits(32), list_segments(source)
    if not firsts:
        raise LogError(f"{source} has no segments")
    reader = SegmentReader(source)
    try:
        write_format(draft, Format(salt, read_format(source).segment_bytes))
        for first in firsts:
            Path(segment_path(draft, first)).touch(exist_ok=False)
        total = sum(Path(segment_path(source, first)).stat().st_size for first in firsts)
        position = firsts[0]
        while (batch := reader.read(position, READ_BYTES)).next_position != position:
            data = _edited(batch, position, edit, salt)
            first = firsts[bisect_right(firsts, position) - 1]
            with Path(segment_path(draft, first)).open("r+b") as file:
                file.seek(position - first)
                file.write(data)
            position = batch.next_position
            tell(min(position - firsts[0], total), total)
    finally:
        reader.close()
    for first in firsts:
        _settle(Path(segment_path(source, first)), Path(segment_path(draft, first)))
    return position


def leave_out(batch: Batch, data: bytearray, entry: int) -> None:
    """Take an entry out of its frame, which keeps its length. For an ``Edit`` to call.

    Raises LogError for one that is not the last of its frame.
    """
    frame, start = int(batch.frames[entry]), int(batch.starts[entry])
    if frame in batch.frames[entry + 1 : entry + 2]:
        raise LogError(f"the entry at {batch.positions[entry]} is not the last of its frame")
    first = entry - (int(batch.positions[entry]) - frame - 1)
    at = int(batch.starts[first]) - ENTRY_HEADER.size - HEADER_BYTES
    magic, size, crc, count, flags = FRAME_HEADER.unpack_from(data, at)
    FRAME_HEADER.pack_into(data, at, magic, size, crc, count - 1, flags)
    stop = start + int(batch.lengths[entry])
    data[start - ENTRY_HEADER.size : stop] = bytes(stop - start + ENTRY_HEADER.size)


def _edited(batch: Batch, position: int, edit: Edit, salt: int) -> bytearray:
    """Return the bytes from ``position`` up to the next, as they stand in the new log."""
    data = bytearray(batch.data[: batch.next_position - position])
    for damage in batch.damage:
        start = damage.position - position
        stop = min(start + damage.length, len(data))
        if start < stop:
            data[start:stop] = bytes(stop - start)
    edit(batch, data)
    at = 0
    while at + HEADER_BYTES <= len(data):
        magic, length, _, count, flags = FRAME_HEADER.unpack_from(data, at)
        if magic != MAGIC:  # zeros
            at += ALIGNMENT_BYTES
            continue
        end = at + HEADER_BYTES + length
        data[at:end] = checked_frame(bytes(data[at + HEADER_BYTES : end]), count, flags, salt)
        at = end
    return data


def _settle(old: Path, new: Path) -> None:
    """Put a segment on the disk, as old as the one that it was made from."""
    with new.open("r+b") as file:
        os.fsync(file.fileno())
    facts = old.stat()
    os.utime(new, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def _refuse(target: Path) -> None:
    if target.exists():
        raise LogError(f"{target} is there already")
