"""Protocol A2 by hand: which rows count, who is taken out, and what is summed up."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from trainer import protocol
from trainer.metrics import DAY_MS
from trainer.protocol import Figures, ProtocolError

START = 100


def days_of(*days: int) -> NDArray[np.int64]:
    return np.array(days, np.int64)


def columns(
    *payments: tuple[int, int, bool],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Return day, customer and outcome of each payment."""
    day, customer, fraud = zip(*payments, strict=True)
    return np.array(day), np.array(customer), np.array(fraud)


def test_folds_are_those_of_the_protocol() -> None:
    texts = [protocol.date_text(start) for start in protocol.TEST_STARTS]
    assert texts == ["2018-08-15", "2018-08-08", "2018-08-01", "2018-07-25"]
    ends = [start + protocol.SPAN_DAYS for start in protocol.TEST_STARTS]
    assert protocol.date_text(ends[0] - 1) == "2018-09-04"
    validation = [protocol.date_text(start) for start in protocol.VALIDATION_STARTS]
    assert validation == ["2018-07-11", "2018-07-04", "2018-06-27", "2018-06-20"]


def test_no_day_is_tested_in_validation_and_again_in_the_test() -> None:
    tested = [
        {start + 14 + turn for start in starts for turn in range(protocol.TEST_DAYS)}
        for starts in (protocol.TEST_STARTS, protocol.VALIDATION_STARTS)
    ]
    assert [len(days) for days in tested] == [28, 28]
    assert not tested[0] & tested[1]


def test_a_fold_trains_on_seven_days_or_on_all_whose_labels_are_known() -> None:
    day = days_of(1, 99, 100, 106, 107, 113, 114)
    assert protocol.training_rows(day, START).tolist() == [2, 3]
    assert protocol.knowable_rows(day, START).tolist() == [0, 1, 2, 3]
    # The label of the last of them is told on the day on which the test begins.
    assert day[3] + protocol.DELAY_DAYS < START + 14 <= day[4] + protocol.DELAY_DAYS


@pytest.mark.parametrize(
    ("fraud_day", "first_gone"),
    [
        (99, None),  # before the training week: forgotten
        (100, 0),
        (105, 0),
        (106, 0),  # start + 6: known on the first test day
        (107, 1),  # told seven days later, while the second test day is to come
        (111, 5),
        (112, 6),
        (113, None),
        (114, None),  # on a test day itself
    ],
)
def test_a_customer_is_taken_out_from_the_day_the_protocol_says(
    fraud_day: int, first_gone: int | None
) -> None:
    tests = [(START + 14 + turn, 7, False) for turn in range(7)]
    day, customer, fraud = columns((fraud_day, 7, True), (fraud_day, 8, False), *tests)
    kept = protocol.tested_rows(day, customer, fraud, START)
    kept = kept[kept >= 2]  # without those of the fraud's day, where it is a test day
    wanted = 7 if first_gone is None else first_gone
    assert (day[kept] - START - 14).tolist() == list(range(wanted))


def test_others_stay_and_rows_come_day_by_day() -> None:
    day, customer, fraud = columns(
        (100, 1, True), (100, 2, False), (114, 1, True), (114, 2, True), (114, 3, False),
        (115, 2, False), (115, 1, False), (120, 2, True), (121, 2, True),
    )  # fmt: skip
    assert protocol.tested_rows(day, customer, fraud, START).tolist() == [3, 4, 5, 7]


def test_figures_of_two_days_by_hand() -> None:
    # Day 0: customer 1 defrauded and found, 2 not; day 1: 1 is gone, 3 is found with a fraud.
    customer = np.array([1, 1, 2, 1, 3])
    fraud = np.array([True, False, False, True, True])
    time_ms = np.array([0, 1, 2, DAY_MS, DAY_MS + 1])
    scores = np.array([0.9, 0.1, 0.8, 0.7, 0.6])
    found = protocol.figures(scores, fraud, customer, time_ms)
    assert (found.rows, found.frauds) == (5, 3)
    assert found.card_precision_at_100 == pytest.approx((1 + 1) / 200)
    assert found.card_precision_at_100_ceiling == found.card_precision_at_100
    assert found.average_precision == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    assert found.auc == pytest.approx(4 / 6)


def test_only_the_hundred_highest_customers_of_a_day_are_looked_at() -> None:
    # 150 customers, two payments each; every third is defrauded in the payment scored lower.
    customer = np.repeat(np.arange(150), 2)
    fraud = (np.arange(300) % 6) == 1
    scores = np.where(np.arange(300) % 2 == 0, 300.0 - np.arange(300), -1.0)
    found = protocol.figures(scores, fraud, customer, np.zeros(300, np.int64))
    assert found.card_precision_at_100 == pytest.approx(34 / 100)
    assert found.card_precision_at_100_ceiling == pytest.approx(50 / 100)


def test_one_kind_of_outcome_is_refused() -> None:
    with pytest.raises(ProtocolError, match="0 frauds in 2 test rows"):
        protocol.figures(np.ones(2), np.zeros(2, np.bool_), days_of(1, 2), days_of(0, 0))


def test_summary_is_mean_and_deviation_over_folds() -> None:
    folds = [Figures(5, 1, auc, 0.5, 0.2, 0.3) for auc in (0.8, 0.9)]
    over = protocol.summary(folds)
    assert over["auc"] == pytest.approx({"mean": 0.85, "deviation": 0.05})
    assert over["card_precision_at_100_ceiling"] == pytest.approx({"mean": 0.3, "deviation": 0.0})
    assert over.keys() == set(protocol.METRICS)


def test_other_sizes_are_refused() -> None:
    protocol.check_sizes(list(protocol.TEST_SIZES))
    other = [*protocol.TEST_SIZES[:3], (58_264, 384)]
    with pytest.raises(ProtocolError, match="fold 3 has 58264 test rows and 384 frauds"):
        protocol.check_sizes(other)
