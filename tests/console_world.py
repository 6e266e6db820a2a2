"""Decisions of a small world as rows of a read model, without a scorer. Must not assert anything.

Owns what they look like: customers with a past, a ring of fraud that shares devices, reasons and
contributions of the table's own features.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np
from fraud.v1 import decision_pb2, label_pb2, model_event_pb2

from featurizer.features import FEATURES, INDEX, NAMES
from featurizer.records import RECORD
from featurizer.slots import WINDOWS, WINDOWS_MS
from fraudsvc.console.case_rows import case_of_row, entity_rows, row_of_decision
from fraudsvc.console.readmodel import LOG, Changes, ReadModel
from fraudsvc.decision_spans import spans_of_call

JOURNAL = "0" * 16
MODEL = "m-5f3a9c01d2e47b68"
RULES = (
    ("NEW_ACCOUNT_HIGH_AMOUNT", "a high amount from an account opened less than a day ago"),
    ("SHIPPED_ELSEWHERE_HIGH_AMOUNT", "shipped to another region than the billing address"),
    ("MANY_SMALL_PAYMENTS", "five or more small payments on one card within an hour"),
)
_DAYS = dict(zip(WINDOWS, (WINDOWS_MS / 86_400_000).tolist(), strict=True))


class Logged(NamedTuple):
    """A decision with what a follower has of it."""

    decision: decision_pb2.Decision
    record: Any
    position: int


def a_decision(number: int, time_ms: int, rng: np.random.Generator, **fields: str) -> Logged:
    """Return a decision to be reviewed; ``fields`` replace texts of the payment."""
    is_ring = number % 9 == 0
    vector = _vector(rng, is_ring)
    parts = np.zeros(len(NAMES), np.float32)
    some = rng.choice(len(NAMES), 40, replace=False)
    parts[some] = rng.normal(0.02, 0.12, 40)
    names = ("customer_count_1h", "device_count_1h", "customer_amount_to_median", "customer_pace")
    for name, part in zip(names, (0.9, 0.6, 1.2, 0.35), strict=True):
        parts[INDEX[name]] = part * (1.5 if is_ring else 0.8) + rng.normal(0, 0.1)
    score = float(np.clip(rng.beta(2, 5) + (0.4 if is_ring else 0), 0.02, 0.98))
    amount = int(rng.lognormal(9.6, 0.9))
    decision = decision_pb2.Decision(
        features=vector.tobytes(), contributions=parts.tobytes(), log_position=10_000 + number,
        entity_versions=[9_000 + number - 37 * (i + 1) for i in range(9)], logit=1.0,
        scorer="host-1/0", step_ns=[41_000, 95_000, 118_000, 161_000],
    )  # fmt: skip
    decision.receive_time.FromMilliseconds(time_ms)
    told = decision.assessment
    told.outcome, told.score, told.rung = decision_pb2.OUTCOME_REVIEW, score, 1  # type: ignore[assignment]
    told.model_version, told.policy_version = MODEL, "p-13a8c5e0b7742f91"
    told.decision_id = f"00000000-0000-8000-8000-{number:012x}"
    told.trace_id = f"{number + 1:032x}"
    told.time_used.FromMicroseconds(230)
    _reasons(told, parts, vector, rng)
    _payment(decision, number, time_ms, amount, rng, is_ring)
    for name, value in fields.items():
        setattr(decision.transaction, name, value)
    record = np.zeros((), RECORD)
    record["amount_ref"] = amount * 1.1
    return Logged(decision, record, number + 1)


def _vector(rng: np.random.Generator, is_ring: bool) -> np.ndarray[Any, np.dtype[np.float32]]:
    vector = np.full(len(NAMES), np.nan, np.float32)
    rate = float(rng.uniform(0.4, 3.0))
    for feature in FEATURES:
        if feature.family == "velocity" and "_count_" in feature.name:
            lately = 9.0 if is_ring and _DAYS[feature.window] <= 1 else 0.0
            vector[INDEX[feature.name]] = round(rate * _DAYS[feature.window] + lately)
        elif feature.unit == "cents":
            vector[INDEX[feature.name]] = rng.uniform(2_000, 9_000)
        elif feature.unit in ("1", "0/1", "events", "s", "d"):
            vector[INDEX[feature.name]] = round(float(rng.exponential(2.0)), 2)
    return vector


def _reasons(told: Any, parts: Any, vector: Any, rng: np.random.Generator) -> None:
    if rng.random() < 0.6:
        code, text = RULES[int(rng.integers(len(RULES)))]
        told.reasons.add(code=code, source=decision_pb2.REASON_SOURCE_RULE, text=text)
    for i in np.argsort(-parts)[:3].tolist():
        told.reasons.add(
            code=NAMES[i].upper(), source=decision_pb2.REASON_SOURCE_MODEL,
            contribution=float(parts[i]), value=float(vector[i]), text=FEATURES[i].meaning,
        )  # fmt: skip


def _payment(
    decision: Any, number: int, time_ms: int, amount: int, rng: np.random.Generator, is_ring: bool
) -> None:
    payment = decision.transaction
    payment.transaction_id = f"pay-{number:06d}"
    payment.event_time.FromMilliseconds(time_ms - 300)
    payment.customer_id = f"customer-{7_000 + number if is_ring else number % 23}"
    payment.amount_minor, payment.currency_code = amount, "EUR"
    payment.channel = int(rng.choice([1, 2, 2, 2, 3]))
    payment.card.token, payment.card.bin = f"card-{number % 31}", "400001"
    payment.card.last_four, payment.card.brand, payment.card.funding = "4242", 1, 1
    payment.card.issuer_region_code = "DE"
    payment.merchant.merchant_id = f"merchant-{int(rng.integers(8))}"
    payment.merchant.category_code, payment.merchant.region_code = "5732", "FR"
    payment.device_id = "dev-9a41c7ee02" if is_ring else f"dev-{number % 17:x}c07f"
    payment.ip_address = "203.0.113.7" if is_ring else f"198.51.100.{number % 50}"
    payment.email.address_hash, payment.email.domain = f"e{number % 19:031x}", "mail.example"
    payment.cvv_result, payment.three_ds_result = 1, 2
    payment.billing_region_code, payment.shipping_region_code = "DE", "FR"


def a_label(row: Any, number: int, seen_ms: int, verdict: int, **fields: Any) -> dict[str, Any]:
    """Return a label's row about a decision's row."""
    return {
        "journal": JOURNAL, "position": 1_000_000 + number,
        "transaction_id": row["transaction_id"], "decision_id": row["decision_id"],
        "verdict": verdict, "source": label_pb2.LABEL_SOURCE_ANALYST, "label_time_ms": seen_ms,
        "seen_ms": seen_ms, "reporter": "grace", "note": "card testing", **fields,
    }  # fmt: skip


def a_run(version: str, start: int, stop: int, time_ms: int, change: int) -> dict[str, Any]:
    """Return the row of a model event that learnt from the labels between two positions."""
    event = model_event_pb2.ModelEvent(change=change, model_version=version, author="trainer")  # type: ignore[arg-type]
    event.event_time.FromMilliseconds(time_ms)
    if change != model_event_pb2.MODEL_CHANGE_LOADED:
        event.learning.from_position, event.learning.until_position = start, stop
        event.learning.layers.extend(["expert"])
    return {
        "journal": JOURNAL, "position": 2_000_000 + time_ms % 1_000_000, "change": change,
        "model_version": version, "event_time_ms": time_ms, "author": "trainer",
        "from_position": start, "until_position": stop, "body": event.SerializeToString(),
    }  # fmt: skip


def fill(
    model: ReadModel, now_ms: int, count: int = 120, labelled: int = 30
) -> list[dict[str, Any]]:
    """Write decisions, the oldest ``labelled`` with a verdict; return the rows, oldest first."""
    rng, changes, rows = np.random.default_rng(11), Changes(), []
    for number in range(count):
        time_ms = now_ms - (count - number) * 97_000
        logged = a_decision(number, time_ms, rng)
        row = dict(row_of_decision(logged, "outcome"))
        rows.append(row)
        changes.decisions.append(row)
        changes.cases.append(case_of_row(row, logged))
        changes.entities += entity_rows(logged.decision)
        changes.spans += spans_of_call(logged.decision, logged.position, 9_000, "outcome")
        if number < labelled:
            verdict = 1 if number % 9 == 0 else 2
            changes.labels.append(a_label(row, number, time_ms + 60_000, verdict))
            changes.opened[row["decision_id"]] = False
    run = a_run("m-77c1b2f04ee5a6d3", 1_000_000, 1_000_020, now_ms - 3_000_000, 1)
    loaded = a_run("m-77c1b2f04ee5a6d3", 0, 0, now_ms - 2_990_000, 13)
    changes.model_events += [run, loaded]
    model.write(changes, LOG, JOURNAL, 5_000_000)
    return rows


def codes_of(row: dict[str, Any]) -> list[str]:
    """Return a row's reasons."""
    found: list[str] = json.loads(row["codes"])
    return found
