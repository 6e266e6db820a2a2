"""What learners remember: bounded, one row a transaction, and forgotten when told."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.labelled import ANALYST, CUSTOMER, FRAUD, JOINED, LEGITIMATE, STRENGTH, Joined
from trainer.lessons import Lessons


def joined(*rows: tuple[int, int, int, int, int, bool]) -> Joined:
    """Return rows of transaction, time, reporter, verdict, source and overrules."""
    out: Any = np.zeros(len(rows), JOINED)
    names = ("transaction", "label_time_ms", "reporter", "verdict", "source", "overrules")
    for name, values in zip(names, zip(*rows, strict=True), strict=True):
        out[name] = values
    return Joined(out, np.repeat(out["transaction"][:, None], 2, axis=1).astype(np.float32))


def known(lessons: Lessons) -> dict[int, tuple[int, int]]:
    rows = lessons.all().rows
    return {int(r["transaction"]): (int(r["verdict"]), int(r["reporter"])) for r in rows}


def test_the_oldest_leave() -> None:
    lessons = Lessons(3, 2)
    lessons.add(joined(*((n, n, 1, FRAUD, ANALYST, False) for n in range(1, 6))))
    everything = lessons.all()
    assert everything.rows["transaction"].tolist() == [3, 4, 5]
    assert everything.vectors[:, 0].tolist() == [3.0, 4.0, 5.0]


def test_a_label_that_overrules_takes_the_place() -> None:
    lessons = Lessons(3, 2)
    lessons.add(joined((1, 1, 5, FRAUD, ANALYST, False), (1, 2, 6, LEGITIMATE, CUSTOMER, True)))
    assert known(lessons) == {1: (LEGITIMATE, 6)}


def test_a_weaker_source_that_agrees_does_not() -> None:
    lessons = Lessons(3, 2)
    lessons.add(joined((1, 1, 6, FRAUD, CUSTOMER, False), (1, 2, 5, FRAUD, ANALYST, False)))
    assert known(lessons) == {1: (FRAUD, 6)}


def test_a_reporter_and_a_time_are_forgotten() -> None:
    lessons = Lessons(8, 2)
    rows = [(n, n, n % 2, FRAUD, ANALYST, False) for n in range(1, 7)]
    lessons.add(joined(*rows))
    assert lessons.forget(reporter=1, from_ms=3) == 2
    assert sorted(known(lessons)) == [1, 2, 4, 6]
    assert lessons.forget(until_ms=3) == 2
    assert sorted(known(lessons)) == [4, 6]
    lessons.add(joined((9, 9, 1, FRAUD, ANALYST, False)))
    assert lessons.all().rows["transaction"].tolist() == [4, 6, 9]


ROWS = st.lists(
    st.tuples(
        st.integers(1, 9),
        st.integers(0, 50),
        st.integers(1, 3),
        st.sampled_from([FRAUD, LEGITIMATE]),
        st.sampled_from([ANALYST, CUSTOMER]),
        st.booleans(),
    ),
    min_size=1,
    max_size=30,
)


@given(ROWS, st.integers(1, 6))
def test_forgotten_is_as_if_never_learnt_and_arrays_bring_the_rest_back(
    rows: list[tuple[int, int, int, int, int, bool]], capacity: int
) -> None:
    lessons = Lessons(capacity, 2)
    for row in rows:
        lessons.add(joined(row))
        assert len(lessons) <= capacity
    before = known(lessons)
    lessons.forget(reporter=2)
    assert known(lessons) == {t: said for t, said in before.items() if said[1] != 2}
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **lessons.to_arrays())
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        again = Lessons.from_arrays(capacity, arrays)
    assert again.all().rows.tobytes() == lessons.all().rows.tobytes()
    assert again.all().vectors.tobytes() == lessons.all().vectors.tobytes()
    assert STRENGTH[CUSTOMER] > STRENGTH[ANALYST]


def test_arrays_of_another_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="JOINED"):
        Lessons.from_arrays(3, {"rows": np.zeros(3), "vectors": np.zeros((3, 2), np.float32)})
    with pytest.raises(ValueError, match="room"):
        Lessons(0, 2)
