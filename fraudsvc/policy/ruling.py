"""The ruling: who has the last word on a payment, given a policy that was read.

Owns the order in which lists, overrides, rules, the model and the fallback have their say. Must
not know where a policy is written (``file``), how a rule is compiled (``cel_rules``) nor
where a score is from. Pure: the same arguments give the same ruling.

Who wins, first to last; what a person listed by name goes before what the model says:
1. a deny list: DECLINE
2. an override with an action: that action
3. a decline rule: DECLINE
4. an allow list: APPROVE
5. a review list or a review rule: REVIEW, or DECLINE where step 7 says so
6. an approve rule: APPROVE
7. the score against the thresholds (an override's, the file's or the model's), or the amount
   bands where there is no score
Everything that matched is a reason, whether it decided or not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from operator import attrgetter
from typing import NamedTuple

import numpy as np
from fraud.v1 import decision_pb2, transaction_pb2
from numba import njit
from numpy.typing import NDArray

from fraudsvc.answers import field
from fraudsvc.payment import Payment
from fraudsvc.policy.cel_rules import Expressions

APPROVE, REVIEW, DECLINE = (
    decision_pb2.OUTCOME_APPROVE,
    decision_pb2.OUTCOME_REVIEW,
    decision_pb2.OUTCOME_DECLINE,
)
FALLBACK_CODE = "FALLBACK_AMOUNT"
_RULED_MAX = 1_024
LOOKED_FOR_MAX = 32  # with more listed values it is cheaper to parse a payment

Message = transaction_pb2.Transaction
LISTABLE: dict[str, Callable[[Message], str]] = {
    "customer_id": lambda t: t.customer_id,
    "card.token": lambda t: t.card.token,
    "card.bin": lambda t: t.card.bin,
    "merchant.merchant_id": lambda t: t.merchant.merchant_id,
    "terminal_id": lambda t: t.terminal_id,
    "device_id": lambda t: t.device_id,
    "ip_address": lambda t: t.ip_address,
    "email.address_hash": lambda t: t.email.address_hash,
    "email.domain": lambda t: t.email.domain,
}


class Ruling(NamedTuple):
    """What the policy says: an Outcome, and everything that matched, the deciding first.

    ``fields`` are the reasons as fields of an Assessment.
    """

    outcome: decision_pb2.Outcome
    reasons: tuple[decision_pb2.Reason, ...]
    fields: bytes = b""


class Step(NamedTuple):
    """Something that matched: its place in the order above, its outcome (None: only a flag)."""

    rank: int
    outcome: decision_pb2.Outcome | None
    reason: decision_pb2.Reason


class Listed(NamedTuple):
    """One value of a list, or one override, for one field; ``step`` None sets thresholds only."""

    expires_ms: int
    step: Step | None
    review: float | None = None
    decline: float | None = None


class Thresholds(NamedTuple):
    """Probabilities from which a payment is reviewed or declined; None: the model's own."""

    review: float | None
    decline: float | None


class Band(NamedTuple):
    """Outcome without a score for amounts up to ``up_to`` (cents of the reference currency)."""

    up_to: int
    outcome: decision_pb2.Outcome


# (source, action) -> (rank, outcome); see the order above.
_FLAG_RANK = 9
RANKS: dict[tuple[str, str], tuple[int, decision_pb2.Outcome | None]] = {
    ("list", "deny"): (1, DECLINE),
    ("override", "approve"): (2, APPROVE),
    ("override", "review"): (2, REVIEW),
    ("override", "decline"): (2, DECLINE),
    ("rule", "decline"): (3, DECLINE),
    ("list", "allow"): (4, APPROVE),
    ("list", "review"): (5, REVIEW),
    ("rule", "review"): (5, REVIEW),
    ("rule", "approve"): (6, APPROVE),
    ("rule", "flag"): (_FLAG_RANK, None),
}
_AT_LEAST_RANK = 5  # raises what step 7 says, does not replace it
_FALLBACK = decision_pb2.Reason(
    code=FALLBACK_CODE,
    source=decision_pb2.REASON_SOURCE_FALLBACK,
    text="no score could be made; decided by amount",
)


