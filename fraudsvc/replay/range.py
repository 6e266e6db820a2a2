"""A range of decisions made again, on all cores, and what came of it.

Each process reads and folds the whole log up to the end of the range, and looks at the decisions of
its own stretches of it: one thread reads, one folds and looks, by kernels without the interpreter's
lock, and one judges; another makes those again that had seen older states. Owns how the work is
shared. Must not know how a decision is made again. Nothing is ever written.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
from fraud.v1 import decision_pb2

from featurizer.adapters import directory_of, open_log
from featurizer.eventlog import EventLog
from featurizer.former_ids import FormerIds
from featurizer.hashing import IdHasher
from fraudsvc.replay.again import Judged, Kind, Replayer, Verdict
from fraudsvc.replay.cases import Cases, joined
from fraudsvc.replay.judges import Finder, Places
from fraudsvc.replay.log import Piece, Pieces, Records, Span
from fraudsvc.replay.rebuilt import AT_ONCE, Rebuilt
from fraudsvc.replay.states import Views, Walk
from fraudsvc.replay.told import Told
from fraudsvc.rungs import RULES_ONLY
from fraudsvc.shares import Share, Tell, share_out

EXAMPLES_MAX = 20
# Decisions made again at once that had seen other states, as states lagged for a while: when that
# is over, or there are too many; twice as many are in memory, 6 KiB each.
RESTS_MIN, RESTS_MAX = 2_048, 16_384
ITEMS_AHEAD = 3  # of each thread, of up to 12 MiB: the slower one is never waited for twice
Item = TypeVar("Item")
_RUNGS = {n: name.removeprefix("RUNG_") for name, n in decision_pb2.Rung.items()}


@dataclass(slots=True)
class Summary:
    """What came of a range. ``examples`` are the first verdicts that were not SAME, as text."""

    kinds: Counter[str] = field(default_factory=Counter)
    causes: Counter[str] = field(default_factory=Counter)
    rungs: Counter[str] = field(default_factory=Counter)
    bundles: Counter[str] = field(default_factory=Counter)
    policies: Counter[str] = field(default_factory=Counter)
    fields: Counter[str] = field(default_factory=Counter)
    repeats: int = 0  # second decisions on a request, which nobody got as an answer
    rebuilt: int = 0  # decisions on states older than the log that had been read
    lost_bytes: int = 0
    log_begins: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)

    @property
    def decisions(self) -> int:
        """How many were made again, or should have been."""
        return sum(self.kinds.values())

    @property
    def is_same(self) -> bool:
        """Whether every decision came out as it was, byte for byte."""
        return self.kinds[Kind.SAME.value] == self.decisions

    def note(self, verdict: Verdict) -> None:
        """Take a verdict in."""
        _, model, policy = verdict.case.by
        self.kinds[verdict.kind.value] += 1
        self.rungs[_RUNGS[verdict.case.rung]] += 1
        self.policies[policy] += 1
        if model:
            self.bundles[model] += 1
        if verdict.kind is Kind.SAME:
            return
        self.causes[verdict.cause] += 1
        self.fields.update(each.field for each in verdict.differences)
        if len(self.examples) < EXAMPLES_MAX:
            self.examples.append(example(verdict))

    def judge(self, replayer: Replayer, views: Views) -> None:
        """Make cases again and take in what came of it; other states than logged are unmatched."""
        same, rest = views.split()
        for judged in replayer.judge(same):
            self._note_same(judged)
            for verdict in judged.others:
                self.note(verdict)
        for case, versions in zip(rest.cases, rest.versions, strict=True):
            self.note(replayer.unmatched(case, versions))

    def _note_same(self, judged: Judged) -> None:
        count, (_, model, policy) = len(judged.told), judged.by
        if not count:
            return
        self.kinds[Kind.SAME.value] += count
        self.policies[policy] += count
        if model:
            self.bundles[model] += count
        for rung, of_rung in enumerate(np.bincount(judged.told[:, Told.RUNG]).tolist()):
            if of_rung:
                self.rungs[_RUNGS[rung]] += of_rung

    def add(self, other: Summary) -> None:
        """Take in what another process found."""
        for name in ("kinds", "causes", "rungs", "bundles", "policies", "fields"):
            getattr(self, name).update(getattr(other, name))
        self.repeats += other.repeats
        self.rebuilt += other.rebuilt
        self.lost_bytes, self.log_begins = other.lost_bytes, other.log_begins
        self.examples = (self.examples + other.examples)[:EXAMPLES_MAX]


def example(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict as plain values."""
    told = verdict.case.decision.assessment
    return {
        "decision_id": told.decision_id,
        "position": verdict.case.position,
        "verdict": verdict.kind.value,
        "cause": verdict.cause,
        "differences": [each._asdict() for each in verdict.differences],
    }


class Job(NamedTuple):
    """What is to be made again, and with what."""

    log: str
    places: Places
    secret: bytes
    span: Span
    stop: int  # of the log


