"""The trainer as a role: reads the log, learns, judges, and serves what passed, as events.

Owns the order: read, watch, take back, learn, judge, serve, tell. Serving never waits for it. Must
not know how anything is learnt, or judged.

After a start it first reads the log again, from a horizon on: what is remembered is then what it
was, and nothing is told twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from fraud.v1 import model_event_pb2
from numpy.typing import NDArray

from featurizer.eventlog import EventLog
from trainer.alarms import Alarm
from trainer.bundle import Content
from trainer.canary import CanarySettings
from trainer.elapsed import Elapsed
from trainer.gates import Gate, GateSettings
from trainer.labelled import Cause, Refusal
from trainer.learner import Learner, LearnerSettings
from trainer.observers import Observers, ObserverSettings
from trainer.reading import Read, read_batch, reporter_hash
from trainer.rivals import LINEAR
from trainer.scorecard import scorecard_of
from trainer.serving import (
    LivePlaces,
    Moment,
    Serving,
    ServingSettings,
    Standing,
    Trying,
    learnt_until,
)
from trainer.telling import (
    ALARMED,
    AUTHOR,
    DISTRUSTED,
    MEASURED,
    PROMOTED,
    RESUMED,
    ROLLED_BACK,
    STOPPED,
    TRUSTED,
    Teller,
)
from trainer.traffic import ROWS_MIN, Sample
from trainer.watch import WatchSettings

READ_BYTES = 4 << 20
STEP_MAX_MS = 10_000
REPORTERS_MAX = 4_096

__all__ = ["LivePlaces", "LiveSettings", "LiveTrainer"]


@dataclass(frozen=True, slots=True)
class LiveSettings:
    """All settings of the role; ``horizon_bytes`` of the log are read again after a start."""

    learner: LearnerSettings = field(default_factory=LearnerSettings)
    gates: GateSettings = field(default_factory=GateSettings)
    canary: CanarySettings = field(default_factory=CanarySettings)
    watch: WatchSettings = field(default_factory=WatchSettings)
    observers: ObserverSettings = field(default_factory=ObserverSettings)
    hold_ms: int = 600_000
    horizon_bytes: int = 1 << 30


@dataclass(slots=True)
class _Memory:
    """What was read again after a start and is settled when that is done."""

    refused: list[Refusal] = field(default_factory=list)
    stopped: set[str] = field(default_factory=set)
    suspects: dict[int, Alarm] = field(default_factory=dict)
    previous: dict[str, str] = field(default_factory=dict)


class LiveTrainer:
    """Learns from a log for as long as ``step`` is called."""

    def __init__(
        self,
        log: EventLog,
        places: LivePlaces,
        old_frauds: NDArray[np.float32],
        settings: LiveSettings,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        moved: Callable[[int], object] = lambda _: None,
    ) -> None:
        self._moved = moved
        self._log = log
        self._clock_ms = clock_ms
        self._elapsed = Elapsed(STEP_MAX_MS)
        self._settings = settings
        self._teller = Teller(log, clock_ms)
        serving = ServingSettings(settings.gates, settings.canary, settings.watch, settings.hold_ms)
        self._serving = Serving(places, serving, self._teller, self._now())
        champion = self._serving.champion.content
        self._learner = Learner(champion, old_frauds, settings.learner)
        self._observers = Observers(champion, settings.observers)
        # Of each reporter that was heard of the name, and where their first label stands.
        self._reporters: dict[int, tuple[str, int]] = {}
        self._distrusted: set[int] = set()
        self._told: set[int] = set()
        self._memory = _Memory()
        first, self._known_until = log.ends()
        # A position within a frame is none of a frame: reading goes on at the next one.
        self._position = max(first, (self._known_until - settings.horizon_bytes) & ~7)
        self._is_cut = self._position > first
        self._is_remembering = self._position < self._known_until

    def step(self) -> bool:
        """Read what is new and act on it; return whether there was anything to read."""
        batch = self._log.read(self._position, READ_BYTES)
        went_on, self._position = batch.next_position != self._position, batch.next_position
        self._moved(self._position)
        at = self._now()
        if self._is_remembering:
            self._remember(read_batch(batch), at)
            if not went_on or self._position >= self._known_until:
                self._is_remembering = False
                self._begin(at)
            return True
        self._act(read_batch(batch), at)
        if self._position == self._log.ends()[1]:
            self._learn(at)
        return went_on

    def _now(self) -> Moment:
        clock_ms = self._clock_ms()
        return Moment(clock_ms, self._elapsed.advance(clock_ms))

    def _remember(self, read: Read, at: Moment) -> None:
        """Take in what was read before the start: nothing is told, judged or served for it."""
        refused = self._hear(read, at)
        heard, memory = self._learner.heard, self._memory
        self._observers.see_traffic(read.decisions, read.vectors)
        self._observers.see_labels(heard, np.zeros(len(heard), np.bool_))
        for alarm in self._observers.labels.remember(heard, refused, at.clock_ms):
            memory.suspects[int(alarm.subject)] = alarm
        self._told |= read.told
        memory.refused += refused
        for change in read.changes:
            if change.change == DISTRUSTED:
                for each in change.alarms:
                    self._forget(reporter_hash(each.subject))
            elif change.change == PROMOTED:
                memory.previous[change.model_version] = change.previous_version
            elif change.change == STOPPED:
                memory.stopped.add(_code(change.reason))
            elif change.change == RESUMED:
                memory.stopped.discard(_code(change.reason))
            self._take_trust(change)

    def _begin(self, at: Moment) -> None:
        """Go on from what is remembered; tell what should have been told."""
        memory, self._memory = self._memory, _Memory()
        self._refuse(memory.refused, at)
        self._learner.resume()
        previous = memory.previous.get(self._serving.champion.version, "")
        self._serving.watch_again(previous, at)
        self._tell_turns(at, memory.stopped)
        for code in memory.stopped - {stop.name for stop in self._observers.labels.stopped}:
            self._tell(RESUMED, at, f"{code}: no longer, after a restart")
        for reporter, alarm in memory.suspects.items():
            if reporter not in self._distrusted:
                self._distrust(alarm, at)

    def _act(self, read: Read, at: Moment) -> None:
        """Take in what is new, take back what has to be, and say what was found."""
        if self._serving.follow(at):
            self._go_on()
        for change in read.changes:
            self._take_trust(change)
            by_hand = change.author != AUTHOR and change.change == ROLLED_BACK
            if by_hand and change.model_version == self._serving.champion.version:
                self._serving.trust()
        refused, heard = self._hear(read, at), self._learner.heard
        self._refuse(refused, at)
        self._serving.see(read.served)
        alerted = self._serving.see_labels(heard)
        alarms = self._observers.see_traffic(read.decisions, read.vectors)
        alarms += self._observers.see_labels(heard, alerted)
        for alarm in alarms:
            self._tell(ALARMED, at, f"{alarm.code} of {alarm.subject}", alarms=[alarm])
        for alarm in self._observers.labels.see(heard, refused, at.clock_ms):
            self._distrust(alarm, at)
        if self._serving.check(at, self._figures()):
            self._go_on()
        self._tell_turns(at)
        if self._observers.is_measuring():
            self._tell(MEASURED, at, "newest labels", figures=self._figures())

    def _hear(self, read: Read, at: Moment) -> list[Refusal]:
        """Give decisions and labels to the learner, but labels of nobody who is distrusted."""
        for label in read.labels:
            reporter = int(label["reporter"])
            if reporter not in self._reporters and len(self._reporters) < REPORTERS_MAX:
                self._reporters[reporter] = read.reporters[reporter], int(label["offset"])
        distrusted = np.isin(read.labels["reporter"], list(self._distrusted))
        refused = [Refusal(Cause.DISTRUSTED, label) for label in read.labels[distrusted]]
        trusted = read._replace(labels=read.labels[~distrusted])
        return refused + self._learner.take(trusted, at.clock_ms)

    def _refuse(self, refused: Sequence[Refusal], at: Moment) -> None:
        """Tell which labels are not used, once.

        Of one that was read again and knows no decision it is told only if the whole log was read
        again: before the horizon there may be one.
        """
        untold = []
        for each in refused:
            offset = int(each.label["offset"])
            is_doubtful = self._is_cut and offset < self._known_until
            if offset not in self._told and not (
                is_doubtful and each.cause is Cause.UNKNOWN_TRANSACTION
            ):
                untold.append(each)
        self._teller.refuse(untold, at.clock_ms)

    def _take_trust(self, change: model_event_pb2.ModelEvent) -> None:
        if change.change == TRUSTED:
            for each in change.alarms:
                self._distrusted.discard(reporter_hash(each.subject))
                self._memory.suspects.pop(reporter_hash(each.subject), None)

    def _distrust(self, alarm: Alarm, at: Moment) -> None:
        """Go back to before a reporter was heard, and forget what they said."""
        reporter = int(alarm.subject)
        name, first = self._reporters.get(reporter, (alarm.subject, 0))
        alarm, serving = replace(alarm, subject=name), self._serving
        target = serving.before(first)
        if target is not serving.champion and not serving.pinned:
            reason = f"{alarm.code}: before the labels of {name}"
            serving.roll_back(target, reason, at, alarms=[alarm], figures=self._figures())
        self._learner.champion = serving.champion.content
        rows = self._forget(reporter)
        self._tell(
            DISTRUSTED, at, f"{alarm.code}: {rows} labels of {name} are forgotten",
            alarms=[alarm], figures={"labels forgotten": float(rows)},
        )  # fmt: skip
        self._go_on()

    def _forget(self, reporter: int) -> int:
        self._distrusted.add(reporter)
        rows = self._learner.forget(reporter)
        self._observers.forget(reporter, self._learner.lessons.all())
        return rows

    def _go_on(self) -> None:
        """Learn on top of what is served now."""
        content = self._serving.champion.content
        self._learner.champion = content
        self._observers.serve_another(content)

    def _tell_turns(self, at: Moment, told: Set[str] = frozenset()) -> None:
        for turn in self._observers.labels.turns():
            if turn.stop.name in told:
                continue
            name, _ = self._reporters.get(turn.figures.reporter, ("", 0))
            figures = {key: float(value) for key, value in turn.figures._asdict().items()}
            for key in ("reporter", "merchant"):  # hashes, which are no figures
                del figures[key]
            text = turn.text.replace(str(turn.figures.reporter), name) if name else turn.text
            self._tell(
                STOPPED if turn.begins else RESUMED, at, f"{turn.stop.name}: {text}",
                figures=figures,
            )  # fmt: skip

    def _learn(self, at: Moment) -> None:
        """Serve what was tried for long enough; learn and try what is new."""
        serving, learner = self._serving, self._learner
        if serving.pinned:
            return
        if (canary := serving.finished_canary(at)) is not None:
            self._promote_canary(canary, at)
        if self._observers.labels.stopped or serving.is_held(at):
            return
        is_free = serving.canary is None
        if not learner.is_due(at.clock_ms, with_residual=is_free) and not self._look_is_due(at):
            return
        traffic = learner.traffic()
        if len(traffic.learnt) < ROWS_MIN:
            return
        self._try_expert(traffic, at)
        if is_free:
            self._try_residual(traffic, at)
        self._look(traffic, at)

    def _try_expert(self, traffic: Sample, at: Moment) -> None:
        """Serve a new expert at once: its effect is bounded, whatever it learnt."""
        content = self._learner.propose(traffic, at.clock_ms, with_residual=False)
        if content is None or (found := self._draft(content, traffic, (), at)) is None:
            return
        standing, gates = found
        self._serving.promote(standing, gates, _cause(content), at, self._figures())
        self._learner.champion = standing.content

    def _try_residual(self, traffic: Sample, at: Moment) -> None:
        content = self._learner.propose(traffic, at.clock_ms)
        if content is not None and (found := self._draft(content, traffic, (), at)) is not None:
            self._serving.try_out(*found, _cause(content), at)

    def _look_is_due(self, at: Moment) -> bool:
        return self._observers.look_is_due(at.passed_ms)

    def _look(self, traffic: Sample, at: Moment) -> None:
        """Show traffic to the challengers, and try the linear one where it won."""
        observers, budget = self._observers, self._settings.learner.budget
        if self._look_is_due(at):
            observers.look(traffic.held, self._learner.lessons.all(), budget, at.passed_ms)
        rivals = observers.rivals
        if rivals is None or self._serving.canary is not None:
            return
        winner = rivals.winner()
        if winner is None:
            return
        gate = rivals.gate()
        rivals.start_trials()
        residual = scorecard_of(winner, traffic.learnt)
        content = self._learner.compose(residual, LINEAR, traffic, at.clock_ms)
        if (found := self._draft(content, traffic, (gate,), at)) is not None:
            self._serving.try_out(*found, _cause(content), at)

    def _promote_canary(self, canary: Trying, at: Moment) -> None:
        """Serve to all what passed its canary, with the champion's expert of now."""
        serving = self._serving
        standing, gates = canary.standing, list[Gate]()
        if serving.champion.version != canary.beside:
            traffic = self._learner.traffic()
            content = self._learner.compose(
                standing.content.residual, canary.cause, traffic, at.clock_ms
            )
            found = self._draft(content, traffic, (), at)
            if found is None:
                serving.end_canary("it failed a gate with the expert of now", at)
                return
            standing, gates = found
        serving.promote_canary(canary, standing, gates, at, self._figures())
        self._go_on()

    def _draft(
        self, content: Content, traffic: Sample, more: tuple[Gate, ...], at: Moment
    ) -> tuple[Standing, list[Gate]] | None:
        """Write and judge a content that says from where on the log it was learnt."""
        before = learnt_until(self._serving.champion.content.facts)
        place = {
            "position": self._position, "root": self._serving.root, "from_position": before,
            "end_ms": self._clock_ms(),
        }  # fmt: skip
        learnt = {**content.facts["learnt"], **place}
        content = replace(content, facts={**content.facts, "learnt": learnt})
        old_frauds = self._learner.old_frauds
        return self._serving.draft(content, traffic.held, old_frauds, more, at)

    def _figures(self) -> Mapping[str, float]:
        return self._observers.figures(self._learner.joins)

    def _tell(
        self, change: model_event_pb2.ModelChange, at: Moment, reason: str, **more: Any
    ) -> None:
        version = self._serving.champion.version
        self._teller.tell(change, version, at.clock_ms, reason, **more)


def _code(reason: str) -> str:
    return reason.partition(":")[0]


def _cause(content: Content) -> str:
    learnt = content.facts["learnt"]
    return f"{' and '.join(learnt['layers'])}, from {learnt['frauds']} frauds"
