"""Every metric there is, and the arrays that they are counted in.

Owns the table METRICS and the layout of a file of meters: a header, a float64 for each counter and
gauge, for a histogram one a bucket and its sum; then a ring of the last appends. One process
writes a file, mapped; any other reads it, also after a kill, and whoever plays that role next goes
on counting. Must not know who reads, nor when.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import mmap
import os
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Metric(NamedTuple):
    """One metric. ``labels`` names each label's values; ``buckets`` are upper bounds."""

    name: str
    kind: str  # counter, gauge, histogram
    unit: str
    meaning: str
    labels: Mapping[str, Sequence[str]] = {}
    buckets: Sequence[float] = ()


METHODS = ("Score", "ScoreBatch", "ReportLabels", "GetDecision")
# The codes of gRPC that a call can end with here.
CODES = (
    "OK", "INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION",
    "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "UNAVAILABLE", "INTERNAL", "UNAUTHENTICATED",
    "PERMISSION_DENIED", "OTHER",
)  # fmt: skip
OUTCOMES = ("approve", "review", "decline")
RUNGS = ("full", "partial", "rules_only")
STEP_LABELS = ("accept", "snapshot", "view", "model", "policy")
CONSUMERS = ("featurizer", "trainer", "console", "relay", "split", "fold")
SOURCES = ("chargeback", "analyst", "customer", "issuer")
VERDICTS = ("fraud", "legitimate", "unclear", "retracted")
CHANGES = (
    "promoted", "refused", "rolled_back", "pinned", "unpinned", "canary", "learning_stopped",
    "learning_resumed", "alarmed", "reporter_distrusted", "reporter_trusted", "measured", "loaded",
)  # fmt: skip
_CALL_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
_STEP_S = (1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 5e-3, 0.025, 0.1)
_LEARN_S = (1.0, 5.0, 15.0, 60.0, 120.0, 300.0, 600.0, 1_800.0, 7_200.0)

METRICS = (
    Metric("fraud_calls_total", "counter", "1", "calls, by how they ended",
           {"method": METHODS, "code": CODES}),
    Metric("fraud_call_seconds", "histogram", "s", "from a call's arrival to its answer",
           {"method": METHODS}, _CALL_S),
    Metric("fraud_append_seconds", "histogram", "s", "append to the log, of decisions or labels",
           {}, _STEP_S),
    Metric("fraud_decisions_total", "counter", "1", "decisions on the log",
           {"outcome": OUTCOMES, "rung": RUNGS}),
    Metric("fraud_decision_seconds", "histogram", "s", "from arrival to the decision",
           {}, _CALL_S),
    Metric("fraud_step_seconds", "histogram", "s", "steps of a decision",
           {"step": STEP_LABELS}, _STEP_S),
    Metric("fraud_score", "histogram", "1", "calibrated probabilities of fraud",
           {}, (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)),
    Metric("fraud_score_drift", "gauge", "1",
           "population stability index of the scores, against the first ones of the model"),
    Metric("fraud_labels_total", "counter", "1", "labels on the log",
           {"source": SOURCES, "verdict": VERDICTS}),
    Metric("fraud_label_to_serving_seconds", "histogram", "s",
           "from a label on the log until a scorer decides by a model that learnt from it",
           {}, _LEARN_S),
    Metric("fraud_model_events_total", "counter", "1", "what happened to models",
           {"change": CHANGES}),
    Metric("fraud_position", "gauge", "By", "log position that a consumer has reached",
           {"consumer": CONSUMERS}),
    Metric("fraud_backlog_bytes", "gauge", "By", "of the log that a consumer has not read yet",
           {"consumer": CONSUMERS}),
    Metric("fraud_lag_seconds", "gauge", "s", "age of the oldest that a consumer has not read yet",
           {"consumer": CONSUMERS}),
    Metric("fraud_traces_kept_total", "counter", "1", "decisions whose trace is kept",
           {"why": ("outcome", "degraded", "slow", "share", "model", "label")}),
    Metric("fraud_spans_total", "counter", "1", "spans, by what became of them",
           {"what": ("built", "received", "sent", "dropped")}),
    Metric("fraud_readmodel_rows", "gauge", "1", "decisions in the read model"),
    Metric("fraud_certificate_expiry_seconds", "gauge", "s",
           "when the certificate of the gRPC port ends, since 1970; 0 without TLS"),
)  # fmt: skip
BY_NAME = {row.name: row for row in METRICS}

