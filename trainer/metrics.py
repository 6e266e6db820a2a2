"""Owns the figures by which a ranking of payments is judged. Must not know models or files.

Equal scores are one step: no figure depends on the order of the rows. Scores float64[m], outcomes
bool[m]; callers make sure that both outcomes occur.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

DAY_MS = 86_400_000
# Upper ends of the bins of a reliability table: narrow where the payments are.
RELIABILITY_EDGES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)


def _steps(
    scores: NDArray[np.float64], is_fraud: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return frauds and good payments at or above each distinct score, from the highest down."""
    order = np.argsort(-scores, kind="stable")
    ends = np.r_[np.flatnonzero(np.diff(scores[order])), len(scores) - 1]
    frauds: NDArray[np.int64] = np.cumsum(is_fraud[order], dtype=np.int64)[ends]
    return frauds, ends + 1 - frauds


def roc_auc(scores: NDArray[np.float64], is_fraud: NDArray[np.bool_]) -> float:
    """Return the probability that a fraud scores above a good payment, ties counting half."""
    frauds, goods = _steps(scores, is_fraud)
    above = np.r_[0, frauds[:-1]]
    pairs = np.diff(goods, prepend=0) * (frauds + above)
    return float(pairs.sum() / (2.0 * frauds[-1] * goods[-1]))


def average_precision(scores: NDArray[np.float64], is_fraud: NDArray[np.bool_]) -> float:
    """Return the mean precision over recall, as a sum of steps and not of trapezoids."""
    frauds, goods = _steps(scores, is_fraud)
    gains = np.diff(frauds, prepend=0)
    return float((gains * (frauds / (frauds + goods))).sum() / frauds[-1])


def recall_at(
    scores: NDArray[np.float64], is_fraud: NDArray[np.bool_], false_positive_rate: float
) -> float:
    """Return the best recall of a threshold whose false-positive rate is at most the given one."""
    frauds, goods = _steps(scores, is_fraud)
    allowed = goods <= false_positive_rate * goods[-1]
    return float(frauds[allowed].max(initial=0) / frauds[-1])


class Reliability(NamedTuple):
    """One bin of a reliability table: its upper end, how many, mean forecast and true rate."""

    until: float
    rows: int
    forecast: float
    observed: float


def reliability(
    probabilities: NDArray[np.float64], is_fraud: NDArray[np.bool_]
) -> list[Reliability]:
    """Return the bins that hold any payment; an upper end belongs to its bin."""
    bins = np.searchsorted(RELIABILITY_EDGES, probabilities)
    table = []
    for number, until in enumerate(RELIABILITY_EDGES):
        inside = bins == number
        if count := int(inside.sum()):
            forecast, observed = probabilities[inside].mean(), is_fraud[inside].mean()
            table.append(Reliability(until, count, float(forecast), float(observed)))
    return table


def calibration_error(table: list[Reliability]) -> float:
    """Return the expected calibration error (Naeini et al., 2015) over the bins of a table."""
    total = sum(row.rows for row in table)
    return sum(row.rows * abs(row.forecast - row.observed) for row in table) / total


def card_precision(
    scores: NDArray[np.float64],
    is_fraud: NDArray[np.bool_],
    customer: NDArray[np.int64],
    event_time_ms: NDArray[np.int64],
    top: int = 100,
) -> float:
    """Return the card precision at ``top``, as the Fraud Detection Handbook defines it.

    Per UTC day the highest score of each customer; of the ``top`` customers the share truly
    compromised that day; those are gone on later days; the mean over the days. Equal scores rank
    by customer number.
    """
    detected: NDArray[np.int64] = np.empty(0, np.int64)
    precisions = []
    for rows in _days(event_time_ms):
        left = rows[~np.isin(customer[rows], detected)]
        people, of = np.unique(customer[left], return_inverse=True)
        best = np.full(len(people), -np.inf)
        np.maximum.at(best, of, scores[left])
        compromised = np.bincount(of, weights=is_fraud[left], minlength=len(people)) > 0.0
        ranked = np.argsort(-best, kind="stable")[:top]
        found = people[ranked[compromised[ranked]]]
        detected = np.union1d(detected, found)
        precisions.append(len(found) / top)
    return float(np.mean(precisions))


def card_precision_ceiling(
    is_fraud: NDArray[np.bool_],
    customer: NDArray[np.int64],
    event_time_ms: NDArray[np.int64],
    top: int = 100,
) -> float:
    """Return the card precision at ``top`` of a perfect ranker."""
    return card_precision(is_fraud.astype(np.float64), is_fraud, customer, event_time_ms, top)


def _days(event_time_ms: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Yield the rows of each UTC day that has any, in order."""
    day = event_time_ms // DAY_MS
    order = np.argsort(day, kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(day[order])) + 1)
