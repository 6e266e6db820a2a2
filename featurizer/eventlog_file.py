"""The event log on local files: segments, appending, following, retention.

Owns the directory's files and the order of writes to them. Knows a frame only through
``featurizer.frames`` and an entry's value not at all. The directory must be on a local file
system of Linux, where a write with O_APPEND is atomic against others; NFS is not one.

Position 0 is the first byte ever written; a segment file is named by the position of its first
byte. Any number of processes append to the newest segment without a lock between them. Whoever
finds it longer than ``segment_bytes`` appends a seal; the next segment begins, by name, where the
first seal ends, and whatever stands after that seal does not exist: its writer, who sees that its
bytes start beyond ``segment_bytes`` and that a seal is before them, appends them again.

``FORMAT`` holds the version, the salt and ``segment_bytes``, which all processes must agree on.
Writers hold a shared lock on ``LOCK``; one that is alone cuts a torn tail when it opens.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from featurizer.eventlog import Batch, Damage, Entry, LogError
from featurizer.frames import (
    TORN_FILLER,
    FrameScanner,
    Scanned,
    encode_append,
    encode_seal,
    find_seal,
    no_entries,
)

FORMAT_VERSION = 1
DEFAULT_SEGMENT_BYTES = 256 << 20
MIN_SEGMENT_BYTES = 4096
MIN_READ_BYTES = 4096
MAX_OPEN_SEGMENTS = 8
LOCK_TIMEOUT_MS = 10_000
APPEND_ATTEMPTS = 64

_GROWING = 1 << 62
_SUFFIX = ".seg"
_MISSING = "bytes or segment missing"
_WALK_BYTES = 4 << 20


class _Format(NamedTuple):
    salt: int
    segment_bytes: int


def _read_format(directory: Path) -> _Format:
    try:
        fields = json.loads((directory / "FORMAT").read_bytes())
        version = fields["version"]
        if version != FORMAT_VERSION:
            raise LogError(f"{directory} has log format {version}, this is {FORMAT_VERSION}")
        return _Format(int(fields["salt"]), int(fields["segment_bytes"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LogError(f"{directory} is not an event log: {error!r}") from error


def _write_format(directory: Path, content: _Format) -> None:
    fields = {"version": FORMAT_VERSION, **content._asdict()}
    draft = directory / "FORMAT.new"
    with draft.open("w") as file:
        json.dump(fields, file)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(directory / "FORMAT")
    _sync_directory(directory)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _segment_path(directory: Path, first: int) -> str:
    return f"{directory}/{first:020d}{_SUFFIX}"


def _list_segments(directory: Path) -> list[int]:
    """Return the first positions of the segment files, ascending."""
    stems = (path.stem for path in directory.iterdir() if path.suffix == _SUFFIX)
    return sorted(int(stem) for stem in stems if len(stem) == 20 and stem.isdigit())


def _find_seal(descriptor: int, segment_bytes: int, salt: int) -> int | None:
    """Return the offset after a segment's first seal, which never begins before segment_bytes."""
    start = segment_bytes & ~7
    size = os.fstat(descriptor).st_size - start
    found = find_seal(os.pread(descriptor, size, start), salt) if size > 0 else None
    return None if found is None else start + found


@dataclass(slots=True)
class _Segment:
    """An open segment. Positions up to ``known`` are surely before its seal."""

    first: int
    descriptor: int
    known: int
    stop: int = _GROWING  # after the last byte that counts, once there can be no more
    next: int = _GROWING  # where to read on from ``stop``


