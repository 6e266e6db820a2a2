"""Labels joined to decisions: each rule, each cause, the bounds, and clocks that jump."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from trainer.decision_ring import DECISION
from trainer.joins import Joins, JoinSettings, Taken
from trainer.labelled import (
    ANALYST,
    CHARGEBACK,
    CUSTOMER,
    DAY_MS,
    FAST,
    FRAUD,
    ISSUER,
    LABEL,
    LEGITIMATE,
    PRESUMED,
    SLOW,
    STRENGTH,
    Cause,
)
from trainer.lessons import Lessons

START_MS = 1_700_000_000_000
SETTINGS = JoinSettings(decisions_max=8, passed_max=4, waiting_max=4, waiting_ms=1_000)


def decisions(*transactions: int, customer: int = 7, time_ms: int = START_MS) -> NDArray[Any]:
    rows = np.zeros(len(transactions), DECISION)
    rows["transaction"], rows["customer"] = transactions, customer
    rows["event_time_ms"], rows["model"] = time_ms, b"v1"
    return rows


def vectors_of(rows: NDArray[Any]) -> NDArray[np.float32]:
    return np.repeat(rows["transaction"][:, None], 3, axis=1).astype(np.float32)


def label(
    transaction: int,
    verdict: int = FRAUD,
    source: int = ANALYST,
    *,
    reporter: int = 1,
    after_ms: int = 60_000,
    customer: int = 0,
    offset: int = 0,
) -> NDArray[Any]:
    row = (transaction, START_MS + after_ms, reporter, customer, offset, 0, verdict, source)
    return np.array([row], LABEL)


def joins_with(*transactions: int, **settings: Any) -> Joins:
    joins = Joins(3, settings.pop("settings", SETTINGS), **settings)
    rows = decisions(*transactions)
    joins.take_decisions(rows, vectors_of(rows), START_MS)
    return joins


def causes(taken: Taken) -> list[Cause]:
    return [refusal.cause for refusal in taken.refused]


def test_a_label_comes_with_its_decision() -> None:
    joins = joins_with(11, 12)
    taken = joins.take_labels(label(12, source=CUSTOMER, reporter=5), START_MS)
    (row,) = taken.joined.rows
    assert (row["transaction"], row["customer"], row["model"]) == (12, 7, b"v1")
    assert (row["verdict"], row["source"], row["reporter"]) == (FRAUD, CUSTOMER, 5)
    assert taken.joined.vectors.tolist() == [[12.0, 12.0, 12.0]]
    assert taken.joined.is_fraud.tolist() == [True]
    assert not taken.refused
    assert joins.counts.coverage == 0.5
    assert joins.counts.delays[CUSTOMER].tolist() == [1, *[0] * 12]


def test_sources_train_apart() -> None:
    joins = joins_with(1)
    for source in (ANALYST, CUSTOMER, ISSUER, CHARGEBACK):
        taken = joins.take_labels(label(1, source=source), START_MS)
        assert (len(taken.joined.of(FAST)), len(taken.joined.of(SLOW))) == (
            (1, 0) if source in FAST else (0, 1)
        )
    assert joins.counts.labelled == 1
    assert joins.counts.joined.sum() == 4


def test_a_label_before_its_decision_waits() -> None:
    joins = joins_with(1)
    taken = joins.take_labels(label(2), START_MS)
    assert (len(taken.joined), taken.refused, joins.waiting) == (0, [], 1)
    rows = decisions(2)
    taken = joins.take_decisions(rows, vectors_of(rows), START_MS + 500)
    assert taken.joined.rows["transaction"].tolist() == [2]
    assert joins.waiting == 0


def test_a_label_that_waited_too_long_is_unknown() -> None:
    joins = joins_with(1)
    joins.take_labels(label(2, offset=44), START_MS)
    assert not joins.pass_time(START_MS + 999).refused
    (refusal,) = joins.pass_time(START_MS + 1_000).refused
    letter = refusal.letter(START_MS, "trainer-1")
    assert (letter.topic, letter.partition, letter.offset) == ("labels", 0, 44)
    assert (letter.reason, letter.author) == ("UNKNOWN_TRANSACTION", "trainer-1")
    assert letter.letter_time.ToMilliseconds() == START_MS


def test_what_was_unknown_can_be_sent_again() -> None:
    joins = joins_with(1)
    joins.take_labels(label(2), START_MS)
    assert causes(joins.pass_time(START_MS + 5_000)) == [Cause.UNKNOWN_TRANSACTION]
    rows = decisions(2)
    joins.take_decisions(rows, vectors_of(rows), START_MS + 5_000)
    assert len(joins.take_labels(label(2), START_MS + 5_000).joined) == 1


def test_as_many_wait_as_are_allowed() -> None:
    joins = joins_with(1)
    for transaction in range(10, 15):
        taken = joins.take_labels(label(transaction), START_MS)
    assert causes(taken) == [Cause.UNKNOWN_TRANSACTION]
    assert taken.refused[0].label["transaction"] == 10
    assert joins.waiting == 4


@pytest.mark.parametrize("jump_ms", [-10 * DAY_MS, 10 * DAY_MS])
def test_a_jump_of_the_clock_gives_up_no_label_and_keeps_none_for_ever(jump_ms: int) -> None:
    joins = joins_with(1, settings=JoinSettings(waiting_ms=30_000, step_max_ms=10_000))
    joins.take_labels(label(2), START_MS)
    assert not joins.pass_time(START_MS + jump_ms).refused
    now_ms = START_MS + jump_ms
    given_up = []
    for _ in range(3):
        now_ms += 10_000
        given_up += causes(joins.pass_time(now_ms))
    assert given_up == [Cause.UNKNOWN_TRANSACTION]


def test_a_repeated_label() -> None:
    joins = joins_with(1)
    joins.take_labels(label(1), START_MS)
    taken = joins.take_labels(label(1, reporter=2, after_ms=90_000), START_MS)
    assert causes(taken) == [Cause.REPEATED]


def test_a_correction_by_the_same_reporter() -> None:
    joins = joins_with(1)
    joins.take_labels(label(1), START_MS)
    earlier = label(1, LEGITIMATE, after_ms=59_999)
    assert causes(joins.take_labels(earlier, START_MS)) == [Cause.CONTRADICTORY]
    other = label(1, LEGITIMATE, after_ms=61_000, reporter=2)
    assert causes(joins.take_labels(other, START_MS)) == [Cause.CONTRADICTORY]
    taken = joins.take_labels(label(1, LEGITIMATE, after_ms=61_000), START_MS)
    assert taken.joined.rows["overrules"].tolist() == [True]


@pytest.mark.parametrize("first_weak", [True, False])
def test_the_stronger_source_stands(first_weak: bool) -> None:
    joins = joins_with(1)
    weak, strong = label(1, LEGITIMATE, ANALYST), label(1, FRAUD, CHARGEBACK)
    first, second = (weak, strong) if first_weak else (strong, weak)
    assert not joins.take_labels(first, START_MS).refused
    taken = joins.take_labels(second, START_MS)
    if first_weak:
        assert taken.joined.rows["overrules"].tolist() == [True]
    else:
        assert causes(taken) == [Cause.CONTRADICTORY]


def test_a_label_too_late() -> None:
    joins = joins_with(1, settings=JoinSettings(age_max_ms=DAY_MS))
    taken = joins.take_labels(label(1, after_ms=DAY_MS + 1), START_MS)
    assert causes(taken) == [Cause.TOO_OLD]


def test_a_decision_that_left_memory_is_too_old_and_after_that_unknown() -> None:
    joins = joins_with(*range(1, 14))  # 8 kept, 4 ids more
    assert causes(joins.take_labels(label(2), START_MS)) == [Cause.TOO_OLD]
    joins.take_labels(label(1), START_MS)
    assert joins.waiting == 1
    assert len(joins.ring) == 8


def test_a_decision_that_left_memory_is_recalled() -> None:
    asked: list[int] = []

    def recall(transaction: int) -> tuple[np.void, NDArray[np.float32]] | None:
        asked.append(transaction)
        rows = decisions(transaction)
        return (rows[0], vectors_of(rows)[0]) if transaction == 2 else None

    joins = joins_with(*range(1, 14), recall=recall)
    taken = joins.take_labels(np.r_[label(2), label(99)], START_MS)
    assert taken.joined.rows["transaction"].tolist() == [2]
    assert (asked, joins.waiting) == ([2, 99], 1)


def test_a_label_for_another_tenant_of_the_id() -> None:
    joins = joins_with(1)
    assert causes(joins.take_labels(label(1, customer=8), START_MS)) == [Cause.OTHER_TENANT]
    assert len(joins.take_labels(label(1, customer=7), START_MS).joined) == 1


def test_of_an_id_with_two_tenants_a_label_must_say_whose() -> None:
    joins = joins_with(1)
    rows = decisions(1, customer=8)
    joins.take_decisions(rows, vectors_of(rows), START_MS)
    assert (joins.counts.shared_ids, joins.counts.repeated_decisions) == (1, 1)
    assert causes(joins.take_labels(label(1), START_MS)) == [Cause.OTHER_TENANT]
    assert causes(joins.take_labels(label(1, customer=8), START_MS)) == [Cause.OTHER_TENANT]
    assert len(joins.take_labels(label(1, customer=7), START_MS).joined) == 1


def test_a_label_of_no_kind() -> None:
    joins = joins_with(1)
    wrong = np.r_[label(1, verdict=0), label(1, source=0), label(1, source=9)]
    assert causes(joins.take_labels(wrong, START_MS)) == [Cause.INVALID] * 3


UNCLEAR, RETRACTED = 3, 4


@pytest.mark.parametrize("verdict", [UNCLEAR, RETRACTED])
def test_what_is_unclear_or_retracted_unsays_what_the_same_reporter_said(verdict: int) -> None:
    joins, lessons = joins_with(1, 2), Lessons(8, 3)
    lessons.add(joins.take_labels(np.r_[label(1, reporter=5), label(2, reporter=6)], 0).joined)
    taken = joins.take_labels(label(1, verdict, reporter=5, after_ms=90_000), START_MS)
    assert (len(taken.joined), taken.refused, taken.unsaid) == (0, [], [(1, 5)])
    assert (lessons.unsay(taken.unsaid), joins.counts.labelled) == (1, 1)
    assert lessons.all().rows["transaction"].tolist() == [2]
    # Then anybody may speak again, and another's word is not touched.
    assert len(joins.take_labels(label(1, LEGITIMATE, reporter=7), START_MS).joined) == 1
    taken = joins.take_labels(label(2, verdict, reporter=5), START_MS)
    assert (lessons.unsay(taken.unsaid), joins.counts.labelled) == (0, 2)


def test_a_verdict_and_its_undoing_in_one_batch_leave_nothing() -> None:
    joins = joins_with(1)
    both = np.r_[label(1), label(1, RETRACTED, after_ms=61_000)]
    assert len(joins.take_labels(both, START_MS).joined) == 0
    again = np.r_[label(1), label(1, RETRACTED), label(1, LEGITIMATE)]
    assert joins.take_labels(again, START_MS).joined.rows["verdict"].tolist() == [LEGITIMATE]
    joins.take_labels(np.r_[label(9), label(9, RETRACTED)], START_MS)
    assert joins.waiting == 0
    stronger = joins.take_labels(label(1, source=CHARGEBACK, reporter=8), START_MS)
    assert len(stronger.joined) == 1
    assert len(joins.take_labels(label(1, RETRACTED, CHARGEBACK, reporter=8), 0).joined) == 1


def test_what_nobody_called_fraud_is_presumed_legitimate() -> None:
    joins = joins_with(1, 2, 3)
    joins.take_labels(label(2), START_MS)
    random = np.random.default_rng(3)
    assert len(joins.unlabelled(5, 1_000, random)) == 0
    joins.pass_time(START_MS + 1_000)
    found = joins.unlabelled(5, 1_000, random)
    assert found.rows["transaction"].tolist() == [1, 3]
    assert not found.is_fraud.any()
    assert set(found.rows["source"].tolist()) == {PRESUMED}


def test_traffic_is_learnt_from_once_it_could_be_judged_and_held_beside() -> None:
    joins = Joins(3, SETTINGS)
    random = np.random.default_rng(3)
    assert joins.traffic(9, 9, 9, 1_000, random).learnt.shape == (0, 3)
    rows = decisions(*range(1, 9))
    rows["event_time_ms"] = START_MS
    joins.take_decisions(rows[:6], vectors_of(rows[:6]), START_MS)
    joins.take_labels(np.r_[label(1), label(2, LEGITIMATE)], START_MS)

    # Nothing is a second older than the newest: the older half is all that there is to go by.
    found = joins.traffic(9, 9, 2, 1_000, random)
    [learnt] = found.learnt[:, 0].tolist()
    assert learnt in (2.0, 3.0)
    held = found.held[:, 0].tolist()
    assert held == [n for n in (2.0, 3.0, 4.0, 5.0, 6.0) if n != learnt]
    assert found.held_is_good.tolist() == [n == 2.0 for n in held]
    assert found.newest[:, 0].tolist() == [5.0, 6.0]

    rows["event_time_ms"][6:] += 1_000
    joins.take_decisions(rows[6:], vectors_of(rows[6:]), START_MS + 5)
    found = joins.traffic(9, 3, 9, 1_000, random)
    assert set(found.learnt[:, 0].tolist()) < {2.0, 3.0, 4.0, 5.0, 6.0}
    assert len(found.learnt) == 2
    assert not set(found.learnt[:, 0].tolist()) & set(found.held[:, 0].tolist())
    assert found.held[-2:, 0].tolist() == [7.0, 8.0]
    assert len(joins.traffic(1, 0, 0, 0, random).learnt) == 1


def test_what_a_reporter_said_can_be_forgotten() -> None:
    joins = joins_with(1, 2)
    joins.take_labels(np.r_[label(1, reporter=66), label(2, reporter=5)], START_MS)
    joins.forget(reporter=66, until_ms=START_MS)
    assert joins.counts.labelled == 2
    assert len(joins.forget(reporter=66, from_ms=START_MS)) == 0
    assert joins.counts.labelled == 1
    assert len(joins.take_labels(label(1, LEGITIMATE), START_MS).joined) == 1


def test_what_stood_before_stands_again_where_the_stronger_is_forgotten() -> None:
    joins = joins_with(1)
    honest = label(1, FRAUD, ANALYST, reporter=5)
    poisoned = label(1, LEGITIMATE, CUSTOMER, reporter=66)
    taken = joins.take_labels(np.r_[honest, poisoned], START_MS)
    assert taken.joined.rows["overruled"].tolist() == [0, 5]
    again = joins.forget(reporter=66)
    assert again.rows[["verdict", "source", "reporter"]].tolist() == [(FRAUD, ANALYST, 5)]
    assert joins.counts.labelled == 1


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["label", "decision"]),
        st.integers(1, 12),  # transaction
        st.sampled_from([FRAUD, LEGITIMATE]),
        st.sampled_from([ANALYST, CUSTOMER, ISSUER, CHARGEBACK]),
        st.integers(1, 2),  # reporter
        st.integers(-5_000, 5_000),  # what the clock does
    ),
    max_size=60,
)


@given(EVENTS)
@settings(max_examples=150, deadline=None)
def test_every_label_ends_in_one_place_and_the_strongest_source_stands(
    events: list[tuple[str, int, int, int, int, int]],
) -> None:
    joins = Joins(3, SETTINGS)
    told = ended = 0
    now_ms = START_MS
    stands: dict[int, tuple[int, int]] = {}
    for number, (kind, transaction, verdict, source, reporter, step_ms) in enumerate(events):
        now_ms += step_ms
        if kind == "decision":
            rows = decisions(transaction)
            taken = joins.take_decisions(rows, vectors_of(rows), now_ms)
        else:
            told += 1
            one = label(transaction, verdict, source, reporter=reporter, after_ms=number)
            taken = joins.take_labels(one, now_ms)
        ended += len(taken.joined) + len(taken.refused)
        assert told == ended + joins.waiting
        assert len(joins.ring) <= SETTINGS.decisions_max
        assert joins.waiting <= SETTINGS.waiting_max
        for row in taken.joined.rows:
            key, says = int(row["transaction"]), (STRENGTH[int(row["source"])], row["verdict"])
            before = stands.get(key)
            if before and before[1] != says[1]:
                assert says[0] >= before[0]
                assert row["overrules"] or says[0] == before[0]
            stands[key] = max(before, says, key=lambda s: s[0]) if before else says
            if before and says[0] == before[0]:
                stands[key] = says
            assert row["transaction"] == taken.joined.vectors[0][0] or len(taken.joined) > 1
    assert sum(joins.counts.refused.values()) + int(joins.counts.joined.sum()) == ended


@pytest.mark.parametrize("name", ["decisions_max", "waiting_ms"])
def test_bounds_that_hold_nothing_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        JoinSettings(**{name: 0})
