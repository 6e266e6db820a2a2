"""How long labels wait until they are served, where bundles come quicker than scorers look."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fraud.v1 import model_event_pb2

from featurizer.eventlog import Entry, Topic
from featurizer.eventlog_file import FileEventLog
from featurizer.kept import KeepRule
from featurizer.metering import Meters
from fraudsvc.console.case_rows import row_of_decision
from fraudsvc.console.follower import Follower, Surroundings
from fraudsvc.console.observations import Observations
from fraudsvc.console.readmodel import LOG, Changes, ReadModel
from tests.console_world import JOURNAL, a_decision, a_label

SEEN_MS = 1_000_000  # when all labels came
LABELS = 10


class Waits(Observations):
    """Remembers what it is told of waits."""

    def __init__(self) -> None:
        super().__init__(Meters())
        self.all_s: list[float] = []

    def swapped(self, waits_s: list[float]) -> None:
        """Remember them."""
        self.all_s += waits_s


class Told:
    """A log with model events, and a console that reads it."""

    def __init__(self, folder: Path) -> None:
        self.log = FileEventLog(folder / "log")
        self.model = ReadModel(f"sqlite:///{folder}/readmodel.sqlite")
        self.model.migrate()
        changes, rng = Changes(), np.random.default_rng(1)
        for number in range(LABELS):
            logged = a_decision(number, SEEN_MS - 1_000, rng)
            row = row_of_decision(logged, "outcome")
            changes.decisions.append(row)
            changes.labels.append(a_label(row, number, SEEN_MS, 1, position=number))
        self.model.write(changes, LOG, JOURNAL, 0)
        self.waits = Waits()
        around = Surroundings(lambda _: None, lambda _: {}, lambda _: None, lambda: 0)
        self.follower = Follower(self.log, JOURNAL, self.model, KeepRule(), self.waits, around)

    def learnt(self, version: str, start: int, stop: int) -> None:
        """A bundle learns from the labels between two positions, and is promoted."""
        event = self._event(model_event_pb2.MODEL_CHANGE_PROMOTED, version, "trainer", 0)
        event.learning.from_position, event.learning.until_position = start, stop
        self.log.append([[Entry(Topic.MODELS, 0, event.SerializeToString())]])

    def loaded(self, version: str, after_s: int, scorer: str = "a") -> list[float]:
        """A scorer takes a bundle up; return how long labels are told to have waited."""
        after_ms = SEEN_MS + 1_000 * after_s
        event = self._event(model_event_pb2.MODEL_CHANGE_LOADED, version, scorer, after_ms)
        self.log.append([[Entry(Topic.MODELS, 0, event.SerializeToString())]])
        while self.follower.step():
            pass
        waits, self.waits.all_s = self.waits.all_s, []
        return waits

    @staticmethod
    def _event(
        change: model_event_pb2.ModelChange, version: str, author: str, time_ms: int
    ) -> model_event_pb2.ModelEvent:
        event = model_event_pb2.ModelEvent(change=change, model_version=version, author=author)
        event.event_time.FromMilliseconds(time_ms)
        return event


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Told]:
    found = Told(tmp_path)
    yield found
    found.log.close()


def test_labels_of_a_bundle_that_no_scorer_took_up_waited_for_the_next(told: Told) -> None:
    assert told.loaded("base", 0) == []
    told.learnt("first", 0, 3)
    told.learnt("second", 3, 8)
    assert told.loaded("second", 5) == [5.0] * 8
    told.learnt("third", 8, LABELS)
    assert told.loaded("third", 9) == [9.0] * 2


def test_a_label_waits_once_for_a_scorer_and_not_for_one_that_starts(told: Told) -> None:
    told.loaded("base", 0)
    told.learnt("first", 0, 4)
    assert told.loaded("first", 2, scorer="later") == [], "it found it"
    assert told.loaded("first", 3) == [3.0] * 4
    assert told.loaded("base", 60) == [], "rolled back"
    told.learnt("second", 0, 6)
    assert told.loaded("second", 90) == [90.0] * 2, "four were served before"
    assert told.loaded("second", 91, scorer="later") == [91.0] * 2
