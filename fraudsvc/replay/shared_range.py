"""Decisions that Kafka has of any host or lane of the stream made again, on all cores.

The topics are read once, into a folder that is gone afterwards; each process then folds the updates
and looks at the decisions of its own stretches. Owns the passes: a decision that read older states
than those before it did waits for the next pass. Must not know how a decision is made again.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from featurizer.cluster import schema_number
from featurizer.eventlog import LogError
from featurizer.hashing import IdHasher, hashes_of
from featurizer.kafka_settings import KafkaSettings
from featurizer.records import Kind
from fraudsvc.replay.again import Replayer, Verdict
from fraudsvc.replay.cases import Cases
from fraudsvc.replay.judges import Finder, Places
from fraudsvc.replay.log import Span
from fraudsvc.replay.range import Summary
from fraudsvc.replay.shared_states import CASES_AT_ONCE, SharedWalk
from fraudsvc.replay.spool import Journal, Spool, count, fill
from fraudsvc.replay.told import Told, read_told
from fraudsvc.rungs import RULES_ONLY
from fraudsvc.shares import Share, Tell, share_out

STRETCH = 4_096  # decisions in a row that one process looks at


class SharedJob(NamedTuple):
    """What is to be made again, and with what. ``read`` records were read for it."""

    spool: Spool
    places: Places
    secret: bytes
    span: Span
    read: int = 0


@contextlib.contextmanager
def spooled(kafka: KafkaSettings, tell: Tell) -> Iterator[tuple[Spool, int]]:
    """Yield what Kafka has, in a folder that is gone afterwards, and how many records that is.

    Raises LogError, and OSError where there is no room for it.
    """
    read = 0

    def told(records: int) -> None:
        nonlocal read
        read = records
        tell(records, 0)

    with tempfile.TemporaryDirectory(prefix="replay-") as folder:
        yield asyncio.run(fill(kafka, Path(folder), schema_number(), told)), read


def size_of(kafka: KafkaSettings) -> int:
    """Return how far ``tell`` will get: what is read, and then decided. Raises LogError."""
    return sum(asyncio.run(count(kafka)))


def replay_shared(job: SharedJob, processes: int, tell: Tell) -> Summary:
    """Make a range again with ``processes`` of them."""
    summary = Summary()
    for found in share_out(replay_share, job, processes, tell):
        summary.add(found)
    return summary


def replay_share(job: SharedJob, share: Share, tell: Tell) -> Summary:
    """Make the decisions of a share again."""
    run = _Run(job, share, tell)
    for host in job.spool.hosts():
        run.journal(job.spool.journal(host))
    run.summary.log_begins = job.spool.log_begins
    return run.summary


def replayer_of(job: SharedJob) -> Replayer:
    """Return what makes decisions again on states that hosts share."""
    key = IdHasher(job.secret).key
    return Replayer(Finder(job.places).judges, key, job.spool.log_begins, is_shared=True)


def find_shared(job: SharedJob, decision_id: str) -> tuple[Journal, Cases] | None:
    """Return the first decision of an id. Raises ValueError for what is no id."""
    request = hashes_of(decision_id)[0]
    for host in job.spool.hosts():
        journal = job.spool.journal(host)
        records = journal.records
        met = (records["request"] == request) & (records["kind"] == Kind.TRANSACTION)
        decided = np.isin(journal.decided["position"], journal.positions[met] + 1)
        cases = cases_of(journal, np.flatnonzero(decided))
        for row, case in enumerate(cases):
            if case.decision.assessment.decision_id == decision_id:
                return journal, cases.rows(slice(row, row + 1))
    return None


def judge_shared(replayer: Replayer, spool: Spool, journal: Journal, cases: Cases) -> Verdict:
    """Make one decision again."""
    if cases[0].rung == RULES_ONLY:
        return next(replayer.judge_by_rules(cases))
    views, _ = SharedWalk(spool, journal).look(cases)
    return replayer.verdict(views)


class _Run:
    def __init__(self, job: SharedJob, share: Share, tell: Tell) -> None:
        self._job, self._share, self._tell = job, share, tell
        self._replayer = replayer_of(job)
        self.summary = Summary()

    def journal(self, journal: Journal) -> None:
        """Look at a journal's decisions, in passes over the updates until none is late."""
        wanted = self._wanted(journal)
        while len(wanted):
            walk, late = SharedWalk(self._job.spool, journal), []
            for first in range(0, len(wanted), CASES_AT_ONCE):
                late.append(self._look(walk, journal, wanted[first : first + CASES_AT_ONCE]))
                done = self.summary.decisions
                self._tell(self._job.read + done * self._share.of, done)
            wanted = np.concatenate(late)
            self.summary.rebuilt += len(wanted)

    def _look(
        self, walk: SharedWalk, journal: Journal, numbers: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Make decisions again; return the numbers of those that are too late for this pass."""
        cases = cases_of(journal, numbers)
        in_time, is_bare = (
            self._job.span.have_time(cases.told),
            cases.told[:, Told.RUNG] == RULES_ONLY,
        )
        self._note(self._replayer.judge_by_rules(cases.rows(in_time & is_bare)))
        whole = np.flatnonzero(in_time & ~is_bare)
        if not len(whole):
            return whole
        views, late = walk.look(cases.rows(whole))
        self.summary.judge(self._replayer, views)
        return numbers[whole[late]]

    def _wanted(self, journal: Journal) -> NDArray[np.int64]:
        """Return the numbers of the decisions of this share; second ones count as repeats."""
        if not len(journal.positions):
            return np.zeros(0, np.int64)
        owners = np.searchsorted(journal.positions, journal.decided["position"] - 1)
        owners[owners == len(journal.positions)] = 0
        there = journal.positions[owners] == journal.decided["position"] - 1
        mine = np.arange(len(owners)) // STRETCH % self._share.of == self._share.one
        self.summary.repeats += int((there & mine & ~journal.counts[owners]).sum())
        return np.flatnonzero(there & mine & journal.counts[owners])

    def _note(self, verdicts: Iterator[Verdict]) -> None:
        for verdict in verdicts:
            self.summary.note(verdict)


def cases_of(journal: Journal, numbers: NDArray[np.int64]) -> Cases:
    """Return decisions of a journal, whose records are there, by their numbers in it.

    Raises LogError for what is no decision.
    """
    rows = journal.decided[numbers]
    spans = rows["start"].copy(), rows["length"].copy()
    told = read_told(journal.values, *spans)
    if not told[:, Told.IS_READ].all():
        raise LogError("Kafka has a decision that cannot be read")
    owners = np.searchsorted(journal.positions, rows["position"] - 1)
    places = rows["frame"].copy(), journal.positions[owners]
    return Cases.of(journal.values, spans, told, journal.records[owners], places)
