"""Spans of a ScoreBatch, from a log that is read in pieces, by consoles that are restarted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from fraud.v1 import decision_pb2, label_pb2
from numpy.typing import NDArray

from featurizer.kept import Column, KeepRule
from featurizer.metering import Meters
from featurizer.spans import FRAME, ITEM, SCORE_BATCH, Context, Span, score_context
from fraudsvc.console import follower
from fraudsvc.console.follower import Follower, Surroundings
from fraudsvc.console.observations import Observations
from fraudsvc.console.open_calls import STALE_MS
from fraudsvc.console.readmodel import ReadModel
from tests.conftest import Host, Payments, call_now, decisions

# In frames of 32; where the last one has one item, mostly nothing of it is kept.
SIZES = (70, 3, *(33,) * 8, 100)
SMALL_BYTES = 1 << 16  # less than a frame


class Reviews(KeepRule):
    """Keeps few of many: in this traffic most are declined."""

    def keeps(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which rows are reviews."""
        kept: NDArray[np.bool_] = rows[:, Column.OUTCOME] == decision_pb2.OUTCOME_REVIEW
        return kept


class Console(NamedTuple):
    """A read model, and what follows a log into it."""

    model: ReadModel
    host: Host
    taken: list[Span]
    now_ms: list[int]

    def follower(self) -> Follower:
        """Return a follower that knows nothing but the read model."""
        around = Surroundings(
            lambda _: None, lambda frames: dict.fromkeys(frames, 7_000), self.taken.append,
            lambda: self.now_ms[0],
        )  # fmt: skip
        observed = Observations(Meters())
        return Follower(self.host.log, "a", self.model, Reviews(), observed, around)

    def spans(self) -> dict[Context, Span]:
        """Return all spans of all decisions in the log that the read model has."""
        found: dict[Context, Span] = {}
        for each in decisions(self.host.log).values():
            spans = self.model.trace(each.assessment.trace_id)
            found |= {span.context: span for span in spans}
        return found


def console(host: Host, path: Path) -> Console:
    model = ReadModel(f"sqlite:///{path}")
    model.migrate()
    return Console(model, host, [], [0])


def newest_ms(host: Host) -> int:
    return max(each.receive_time.ToMilliseconds() for each in decisions(host.log).values())


def read_all(follower: Follower) -> None:
    while follower.step():
        pass
    follower.step()


def batches(host: Host) -> None:
    """Decide batches of several frames, and calls of their own in between."""
    payments, scorer = Payments(), host.scorer()
    for size in SIZES:
        scorer.score_batch([payments.one() for _ in range(size)], call_now())
        scorer.score(payments.one(), call_now())
        scorer.score_several([payments.one() for _ in range(9)], [call_now()] * 9)


def test_restarts_in_the_midst_of_a_call_change_no_span(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches(host)
    usual, restarted = (console(host, tmp_path / f"{name}.sqlite") for name in "ab")
    read_all(usual.follower())
    monkeypatch.setattr(follower, "READ_BYTES", SMALL_BYTES)
    end = host.log.ends()[1]
    reads, position = 1, 0
    while position < end:  # each lives for as many reads as bring it further
        lives = restarted.follower()
        for _ in range(reads):
            lives.step()
        went, position = restarted.follower().position > position, restarted.follower().position
        reads = 1 if went else reads + 1

    spans = usual.spans()
    assert restarted.spans() == spans
    names = [span.name for span in spans.values()]
    assert 4 < names.count(SCORE_BATCH) <= len(SIZES)
    assert names.count(FRAME) > 4
    assert all(s.attributes["fraud.end.measured"] for s in spans.values() if s.name == SCORE_BATCH)
    assert_hang_together([*spans.values()])
    assert {span.context for span in usual.taken} == set(spans)
    assert len(usual.taken) == len(spans), "each is sent once"


def assert_hang_together(spans: Sequence[Span]) -> None:
    """Every span but a call has its parent, of the right kind, and lies within it."""
    by_context = {span.context: span for span in spans}
    kinds = {ITEM: FRAME, FRAME: SCORE_BATCH}
    for span in spans:
        if span.parent:
            parent = by_context[Context(span.context.trace_id, span.parent)]
            assert parent.name == kinds.get(span.name, parent.name)
            assert parent.start_ns <= span.start_ns <= span.end_ns <= parent.end_ns


def test_a_call_whose_last_items_were_refused_is_told_after_a_while(
    host: Host, tmp_path: Path
) -> None:
    payments, told = Payments(), console(host, tmp_path / "a.sqlite")
    items = [payments.one() for _ in range(40)]
    for poor in items[32:]:
        poor.currency_code = "XXQ"
    host.scorer().score_batch(items, call_now())
    following = told.follower()
    told.now_ms[0] = newest_ms(host)
    read_all(following)
    assert not [span for span in told.taken if span.name == SCORE_BATCH]
    again = told.follower()
    assert again.position < following.position, "who comes after reads the call again"
    told.now_ms[0] += STALE_MS + 1
    read_all(following)
    [batch] = [span for span in told.taken if span.name == SCORE_BATCH]
    assert batch.attributes["fraud.end.measured"] is False
    assert batch.attributes["fraud.items"] == 40
    assert told.follower().position == following.position
    assert_hang_together(told.taken)


def test_an_item_that_gets_a_label_later_has_its_call_around_it(host: Host, tmp_path: Path) -> None:
    payments, scorer = Payments(), host.scorer()
    items = [payments.one() for _ in range(40)]
    scorer.score_batch(items, call_now())
    told = console(host, tmp_path / "a.sqlite")
    following = told.follower()
    read_all(following)
    made: list[decision_pb2.Decision] = [*decisions(host.log).values()]
    contexts = {
        each.transaction.transaction_id: score_context(
            each.assessment.trace_id, each.assessment.decision_id
        )
        for each in made
    }
    kept = {span.context for span in told.taken if span.name == ITEM}
    before = len(told.taken)
    late = [name for name, context in contexts.items() if context not in kept][-5:]
    labels = [payments.label(name) for name in late]
    for label in labels:
        label.verdict = label_pb2.VERDICT_FRAUD
    scorer.report_labels(labels)
    read_all(following)
    assert {span.context for span in told.taken[before:]} >= {contexts[name] for name in late}
    assert len({span.context for span in told.taken}) == len(told.taken), "none is sent twice"
    assert_hang_together(told.taken)
