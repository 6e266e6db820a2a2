"""`replay`: one decision, or a range of them, made again from the log and compared.

Owns what the command does with its arguments. Opens the log for reading only.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import datetime

from fraud.v1 import decision_pb2

from featurizer.adapters import open_log
from featurizer.eventlog import EventLog, Topic
from featurizer.hashing import IdHasher
from fraudsvc.decide import RULES_ONLY
from fraudsvc.replay import Replayer, Verdict
from fraudsvc.replay_judges import Finder, Places
from fraudsvc.replay_log import Pieces, Place, Span, find_decision, frame_of
from fraudsvc.replay_range import Job, Summary, Tell, judged, replay_range
from fraudsvc.replay_states import Case, Rebuilt

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


def replay_one(decision_id: str, options: ReplayOptions) -> tuple[Verdict, Rebuilt]:
    """Make one decision again; return the verdict, and what it was made of.

    Raises ValueError for what is no id of a decision of the log, LogError.
    """
    log = open_log(options.log, read_only=True)
    try:
        case = case_of(log, decision_id)
        rebuilt = Rebuilt([case])
        for piece in Pieces(log).read(case.frame + 1):
            rebuilt.add(piece)
    finally:
        log.close()
    replayer = Replayer(Finder(options.places).judges, IdHasher(options.secret).key)
    if case.decision.assessment.rung == RULES_ONLY:
        return next(replayer.judge_by_rules([case])), rebuilt
    return next(judged(replayer, rebuilt.views())), rebuilt


def case_of(log: EventLog, decision_id: str) -> Case:
    """Return a decision of the log by its id. Raises ValueError, LogError."""
    place = find_decision(log, decision_id)
    case = None if place is None else _case(log, place)
    if case is None:
        oldest, end = log.ends()
        raise ValueError(
            f"the log has no decision {decision_id}; it has positions {oldest} to {end}"
        )
    told = case.decision.assessment.decision_id
    if told != decision_id:
        raise ValueError(
            f"the log has no decision {decision_id}: its request was decided as {told}"
        )
    return case


def _case(log: EventLog, place: Place) -> Case | None:
    batch = frame_of(log, place.frame)
    for i in (batch.topics == Topic.DECISIONS).nonzero()[0].tolist():
        if int(batch.positions[i]) == place.position + 1:
            value = batch.value(i)
            decision = decision_pb2.Decision.FromString(value)
            return Case(0, value, decision, batch.value(i - 1), place.frame, place.position)
    return None


def replay_many(span: Span, options: ReplayOptions, tell: Tell) -> Summary:
    """Make a range of decisions again; return what came of it.

    ``tell`` hears the position reached and how many decisions are done. Raises LogError.
    """
    stop = min(end_of(options.log), span.stop)
    job = Job(options.log, options.places, options.secret, span, stop)
    processes = options.processes or len(os.sched_getaffinity(0))
    return replay_range(job, processes, tell)


def end_of(url: str) -> int:
    """Return where a log ends. Raises LogError."""
    log = open_log(url, read_only=True)
    try:
        return log.ends()[1]
    finally:
        log.close()