class _Reader:
    """Reads frames at any position of a directory that others append to."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._salt = _read_format(directory).salt
        self._scanner = FrameScanner(self._salt)
        self._lock = threading.Lock()
        self._firsts: list[int] = []  # the last one's file may be still to be created
        self._open: dict[int, _Segment] = {}
        self._current = _Segment(0, -1, -1)
        self._nothing = no_entries(-1)
        self._closed = False

    def read(self, position: int, max_bytes: int) -> Batch:
        with self._lock:
            segment = self._current
            if not segment.first <= position <= segment.known:
                found = self._seek(position)
                if found is None:
                    return self._at_end(position)
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
        with self._lock:
            for segment in self._open.values():
                os.close(segment.descriptor)
            self._open.clear()
            self._firsts = []
            self._current = _Segment(0, -1, -1)
            self._closed = True

    def _at_end(self, position: int) -> Batch:
        if self._nothing.next_position != position:
            self._nothing = no_entries(position)
        return self._nothing

    def _read_block(self, segment: _Segment, position: int, size: int) -> Batch:
        while True:
            size = min(size, segment.stop - position)
            data = os.pread(segment.descriptor, size, position - segment.first)
            if not data and segment.stop == _GROWING:
                return self._at_end(position)
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
        self, segment: _Segment, position: int, data: bytes, final: bool, found: Scanned
    ) -> Batch:
        """Return what was found in a segment that does not grow: its end is no "not yet"."""
        segment.known = segment.stop - 1
        at = found.next_position
        if at < segment.stop and not final:
            return self._scanner.batch(data, found, position, at, ())
        rest = (Damage(at, segment.next - at, _MISSING),) if at < segment.next else ()
        return self._scanner.batch(data, found, position, segment.next, rest)

    def _seek(self, position: int) -> _Segment | None:
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
            self._firsts = _list_segments(self._directory)
            newest = self._opened(self._firsts[-1]) if self._firsts else None
            if newest is None:
                raise LogError(f"{self._directory} has no segments")
            size = os.fstat(newest.descriptor).st_size
            segment_bytes = _read_format(self._directory).segment_bytes
            seal = _find_seal(newest.descriptor, segment_bytes, self._salt)
            if seal is None:
                newest.known = max(newest.known, newest.first + size)
                return
            self._firsts.append(newest.first + seal)
            if self._opened(self._firsts[-1]) is None:
                return

    def _opened(self, first: int) -> _Segment | None:
        """Return the segment that begins at ``first``, None where there is no such file."""
        if first not in self._open:
            try:
                descriptor = os.open(_segment_path(self._directory, first), os.O_RDONLY)
            except FileNotFoundError:
                return None
            if len(self._open) == MAX_OPEN_SEGMENTS:
                oldest = next(key for key in self._open if key != self._current.first)
                os.close(self._open.pop(oldest).descriptor)
            self._open[first] = _Segment(first, descriptor, known=first)
        return self._open[first]

    def _is_followed(self, segment: _Segment) -> bool:
        later = [first for first in _list_segments(self._directory) if first > segment.first]
        if later:
            self._close_off(segment, later[0])
        return bool(later)

    def _close_off(self, segment: _Segment, end: int) -> None:
        """Note that the segment cannot grow, as another begins at ``end``."""
        segment.next = end
        segment.stop = min(end, segment.first + os.fstat(segment.descriptor).st_size)
        if segment.stop < end:
            segment_bytes = _read_format(self._directory).segment_bytes
            seal = _find_seal(segment.descriptor, segment_bytes, self._salt)
            segment.stop = segment.stop if seal is None else segment.first + seal
        segment.known = segment.stop - 1


class _Syncer(threading.Thread):
    """Puts what was appended on the disk, a fixed time after it was; an error stays."""

    def __init__(self, directory: Path, interval_ms: int) -> None:
        super().__init__(name="eventlog-sync", daemon=True)
        self._directory = directory
        self._interval_s = interval_ms / 1000
        self._stopping = threading.Event()
        self._retired: list[int] = []
        self.descriptor = -1
        self.dirty = False
        self.error: OSError | None = None

    def run(self) -> None:
        while not self._stopping.wait(self._interval_s):
            self.sync()

    def sync(self) -> None:
        try:
            if self.dirty:
                self.dirty = False  # before the sync: what comes during it counts for the next
                os.fdatasync(self.descriptor)
            if self._retired:
                _sync_directory(self._directory)
            while self._retired:
                os.fdatasync(self._retired[0])
                os.close(self._retired.pop(0))
        except OSError as error:
            self.error = error

    def follow(self, descriptor: int) -> None:
        """Go over to a new segment; the old one is closed when it is on the disk."""
        old, self.descriptor = self.descriptor, descriptor
        if old >= 0:
            self._retired.append(old)

    def stop(self) -> None:
        """End the thread, sync, and close the descriptor."""
        self._stopping.set()
        self.join()
        self.follow(-1)
        self.dirty = False
        self.sync()


class _Writer:
    """Appends to the newest segment, and rolls to the next one."""

    def __init__(self, directory: Path, first: int, syncer: _Syncer) -> None:
        self._directory = directory
        self._format = _read_format(directory)
        self._syncer = syncer
        self.first = first
        self._lock = threading.Lock()
        self._descriptor = -1
        self.rolls = 0  # segments that this writer created
        self._go_to(first)

    def append(self, frames: Sequence[Sequence[Entry]]) -> list[int]:
        data, offsets, enough = encode_append(frames, self._format.salt)
        with self._lock:
            if self._syncer.error is not None:
                raise LogError(f"the disk failed: {self._syncer.error}") from self._syncer.error
            try:
                position = self._place(data, enough)
            except OSError as error:
                raise LogError(f"cannot append: {error}") from error
        return [position + offset for offset in (*offsets, len(data))]

    def close(self) -> None:
        """Refuse every later append; the syncer still has the descriptor."""
        with self._lock:
            self._descriptor = -1

    def _place(self, data: bytes, enough: int) -> int:
        """Append until the bytes are where they count; return their position."""
        for _ in range(APPEND_ATTEMPTS):
            start = self._write(data, enough)
            if start & 7:
                start = self._realign(data, enough)
            if start < self._format.segment_bytes:
                return self.first + start
            position = self.first + start
            if self._is_before_seal(start):
                self._roll()
                return position
            self._advance()
        raise LogError(f"others were faster {APPEND_ATTEMPTS} times")

    def _write(self, data: bytes, enough: int) -> int:
        """Write once; return the offset of the first byte in the segment."""
        written = os.write(self._descriptor, data)
        self._syncer.dirty = True
        if written < enough:
            raise LogError(f"the disk is full: {written} of {len(data)} bytes written")
        return os.lseek(self._descriptor, 0, os.SEEK_CUR) - written

    def _realign(self, data: bytes, enough: int) -> int:
        """Append again, after the bytes that a torn write lacks to a multiple of 8.

        Only who holds the segment's lock writes other than multiples of 8, so the remainder of
        its length holds still, unless another write is torn.
        """
        _lock_within(self._descriptor, fcntl.LOCK_EX)
        try:
            for _ in range(APPEND_ATTEMPTS):
                padding = -os.fstat(self._descriptor).st_size & 7
                start = self._write(TORN_FILLER * padding + data, padding + enough) + padding
                if not start & 7:
                    return start
        finally:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        raise LogError(f"writes were torn {APPEND_ATTEMPTS} times")

    def _is_before_seal(self, start: int) -> bool:
        seal = _find_seal(self._descriptor, self._format.segment_bytes, self._format.salt)
        return seal is None or seal > start

    def _roll(self) -> None:
        """Seal the segment and go on to the next.

        What was appended counts already, so a failure is left to the next append.
        """
        try:
            os.write(self._descriptor, encode_seal(self._format.salt))
            self._advance()
        except OSError:
            return

    def _advance(self) -> None:
        """Go on to the newest segment, which need not be the next where others were faster."""
        seal = _find_seal(self._descriptor, self._format.segment_bytes, self._format.salt)
        if seal is not None:
            self._go_to(max(self.first + seal, *_list_segments(self._directory)))

    def _go_to(self, first: int) -> None:
        """Open the segment that begins at ``first``, created by whoever comes first."""
        path = _segment_path(self._directory, first)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
        try:
            self._descriptor = os.open(path, flags | os.O_EXCL, 0o644)
            self.rolls += 1
        except FileExistsError:
            self._descriptor = os.open(path, flags, 0o644)
        self.first = first
        self._syncer.follow(self._descriptor)


def _lock_within(descriptor: int, mode: int) -> None:
    """Take a flock; raise LogError after LOCK_TIMEOUT_MS."""
    deadline = time.monotonic() + LOCK_TIMEOUT_MS / 1000
    while not _try_lock(descriptor, mode):
        if time.monotonic() > deadline:
            raise LogError(f"no lock within {LOCK_TIMEOUT_MS} ms")
        time.sleep(0.001)


def _try_lock(descriptor: int, mode: int) -> bool:
    try:
        fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _repair(directory: Path, segment_bytes: int) -> tuple[Damage, ...]:
    """Make a directory ready that nobody else writes: create it, or cut its torn tail."""
    if not (directory / "FORMAT").exists():
        if _list_segments(directory):
            raise LogError(f"{directory} has segments and no FORMAT")
        _write_format(directory, _Format(secrets.randbits(32), segment_bytes))
        Path(_segment_path(directory, 0)).touch()
        return ()
    content = _read_format(directory)
    reader = _Reader(directory)
    try:
        damage = _cut_tail(directory, reader)
    finally:
        reader.close()
    _write_format(directory, content._replace(segment_bytes=segment_bytes))
    return damage


def _cut_tail(directory: Path, reader: _Reader) -> tuple[Damage, ...]:
    first = reader.firsts()[-1]
    end = _last_position(reader, first)
    path = Path(_segment_path(directory, reader.firsts()[-1]))
    path.touch()
    torn = path.stat().st_size - (end - reader.firsts()[-1])
    if torn <= 0:
        return ()
    os.truncate(path, path.stat().st_size - torn)
    return (Damage(end, torn, "torn tail cut"),)


def _last_position(reader: _Reader, position: int) -> int:
    while (after := reader.read(position, _WALK_BYTES).next_position) > position:
        position = after
    return position


class FileEventLog:
    """An EventLog in a directory of a local file system.

    ``segment_bytes`` is where a segment is full; the process that opens the log while no other
    writes to it decides for those who join. ``sync_interval_ms`` is what a power cut may cost.
    ``retain_bytes`` and ``retain_ms`` bound the log by size and by the age of a segment's last
    write; the newest segment always stays. A position older than what was kept raises LogError.
    ``read_only`` follows a log that others write. ``opened_damage`` tells what was cut at open.

    One object serves all threads of a process. A fork must not share it: open one in each child.
    Raises LogError for a directory that holds anything but a log of this version.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        segment_bytes: int = DEFAULT_SEGMENT_BYTES,
        sync_interval_ms: int = 50,
        retain_bytes: int | None = None,
        retain_ms: int | None = None,
        read_only: bool = False,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        if segment_bytes < MIN_SEGMENT_BYTES or sync_interval_ms < 1:
            raise ValueError(f"segment_bytes {segment_bytes}, sync_interval_ms {sync_interval_ms}")
        self._directory = Path(directory)
        self._retain_bytes = retain_bytes
        self._retain_ms = retain_ms
        self._now_ms = now_ms
        self.opened_damage: tuple[Damage, ...] = ()
        self._lock_descriptor = -1
        self._writer: _Writer | None = None
        if not read_only:
            self._join(segment_bytes)
        self._reader = _Reader(self._directory)
        self._end = self._reader.firsts()[-1]
        if not read_only:
            self._syncer = _Syncer(self._directory, sync_interval_ms)
            self._writer = _Writer(self._directory, self._end, self._syncer)
            self._syncer.start()

    def _join(self, segment_bytes: int) -> None:
        """Become one of the writers; who finds no other repairs the log first."""
        self._directory.mkdir(parents=True, exist_ok=True)
        lock = os.open(self._directory / "LOCK", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if _try_lock(lock, fcntl.LOCK_EX):
                self.opened_damage = _repair(self._directory, segment_bytes)
            _lock_within(lock, fcntl.LOCK_SH)
        except BaseException:
            os.close(lock)
            raise
        self._lock_descriptor = lock

    def append(self, frames: Sequence[Sequence[Entry]]) -> list[int]:
        """Append the frames in one write; return their positions, then that after them all."""
        writer = self._writer
        if writer is None:
            raise LogError("the log is closed or open for reading only")
        if not frames:
            return []
        rolls = writer.rolls
        positions = writer.append(frames)
        if writer.rolls != rolls:
            self.drop_oldest()
        else:
            self._reader.extend(writer.first, positions[-1])
        return positions

    def read(self, position: int, max_bytes: int) -> Batch:
        """Return entries from ``position``, which is a frame's or a ``next_position``."""
        return self._reader.read(position, max_bytes)

    def ends(self) -> tuple[int, int]:
        """Return the oldest position kept and the position after the last whole frame."""
        firsts = self._reader.firsts()
        self._end = _last_position(self._reader, max(self._end, firsts[-1]))
        return firsts[0], self._end

    def drop_oldest(self) -> int:
        """Delete the oldest segments that the bounds do not keep; return how many.

        A reader that is inside one may read it to its end; then LogError tells it that it fell
        behind.
        """
        paths = [Path(_segment_path(self._directory, f)) for f in _list_segments(self._directory)]
        facts = [path.stat() for path in paths]
        kept_bytes = sum(fact.st_size for fact in facts)
        dropped = 0
        for path, fact in zip(paths[:-1], facts, strict=False):
            too_big = self._retain_bytes is not None and kept_bytes > self._retain_bytes
            age_ms = self._now_ms() - fact.st_mtime_ns // 1_000_000
            if not too_big and not (self._retain_ms is not None and age_ms > self._retain_ms):
                break
            path.unlink(missing_ok=True)
            kept_bytes -= fact.st_size
            dropped += 1
        return dropped

    def close(self) -> None:
        """Sync and let go of all files. Raises LogError where the disk failed, once."""
        writer, self._writer = self._writer, None
        self._reader.close()
        if writer is not None:
            writer.close()
            self._syncer.stop()
            os.close(self._lock_descriptor)
            if self._syncer.error is not None:
                raise LogError(f"the disk failed: {self._syncer.error}")
