"""The ladder: every step gives the decision of the first, against a real Redis and Kafka."""

from __future__ import annotations

import dataclasses
import itertools
import os
from pathlib import Path

import pytest

from deploy.testing.kafka import kafka_missing
from deploy.testing.redis import redis_missing
from tests.ladder.__main__ import draw, table
from tests.ladder.run import Size, WrongError, _compare, climb, places, prepare, rows
from tests.ladder.ways import Answer, Way, ladder


def test_each_step_changes_one_thing() -> None:
    steps = ladder()
    assert steps[0].way == Way()
    assert not any(dataclasses.astuple(steps[-1].way))
    for before, after in itertools.pairwise(steps):
        pairs = zip(dataclasses.astuple(before.way), dataclasses.astuple(after.way), strict=True)
        assert sum(a != b for a, b in pairs) == 1


def test_another_decision_is_found() -> None:
    [step, *_] = ladder()
    for other in (Answer(0.5, 2), Answer(0.51, 1)):
        with pytest.raises(WrongError, match="payment 0"):
            _compare(step, [other], [Answer(0.5, 1)])


def test_every_step_decides_the_same(tmp_path: Path) -> None:
    missing = kafka_missing() or redis_missing()
    if missing:
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    size = Size(days=12, customers=300, rate=900, payments=25, rounds=1, iterations=30)
    transactions, now_ms = prepare(tmp_path, size)
    with places(tmp_path) as at:
        taken = climb(at, transactions, now_ms, size.rounds)
    found = rows(taken)
    assert [row["calls"] for row in found] == [25] * len(ladder())
    assert table(found).count("\n") == len(ladder()) + 2
    draw(found, tmp_path / "ladder.svg")
    assert "<svg" in (tmp_path / "ladder.svg").read_text()
