"""An attack of a kind that the model was not taught: it goes on until the trainer has learnt it.

Owns what the attack looks like, when it is reported, and how it is told that it is caught. Must
not know how anything is learnt.
"""

from __future__ import annotations

import itertools
import math
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import grpc
from fraud.v1 import decision_pb2, fraud_service_pb2, label_pb2, transaction_pb2

from loadgen.client import report_labels_method, score_method
from loadgen.faults import CALL_S, PAUSE_S, Figures, Scene
from loadgen.rows import timestamp
from loadgen.system import UnfitError

FIRST: Final = 12  # payments until somebody finds out
# Of the load. A model that alerts more than a guard allows is taken back, so that of a larger
# attack it would be chance whether it is caught first.
SHARE: Final = 0.01
LEARN_S: Final = 120.0
NEWEST: Final = 20  # of the attack, of which a share is to be alerted
CAUGHT: Final = 0.8


def novel_attack(scene: Scene) -> Figures:
    """Attack; report what got through, later; attack on until most of it is alerted, or LEARN_S.

    Good payments are asked about beside it, before and after, and kept by nobody.
    """
    if not scene.system.plan.trainer:
        raise UnfitError("no trainer runs that could learn")
    method = score_method(scene.channel)
    attacks = _attacks(scene.probes)
    with scene.lasting():
        good_before = _alerted(_asked(method, each, scene) for each in _good(scene.probes))
        first = [_sent(method, next(attacks), scene) for _ in range(FIRST)]
        missed = [payment for payment, outcome in first if outcome == decision_pb2.OUTCOME_APPROVE]
        scene.stop.wait(scene.hold_s)
        reported_s = scene.clock()
        _report(scene, missed)
        caught_s, share = _until_caught(scene, method, attacks, reported_s)
        good_after = _alerted(_asked(method, each, scene) for each in _good(scene.probes))
    return {
        "attack_missed": len(missed) / FIRST, "caught_share": share, "caught_s": caught_s,
        "good_alerts_added": good_after - good_before, "good_alerted": good_after,
    }  # fmt: skip


def _until_caught(
    scene: Scene,
    method: Callable[..., Any],
    attacks: Iterator[transaction_pb2.Transaction],
    reported_s: float,
) -> tuple[float, float]:
    """Return how long after the report most of the newest were alerted, infinite for never.

    And the share of the newest that is.
    """
    newest: deque[bool] = deque(maxlen=NEWEST)
    while (after_s := scene.clock() - reported_s) < LEARN_S:
        _, outcome = _sent(method, next(attacks), scene)
        newest.append(outcome != decision_pb2.OUTCOME_APPROVE)
        if len(newest) == NEWEST and sum(newest) >= CAUGHT * NEWEST:
            return after_s, sum(newest) / NEWEST
    return math.inf, sum(newest) / max(len(newest), 1)


def _attacks(probes: Sequence[bytes]) -> Iterator[transaction_pb2.Transaction]:
    """Yield payments like none in the world: by customers and at shops nobody knows, alike."""
    run = uuid.uuid4().hex[:8]
    for number in itertools.count():
        made = transaction_pb2.Transaction.FromString(probes[number % len(probes)])
        made.transaction_id = f"attack_{run}_{number}"
        made.customer_id = f"mule-{run}-{number}"
        made.card.token = f"mule-card-{run}-{number}"
        made.merchant.merchant_id = f"mule-shop-{run}-{number}"
        made.amount_minor = 2_600 + number % 50
        made.channel = transaction_pb2.CHANNEL_ECOMMERCE
        made.cvv_result = transaction_pb2.CVV_RESULT_MATCH
        for name in ("terminal_id", "device_id", "email", "position", "account_created_time"):
            made.ClearField(name)
        yield made


def _good(probes: Sequence[bytes]) -> Iterator[transaction_pb2.Transaction]:
    for number, probe in enumerate(probes):
        made = transaction_pb2.Transaction.FromString(probe)
        made.transaction_id = f"good_{number}"
        yield made


def _sent(
    method: Callable[..., Any], payment: transaction_pb2.Transaction, scene: Scene
) -> tuple[transaction_pb2.Transaction, int]:
    """Score a payment, as often as it takes; return it and its outcome. Waits before the next."""
    outcome = _asked(method, payment, scene, validate_only=False)
    scene.stop.wait(1.0 / (SHARE * scene.rate_per_s))
    return payment, outcome


def _asked(
    method: Callable[..., Any],
    payment: transaction_pb2.Transaction,
    scene: Scene,
    *,
    validate_only: bool = True,
) -> int:
    payment.request_id = str(uuid.uuid4())
    payment.event_time.CopyFrom(timestamp(scene.event_ms()))
    request = fraud_service_pb2.ScoreRequest(transaction=payment, validate_only=validate_only)
    answer = _patiently(method, request.SerializeToString())
    return decision_pb2.OUTCOME_UNSPECIFIED if answer is None else int(answer.assessment.outcome)


def _patiently(method: Callable[..., Any], request: Any) -> Any:
    """Call, and again where the call was shed, perhaps; return None where none was answered."""
    end_s = time.monotonic() + LEARN_S
    while True:
        try:
            return method(request, timeout=CALL_S)
        except grpc.RpcError:  # the same request may be sent again
            if time.monotonic() > end_s:
                return None
            time.sleep(PAUSE_S)


def _alerted(outcomes: Iterator[int]) -> float:
    found = [outcome != decision_pb2.OUTCOME_APPROVE for outcome in outcomes]
    return sum(found) / len(found)


def _report(scene: Scene, payments: Sequence[transaction_pb2.Transaction]) -> None:
    """Report payments as fraud, by two analysts in turn."""
    now = timestamp(scene.event_ms())
    labels = [
        label_pb2.Label(
            transaction_id=payment.transaction_id, verdict=label_pb2.VERDICT_FRAUD, label_time=now,
            source=label_pb2.LABEL_SOURCE_ANALYST, reporter=f"analyst-{number % 2}",
        )
        for number, payment in enumerate(payments)
    ]  # fmt: skip
    if labels:
        request = fraud_service_pb2.ReportLabelsRequest(labels=labels)
        _patiently(report_labels_method(scene.channel), request)
