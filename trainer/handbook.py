"""Owns the run of protocol A2: history in, vectors of both kernels, folds, a model each, figures.

Features are the product's, labels known seven days after their transaction. Must not print, and
must not know anything of how the Handbook's data was simulated.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurizer.arena import Arena
from featurizer.backfill import count_events, read_history, views
from featurizer.features import FEATURES, OWN, SCHEMA_VERSION
from featurizer.hashing import IdHasher
from featurizer.history import History, HistoryError
from featurizer.records import Entity
from trainer import protocol
from trainer.metrics import DAY_MS
from trainer.train import Settings, fit_committee

# The file's columns by ours.
COLUMNS = {
    "transaction_id": "TRANSACTION_ID", "event_time": "TX_DATETIME", "customer_id": "CUSTOMER_ID",
    "terminal_id": "TERMINAL_ID", "amount_minor": "TX_AMOUNT_CENTS", "is_fraud": "TX_FRAUD",
}  # fmt: skip
# What the file knows of; all features of other entities are NaN.
ENTITIES = (OWN, *(e.name.lower() for e in (Entity.CUSTOMER, Entity.TERMINAL, Entity.PAIR)))
# Not to be learnt from: the simulator made the cents of some frauds otherwise, and no bank's fraud
# is told by that.
LEFT_OUT = ("cents", "is_round_10", "is_round_100", "digits")
CHOSEN = tuple(
    index
    for index, feature in enumerate(FEATURES)
    if feature.entity in ENTITIES and feature.name not in LEFT_OUT
)

CHOSEN_NAMES = tuple(FEATURES[index].name for index in CHOSEN)

# Called with a text for the person who waits.
Tell = Callable[[str], None]
# float32[k, len(CHOSEN)] to float64[k].
Ranker = Callable[[NDArray[np.float32]], NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Learning:
    """How a fold is learnt: ``members`` models of one settings, whose logits are averaged."""

    settings: Settings
    members: int
    good_weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Options:
    """What was chosen on the validation folds; docs/users/data-scientist.md tells how.

    A model of all that was knowable learns from every fraud and ``history_share`` of the rest.
    """

    week: Learning = Learning(Settings(), members=3)
    history: Learning = Learning(Settings(), members=1)
    history_share: float = 0.15
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows that count, in event order.

    ``features`` float32[m, len(CHOSEN)], ``event_time_ms``, ``day`` and ``customer`` int64[m],
    ``is_fraud`` bool[m]; ``drawn`` bool[m] tells the frauds and the share of all good rows.
    """

    features: NDArray[np.float32]
    event_time_ms: NDArray[np.int64]
    day: NDArray[np.int64]
    customer: NDArray[np.int64]
    is_fraud: NDArray[np.bool_]
    drawn: NDArray[np.bool_]


def run(path: Path, options: Options, tell: Tell, *, validation: bool = False) -> dict[str, Any]:
    """Return every fold's figures, their means, the settings and how long it took.

    ``validation`` takes the folds on which the settings are chosen. Raises HistoryError where the
    file cannot be read and ProtocolError where it is not the Handbook's.
    """
    start_s = time.perf_counter()
    starts = protocol.VALIDATION_STARTS if validation else protocol.TEST_STARTS
    tell("reading the history")
    history = read_history(path, IdHasher(), COLUMNS, protocol.DELAY_DAYS * DAY_MS)
    if history.bad_rows or (history.is_fraud < 0).any():
        raise HistoryError(f"{path} has rows that cannot be used, or that have no label")
    rows = make_rows(history, starts, options, tell)
    if not validation:
        protocol.check_sizes([_size(rows, start) for start in starts])
    vectors_s = time.perf_counter() - start_s
    return {
        "protocol": "A2" + (", validation folds" if validation else ""),
        "schema_version": SCHEMA_VERSION,
        "features": CHOSEN_NAMES,
        "settings": asdict(options),
        "in_protocol": judge(rows, starts, options.week, learn_week, tell),
        "all_history": judge(rows, starts, options.history, learn_history, tell),
        "published": protocol.published_rows(),
        "vectors_s": round(vectors_s, 1),
        "took_s": round(time.perf_counter() - start_s, 1),
    }


def make_rows(history: History, starts: tuple[int, ...], options: Options, tell: Tell) -> Rows:
    """View and fold the whole history; return the rows that any fold learns from or is tested on.

    The rest would take 2 GB.
    """
    time_ms, is_fraud = history.records["event_time_ms"], history.is_fraud == 1
    random = np.random.default_rng(options.seed)
    drawn = is_fraud | (random.random(len(time_ms)) < options.history_share)
    wanted = drawn.copy()
    for start in starts:
        since = time_ms // DAY_MS - start
        wanted |= (since >= 0) & (since < protocol.SPAN_DAYS)
    features = np.empty((int(wanted.sum()), len(CHOSEN)), np.float32)
    taken, filled, total = [], 0, count_events(history)
    for viewed, vectors, done in views(history, Arena()):
        keep = wanted[viewed]
        taken.append(viewed[keep])
        features[filled : filled + len(taken[-1])] = vectors[keep][:, CHOSEN]
        filled += len(taken[-1])
        tell(f"vectors: {done:,} of {total:,} events")
    order = np.concatenate(taken)
    times = time_ms[order]
    customer = history.records["entities"][order, Entity.CUSTOMER]
    return Rows(features, times, times // DAY_MS, customer, is_fraud[order], drawn[order])


def learn_week(rows: Rows, start: int, learning: Learning) -> Ranker:
    """Learn from the fold's training week."""
    chosen = protocol.training_rows(rows.day, start)
    return _learn(rows, chosen, np.ones(len(chosen)), learning)


def learn_history(rows: Rows, start: int, learning: Learning) -> Ranker:
    """Learn from what was known when the test week began; good rows stand for those not drawn."""
    chosen = protocol.knowable_rows(rows.day, start)
    chosen = chosen[rows.drawn[chosen]]
    weights = np.where(rows.is_fraud[chosen], 1.0, learning.good_weight)
    return _learn(rows, chosen, weights, learning)


def _learn(
    rows: Rows, chosen: NDArray[np.int64], weights: NDArray[np.float64], learning: Learning
) -> Ranker:
    return fit_committee(
        rows.features[chosen], rows.is_fraud[chosen], weights, CHOSEN_NAMES, learning.settings,
        learning.members,
    )  # fmt: skip


def judge(
    rows: Rows,
    starts: tuple[int, ...],
    learning: Learning,
    learn: Callable[[Rows, int, Learning], Ranker],
    tell: Tell,
) -> dict[str, Any]:
    """Return the figures of each fold, and mean and deviation over them."""
    folds = []
    for fold, start in enumerate(starts):
        tell(f"{learn.__name__.replace('_', ' ')}, fold {fold}")
        ranker = learn(rows, start, learning)
        tested = _tested(rows, start)
        folds.append(
            protocol.figures(
                ranker(rows.features[tested]), rows.is_fraud[tested], rows.customer[tested],
                rows.event_time_ms[tested],
            )
        )  # fmt: skip
    each = [
        {"train_from": protocol.date_text(start), **fold._asdict()}
        for start, fold in zip(starts, folds, strict=True)
    ]
    return {"folds": each, "over_folds": protocol.summary(folds)}


def _tested(rows: Rows, start: int) -> NDArray[np.int64]:
    return protocol.tested_rows(rows.day, rows.customer, rows.is_fraud, start)


def _size(rows: Rows, start: int) -> tuple[int, int]:
    tested = _tested(rows, start)
    return len(tested), int(rows.is_fraud[tested].sum())
