"""Follows a host's log into the read model: what is kept of it, as rows and as spans.

Owns which decisions are kept and what of the log becomes which row; counts what it sees. What it
remembers between two reads can be lost: a restart goes on from the position in the read model.
Must not know SQL nor networks.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from fraud.v1 import decision_pb2, label_pb2, model_event_pb2

from featurizer.eventlog import Batch, EventLog, LogError, Topic
from featurizer.kept import Column, KeepRule, scan
from featurizer.records import RECORD, Kind
from featurizer.spans import Context, Span, score_context
from featurizer.tracing import LINKS_MAX
from featurizer.worker import records_of
from fraudsvc.console.audit import audit_row
from fraudsvc.console.case_rows import case_of_row, entity_rows, row_of_decision, standing
from fraudsvc.console.chain_spans import (
    label_context,
    span_of_label,
    spans_of_model_event,
    swap_context,
)
from fraudsvc.console.observations import Observations
from fraudsvc.console.open_calls import OpenCalls
from fraudsvc.console.readmodel import LOG, REVIEW, Changes, ReadModel, Row
from fraudsvc.decision_spans import spans_of_alone, spans_of_call, spans_of_item

READ_BYTES = 4 << 20
FRAME_BYTES = 1 << 16
RECENT_MAX = 1 << 16
LULL_MS = 5_000
_log = logging.getLogger(__name__)
_LOADED = model_event_pb2.MODEL_CHANGE_LOADED
_RETRACTED = label_pb2.VERDICT_RETRACTED


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a follower asks of others.

    ``find`` tells the frame that an id (a hash) is in; ``appends`` how long the appends of frames
    took, in ns, as far as it is known; ``take`` gets every span that is built.
    """

    find: Callable[[int], int | None]
    appends: Callable[[list[int]], Mapping[int, int]]
    take: Callable[[Span], object]
    now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000


class Logged(NamedTuple):
    """A decision with the record that it is on."""

    decision: decision_pb2.Decision
    record: np.void
    frame: int
    position: int

    @classmethod
    def of(cls, batch: Batch, at: int) -> Logged:
        """Return the decision of an entry; its record is the entry before."""
        decision = decision_pb2.Decision.FromString(batch.value(at))
        record = np.frombuffer(batch.value(at - 1), RECORD)[0]
        return cls(decision, record, int(batch.frames[at]), int(batch.positions[at]))


def logged_at(log: EventLog, frame: int, identity: int) -> Logged | None:
    """Return the decision of a frame by a hash of its request or transaction."""
    try:
        batch = log.read(frame, FRAME_BYTES)
    except LogError:
        return None
    for at in np.flatnonzero(batch.frames == frame)[1:].tolist():
        if batch.topics[at] == Topic.DECISIONS:
            logged = Logged.of(batch, at)
            if identity in (logged.record["transaction"], logged.record["request"]):
                return logged
    return None


