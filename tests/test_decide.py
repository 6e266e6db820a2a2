"""decide is pure: the log up to a decision's versions gives the same bytes again."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from fraud.v1 import decision_pb2, transaction_pb2
from numpy.typing import NDArray

from featurizer.eventlog import Topic
from featurizer.features import FEATURES, INDEX
from featurizer.fold import fold
from featurizer.hashing import IdHasher
from featurizer.records import RECORD, Entity, Flag
from featurizer.state import ROW_WORDS
from fraudsvc.answers import REASONS_MAX, Draft, Stamp, Writer, origin_of
from fraudsvc.contract import Checker, ContractSettings
from fraudsvc.decide import Workspace, decide
from fraudsvc.payment import Payment
from fraudsvc.policy import DEFAULT_POLICY, Policy, load_policy
from tests.conftest import SEED, Host, Payments, call_now, decisions, first_records, read_all
from trainer.bundle import Bundle

DECISIONS = 2_000
LISTS = b"""
[[lists]]
code = "WATCHED"
action = "review"
field = "customer_id"
values = ["customer-1"]
"""
MODEL = decision_pb2.REASON_SOURCE_MODEL


class Past:
    """The states of entities at any growing position of a log, folded one record at a time."""

    def __init__(self, records: NDArray[Any], positions: NDArray[np.int64]) -> None:
        self._states: dict[int, NDArray[np.int64]] = {}
        self._to_come: dict[int, list[int]] = {}
        self._records, self._positions = records, positions
        for i, keys in enumerate(records["entities"].tolist()):
            for key in set(keys) - {0}:
                self._to_come.setdefault(key, []).append(i)

    def state(self, entity: int, key: int, version: int) -> NDArray[np.int64]:
        state = self._states.setdefault(key, np.zeros(ROW_WORDS, np.int64))
        waiting = self._to_come.get(key, [])
        while waiting and self._positions[waiting[0]] <= version:
            i = waiting.pop(0)
            fold(state, entity, self._records[i], self._positions[i])
        return state


def written(host: Host, policies: list[Policy]) -> None:
    """Make decisions, with folds, labels, other rungs and a new policy in between."""
    payments, scorer = Payments(), host.scorer()
    late = host.scorer(full_ms=1e9)
    for i in range(DECISIONS):
        host.policy = policies[i * len(policies) // DECISIONS]
        (late if i % 50 == 49 else scorer).score(payments.one(), call_now())
        if payments.rng.random() < 0.1:
            host.fold(int(payments.rng.integers(1, 9)))
        if payments.rng.random() < 0.1:
            known = payments.made[int(payments.rng.integers(len(payments.made)))]
            scorer.report_labels([payments.label(known.transaction_id)])


def replayed(
    logged: decision_pb2.Decision, past: Past, space: Workspace, bundle: Bundle, policy: Policy
) -> tuple[bytes, NDArray[np.void]]:
    """Decide again from what stands in the log, and write it down as it was."""
    payment = checked(logged.transaction, logged.receive_time.ToMilliseconds())
    record = payment.record
    for entity, version in enumerate(logged.entity_versions):
        space.rows[entity] = 0
        key = int(record["entities"][0][entity])
        if key:
            space.rows[entity] = past.state(entity, key, version)
    assessment = logged.assessment
    draft = decide(payment, record, space, bundle, policy, assessment.rung, assessment.rung_cause)
    stamp = Stamp(
        int(record["request"][0]), assessment.trace_id.encode(), logged.log_position,
        payment.received_ms, assessment.time_used.ToNanoseconds(),
        origin_of(logged.traceparent, logged.scorer), named=True,
    )  # fmt: skip
    decision, told = written_down(draft, stamp, payment, space)
    assert told == assessment.SerializeToString(deterministic=True)
    return decision, record


def checked(transaction: transaction_pb2.Transaction, now_ms: int) -> Payment:
    record = np.zeros(1, RECORD)
    checker = Checker(IdHasher(), ContractSettings(max_age_days=None))
    assert not checker.check(transaction, now_ms, record)
    return Payment(transaction.SerializeToString(deterministic=True), record, now_ms)


def written_down(
    draft: Draft, stamp: Stamp, payment: Payment, space: Workspace
) -> tuple[bytes, bytes]:
    writer = Writer(IdHasher().key, SEED)
    return writer.write(draft, stamp, payment.data, space.body, space.reasons, space.figures)


def test_every_decision_is_replayed_from_the_log_to_the_byte(host: Host, bundle: Bundle) -> None:
    both = [DEFAULT_POLICY.read_bytes(), DEFAULT_POLICY.read_bytes() + LISTS]
    policies = {p.version: p for p in (load_policy(text, INDEX) for text in both)}
    written(host, list(policies.values()))
    entries = read_all(host.log)
    records, positions, frames = first_records(entries)
    on_log = dict(zip(frames, records, strict=True))
    past, space = Past(records, positions), Workspace()
    rungs: Counter[int] = Counter()
    logged_decisions = decisions(host.log)
    values = {e.frame: e.value for e in entries if e.topic == Topic.DECISIONS}
    for frame, logged in logged_decisions.items():
        policy = policies[logged.assessment.policy_version]
        again, record = replayed(logged, past, space, bundle, policy)
        assert record[0].tobytes() == on_log[frame].tobytes()
        assert again == values[frame]
        assert again == logged.SerializeToString(deterministic=True)
        rungs[logged.assessment.rung] += 1
    assert len(logged_decisions) == DECISIONS
    assert rungs[decision_pb2.RUNG_RULES_ONLY] == DECISIONS // 50
    assert rungs[decision_pb2.RUNG_FULL] == DECISIONS - DECISIONS // 50
    codes = {r.code for d in logged_decisions.values() for r in d.assessment.reasons}
    assert "WATCHED" in codes
    assert (records["flags"] & int(Flag.UNUSUAL)).any()


def a_decision(
    bundle: Bundle | None, rung: int = decision_pb2.RUNG_FULL
) -> tuple[decision_pb2.Decision, Workspace]:
    space, payment = Workspace(), checked(Payments().one(), 1 << 42)
    policy = load_policy(DEFAULT_POLICY, INDEX)
    draft = decide(
        payment, payment.record, space, bundle, policy,
        rung, decision_pb2.RUNG_CAUSE_UNSPECIFIED,  # type: ignore[arg-type]
    )  # fmt: skip
    stamp = Stamp(1, b"", 0, 1, 1, b"", named=False)
    return decision_pb2.Decision.FromString(written_down(draft, stamp, payment, space)[0]), space


def test_contributions_and_bias_add_up_to_the_logit(bundle: Bundle) -> None:
    made, space = a_decision(bundle)
    unknown, _ = a_decision(bundle)
    assert made == unknown
    empty = np.zeros(len(FEATURES))
    bias = bundle.model.score(space.vector, empty) - empty.sum()
    assert made.logit == pytest.approx(bias + space.contributions.sum(), abs=1e-9)
    assert made.assessment.score == bundle.calibrate(made.logit)
    assert (
        np.frombuffer(made.contributions, np.float32).tolist()
        == space.contributions.astype(np.float32).tolist()
    )


def test_model_reasons_are_the_strongest_contributions(bundle: Bundle) -> None:
    made, space = a_decision(bundle)
    reasons = [r for r in made.assessment.reasons if r.source == MODEL]
    sizes = np.abs(space.contributions)
    assert 0 < len(reasons) <= REASONS_MAX
    assert [abs(r.contribution) for r in reasons] == sorted(sizes[sizes > 0])[::-1][: len(reasons)]
    for reason in reasons:
        at = INDEX[reason.code.lower()]
        assert reason.contribution == space.contributions[at]
        value = space.vector[at]
        assert reason.HasField("value") == bool(np.isfinite(value))
        assert not reason.HasField("value") or reason.value == value


@pytest.mark.parametrize("rung", [decision_pb2.RUNG_FULL, decision_pb2.RUNG_RULES_ONLY])
def test_without_a_model_there_is_no_vector(rung: int) -> None:
    made, _ = a_decision(None, rung)
    assert made.assessment.rung == decision_pb2.RUNG_RULES_ONLY
    assert (made.features, made.contributions, list(made.entity_versions)) == (b"", b"", [])
    assert not made.HasField("logit")
    assert made.assessment.reasons[0].source == decision_pb2.REASON_SOURCE_FALLBACK


def test_versions_are_those_of_the_states(host: Host) -> None:
    payments, scorer = Payments(SEED + 5), host.scorer()
    for _ in range(30):
        scorer.score(payments.one(), call_now())
    records, positions, frames = first_records(read_all(host.log))
    for frame, logged in decisions(host.log).items():
        at = frames.index(frame)
        for entity in Entity:
            key = records["entities"][at][entity]
            met = (records["entities"][:at, entity] == key) & (key != 0)
            newest = positions[:at][met].max() if met.any() else 0
            assert logged.entity_versions[entity] == newest