def replay_share(job: Job, share: Share, tell: Tell) -> Summary:
    """Make the decisions of a share again. Raises LogError."""
    log = open_log(job.log, read_only=True)
    try:
        return _Run(job, share, tell, log).run()
    finally:
        log.close()


class _Run:
    def __init__(self, job: Job, share: Share, tell: Tell, log: EventLog) -> None:
        self._job, self._share, self._tell = job, share, tell
        self._begins = log.ends()[0]
        self._replayer = self._new_replayer()
        self._summary = Summary()
        self._pieces = Pieces(log, keeps=True)
        self._rest: list[Cases] = []
        self._coming: Future[Summary] | None = None
        self._reading, self._walking, self._rebuilding = map(ThreadPoolExecutor, (1, 1, 1))

    def run(self) -> Summary:
        with self._reading, self._walking, self._rebuilding:
            for end, by_rules, views, late in _ahead(self._walk(), self._walking):
                self._note(self._replayer.judge_by_rules(by_rules))
                self._look(views, late)
                self._tell(end, self._summary.decisions)
            self._rebuild()
            self._take_rebuilt()
        summary = self._summary
        summary.lost_bytes, summary.log_begins = self._pieces.lost_bytes, self._pieces.first
        self._tell(self._job.stop, summary.decisions)
        return summary

    def _new_replayer(self) -> Replayer:
        job, former = self._job, FormerIds(directory_of(self._job.log))
        return Replayer(
            Finder(job.places).judges, IdHasher(job.secret).key, self._begins,
            have_named=former.have_named,
        )  # fmt: skip

    def _walk(self) -> Iterator[tuple[int, Cases, Views, Cases]]:
        """Yield how far it is, cases decided by rules, what was seen of others, and late ones."""
        walk = Walk()
        for piece, by_rules, cases in _ahead(self._read(), self._reading):
            yield piece.end, by_rules, *walk.take(piece, cases)
        yield self._job.stop, Cases.none(), walk.finish(), Cases.none()

    def _read(self) -> Iterator[tuple[Piece, Cases, Cases]]:
        """Yield pieces with their cases: those decided by rules alone, and with a model."""
        for piece in self._pieces.read(self._job.stop):
            cases, repeats = piece.cases_of(self._job.span, self._share)
            self._summary.repeats += repeats
            is_bare = cases.told[:, Told.RUNG] == RULES_ONLY
            if not is_bare.any():
                yield piece, Cases.none(), cases
            else:
                yield piece, cases.rows(is_bare), cases.rows(~is_bare)

    def _look(self, views: Views, late: Cases) -> None:
        same, rest = views.split()
        rests = [each.packed() for each in (rest.cases, late) if len(each)]
        self._rest += rests
        self._summary.judge(self._replayer, same)
        if sum(map(len, self._rest)) >= (RESTS_MAX if rests else RESTS_MIN):
            self._rebuild()

    def _rebuild(self) -> None:
        """Begin to make those again that had seen other states than the log had at their time."""
        self._take_rebuilt()
        if self._rest:
            cases, self._rest = joined(self._rest).packed(), []
            self._coming = self._rebuilding.submit(self._rebuilt, cases)

    def _take_rebuilt(self) -> None:
        if self._coming is not None:
            self._summary.add(self._coming.result())
            self._coming = None

    def _rebuilt(self, cases: Cases) -> Summary:
        """Return what came of cases by the states that their versions name."""
        rebuilt, stop = Rebuilt(cases), int(cases.frames.max()) + 1
        for each in self._records(stop):
            rebuilt.add(each)
        summary, replayer = Summary(rebuilt=len(cases)), self._new_replayer()
        for first in range(0, len(cases), AT_ONCE):
            summary.judge(replayer, rebuilt.views(first))
        return summary

    def _records(self, stop: int) -> Iterator[Records]:
        kept = self._pieces.kept(stop)
        if kept is not None:
            yield from kept
            return
        log = open_log(self._job.log, read_only=True)  # its own: another thread reads the other
        try:
            yield from Pieces(log).read(stop)
        finally:
            log.close()

    def _note(self, verdicts: Iterator[Verdict]) -> None:
        for verdict in verdicts:
            self._summary.note(verdict)


def _ahead(items: Iterator[Item], thread: ThreadPoolExecutor) -> Iterator[Item]:
    """Yield items; while one is worked on, ``thread`` makes the next ones."""
    coming = deque(thread.submit(next, items, None) for _ in range(ITEMS_AHEAD))
    while (item := coming.popleft().result()) is not None:
        coming.append(thread.submit(next, items, None))
        yield item


def replay_range(job: Job, processes: int, tell: Tell) -> Summary:
    """Make a range again with ``processes`` of them; ``tell`` hears how far the slowest is."""
    summary = Summary()
    for found in share_out(replay_share, job, processes, tell):
        summary.add(found)
    return summary
