"""Owns how what happened becomes an event on the log. Must not know why it happened."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fraud.v1 import model_event_pb2

from featurizer.eventlog import Entry, EventLog, LogError, Topic
from trainer.alarms import Alarm
from trainer.gates import Gate
from trainer.labelled import Refusal

_log = logging.getLogger(__name__)
AUTHOR = "trainer"
PROMOTED = model_event_pb2.MODEL_CHANGE_PROMOTED
REFUSED = model_event_pb2.MODEL_CHANGE_REFUSED
ROLLED_BACK = model_event_pb2.MODEL_CHANGE_ROLLED_BACK
CANARY = model_event_pb2.MODEL_CHANGE_CANARY
STOPPED = model_event_pb2.MODEL_CHANGE_LEARNING_STOPPED
RESUMED = model_event_pb2.MODEL_CHANGE_LEARNING_RESUMED
ALARMED = model_event_pb2.MODEL_CHANGE_ALARMED
DISTRUSTED = model_event_pb2.MODEL_CHANGE_REPORTER_DISTRUSTED
TRUSTED = model_event_pb2.MODEL_CHANGE_REPORTER_TRUSTED
MEASURED = model_event_pb2.MODEL_CHANGE_MEASURED


def alarm_message(alarm: Alarm) -> model_event_pb2.Alarm:
    """Return an alarm as it stands in an event."""
    found = model_event_pb2.Alarm(
        code=alarm.code, subject=alarm.subject, method=alarm.method, before=alarm.before,
        after=alarm.after, rows=alarm.rows, statistic=alarm.statistic, limit=alarm.limit,
    )  # fmt: skip
    found.since_time.FromMilliseconds(alarm.since_ms)
    return found


def learning_message(learnt: Mapping[str, Any]) -> model_event_pb2.Learning:
    """Return what a bundle's facts say of the run that made it, as it stands in an event."""
    found = model_event_pb2.Learning(
        from_position=learnt["from_position"], until_position=learnt["position"],
        layers=learnt["layers"],
    )  # fmt: skip
    found.start_time.FromMilliseconds(learnt["time_ms"])
    found.end_time.FromMilliseconds(learnt["end_ms"])
    return found


class Teller:
    """Appends events of models and dead letters of labels. What cannot be told is logged."""

    def __init__(self, log: EventLog, clock_ms: Callable[[], int] = lambda: 0) -> None:
        self._log = log
        self._clock_ms = clock_ms

    def tell(
        self,
        change: model_event_pb2.ModelChange,
        model_version: str,
        now_ms: int,
        reason: str,
        *,
        previous: str = "",
        gates: Sequence[Gate] = (),
        alarms: Sequence[Alarm] = (),
        figures: Mapping[str, float] | None = None,
        share: float = 0.0,
        learnt: Mapping[str, Any] | None = None,
    ) -> None:
        """Put what happened on the log, at ``now_ms`` or later; ``learnt`` are a bundle's facts."""
        event = model_event_pb2.ModelEvent(
            change=change, model_version=model_version, previous_version=previous, author=AUTHOR,
            reason=reason, share=share,
            gates=[model_event_pb2.GateResult(**gate._asdict()) for gate in gates],
            alarms=[alarm_message(each) for each in alarms],
            figures=[
                model_event_pb2.Figure(name=name, value=value)
                for name, value in (figures or {}).items()
            ],
        )  # fmt: skip
        event.event_time.FromMilliseconds(max(now_ms, self._clock_ms()))
        if learnt is not None and "end_ms" in learnt:
            event.learning.CopyFrom(learning_message(learnt))
        name = model_event_pb2.ModelChange.Name(change).removeprefix("MODEL_CHANGE_")
        _log.info("%s %s: %s", name, model_version, reason)
        self._append(Entry(Topic.MODELS, 0, event.SerializeToString()))

    def refuse(self, refused: Sequence[Refusal], now_ms: int) -> None:
        """Write a dead letter for each label that is not used."""
        for each in refused:
            letter: Any = each.letter(now_ms, AUTHOR)
            self._append(Entry(Topic.DEAD_LETTERS, 0, letter.SerializeToString()))

    def _append(self, entry: Entry) -> None:
        try:
            self._log.append([[entry]])
        except LogError as error:  # learning goes on; what is served is told by the link
            _log.error("not on the log: %s", error)
