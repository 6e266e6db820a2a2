"""The files of the event log: their names, their format, and reading them while others append.

Owns how a directory of segments is read; who writes to it, and when, is eventlog_file's business.
"""

from __future__ import annotations

import json
import os
import threading
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from featurizer.eventlog import Batch, Damage, LogError
from featurizer.frames import FrameScanner, Scanned, find_seal, no_entries

FORMAT_VERSION = 1
MIN_READ_BYTES = 4096
MAX_OPEN_SEGMENTS = 8

_GROWING = 1 << 62
_SUFFIX = ".seg"
_MISSING = "bytes or segment missing"


class Format(NamedTuple):
    """What all processes on one log must agree on."""

    salt: int
    segment_bytes: int


def read_format(directory: Path) -> Format:
    """Return the format of the log in a directory. Raises LogError where there is none."""
    try:
        fields = json.loads((directory / "FORMAT").read_bytes())
        version = fields["version"]
        if version != FORMAT_VERSION:
            raise LogError(f"{directory} has log format {version}, this is {FORMAT_VERSION}")
        return Format(int(fields["salt"]), int(fields["segment_bytes"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LogError(f"{directory} is not an event log: {error!r}") from error


def write_format(directory: Path, content: Format) -> None:
    """Write the format of a new log, durably."""
    fields = {"version": FORMAT_VERSION, **content._asdict()}
    draft = directory / "FORMAT.new"
    with draft.open("w") as file:
        json.dump(fields, file)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(directory / "FORMAT")
    sync_directory(directory)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def segment_path(directory: Path, first: int) -> str:
    """Return the file of the segment that begins at position ``first``."""
    return f"{directory}/{first:020d}{_SUFFIX}"


def list_segments(directory: Path) -> list[int]:
    """Return the first positions of the segment files, ascending."""
    stems = (path.stem for path in directory.iterdir() if path.suffix == _SUFFIX)
    return sorted(int(stem) for stem in stems if len(stem) == 20 and stem.isdigit())


def seal_of(descriptor: int, segment_bytes: int, salt: int) -> int | None:
    """Return the offset after a segment's first seal, which never begins before segment_bytes."""
    start = segment_bytes & ~7
    size = os.fstat(descriptor).st_size - start
    found = find_seal(os.pread(descriptor, size, start), salt) if size > 0 else None
    return None if found is None else start + found


@dataclass(slots=True)
class Segment:
    """An open segment. Positions up to ``known`` are surely before its seal."""

    first: int
    descriptor: int
    known: int
    stop: int = _GROWING  # after the last byte that counts, once there can be no more
    next: int = _GROWING  # where to read on from ``stop``


class SegmentReader:
    """Reads frames at any position of a directory that others append to."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._salt = read_format(directory).salt
        self._scanner = FrameScanner(self._salt)
        self._lock = threading.Lock()
        self._firsts: list[int] = []  # the last one's file may be still to be created
        self._open: dict[int, Segment] = {}
        self._current = Segment(0, -1, -1)
        self._closed = False

    def read(self, position: int, max_bytes: int) -> Batch:
        """Return whole frames from ``position`` on, as EventLog.read."""
        with self._lock:
            segment = self._current
            # Whether there is more is asked before every decision, and the usual answer is no.
            if segment.stop == _GROWING and segment.first <= position <= segment.known:
                size = os.lseek(segment.descriptor, 0, os.SEEK_END)
                if position == segment.first + size:
                    return no_entries(position)
            if not segment.first <= position <= segment.known:
                found = self._seek(position)
                if found is None:
                    return no_entries(position)
                segment = self._current = found
            if position >= segment.stop:
                missing = Damage(position, segment.next - position, _MISSING)
                return no_entries(segment.next, missing)
            return self._read_block(segment, position, max(max_bytes, MIN_READ_BYTES))

    def firsts(self) -> list[int]:
        """Return where each segment begins; the last one's file may be still to be created."""
        with self._lock:
            self._refresh()
            return self._firsts

    def extend(self, first: int, end: int) -> None:
        """Take in that this process has written the segment from ``first`` on up to ``end``."""
        with self._lock:
            if self._current.first == first and self._current.known >= 0:
                self._current.known = max(self._current.known, end)

    def close(self) -> None:
        """Let go of all files."""
        with self._lock:
            for segment in self._open.values():
                os.close(segment.descriptor)
            self._open.clear()
            self._firsts = []
            self._current = Segment(0, -1, -1)
            self._closed = True

    def _read_block(self, segment: Segment, position: int, size: int) -> Batch:
        while True:
            size = min(size, segment.stop - position)
            data = os.pread(segment.descriptor, size, position - segment.first)
            if not data and segment.stop == _GROWING:
                return no_entries(position)
            final = len(data) < size or position + size == segment.stop
            found = self._scanner.scan(data, final, position)
            if final or found.next_position > position:
                break
            size = max(2 * size, found.needed_bytes)
        if found.sealed >= 0:
            segment.stop = found.sealed
            segment.next = min(segment.next, found.sealed)
        if segment.stop < _GROWING:
            return self._closed_batch(segment, position, data, final, found)
        if final and found.next_position == position and self._is_followed(segment):
            return self._read_block(segment, position, size)
        segment.known = max(segment.known, found.next_position)
        return self._scanner.batch(data, found, position, found.next_position, ())

    def _closed_batch(
        self, segment: Segment, position: int, data: bytes, final: bool, found: Scanned
    ) -> Batch:
        """Return what was found in a segment that does not grow: its end is no "not yet"."""
        segment.known = segment.stop - 1
        at = found.next_position
        if at < segment.stop and not final:
            return self._scanner.batch(data, found, position, at, ())
        rest = (Damage(at, segment.next - at, _MISSING),) if at < segment.next else ()
        return self._scanner.batch(data, found, position, segment.next, rest)

    def _seek(self, position: int) -> Segment | None:
        """Return the segment that holds ``position``, None where it is still to be created."""
        if position < 0 or position & 7:
            raise LogError(f"{position} is not a position of a log")
        index = bisect_right(self._firsts, position) - 1
        segment = self._open.get(self._firsts[index]) if index >= 0 else None
        if segment is not None and position <= segment.known:
            return segment
        self._refresh()
        index = bisect_right(self._firsts, position) - 1
        if index < 0:
            raise LogError(f"position {position} is too old: the log begins at {self._firsts[0]}")
        segment = self._opened(self._firsts[index])
        if index + 1 < len(self._firsts) and segment is not None:
            self._close_off(segment, self._firsts[index + 1])
        elif position > (self._firsts[index] if segment is None else segment.known):
            raise LogError(f"position {position} is beyond the end of the log")
        return segment

    def _refresh(self) -> None:
        """List the segments anew, and find out up to where the newest is not sealed."""
        if self._closed:
            raise LogError("the log is closed")
        while True:
            self._firsts = list_segments(self._directory)
            newest = self._opened(self._firsts[-1]) if self._firsts else None
            if newest is None:
                raise LogError(f"{self._directory} has no segments")
            size = os.fstat(newest.descriptor).st_size
            segment_bytes = read_format(self._directory).segment_bytes
            seal = seal_of(newest.descriptor, segment_bytes, self._salt)
            if seal is None:
                newest.known = max(newest.known, newest.first + size)
                return
            self._firsts.append(newest.first + seal)
            if self._opened(self._firsts[-1]) is None:
                return

    def _opened(self, first: int) -> Segment | None:
        """Return the segment that begins at ``first``, None where there is no such file."""
        if first not in self._open:
            try:
                descriptor = os.open(segment_path(self._directory, first), os.O_RDONLY)
            except FileNotFoundError:
                return None
            if len(self._open) == MAX_OPEN_SEGMENTS:
                oldest = next(key for key in self._open if key != self._current.first)
                os.close(self._open.pop(oldest).descriptor)
            self._open[first] = Segment(first, descriptor, known=first)
        return self._open[first]

    def _is_followed(self, segment: Segment) -> bool:
        later = [first for first in list_segments(self._directory) if first > segment.first]
        if later:
            self._close_off(segment, later[0])
        return bool(later)

    def _close_off(self, segment: Segment, end: int) -> None:
        """Note that the segment cannot grow, as another begins at ``end``."""
        segment.next = end
        segment.stop = min(end, segment.first + os.fstat(segment.descriptor).st_size)
        if segment.stop < end:
            segment_bytes = read_format(self._directory).segment_bytes
            seal = seal_of(segment.descriptor, segment_bytes, self._salt)
            segment.stop = segment.stop if seal is None else segment.first + seal
        segment.known = segment.stop - 1
