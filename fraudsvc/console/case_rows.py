"""What of a decision, and of what was said of it, becomes which row of the read model.

Owns the rows of decisions, cases and entities. Pure: must not know logs nor databases.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np
from fraud.v1 import decision_pb2, label_pb2

from featurizer.records import Entity

Row = Mapping[str, Any]
REVIEW = decision_pb2.OUTCOME_REVIEW
TAKEN_BACK = (label_pb2.VERDICT_RETRACTED,)
_OF_CASES = (
    "decision_id", "receive_time_ms", "is_open", "expected_loss", "rung", "score", "amount_minor",
    "currency_code", "transaction_id", "customer_id", "merchant_id", "model_version", "codes",
)  # fmt: skip


class OnLog(Protocol):
    """A decision with the record that it is on, and where it stands."""

    @property
    def decision(self) -> decision_pb2.Decision:
        """The decision."""

    @property
    def record(self) -> np.void:
        """Its transaction's record."""

    @property
    def position(self) -> int:
        """Its place on the log."""


def row_of_decision(logged: OnLog, why: str) -> Row:
    """Return a decision's row of the read model.

    The expected loss is probability times amount, in units of the reference currency; without a
    probability the whole amount is at risk.
    """
    decision, told = logged.decision, logged.decision.assessment
    score = told.score if told.HasField("score") else None
    at_risk = int(logged.record["amount_ref"]) / 100
    return {
        "decision_id": told.decision_id, "position": logged.position, "trace_id": told.trace_id,
        "receive_time_ms": decision.receive_time.ToMilliseconds(), "outcome": told.outcome,
        "rung": told.rung, "score": score,
        "expected_loss": at_risk * (1.0 if score is None else score),
        "amount_minor": decision.transaction.amount_minor,
        "currency_code": decision.transaction.currency_code,
        "transaction_id": decision.transaction.transaction_id,
        "customer_id": decision.transaction.customer_id,
        "merchant_id": decision.transaction.merchant.merchant_id,
        "model_version": told.model_version, "policy_version": told.policy_version,
        "used_ns": told.time_used.ToNanoseconds(), "kept": why,
        "codes": json.dumps([reason.code for reason in told.reasons]),
        "is_open": told.outcome == REVIEW, "body": decision.SerializeToString(deterministic=True),
    }  # fmt: skip


def case_of_row(row: Row, logged: OnLog) -> Row:
    """Return a case's row: what the queue shows and filters of a decision to be reviewed."""
    payment = logged.decision.transaction
    own = {"amount_ref": int(logged.record["amount_ref"]), "channel": int(payment.channel)}
    return {name: row[name] for name in _OF_CASES} | own


def entity_rows(decision: decision_pb2.Decision) -> list[Row]:
    """Return a row for each thing that the payment may have in common with others."""
    payment = decision.transaction
    values = {
        Entity.CARD: payment.card.token,
        Entity.TERMINAL: payment.terminal_id,
        Entity.DEVICE: payment.device_id,
        Entity.NETWORK: payment.ip_address,
        Entity.EMAIL: payment.email.address_hash,
    }
    time_ms = decision.receive_time.ToMilliseconds()
    decision_id = decision.assessment.decision_id
    return [
        {"kind": int(kind), "value": value, "receive_time_ms": time_ms, "decision_id": decision_id}
        for kind, value in values.items()
        if value
    ]


def standing(labels: Iterable[Row]) -> list[Row]:
    """Return the labels that nobody took back, oldest first, of those of one decision.

    A reporter's RETRACTED takes back all that the same reporter said before it.
    """
    left: list[Row] = []
    for each in sorted(labels, key=lambda row: int(row["position"])):
        if each["verdict"] in TAKEN_BACK:
            left = [kept for kept in left if kept["reporter"] != each["reporter"]]
        else:
            left.append(each)
    return left
