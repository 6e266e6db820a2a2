"""Owns what the trainer takes from the log: decisions with their vectors, and labels.

Must not know what is learnt from them.
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import numpy as np
from fraud.v1 import decision_pb2, label_pb2
from numpy.typing import NDArray

from featurizer.eventlog import Batch, Topic
from featurizer.features import FEATURES
from featurizer.records import RECORD, Entity
from trainer.decision_ring import DECISION
from trainer.labelled import LABEL

VECTOR_BYTES = 4 * len(FEATURES)


class Read(NamedTuple):
    """What a batch held: ``decisions`` DECISION[m], ``vectors`` float32[m, n], ``labels`` LABEL."""

    decisions: NDArray[Any]
    vectors: NDArray[np.float32]
    labels: NDArray[Any]


def read_batch(batch: Batch) -> Read:
    """Return decisions and labels in the order of the log.

    A decision that no model made, or that lacked states, is left out: nobody is to learn from it.
    """
    decisions, vectors, labels = [], [], []
    topics = batch.topics.tolist()
    for i, topic in enumerate(topics):
        if topic == Topic.LABELS:
            labels.append(_label(batch, i))
        elif topic == Topic.DECISIONS and i and topics[i - 1] == Topic.TRANSACTIONS:
            decision = decision_pb2.Decision.FromString(batch.value(i))
            full = decision.assessment.rung == decision_pb2.RUNG_FULL
            if full and len(decision.features) == VECTOR_BYTES:
                decisions.append(_decision(decision, batch.value(i - 1)))
                vectors.append(np.frombuffer(decision.features, "<f4"))
    many = np.stack(vectors) if vectors else np.zeros((0, len(FEATURES)), np.float32)
    return Read(np.array(decisions, DECISION), many, np.array(labels, LABEL))


def _decision(decision: decision_pb2.Decision, data: bytes) -> tuple[Any, ...]:
    record = np.frombuffer(data, RECORD)[0]
    told = decision.assessment
    return (
        record["transaction"], record["event_time_ms"], record["entities"][Entity.CUSTOMER],
        record["entities"][Entity.MERCHANT], decision.logit, told.score,
        told.model_version.encode(), told.outcome,
    )  # fmt: skip


def _label(batch: Batch, index: int) -> tuple[Any, ...]:
    label = label_pb2.Label.FromString(batch.value(index))
    reporter = hashlib.blake2b(label.reporter.encode(), digest_size=8).digest()
    return (
        int(batch.keys[index]), label.label_time.ToMilliseconds(),
        int.from_bytes(reporter, "little", signed=True), 0, int(batch.positions[index]), 0,
        label.verdict, label.source,
    )  # fmt: skip
