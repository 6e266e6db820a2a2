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
import os
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from featurizer.eventlog import Batch, Damage, Entry, LogError
from featurizer.frames import TORN_FILLER, encode_append, encode_seal
from featurizer.segments import (
    Format,
    SegmentReader,
    list_segments,
    read_format,
    seal_of,
    segment_path,
    sync_directory,
    write_format,
)

DEFAULT_SEGMENT_BYTES = 256 << 20
MIN_SEGMENT_BYTES = 4096
LOCK_TIMEOUT_MS = 10_000
APPEND_ATTEMPTS = 64

_WALK_BYTES = 4 << 20


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
                sync_directory(self._directory)
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
        self._salt, self._segment_bytes = read_format(directory)
        self._syncer = syncer
        self.first = first
        self._lock = threading.Lock()
        self._descriptor = -1
        self.rolls = 0  # segments that this writer created
        self._go_to(first)

    def append(self, frames: Sequence[Sequence[Entry]]) -> list[int]:
        data, offsets, enough = encode_append(frames, self._salt)
        with self._lock:
            if self._syncer.error is not None:
                raise LogError(f"the disk failed: {self._syncer.error}") from self._syncer.error
            try:
                position = self._place(data, enough)
            except OSError as error:
                raise LogError(f"cannot append: {error}") from error
        if len(frames) == 1:
            return [position, position + len(data)]
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
            if start < self._segment_bytes:
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
        seal = seal_of(self._descriptor, self._segment_bytes, self._salt)
        return seal is None or seal > start

    def _roll(self) -> None:
        """Seal the segment and go on to the next.

        What was appended counts already, so a failure is left to the next append.
        """
        try:
            os.write(self._descriptor, encode_seal(self._salt))
            self._advance()
        except OSError:
            return

    def _advance(self) -> None:
        """Go on to the newest segment, which need not be the next where others were faster."""
        seal = seal_of(self._descriptor, self._segment_bytes, self._salt)
        if seal is not None:
            self._go_to(max(self.first + seal, *list_segments(self._directory)))

    def _go_to(self, first: int) -> None:
        """Open the segment that begins at ``first``, created by whoever comes first."""
        path = segment_path(self._directory, first)
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
    while not try_lock(descriptor, mode):
        if time.monotonic() > deadline:
            raise LogError(f"no lock within {LOCK_TIMEOUT_MS} ms")
        time.sleep(0.001)


def try_lock(descriptor: int, mode: int) -> bool:
    """Take a flock where nobody has one against it; return whether it was taken."""
    try:
        fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _repair(directory: Path, segment_bytes: int) -> tuple[Damage, ...]:
    """Make a directory ready that nobody else writes: create it, or cut its torn tail."""
    if not (directory / "FORMAT").exists():
        if list_segments(directory):
            raise LogError(f"{directory} has segments and no FORMAT")
        write_format(directory, Format(secrets.randbits(32), segment_bytes))
        Path(segment_path(directory, 0)).touch()
        return ()
    content = read_format(directory)
    reader = SegmentReader(directory)
    try:
        damage = _cut_tail(directory, reader)
    finally:
        reader.close()
    write_format(directory, content._replace(segment_bytes=segment_bytes))
    return damage


def _cut_tail(directory: Path, reader: SegmentReader) -> tuple[Damage, ...]:
    first = reader.firsts()[-1]
    end = _last_position(reader, first)
    path = Path(segment_path(directory, reader.firsts()[-1]))
    path.touch()
    torn = path.stat().st_size - (end - reader.firsts()[-1])
    if torn <= 0:
        return ()
    os.truncate(path, path.stat().st_size - torn)
    return (Damage(end, torn, "torn tail cut"),)


def _last_position(reader: SegmentReader, position: int) -> int:
    while (after := reader.read(position, _WALK_BYTES).next_position) > position:
        position = after
    return position


class FileEventLog:
    """An EventLog in a directory of a local file system.

    ``segment_bytes`` is where a segment is full; the process that opens the log while no other
    writes to it decides for those who join. ``sync_interval_ms`` is what a power cut may cost.
    ``retain_bytes`` and ``retain_ms`` bound the log by size and by the age of a segment's last
    write; the newest segment always stays. A position older than what was kept raises LogError.
    ``bytes_max`` refuses appends instead, from the segment on that is the first beyond it until
    somebody dropped enough: for a journal that nobody may drop from who does not know what others
    still need.
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
        bytes_max: int | None = None,
        read_only: bool = False,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        if segment_bytes < MIN_SEGMENT_BYTES or sync_interval_ms < 1:
            raise ValueError(f"segment_bytes {segment_bytes}, sync_interval_ms {sync_interval_ms}")
        self._directory = Path(directory)
        self._retain_bytes = retain_bytes
        self._retain_ms = retain_ms
        self._bytes_max = bytes_max
        self._now_ms = now_ms
        self.opened_damage: tuple[Damage, ...] = ()
        self._lock_descriptor = -1
        self._writer: _Writer | None = None
        if not read_only:
            self._join(segment_bytes)
        self._reader = SegmentReader(self._directory)
        self._end = self._reader.firsts()[-1]
        if not read_only:
            self._syncer = _Syncer(self._directory, sync_interval_ms)
            self._writer = _Writer(self._directory, self._end, self._syncer)
            self._syncer.start()
        self._full = not self._has_room()

    def _join(self, segment_bytes: int) -> None:
        """Become one of the writers; who finds no other repairs the log first."""
        self._directory.mkdir(parents=True, exist_ok=True)
        lock = os.open(self._directory / "LOCK", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if try_lock(lock, fcntl.LOCK_EX):
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
        if self._full and not self._has_room():
            raise LogError(f"the log is full: it has more than {self._bytes_max} bytes")
        self._full = False
        rolls = writer.rolls
        positions = writer.append(frames)
        if writer.rolls != rolls:
            self.drop_oldest()
            self._full = not self._has_room()
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

    def _has_room(self) -> bool:
        if self._bytes_max is None:
            return True
        paths = [Path(segment_path(self._directory, f)) for f in list_segments(self._directory)]
        return sum(path.stat().st_size for path in paths) <= self._bytes_max

    def drop_oldest(self, before: int | None = None) -> int:
        """Delete the oldest segments that the bounds do not keep; return how many.

        With ``before`` only such as end at or before that position. A reader that is inside one
        may read it to its end; then LogError tells it that it fell behind.
        """
        firsts = list_segments(self._directory)
        paths = [Path(segment_path(self._directory, first)) for first in firsts]
        facts = [path.stat() for path in paths]
        kept_bytes = sum(fact.st_size for fact in facts)
        dropped = 0
        for path, fact, end in zip(paths[:-1], facts, firsts[1:], strict=False):
            if before is not None and end > before:
                break
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
