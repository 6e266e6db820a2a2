"""`replay` and `backtest`: decisions of the log made again as they were, or with a change.

Owns what the commands do with their arguments. Opens the log for reading only.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from featurizer.adapters import directory_of, open_log
from featurizer.eventlog import EventLog, Topic
from featurizer.former_ids import FormerIds
from featurizer.hashing import IdHasher
from featurizer.kafka_settings import kafka_settings
from fraudsvc.backtest.figures import DAY_MS, Cut, report
from fraudsvc.backtest.run import Change, check, run
from fraudsvc.backtest.run import Job as BacktestJob
from fraudsvc.replay.again import Replayer, Verdict
from fraudsvc.replay.cases import Cases
from fraudsvc.replay.judges import Finder, Places
from fraudsvc.replay.log import Pieces, Place, Span, find_decision, frame_of
from fraudsvc.replay.range import Job, Summary, replay_range
from fraudsvc.replay.rebuilt import Rebuilt
from fraudsvc.replay.shared_range import (
    SharedJob,
    find_shared,
    judge_shared,
    replay_shared,
    replayer_of,
    size_of,
    spooled,
)
from fraudsvc.replay.step import Folded, steps
from fraudsvc.rungs import RULES_ONLY
from fraudsvc.shares import Tell
from trainer.thresholds import Costs

_POSITION = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """Where the log is and what decided, and the secret that ids are hashed with."""

    log: str
    places: Places
    secret: bytes
    processes: int = 0  # 0 for one a core


def span_of(first: str, stop: str) -> Span:
    """Return the range from one position or RFC 3339 time up to, and without, another.

    An empty text is no bound. Raises ValueError.
    """
    span = Span()
    for text, position, time in ((first, "first", "from_ms"), (stop, "stop", "until_ms")):
        if not text:
            continue
        if _POSITION.fullmatch(text):
            span = span._replace(**{position: int(text)})
        else:
            span = span._replace(**{time: _time_ms(text)})
    return span


def _time_ms(text: str) -> int:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is neither a position nor a time (RFC 3339)") from None
    if time.tzinfo is None:
        raise ValueError(f"{text} needs its offset, such as 2026-01-01T00:00:00Z")
    return int(time.timestamp() * 1000)


def is_kafka(log: str) -> bool:
    """Return whether a log's URL is that of a cluster, not of a journal."""
    return log.startswith("kafka://")


def replay_one_shared(decision_id: str, options: ReplayOptions) -> Verdict:
    """Make one decision of a cluster again, whichever host made it.

    Raises ValueError for what is no id of a decision there, LogError, OSError.
    """
    with spooled(kafka_settings(options.log), lambda _position, _done: None) as (spool, _):
        job = SharedJob(spool, options.places, options.secret, Span())
        found = find_shared(job, decision_id)
        if found is None:
            raise ValueError(f"Kafka has no decision {decision_id} of any host")
        return judge_shared(replayer_of(job), spool, *found)


def replay_one(decision_id: str, options: ReplayOptions) -> tuple[Verdict, Rebuilt]:
    """Make one decision again; return the verdict, and what it was made of.

    Raises ValueError for what is no id of a decision of the log, LogError.
    """
    log = open_log(options.log, read_only=True)
    try:
        former = FormerIds(directory_of(options.log))
        cases = case_of(log, decision_id, former)
        rebuilt = Rebuilt(cases)
        for piece in Pieces(log).read(int(cases.frames[0]) + 1):
            rebuilt.add(piece)
        oldest = log.ends()[0]
    finally:
        log.close()
    replayer = Replayer(
        Finder(options.places).judges, IdHasher(options.secret).key, oldest,
        have_named=former.have_named,
    )  # fmt: skip
    if cases[0].rung == RULES_ONLY:
        return next(replayer.judge_by_rules(cases)), rebuilt
    return replayer.verdict(rebuilt.views()), rebuilt