MAGIC = b"FRDMTR01"
HEADER_BYTES = 64
RING = 1 << 16  # appends that are remembered: how long in ns, then the position of the frame
_RING_MASK = 2 * RING - 1


class Series(NamedTuple):
    """One series of a metric: its labels, and where its numbers are."""

    labels: dict[str, str]
    start: int
    stop: int


class Family(NamedTuple):
    """A metric with its series: labels, and values (a histogram's counts by bucket, then sum)."""

    metric: Metric
    series: list[tuple[dict[str, str], list[float]]]


def _layout() -> tuple[dict[str, list[Series]], int]:
    at = 0
    found: dict[str, list[Series]] = {}
    for row in METRICS:
        width = len(row.buckets) + 2 if row.kind == "histogram" else 1
        found[row.name] = []
        for values in itertools.product(*row.labels.values()):
            labels = dict(zip(row.labels, values, strict=True))
            found[row.name].append(Series(labels, at, at + width))
            at += width
    return found, at


LAYOUT, SLOTS = _layout()
_DIGEST = hashlib.sha256(repr(METRICS).encode()).digest()[:16]
_RING_AT = HEADER_BYTES + 8 * SLOTS
FILE_BYTES = _RING_AT + RING * 16
_IS_GAUGE = np.zeros(SLOTS, np.bool_)
for _row in METRICS:
    if _row.kind == "gauge":
        for _series in LAYOUT[_row.name]:
            _IS_GAUGE[_series.start : _series.stop] = True
_APPEND_AT = LAYOUT["fraud_append_seconds"][0].start


class Meters:
    """One process's counters. Not for use by several threads at once, but for ``appended``.

    Without a ``path`` they are in memory alone.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._file: int | None = None
        self._memory: mmap.mmap | bytearray = bytearray(FILE_BYTES)
        if path is not None:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._map()
            except OSError:
                os.close(self._file)
                raise
        view = memoryview(self._memory)
        self.values = view[HEADER_BYTES:_RING_AT].cast("d")
        self._ring = view[_RING_AT:FILE_BYTES].cast("q")
        self._append_at = 0

    def _map(self) -> None:
        assert self._file is not None  # noqa: S101 - the constructor has opened it
        head = os.pread(self._file, len(MAGIC) + len(_DIGEST), 0)
        if head != MAGIC + _DIGEST or os.fstat(self._file).st_size != FILE_BYTES:
            os.ftruncate(self._file, 0)  # of another layout, or torn: it starts at zero
            os.ftruncate(self._file, FILE_BYTES)
            os.pwrite(self._file, MAGIC + _DIGEST, 0)
        self._memory = mmap.mmap(self._file, FILE_BYTES)

    def slot(self, name: str, *values: str) -> int:
        """Return where a series begins in ``values``; to be asked once. Raises KeyError."""
        for series in LAYOUT[name]:
            if tuple(series.labels.values()) == values:
                return series.start
        raise KeyError(f"{name} has no series {values}")

    def add(self, name: str, *values: str, by: float = 1.0) -> None:
        """Count in a counter's series."""
        self.values[self.slot(name, *values)] += by

    def put(self, name: str, *values: str, value: float) -> None:
        """Set a gauge's series."""
        self.values[self.slot(name, *values)] = value

    def observe(self, name: str, seen: NDArray[np.float64], *values: str) -> None:
        """Take float64[n] into a histogram's series."""
        if not len(seen):
            return
        bounds, start = BY_NAME[name].buckets, self.slot(name, *values)
        places = np.bincount(np.searchsorted(bounds, seen), minlength=len(bounds) + 1)
        for i, count in enumerate(places.tolist()):
            self.values[start + i] += count
        self.values[start + len(bounds) + 1] += float(seen.sum())

    def appended(self, frame: int, took_ns: int) -> None:
        """Take in how long the append of a frame took; 1 µs, under the scorer's lock."""
        at = self._append_at
        self._ring[at] = took_ns
        self._ring[at + 1] = frame  # last, as it is what a reader looks for
        self._append_at = (at + 2) & _RING_MASK
        values, took_s = self.values, took_ns * 1e-9
        values[_APPEND_AT + bisect_left(_STEP_S, took_s)] += 1.0
        values[_APPEND_AT + len(_STEP_S) + 1] += took_s

    def families(self) -> list[Family]:
        """Return every metric with its series."""
        return families_of(np.array(self.values))

    def close(self) -> None:
        """Let go of the file, which stays."""
        self.values.release()
        self._ring.release()
        if isinstance(self._memory, mmap.mmap):
            self._memory.close()
        if self._file is not None:
            os.close(self._file)