class Follower:
    """Follows ``log``, which ``journal`` names in the read model."""

    def __init__(
        self,
        log: EventLog,
        journal: str,
        model: ReadModel,
        rule: KeepRule,
        observed: Observations,
        around: Surroundings,
    ) -> None:
        self._log = log
        self._journal = journal
        self._model = model
        self._rule = rule
        self._observed = observed
        self._around = around
        self._swaps: dict[str, tuple[str, Context]] = {}  # by scorer: the bundle it took up
        self._learnt: dict[str, int] = {}  # by scorer: where the labels that it serves end
        self._received_ms = 0  # when the last decision was asked for
        self._is_live = False  # whether what is read now was appended a moment ago
        self._changes = Changes()
        self._appends: dict[int, int | None] = {}  # by frame, of what is read now
        self._calls = OpenCalls(self._append_ns)
        self._late: set[Context] = set()  # spans of what is kept late, of what is read now
        # Frames of the newest transactions, in two generations: the store hears of them later.
        self._recent: dict[int, int] = {}
        self._older: dict[int, int] = {}
        self.position = max(model.position(journal) or 0, log.ends()[0])

    def step(self) -> bool:
        """Take in one read of the log; return whether there is much more to read.

        Raises LogError, ReadModelError: then nothing of it was taken.
        """
        oldest = self._log.ends()[0]
        if self.position < oldest:
            _log.warning("the log was dropped from %d to %d unread", self.position, oldest)
            self.position = oldest
        batch = self._log.read(self.position, READ_BYTES)
        is_news = batch.next_position > self.position
        if not is_news:
            self._is_live = True
            if not self._calls:
                return False
        fresh_from = self._log.ends()[1] - READ_BYTES
        self._changes, swaps, calls = Changes(), dict(self._swaps), self._calls.copy()
        try:
            if is_news:
                self._take(batch)
            now_ms = self._received_ms if is_news else self._around.now_ms()
            self._changes.spans += self._calls.end(now_ms)
            if is_news or self._changes.spans:
                # A call that is not ended is read again by who comes after.
                position = self._calls.begins(batch.next_position)
                self._model.write(self._changes, LOG, self._journal, position)
        except BaseException:
            self._swaps, self._calls = swaps, calls
            raise
        self.position = batch.next_position
        self._is_live = self.position > fresh_from
        for span in self._changes.spans:
            self._around.take(span)
        self._observed.built(len(self._changes.spans))
        return not self._is_live

    def _take(self, batch: Batch) -> None:
        """Take in what is to be kept, in the order of the log."""
        found = scan(batch)
        self._observed.decisions(found)
        self._remember(batch)
        kept = self._rule.keeps(found.rows)
        frames = batch.frames[found.entries[kept]].tolist()
        self._late.clear()
        self._appends = dict.fromkeys(frames)
        self._appends |= self._around.appends(frames) if frames else {}
        rows = {int(entry): i for i, entry in enumerate(found.entries)}
        wanted = np.isin(batch.topics, (Topic.DECISIONS, *_TAKEN))
        for at in np.flatnonzero(wanted).tolist():
            if batch.topics[at] != Topic.DECISIONS:
                _TAKEN[Topic(batch.topics[at])](self, batch, at)
                continue
            i = rows[at]
            self._received_ms = int(found.rows[i, Column.RECEIVED_MS])
            if kept[i]:
                self._keep(Logged.of(batch, at), self._rule.why(found.rows[i]))
            elif self._swaps:
                self._keep_first(Logged.of(batch, at))
            if self._calls and found.rows[i, Column.SHARED_AT]:
                self._calls.pass_by(found.shared(i), int(batch.frames[at]), batch.value(at))

    def _remember(self, batch: Batch) -> None:
        records, _, frames = records_of(batch)
        is_payment = records["kind"] == Kind.TRANSACTION
        records, frames = records[is_payment], frames[is_payment]
        if len(self._recent) > RECENT_MAX:
            self._older, self._recent = self._recent, {}
        self._recent.update(zip(records["transaction"].tolist(), frames.tolist(), strict=True))

    def _frame_of(self, identity: int) -> int | None:
        for known in (self._recent, self._older):
            if identity in known:
                return known[identity]
        return self._around.find(identity)

    def _keep_first(self, logged: Logged) -> None:
        """Keep a decision where it is the first by a bundle that its scorer took up."""
        swap = self._swaps.get(logged.decision.scorer)
        if swap is not None and swap[0] == logged.decision.assessment.model_version:
            self._keep(logged, "model")

    def _append_ns(self, frame: int) -> int | None:
        """Return how long the append of a frame took, None where nobody knows any more."""
        if frame not in self._appends:
            self._appends[frame] = self._around.appends([frame]).get(frame)
        return self._appends[frame]

    def _keep(self, logged: Logged, why: str, *, late: bool = False) -> None:
        decision, swap = logged.decision, None
        pending = self._swaps.get(decision.scorer)
        if pending is not None and pending[0] == decision.assessment.model_version:
            swap = self._swaps.pop(decision.scorer)[1]
        self._changes.spans += self._spans_of(logged, why, swap, late=late)
        row = row_of_decision(logged, why)
        self._changes.decisions.append(row)
        if row["outcome"] == REVIEW:
            self._changes.cases.append(case_of_row(row, logged))
        self._changes.entities += entity_rows(decision)
        self._observed.kept(why)

    def _spans_of(
        self, logged: Logged, why: str, swap: Context | None, *, late: bool
    ) -> list[Span]:
        """Return the spans of a decision, and those around it that are not built yet."""
        decision, position = logged.decision, logged.position
        if late and not self._calls.has(decision):
            made = spans_of_alone(decision, position, why, swap)
            built = self._late | self._model.built({each.context for each in made})
            self._late.update(each.context for each in made)
            return [each for each in made if each.context not in built]
        if decision.HasField("shared"):
            item = spans_of_item(decision, position, why, swap)
            return item + self._calls.keep(decision, logged.frame)
        return spans_of_call(decision, position, self._append_ns(logged.frame), why, swap)

    def _label(self, batch: Batch, at: int) -> None:
        """Take in a label, and the decision it is on where that was not kept yet."""
        label = label_pb2.Label.FromString(batch.value(at))
        position, label_ms = int(batch.positions[at]), label.label_time.ToMilliseconds()
        seen_ms = self._time_of(label_ms)
        decided = self._decision_of(label.transaction_id, int(batch.keys[at]))
        decision_id = None if decided is None else str(decided["decision_id"])
        self._changes.labels.append(
            {
                "journal": self._journal, "position": position,
                "transaction_id": label.transaction_id, "decision_id": decision_id,
                "verdict": label.verdict, "source": label.source, "label_time_ms": label_ms,
                "seen_ms": seen_ms, "reporter": label.reporter, "note": label.note,
            }
        )  # fmt: skip
        self._observed.label(label.source, label.verdict)
        if decided is None or decision_id is None:
            return
        self._changes.opened[decision_id] = self._is_open_after(label, decision_id)
        context = label_context(self._journal, position)
        call = score_context(str(decided["trace_id"]), decision_id)
        self._changes.spans.append(
            span_of_label(label, context, position, call, decision_id, seen_ms * 1_000_000)
        )

    def _is_open_after(self, label: label_pb2.Label, decision_id: str) -> bool:
        """Return whether a case is to be reviewed after a label: where nobody's word is left."""
        if label.verdict != _RETRACTED:
            return False
        told = [*self._model.labels(decision_id), *self._changes.labels]
        return not standing(each for each in told if each["decision_id"] == decision_id)

    def _time_of(self, told_ms: int) -> int:
        """Return about when the entry at hand was appended, which no label says.

        That is when the decision before it was asked for; in a lull, when it is read here.
        """
        if self._is_live:
            now_ms = self._around.now_ms()
            return self._received_ms if now_ms - self._received_ms < LULL_MS else now_ms
        return self._received_ms or told_ms

    def _decision_of(self, transaction_id: str, identity: int) -> Row | None:
        """Return the row of the decision on a transaction; keep it now where it was not."""
        for row in self._changes.decisions:
            if row["transaction_id"] == transaction_id:
                return row
        found = self._model.decision_of(transaction_id)
        if found is not None:
            return found
        frame = self._frame_of(identity)
        logged = None if frame is None else logged_at(self._log, frame, identity)
        if logged is None:
            return None
        self._keep(logged, "label", late=True)
        return self._changes.decisions[-1]

    def _audit(self, batch: Batch, at: int) -> None:
        self._changes.audit.append(audit_row(batch, at, self._journal))

    def _letter(self, batch: Batch, at: int) -> None:
        position = int(batch.positions[at])
        row = {"journal": self._journal, "position": position, "body": batch.value(at)}
        self._changes.letters.append(row)

    def _model_event(self, batch: Batch, at: int) -> None:
        event = model_event_pb2.ModelEvent.FromString(batch.value(at))
        run = self._run_of(event.model_version)
        self._changes.model_events.append(
            {
                "journal": self._journal, "position": int(batch.positions[at]),
                "change": event.change, "model_version": event.model_version,
                "event_time_ms": event.event_time.ToMilliseconds(), "author": event.author,
                "from_position": event.learning.from_position,
                "until_position": event.learning.until_position,
                "body": batch.value(at),
            }
        )  # fmt: skip
        self._observed.model_event(event.change)
        is_loaded = event.change == _LOADED
        if run is not None and not is_loaded:
            return  # what became of a bundle later
        labels: list[Row] = []
        if is_loaded:
            self._swaps[event.author] = (event.model_version, swap_context(event))
            self._observe_swap(event, 0 if run is None else run.until_position)
        elif event.HasField("learning"):
            learnt = event.learning
            labels = self._labels_between(learnt.from_position, learnt.until_position)
        contexts = [label_context(self._journal, each["position"]) for each in labels]
        self._changes.spans += spans_of_model_event(
            event, contexts[-LINKS_MAX:], len(contexts), run is not None
        )

    def _observe_swap(self, event: model_event_pb2.ModelEvent, stop: int) -> None:
        """Tell how long labels waited until a scorer served them first.

        Also those that a bundle learnt which came between and was not taken up; not those that a
        scorer finds when it starts.
        """
        start = self._learnt.get(event.author, stop)
        self._learnt[event.author] = max(start, stop)
        if start < stop:
            loaded_ms, labels = event.event_time.ToMilliseconds(), self._labels_between(start, stop)
            self._observed.swapped([(loaded_ms - each["seen_ms"]) / 1000 for each in labels])

    def _run_of(self, model_version: str) -> model_event_pb2.Learning | None:
        """Return the run that learnt a bundle, None where this log has none."""
        for row in (*self._model.model_events(model_version), *self._changes.model_events):
            if row["model_version"] == model_version and row["change"] != _LOADED:
                event = model_event_pb2.ModelEvent.FromString(row["body"])
                if event.HasField("learning"):
                    return event.learning
        return None

    def _labels_between(self, start: int, stop: int) -> list[Row]:
        """Return the joined labels between two positions, oldest first."""
        fresh = [
            row
            for row in self._changes.labels
            if start <= row["position"] < stop and row["decision_id"] is not None
        ]
        return [*self._model.labels_between(self._journal, start, stop), *fresh]


_TAKEN = {
    Topic.LABELS: Follower._label,
    Topic.MODELS: Follower._model_event,
    Topic.DEAD_LETTERS: Follower._letter,
    Topic.AUDIT: Follower._audit,
}
