"""Owns what a label is to the trainer: its row, its sources, a decision joined to it, a refusal.

Must not know how labels are joined, nor who learns from them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
from fraud.v1 import dead_letter_pb2, label_pb2
from numpy.typing import NDArray

from trainer.decision_ring import DECISION

DAY_MS = 86_400_000
TOPIC = "labels"

CHARGEBACK = int(label_pb2.LABEL_SOURCE_CHARGEBACK)
ANALYST = int(label_pb2.LABEL_SOURCE_ANALYST)
CUSTOMER = int(label_pb2.LABEL_SOURCE_CUSTOMER)
ISSUER = int(label_pb2.LABEL_SOURCE_ISSUER)
FRAUD = int(label_pb2.VERDICT_FRAUD)
LEGITIMATE = int(label_pb2.VERDICT_LEGITIMATE)
# Nothing to learn from: they unsay what the same reporter said.
UNSAYING = (int(label_pb2.VERDICT_UNCLEAR), int(label_pb2.VERDICT_RETRACTED))
# Not the contract's: nobody said anything for long enough.
PRESUMED = 0

# The one with the greater number stands. An analyst judges from what we know already; the
# customer and the issuer know more, and a chargeback is money.
STRENGTH = {PRESUMED: 0, ANALYST: 1, CUSTOMER: 2, ISSUER: 3, CHARGEBACK: 4}
# Who answers within minutes, and who within weeks: each kind trains learners of its own.
FAST = (ANALYST, CUSTOMER)
SLOW = (ISSUER, CHARGEBACK)

# One label as it is read from the log. ``customer`` is whose payment the reporter says it was, 0
# where not stated; ``partition`` and ``offset`` are its place on the topic of labels.
LABEL = np.dtype(
    [
        ("transaction", "<i8"),
        ("label_time_ms", "<i8"),
        ("reporter", "<i8"),
        ("customer", "<i8"),
        ("offset", "<i8"),
        ("partition", "<i4"),
        ("verdict", "u1"),
        ("source", "u1"),
    ]
)
# A decision with its label; ``overrules`` where a weaker source, or the same one, said otherwise,
# of which ``overruled`` is the reporter of the strongest.
JOINED = np.dtype(
    [
        *((name, DECISION[name]) for name in DECISION.names or ()),
        ("label_time_ms", "<i8"),
        ("reporter", "<i8"),
        ("verdict", "u1"),
        ("source", "u1"),
        ("overrules", "?"),
        ("overruled", "<i8"),
    ]
)


class Cause(Enum):
    """Why a label is not used; the value is the text of a dead letter."""

    UNKNOWN_TRANSACTION = "no decision of this transaction was read"
    CONTRADICTORY = "it contradicts what the same or a stronger source said"
    REPEATED = "the same source said the same before"
    TOO_OLD = "the decision is older than what is kept"
    OTHER_TENANT = "the transaction's id belongs to another customer"
    INVALID = "verdict or source is none of the contract's"
    DISTRUSTED = "its reporter's labels raised an alarm: they are not trusted"


class Refusal(NamedTuple):
    """A label that is not used; ``label`` is its row of LABEL."""

    cause: Cause
    label: np.void

    def letter(self, now_ms: int, author: str) -> dead_letter_pb2.DeadLetter:
        """Return the dead letter that says so, by ``author``."""
        letter = dead_letter_pb2.DeadLetter(
            topic=TOPIC,
            partition=int(self.label["partition"]),
            offset=int(self.label["offset"]),
            reason=self.cause.name,
            detail=self.cause.value,
            author=author,
        )
        letter.letter_time.FromMilliseconds(now_ms)
        return letter


@dataclass(frozen=True, slots=True)
class Joined:
    """Decisions with their labels: ``rows`` JOINED[m], ``vectors`` float32[m, n]."""

    rows: NDArray[Any]
    vectors: NDArray[np.float32]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    def __getitem__(self, which: NDArray[np.bool_] | NDArray[np.int64] | slice) -> Joined:
        """Return some of the rows."""
        return Joined(self.rows[which], self.vectors[which])

    @property
    def is_fraud(self) -> NDArray[np.bool_]:
        """Whether each row's verdict is fraud, bool[m]."""
        out: NDArray[np.bool_] = self.rows["verdict"] == FRAUD
        return out

    def __add__(self, other: Joined) -> Joined:
        """Return the rows of both."""
        return Joined(np.r_[self.rows, other.rows], np.concatenate([self.vectors, other.vectors]))

    def of(self, sources: tuple[int, ...]) -> Joined:
        """Return the rows of some sources, FAST say."""
        return self[np.isin(self.rows["source"], sources)]


def stacked(
    rows: Iterable[tuple[Any, ...]], vectors: list[NDArray[np.float32]], n_features: int
) -> Joined:
    """Return rows, each with its float32[n], as one; also where there are none."""
    many = np.stack(vectors) if vectors else np.zeros((0, n_features), np.float32)
    return Joined(np.array(list(rows), JOINED), many)


def chosen(
    said: NDArray[Any], reporter: int | None, from_ms: int | None, until_ms: int | None
) -> NDArray[np.bool_]:
    """Return which of ``said`` are by a reporter and with from_ms <= label time < until_ms.

    None stands for any. ``said`` is any structured array with those fields.
    """
    which = np.ones(said.shape, np.bool_)
    if reporter is not None:
        which &= said["reporter"] == reporter
    if from_ms is not None:
        which &= said["label_time_ms"] >= from_ms
    if until_ms is not None:
        which &= said["label_time_ms"] < until_ms
    return which