def steps_of(verdict: Verdict, rebuilt: Rebuilt, options: ReplayOptions) -> dict[str, Any]:
    """Return what a decision that was made again is made of. Raises GoneError."""
    case, finder = verdict.case, Finder(options.places)
    told = case.decision.assessment
    finder.policy(told.policy_version)
    text = finder.policy_path(told.policy_version).read_bytes()
    bundle = finder.bundle(told.model_version) if told.model_version else None
    folded = Folded(*rebuilt.records(), rebuilt.lines) if bundle else None
    return steps(case, folded, bundle, text) | {"verdict": verdict.kind.value}


def case_of(log: EventLog, decision_id: str, former: FormerIds) -> Cases:
    """Return a decision of the log by its id. Raises ValueError, LogError."""
    place = find_decision(log, decision_id, former)
    found = None if place is None else _case(log, place)
    if found is None:
        oldest, end = log.ends()
        raise ValueError(
            f"the log has no decision {decision_id}; it has positions {oldest} to {end}"
        )
    told = found[0].decision.assessment.decision_id
    if told != decision_id:
        raise ValueError(
            f"the log has no decision {decision_id}: its request was decided as {told}"
        )
    return found


def _case(log: EventLog, place: Place) -> Cases | None:
    batch = frame_of(log, place.frame)
    for i in (batch.topics == Topic.DECISIONS).nonzero()[0].tolist():
        if int(batch.positions[i]) == place.position + 1:
            return Cases.one(batch.value(i), batch.value(i - 1), place.frame, place.position)
    return None


def replay_many(span: Span, options: ReplayOptions, tell: Tell) -> Summary:
    """Make a range of decisions again; return what came of it.

    ``tell`` hears the position reached and how many decisions are done. Raises LogError.
    """
    cores = len(os.sched_getaffinity(0))
    if is_kafka(options.log):
        return _replay_cluster(span, options, options.processes or cores, tell)
    stop = min(end_of(options.log), span.stop)
    job = Job(options.log, options.places, options.secret, span, stop)
    return replay_range(job, options.processes or max(1, cores // 2), tell)


def _replay_cluster(span: Span, options: ReplayOptions, processes: int, tell: Tell) -> Summary:
    """Make the decisions of all hosts again that were received within a range of time."""
    if span.first or span.stop != Span().stop:
        raise ValueError("with Kafka a range has times: positions are those of a journal")
    with spooled(kafka_settings(options.log), tell) as (spool, read):
        job = SharedJob(spool, options.places, options.secret, span, read)
        return replay_shared(job, processes, tell)


def end_of(url: str) -> int:
    """Return where a log ends; of a cluster, how far ``tell`` will get. Raises LogError."""
    if is_kafka(url):
        return size_of(kafka_settings(url))
    log = open_log(url, read_only=True)
    try:
        return log.ends()[1]
    finally:
        log.close()


@dataclass(frozen=True, slots=True)
class BacktestOptions:
    """What to change, and how many reviews a day can be done; None for the share of Costs."""

    change: Change
    capacity: float | None = None


def backtest(
    span: Span, options: ReplayOptions, wanted: BacktestOptions, tell: Tell
) -> dict[str, Any]:
    """Decide a range again with a change; return the report as plain values.

    Raises GoneError, PolicyError, LogError, OSError, and ValueError for a range without decisions.
    """
    if is_kafka(options.log):
        raise ValueError("backtest reads a host's journal: --log file://DIR")
    check(wanted.change, options.places)
    end = end_of(options.log)
    job = BacktestJob(options.log, options.places, span, end, wanted.change)
    decided = run(job, options.processes or len(os.sched_getaffinity(0)), tell)
    rows = decided.rows
    if not len(rows):
        raise ValueError("the range has no decisions")
    first, last = int(rows["received_ms"].min()), int(rows["received_ms"].max())
    days = max(1, len(set((rows["received_ms"] // DAY_MS).tolist())))
    capacity = wanted.capacity
    if capacity is None:
        capacity = Costs().review_capacity_share * len(rows) / days
    then = Cut(min(span.until_ms, last + 1), span.stop)
    return {
        "change": wanted.change._asdict(),
        "range": [_time_text(first), _time_text(last)],
        "causes": dict(decided.gone.most_common()),
        **report(rows, decided.labels, then, capacity),
    }


def _time_text(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="seconds")
