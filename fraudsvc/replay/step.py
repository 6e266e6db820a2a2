"""What one decision is made of, step by step: events, windows, features, rules, contributions.

Owns the account, as plain values for whoever shows it. Must not know where anything was found.
Pure.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from fraud.v1 import decision_pb2
from numpy.typing import NDArray

from featurizer.features import FEATURES, INDEX
from featurizer.records import Entity, Kind
from featurizer.slots import (
    LINES,
    OP_MEAN_RATIO,
    OP_RATIO,
    OP_ROBUST,
    OP_STD,
    OP_VALUE,
    OP_ZSCORE,
    OWN_LINE,
    SLOTS,
    WINDOWS,
    WINDOWS_MS,
    Acc,
    Own,
    Slot,
)
from fraudsvc.policy.cel_rules import values_read
from fraudsvc.replay.cases import Case
from trainer.bundle import Bundle

EVENTS_MAX = 200  # of one entity, the newest
LARGEST = 15  # contributions
_ACCUMULATORS = len(Acc)
_WINDOW_NAMES = tuple(WINDOWS)
_BASES = [each for each in Slot if not each.name.endswith("_END")]
_OPERATIONS = {
    OP_VALUE: "{a}",
    OP_RATIO: "{a} / {b}",
    OP_STD: "standard deviation of {a}",
    OP_ZSCORE: "({a} - mean of {b}) / deviation of {b}",
    OP_MEAN_RATIO: "{a} * {b} / sum of {b}",
    OP_ROBUST: "({a} - {b}) / median distance of {b}",
}


class Folded(NamedTuple):
    """What the states of a case were made of: RECORD[n], positions int64[n], and the slots.

    ``lines`` float64[LINES, SLOTS] is what was read of the states and of the record itself.
    """

    records: NDArray[np.void]
    positions: NDArray[np.int64]
    lines: NDArray[np.float64]


def slot_name(place: int) -> str:
    """Return what stands in a place of the flattened lines, such as ``card.count_1h``."""
    line, slot = divmod(place, SLOTS)
    if line == OWN_LINE:
        return f"record.{Own(slot).name.lower()}"
    entity = Entity(line).name.lower()
    if slot < Slot.SINCE_LAST:
        window, accumulator = divmod(slot, _ACCUMULATORS)
        return f"{entity}.{Acc(accumulator).name.lower()}_{_WINDOW_NAMES[window]}"
    base = max(each for each in _BASES if each <= slot)
    offset = slot - base
    return f"{entity}.{base.name.lower()}" + (f"+{offset}" if offset else "")


def steps(
    case: Case, folded: Folded | None, bundle: Bundle | None, policy_text: bytes
) -> dict[str, Any]:
    """Return the account of a case; ``folded`` None where no states were read."""
    told = case.decision.assessment
    vector = np.frombuffer(case.decision.features, "<f4")
    found: dict[str, Any] = {
        "decision_id": told.decision_id,
        "outcome": decision_pb2.Outcome.Name(told.outcome).removeprefix("OUTCOME_").lower(),
        "rung": decision_pb2.Rung.Name(told.rung).removeprefix("RUNG_").lower(),
        "log_position": case.decision.log_position,
        "model_version": told.model_version,
        "policy_version": told.policy_version,
        "rules": _rules(case, vector, policy_text),
    }
    if folded is None or bundle is None:
        return found
    return found | {
        "entities": _entities(case, folded),
        "features": _features(case, vector, folded.lines),
        "model": _model(case, vector, bundle),
    }


def _entities(case: Case, folded: Folded) -> list[dict[str, Any]]:
    record = np.frombuffer(case.record, folded.records.dtype)[0]
    found = []
    for entity in Entity:
        key, version = int(record["entities"][entity]), case.versions[entity]
        if key:
            met = folded.records["entities"][:, entity] == key
            met &= folded.positions <= version
            own, positions = folded.records[met], folded.positions[met]
            found.append(
                {
                    "entity": entity.name.lower(),
                    "key": f"{key & (1 << 64) - 1:016x}",
                    "version": version,
                    "records": len(own),
                    "windows": _windows(own, int(record["event_time_ms"])),
                    "events": _events(own[-EVENTS_MAX:], positions[-EVENTS_MAX:], record),
                }
            )
    return found


def _windows(own: NDArray[np.void], now_ms: int) -> dict[str, int]:
    """Return how many events each window covers: (now - length, now] of event time."""
    times = own["event_time_ms"][own["kind"] == Kind.TRANSACTION]
    return {
        name: int(((times > now_ms - length) & (times <= now_ms)).sum())
        for name, length in zip(WINDOWS, WINDOWS_MS.tolist(), strict=True)
    }


def _events(
    own: NDArray[np.void], positions: NDArray[np.int64], record: np.void
) -> list[dict[str, Any]]:
    now_ms = int(record["event_time_ms"])
    found = []
    for each, position in zip(own, positions.tolist(), strict=True):
        age_ms = now_ms - int(each["event_time_ms"])
        smallest = next(
            (w for w, ms in zip(WINDOWS, WINDOWS_MS.tolist(), strict=True) if 0 <= age_ms < ms), ""
        )
        found.append(
            {
                "position": position,
                "kind": Kind(each["kind"]).name.lower(),
                "age_s": age_ms / 1000,
                "amount": int(each["amount_ref"]) / 100,
                "in_windows_from": smallest,
            }
        )
    return found


def _features(
    case: Case, vector: NDArray[np.float32], lines: NDArray[np.float64]
) -> list[dict[str, Any]]:
    contributions = np.frombuffer(case.decision.contributions, "<f4")
    flat = lines.reshape(LINES * SLOTS)
    found = []
    for i, each in enumerate(FEATURES):
        made_of = {slot_name(each.a): _number(flat[each.a])}
        if each.op not in (OP_VALUE, OP_STD):
            made_of[slot_name(each.b)] = _number(flat[each.b])
        form = _OPERATIONS[each.op].format(a=slot_name(each.a), b=slot_name(each.b))
        found.append(
            {
                "feature": each.name,
                "value": _number(vector[i]),
                "contribution": float(contributions[i]),
                "is": form,
                "made_of": made_of,
                "meaning": f"{each.entity}: {each.meaning}",
            }
        )
    return found


def _number(value: Any) -> float | None:
    """Return a number as JSON has it: none for what is not known."""
    return float(value) if np.isfinite(value) else None


def _rules(case: Case, vector: NDArray[np.float32], policy_text: bytes) -> list[dict[str, Any]]:
    told = case.decision.assessment
    reasons = {reason.code: reason for reason in told.reasons}
    score = told.score if told.HasField("score") else None
    found = [
        {
            "code": rule["code"],
            "action": rule["action"],
            "when": rule["when"],
            "fired": rule["code"] in reasons,
            "values": values_read(rule["when"], case.decision.transaction, vector, score, INDEX),
        }
        for rule in tomllib.loads(policy_text.decode()).get("rules", [])
    ]
    rules = {rule["code"] for rule in found}
    listed = [code for code, reason in reasons.items() if code not in rules and _is_listed(reason)]
    return found + [
        {"code": code, "action": "list", "when": "", "fired": True, "values": {}} for code in listed
    ]


def _is_listed(reason: decision_pb2.Reason) -> bool:
    return bool(reason.source == decision_pb2.REASON_SOURCE_LIST)


def _model(case: Case, vector: NDArray[np.float32], bundle: Bundle) -> dict[str, Any]:
    decision, told = case.decision, case.decision.assessment
    contributions = np.frombuffer(decision.contributions, "<f4")
    order: Sequence[int] = np.argsort(-np.abs(contributions), kind="stable")[:LARGEST].tolist()
    largest: list[Mapping[str, Any]] = [
        {
            "feature": FEATURES[i].name,
            "value": _number(vector[i]),
            "contribution": float(contributions[i]),
        }
        for i in order
        if contributions[i]
    ]
    return {
        "expected_logit": bundle.model.expected_logit,
        "expert_logit": decision.expert_logit,
        "logit": decision.logit,
        "score": told.score,
        "review_from": bundle.thresholds.review,
        "decline_from": bundle.thresholds.decline,
        "largest": largest,
    }