class Policy:
    """A loaded policy; never changed. Threads may share it."""

    def __init__(
        self,
        version: str,
        thresholds: Thresholds,
        bands: Sequence[Band],
        rules: Sequence[Step],
        expressions: Expressions,
        listed: Mapping[str, Mapping[str, Sequence[Listed]]],
    ) -> None:
        self.version = version
        self._thresholds = thresholds
        self._bands = tuple(bands)
        self._rules = tuple(rules)
        self._expressions = expressions
        self._listed = [(LISTABLE[field], values) for field, values in listed.items()]
        self.table = expressions.table
        self._is_in_one_table = expressions.in_one_table
        # Most payments for which a rule holds meet the same one.
        self._ruled = lru_cache(maxsize=_RULED_MAX)(self._by_rules)
        # A payment that has none of these bytes anywhere is on no list: most need not be parsed.
        texts = {value.encode() for values in listed.values() for value in values}
        self._listed_texts = tuple(texts) if len(texts) <= LOOKED_FOR_MAX else None

    @property
    def rule_errors(self) -> dict[str, int]:
        """How often each rule failed when run, by code; such a rule counts as not fired."""
        counts = zip(self._rules, self._expressions.errors, strict=True)
        return {rule.reason.code: count for rule, count in counts}

    def rule(
        self,
        payment: Payment,
        features: NDArray[np.float32] | None,
        score: float | None,
        thresholds_from_model: tuple[float, float],
        looked_up: int | None = None,
    ) -> Ruling:
        """Return the outcome and its reasons, from the arguments alone.

        ``looked_up`` are the rules of ``table`` that hold, where that is known already.

        ``features`` float32 in the schema's order, ``score`` a probability, both None on
        RULES_ONLY; ``thresholds_from_model`` are (review, decline). Lists end by the time at which
        the payment was received.
        """
        if looked_up is None:
            looked_up = self._expressions.looked_up(payment.record, features, score)
        thresholds = self._thresholds
        if self._is_in_one_table and score is not None and not self.may_list(payment.data):
            return self._ruled(looked_up, _by_score(score, thresholds, thresholds_from_model))
        fired = self._expressions.fired(payment, features, score, looked_up)
        steps = [self._rules[i] for i in fired]
        for found in self._found(payment):
            if found.step is not None:
                steps.append(found.step)
            else:
                thresholds = _replaced(thresholds, found)
        model = self._without_person(payment, score, thresholds, thresholds_from_model)
        return _ruling(steps, model, () if score is not None else (_FALLBACK,))

    def _by_rules(self, looked_up: int, model: decision_pb2.Outcome) -> Ruling:
        """Return what follows from rules of ``table`` and the score's own outcome alone."""
        return _ruling([self._rules[i] for i in self._expressions.in_table(looked_up)], model, ())

    def rule_by_score(
        self,
        scores: NDArray[np.float64],
        looked_up: NDArray[np.int64],
        thresholds_from_model: tuple[float, float],
        datas: Sequence[bytes],
    ) -> NDArray[np.int64]:
        """Return int64[n]: the outcome where the score alone has a say, 0 where ``rule`` must.

        ``datas`` have each transaction's bytes somewhere in them.
        """
        found = np.zeros(len(scores), np.int64)
        limits = self.limits(thresholds_from_model)
        if limits is None:
            return found
        _rule_by_scores(scores, looked_up, *limits, found)
        if self._listed_texts:
            found[[self.may_list(data) for data in datas]] = 0
        return found

    def limits(self, thresholds_from_model: tuple[float, float]) -> tuple[float, float] | None:
        """Return the scores from which the score alone reviews and declines.

        They hold for a payment that no rule of ``table`` holds for and that ``may_list`` clears.
        None where it never has the only say.
        """
        if not self._is_in_one_table or self._listed_texts is None:
            return None
        return _limits(self._thresholds, thresholds_from_model)

    def may_list(self, data: bytes) -> bool:
        """Return whether a payment, whose bytes are somewhere in ``data``, may be on a list."""
        texts = self._listed_texts
        return texts is None or any(text in data for text in texts)

    def _found(self, payment: Payment) -> Iterator[Listed]:
        for read, values in self._listed:
            for listed in values.get(read(payment.message), ()):
                if payment.received_ms < listed.expires_ms:
                    yield listed

    def _without_person(
        self,
        payment: Payment,
        score: float | None,
        thresholds: Thresholds,
        from_model: tuple[float, float],
    ) -> decision_pb2.Outcome:
        if score is None:
            amount = int(payment.record["amount_ref"][0])
            return next(band.outcome for band in self._bands if amount <= band.up_to)
        return _by_score(score, thresholds, from_model)


def _by_score(
    score: float, thresholds: Thresholds, from_model: tuple[float, float]
) -> decision_pb2.Outcome:
    review, decline = _limits(thresholds, from_model)
    if score >= decline:
        return DECLINE
    if score >= review:
        return REVIEW
    return APPROVE


def _limits(own: Thresholds, from_model: tuple[float, float]) -> tuple[float, float]:
    """Return the scores from which a payment is reviewed and declined."""
    review, decline = from_model
    return (
        review if own.review is None else own.review,
        decline if own.decline is None else own.decline,
    )


def _replaced(thresholds: Thresholds, own: Listed) -> Thresholds:
    """Return the thresholds with those that an override has of its own."""
    return Thresholds(
        thresholds.review if own.review is None else own.review,
        thresholds.decline if own.decline is None else own.decline,
    )


@njit(cache=True)
def _rule_by_scores(scores, looked_up, review, decline, found):  # type: ignore[no-untyped-def]
    """Set ``found`` int64[n] to the outcomes of ``scores`` where no rule holds."""
    for i in range(len(scores)):
        if looked_up[i] != 0:
            continue
        found[i] = APPROVE
        if scores[i] >= decline:
            found[i] = DECLINE
        elif scores[i] >= review:
            found[i] = REVIEW


def _ruling(
    steps: list[Step], model: decision_pb2.Outcome, more: tuple[decision_pb2.Reason, ...]
) -> Ruling:
    """Return what follows from what matched and from the model; ``more`` are further reasons."""
    steps.sort(key=attrgetter("rank"))
    reasons = (*(step.reason for step in steps), *more)
    fields = b"".join(field(b"\x1a", reason.SerializeToString()) for reason in reasons)
    return Ruling(_outcome(steps, model), reasons, fields)


def _outcome(steps: Sequence[Step], model: decision_pb2.Outcome) -> decision_pb2.Outcome:
    """Return the first step's outcome; ``steps`` are sorted by rank."""
    if not steps or steps[0].outcome is None:
        return model
    first = steps[0]
    if first.rank == _AT_LEAST_RANK and model == DECLINE:
        return DECLINE
    return first.outcome or model
