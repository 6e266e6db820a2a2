"""Owns what the trainer takes from the log: decisions with their vectors, labels, and events.

Must not know what is learnt from them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from fraud.v1 import dead_letter_pb2, decision_pb2, label_pb2, model_event_pb2
from numpy.typing import NDArray

from featurizer.eventlog import Batch, Topic
from featurizer.features import FEATURES
from featurizer.records import RECORD, Entity
from trainer.decision_ring import DECISION
from trainer.labelled import LABEL, TOPIC

VECTOR_BYTES = 4 * len(FEATURES)
# One decision as it was served, whatever its rung: ``model`` is empty and ``score`` NaN where no
# model was asked; ``used_ms`` is the time until it was made.
SERVED = np.dtype(
    [("customer", "<i8"), ("score", "<f8"), ("used_ms", "<f8"), ("model", "S64"), ("rung", "u1")]
)


class Read(NamedTuple):
    """What a batch held.

    ``decisions`` DECISION[m] and ``vectors`` float32[m, n] are what may be learnt from, ``labels``
    LABEL, with the ``reporters`` of them by hash; ``served`` SERVED all decisions; ``changes`` the
    events of models; ``told`` the positions of labels that have a dead letter.
    """

    decisions: NDArray[Any]
    vectors: NDArray[np.float32]
    labels: NDArray[Any]
    served: NDArray[Any] = np.zeros(0, SERVED)
    reporters: Mapping[int, str] = {}
    changes: tuple[model_event_pb2.ModelEvent, ...] = ()
    told: frozenset[int] = frozenset()


def read_batch(batch: Batch) -> Read:
    """Return decisions and labels in the order of the log.

    A decision that no model made, or that lacked states, is left out: nobody is to learn from it.
    """
    decisions, vectors, labels, served = [], [], [], []
    reporters: dict[int, str] = {}
    changes, told = [], set()
    topics = batch.topics.tolist()
    for i, topic in enumerate(topics):
        if topic == Topic.LABELS:
            labels.append(_label(batch, i, reporters))
        elif topic == Topic.DECISIONS and i and topics[i - 1] == Topic.TRANSACTIONS:
            decision = decision_pb2.Decision.FromString(batch.value(i))
            record = np.frombuffer(batch.value(i - 1), RECORD)[0]
            served.append(_served(decision.assessment, record))
            full = decision.assessment.rung == decision_pb2.RUNG_FULL
            if full and len(decision.features) == VECTOR_BYTES:
                decisions.append(_decision(decision, record))
                vectors.append(np.frombuffer(decision.features, "<f4"))
        elif topic == Topic.MODELS:
            changes.append(model_event_pb2.ModelEvent.FromString(batch.value(i)))
        elif topic == Topic.DEAD_LETTERS:
            letter = dead_letter_pb2.DeadLetter.FromString(batch.value(i))
            if letter.topic == TOPIC:
                told.add(letter.offset)
    many = np.stack(vectors) if vectors else np.zeros((0, len(FEATURES)), np.float32)
    return Read(
        np.array(decisions, DECISION), many, np.array(labels, LABEL), np.array(served, SERVED),
        reporters, tuple(changes), frozenset(told),
    )  # fmt: skip


def reporter_hash(name: str) -> int:
    """Return by what a reporter is known, 0 for nobody."""
    if not name:
        return 0
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") >> 1


def _served(told: decision_pb2.Assessment, record: np.void) -> tuple[Any, ...]:
    return (
        record["entities"][Entity.CUSTOMER],
        told.score if told.HasField("score") else np.nan,
        told.time_used.seconds * 1e3 + told.time_used.nanos / 1e6,
        told.model_version.encode(), told.rung,
    )  # fmt: skip


def _decision(decision: decision_pb2.Decision, record: np.void) -> tuple[Any, ...]:
    told = decision.assessment
    return (
        record["transaction"], record["event_time_ms"], record["entities"][Entity.CUSTOMER],
        record["entities"][Entity.MERCHANT], decision.logit, told.score,
        told.model_version.encode(), told.outcome,
    )  # fmt: skip


def _label(batch: Batch, index: int, reporters: dict[int, str]) -> tuple[Any, ...]:
    label = label_pb2.Label.FromString(batch.value(index))
    reporter = reporter_hash(label.reporter)
    reporters[reporter] = label.reporter
    return (
        int(batch.keys[index]), label.label_time.ToMilliseconds(), reporter, 0,
        int(batch.positions[index]), 0, label.verdict, label.source,
    )  # fmt: skip
