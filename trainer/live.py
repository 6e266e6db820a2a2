"""The trainer as a role: reads the log, learns, judges, and serves what passed, as events.

Owns the order: read, learn, write, load again as a scorer would, judge, link, tell. Serving never
waits for it. Must not know how anything is learnt.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fraud.v1 import model_event_pb2
from numpy.typing import NDArray

from featurizer.eventlog import Entry, EventLog, LogError, Topic
from featurizer.metering import Meters
from trainer.bundle import Bundle, BundleError, Content, load_bundle, load_content, write_bundle
from trainer.gates import Gate, GateSettings, judge
from trainer.labelled import Refusal
from trainer.learner import Learner, LearnerSettings
from trainer.model import ModelError
from trainer.reading import read_batch
from trainer.shelf import Shelf

_log = logging.getLogger(__name__)
AUTHOR = "trainer"
READ_BYTES = 4 << 20
PROMOTED = model_event_pb2.MODEL_CHANGE_PROMOTED
REFUSED = model_event_pb2.MODEL_CHANGE_REFUSED


@dataclass(frozen=True, slots=True)
class LivePlaces:
    """The shelf, the keys, and the schema that vectors are of."""

    shelf: Shelf
    private_key: Path
    public_key: bytes
    schema: str


class LiveTrainer:
    """Learns from a log for as long as ``step`` is called."""

    def __init__(
        self,
        log: EventLog,
        places: LivePlaces,
        old_frauds: NDArray[np.float32],
        settings: LearnerSettings,
        gates: GateSettings,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        meters: Meters | None = None,
    ) -> None:
        meters = meters or Meters()
        self._log = log
        self._places = places
        self._gates = gates
        self._clock_ms = clock_ms
        self._champion, content = self._load(places.shelf.link)
        places.shelf.take_over(self._champion.model_version)
        self._learner = Learner(content, old_frauds, settings)
        self._position = self._told = log.ends()[0]  # of labels before it, models were told of
        self._gauge = meters.values
        self._gauge_at = meters.slot("fraud_position", "trainer")

    def step(self) -> bool:
        """Read what is new and learn from it; return whether there was anything to read."""
        batch = self._log.read(self._position, READ_BYTES)
        went_on, self._position = batch.next_position != self._position, batch.next_position
        self._gauge[self._gauge_at] = self._position
        now_ms = self._clock_ms()
        if went_on:
            self._refuse_labels(self._learner.take(read_batch(batch), now_ms), now_ms)
        if self._position == self._log.ends()[1] and not self._places.shelf.pinned:
            self._learn(now_ms)
        return went_on

    def _learn(self, now_ms: int) -> None:
        self._follow()
        if not self._learner.is_due(now_ms):
            return
        run = model_event_pb2.Learning(from_position=self._told, until_position=self._position)
        run.start_time.FromMilliseconds(now_ms)
        traffic = self._learner.traffic()
        content = self._learner.propose(traffic, now_ms)
        if content is not None:
            run.end_time.FromMilliseconds(self._clock_ms())
            run.layers.extend(content.facts["learnt"]["layers"])
            self._told = self._position
            self._try(content, traffic, run)

    def _follow(self) -> None:
        """Go on from what is served, where a person changed it."""
        if self._places.shelf.served() != self._champion.model_version:
            self._champion, self._learner.champion = self._load(self._places.shelf.link)
            self._places.shelf.take_over(self._champion.model_version)
            _log.info("going on from %s", self._champion.model_version)

    def _try(
        self, content: Content, traffic: NDArray[np.float32], run: model_event_pb2.Learning
    ) -> None:
        """Write a bundle, judge what a scorer would load, and serve it if it passes."""
        shelf = self._places.shelf
        draft = shelf.folder / ".draft"
        shutil.rmtree(draft, ignore_errors=True)
        try:
            bundle_id = write_bundle(draft, content, self._places.private_key)
            candidate, _ = self._load(draft)
        except (BundleError, ModelError) as error:
            self._tell(REFUSED, "", [Gate("integrity", 0.0, 1.0, False)], str(error), run)
            return
        gates = [Gate("integrity", 1.0, 1.0, True)]
        gates += judge(candidate, self._champion, traffic, self._learner.old_frauds, self._gates)
        if not all(gate.passed for gate in gates):
            shutil.rmtree(draft, ignore_errors=True)
            self._tell(REFUSED, bundle_id, gates, f"gate: {gates[-1].name}", run)
            return
        shelf.place(draft, bundle_id)
        shelf.serve(bundle_id)
        self._tell(PROMOTED, bundle_id, gates, _cause(content), run)
        self._champion, self._learner.champion = candidate, content
        shelf.tidy()

    def _load(self, path: Path) -> tuple[Bundle, Content]:
        places = self._places
        schema, key = places.schema, places.public_key
        return (
            load_bundle(path, schema_version=schema, public_key=key),
            load_content(path, schema_version=schema, public_key=key),
        )

    def _refuse_labels(self, refused: list[Refusal], now_ms: int) -> None:
        letters = [each.letter(now_ms, AUTHOR).SerializeToString() for each in refused]
        self._append([[Entry(Topic.DEAD_LETTERS, 0, letter)] for letter in letters])

    def _tell(
        self,
        change: model_event_pb2.ModelChange,
        bundle_id: str,
        gates: list[Gate],
        reason: str,
        run: model_event_pb2.Learning,
    ) -> None:
        """Put what happened on the log."""
        event = model_event_pb2.ModelEvent(
            change=change, model_version=bundle_id, previous_version=self._champion.model_version,
            author=AUTHOR, reason=reason,
            gates=[model_event_pb2.GateResult(**gate._asdict()) for gate in gates], learning=run,
        )  # fmt: skip
        event.event_time.FromMilliseconds(self._clock_ms())
        _log.info("%s %s: %s", model_event_pb2.ModelChange.Name(change), bundle_id, reason)
        self._append([[Entry(Topic.MODELS, 0, event.SerializeToString())]])

    def _append(self, frames: list[list[Entry]]) -> None:
        try:
            self._log.append(frames)
        except LogError as error:  # learning goes on; what is served is told by the link
            _log.error("not on the log: %s", error)


def _cause(content: Content) -> str:
    learnt = content.facts["learnt"]
    return f"{' and '.join(learnt['layers'])}, from {learnt['frauds']} frauds"
