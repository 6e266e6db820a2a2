"""Protocol A2: how the Fraud Detection Handbook's data is cut into folds, and what is counted.

Owns the folds, which rows of them count, the sizes to check against and what others published.
Must not know features, models or files. Days are whole UTC days since 1970, int64[n] a row.
Source: Le Borgne, Siblini, Lebichot, Bontempi, "Reproducible Machine Learning for Credit Card
Fraud Detection", chapters 5 and 7.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.metrics import (
    average_precision,
    card_precision,
    card_precision_ceiling,
    roc_auc,
)

CARDS_A_DAY = 100
TRAINING_DAYS = 7
DELAY_DAYS = 7  # from a transaction to its label
TEST_DAYS = 7
SPAN_DAYS = TRAINING_DAYS + DELAY_DAYS + TEST_DAYS
FOLDS = 4
METRICS = ("auc", "average_precision", "card_precision_at_100", "card_precision_at_100_ceiling")


def _starts(last: str) -> tuple[int, ...]:
    """Return the first day of training of each fold, the latest fold first."""
    day = int(np.datetime64(last, "D").astype(np.int64))
    return tuple(day - 7 * fold for fold in range(FOLDS))


TEST_STARTS = _starts("2018-08-15")
VALIDATION_STARTS = _starts("2018-07-11")  # whose test weeks end before those of the others begin
# Rows and frauds of each test week.
TEST_SIZES = ((57_604, 422), (58_337, 408), (57_937, 387), (58_264, 385))


class ProtocolError(Exception):
    """The rows are not those that the protocol speaks of."""


class Published(NamedTuple):
    """Means over the four folds; ``inside`` the protocol, which trains on seven days."""

    name: str
    auc: float
    average_precision: float
    card_precision_at_100: float
    inside: bool = True


PUBLISHED = (
    Published("Decision tree (best)", 0.797, 0.579, 0.284),
    Published("Logistic regression", 0.868, 0.623, 0.297),
    Published("Random forest", 0.870, 0.678, 0.299),
    Published("XGBoost", 0.869, 0.687, 0.303),
    Published("XGBoost, its best cell (100 rounds, .1, depth 3)", 0.871, 0.694, 0.304),
    Published("Balanced bagging", 0.879, 0.680, 0.305),
    Published("Feed-forward network", 0.876, 0.675, 0.303),
    Published("LSTM", 0.876, 0.665, 0.297),
    Published("LSTM with attention", 0.874, 0.667, 0.295),
    Published("CatBoost on the Handbook's 15 features", 0.875, 0.699, 0.307),
    Published("the same, on 35 days", 0.874, 0.718, 0.308, inside=False),
    Published("An oracle of terminals, as soon as labels allow", 0.884, 0.778, 0.310),
)


class Figures(NamedTuple):
    """What a ranking of one test week is worth, and the best that any could reach."""

    rows: int
    frauds: int
    auc: float
    average_precision: float
    card_precision_at_100: float
    card_precision_at_100_ceiling: float


def training_rows(day: NDArray[np.int64], start: int) -> NDArray[np.int64]:
    """Return int64[m], the rows of the training week that begins on day ``start``."""
    return _between(day, start, start + TRAINING_DAYS)


def knowable_rows(day: NDArray[np.int64], start: int) -> NDArray[np.int64]:
    """Return int64[m], all rows whose label was known when the fold's test week began."""
    return np.flatnonzero(day < start + TRAINING_DAYS)


def tested_rows(
    day: NDArray[np.int64],
    customer: NDArray[np.int64],
    is_fraud: NDArray[np.bool_],
    start: int,
) -> NDArray[np.int64]:
    """Return int64[m], the rows of the test week, without customers already known.

    A test day has no customer with a fraud in the training week, or since the last day of that
    week and up to as many days after it as the test day comes after the first.
    """
    last = start + TRAINING_DAYS - 1
    known = customer[training_rows(day, start)[is_fraud[training_rows(day, start)]]]
    kept = []
    for turn in range(TEST_DAYS):
        told = _between(day, last + turn, last + turn + 1)
        known = np.union1d(known, customer[told[is_fraud[told]]])
        first = start + TRAINING_DAYS + DELAY_DAYS + turn
        rows = _between(day, first, first + 1)
        kept.append(rows[~np.isin(customer[rows], known)])
    return np.concatenate(kept)


def figures(
    scores: NDArray[np.float64],
    is_fraud: NDArray[np.bool_],
    customer: NDArray[np.int64],
    event_time_ms: NDArray[np.int64],
) -> Figures:
    """Return the figures of a test week's rows. Raises ProtocolError where all end alike."""
    frauds = int(is_fraud.sum())
    if not 0 < frauds < len(is_fraud):
        raise ProtocolError(f"{frauds} frauds in {len(is_fraud)} test rows: both kinds are needed")
    return Figures(
        len(is_fraud),
        frauds,
        roc_auc(scores, is_fraud),
        average_precision(scores, is_fraud),
        card_precision(scores, is_fraud, customer, event_time_ms, CARDS_A_DAY),
        card_precision_ceiling(is_fraud, customer, event_time_ms, CARDS_A_DAY),
    )


def summary(folds: list[Figures]) -> dict[str, dict[str, float]]:
    """Return mean and standard deviation over the folds of each of METRICS."""
    columns = {name: np.array([getattr(fold, name) for fold in folds]) for name in METRICS}
    return {
        name: {"mean": float(column.mean()), "deviation": float(column.std())}
        for name, column in columns.items()
    }


def check_sizes(sizes: list[tuple[int, int]]) -> None:
    """Raise ProtocolError where test weeks have other ``sizes`` (rows, frauds) than TEST_SIZES."""
    for fold, (found, wanted) in enumerate(zip(sizes, TEST_SIZES, strict=True)):
        if found != wanted:
            raise ProtocolError(
                f"fold {fold} has {found[0]} test rows and {found[1]} frauds, not {wanted[0]} and"
                f" {wanted[1]}: this is not the Handbook's data, whole and in its order"
            )


def published_rows() -> list[dict[str, Any]]:
    """Return PUBLISHED as plain values."""
    return [row._asdict() for row in PUBLISHED]


def date_text(day: int) -> str:
    """Return a day as an ISO date."""
    return str(np.datetime64(day, "D"))


def _between(day: NDArray[np.int64], first: int, stop: int) -> NDArray[np.int64]:
    return np.flatnonzero((day >= first) & (day < stop))