def merged(readings: Iterable[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return the numbers of several processes as one: sums, and of gauges the largest."""
    arrays = np.stack([np.zeros(SLOTS), *readings])
    found: NDArray[np.float64] = np.where(_IS_GAUGE, arrays.max(axis=0), arrays.sum(axis=0))
    return found


class CallMeter:
    """Counts calls: one slot and one bucket each, 0.5 µs. For use by several threads.

    Two threads that add to one number at once may lose one of the two; the interpreter switches
    between them at most each 5 ms, so that is rarer than one call in a million.
    """

    def __init__(self, meters: Meters) -> None:
        self._values = meters.values
        self._codes = {
            (method, code): meters.slot("fraud_calls_total", method, code)
            for method in METHODS
            for code in CODES
        }
        self._starts = {method: meters.slot("fraud_call_seconds", method) for method in METHODS}

    def note(self, method: str, code: str, took_ns: int) -> None:
        """Take in one call; its time only where it was answered."""
        values = self._values
        place = self._codes.get((method, code))
        values[self._codes[method, "OTHER"] if place is None else place] += 1.0
        if code == "OK":
            took_s = took_ns * 1e-9
            start = self._starts[method]
            values[start + bisect_left(_CALL_S, took_s)] += 1.0
            values[start + len(_CALL_S) + 1] += took_s


def families_of(values: NDArray[np.float64]) -> list[Family]:
    """Return every metric with its series from the numbers of a file, or a sum of files."""
    return [
        Family(row, [(s.labels, values[s.start : s.stop].tolist()) for s in LAYOUT[row.name]])
        for row in METRICS
    ]


def open_meters(folder: Path | None, role: str) -> Meters:
    """Return the meters of a process: the first file of its role that no living one has.

    Without a folder they are in memory alone. The folder should be in memory too (tmpfs): where
    the system writes mapped pages to a disk, the process that counts may wait for it.
    """
    if folder is None:
        return Meters()
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(256):
        try:
            return Meters(folder / f"{role}-{number}.meters")
        except BlockingIOError:
            continue
    raise ValueError(f"256 processes of role {role} count in {folder}")


class Reading(NamedTuple):
    """What one process has counted: ``values`` float64[SLOTS]."""

    process: str
    values: NDArray[np.float64]


def read_all(folder: Path) -> Iterator[Reading]:
    """Yield what each process of a folder has counted, dead ones too; a copy, at once."""
    for path in sorted(folder.glob("*.meters")):
        data = _part(path, 0, _RING_AT)
        if data.startswith(MAGIC + _DIGEST):
            yield Reading(path.stem, np.frombuffer(data, "<f8", SLOTS, HEADER_BYTES))


def read_appends(folder: Path, role: str = "serve") -> Iterator[NDArray[np.int64]]:
    """Yield the last appends of each process of a role, int64[RING, 2]: how long in ns, frame."""
    for path in sorted(folder.glob(f"{role}-*.meters")):
        data = _part(path, _RING_AT, FILE_BYTES - _RING_AT)
        if data and _part(path, 0, len(MAGIC + _DIGEST)) == MAGIC + _DIGEST:
            yield np.frombuffer(data, "<i8").reshape(RING, 2)


def _part(path: Path, start: int, size: int) -> bytes:
    """Return a part of a file, b"" where it has not all of it."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(size)
    except OSError:
        return b""
    return data if len(data) == size else b""
