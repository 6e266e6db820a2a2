"""decide is pure: the log up to a decision's versions gives the same bytes again."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from fraud.v1 import decision_pb2
from numpy.typing import NDArray

from featurizer.eventlog import Topic
from featurizer.features import FEATURES, INDEX
from featurizer.fold import fold
from featurizer.hashing import IdHasher
from featurizer.records import Entity, Flag
from featurizer.state import POSITION, ROW_WORDS
from fraudsvc.answers import REASONS_MAX, Draft, Stamp, Writer, origin_of
from fraudsvc.decide import Workspace, decide
from fraudsvc.payment import Payment
from fraudsvc.policy import DEFAULT_POLICY, Policy, load_policy
from tests.conftest import (
    SEED,
    Host,
    Interrupted,
    Payments,
    accepted,
    call_now,
    decisions,
    first_records,
    read_all,
)
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

    def with_own(
        self, entity: int, key: int, seen: int, version: int, shift: int
    ) -> NDArray[np.int64]:
        """Return a state of what is before ``seen``, and of its own frame up to ``version``.

        The frame begins ``shift`` later than where it was thought to, which is at ``seen``.
        """
        state = np.zeros(ROW_WORDS, np.int64)
        for record, position in zip(self._records, self._positions, strict=True):
            is_own = seen <= position - shift <= version
            if record["entities"][entity] == key and (position < seen or is_own):
                fold(state, entity, record, position)
        return state


def written(host: Host, policies: list[Policy]) -> None:
    """Make decisions, with folds, labels, other rungs and a new policy in between."""
    payments, scorer = Payments(), host.scorer()
    late = host.scorer(full_ms=1e9)
    for i in range(DECISIONS):
        host.policy = policies[i * len(policies) // DECISIONS]
        (late if i % 50 == 49 else scorer).score(payments.one(), call_now())
        if payments.rng.random() < 0.02:
            some = int(payments.rng.integers(1, 50))
            scorer.score_batch([payments.one() for _ in range(some)], call_now())
        if payments.rng.random() < 0.1:
            host.fold(int(payments.rng.integers(1, 9)))
        if payments.rng.random() < 0.1:
            known = payments.made[int(payments.rng.integers(len(payments.made)))]
            scorer.report_labels([payments.label(known.transaction_id)])


def replayed(
    logged: decision_pb2.Decision, frame: int, past: Past, space: Workspace, bundle: Bundle,
    policy: Policy,
) -> tuple[bytes, NDArray[np.void]]:  # fmt: skip
    """Decide again from what stands in the log, and write it down as it was."""
    payment = accepted(logged.transaction, logged.receive_time.ToMilliseconds())
    record = payment.record
    for entity, version in enumerate(logged.entity_versions):
        key = int(record["entities"][0][entity])
        space.rows[entity] = 0
        if key and 0 < logged.log_position <= version:  # the newest is of the same frame
            shift = frame - logged.log_position
            space.rows[entity] = past.with_own(entity, key, logged.log_position, version, shift)
            space.rows[entity, POSITION] = version
        elif key:
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


def written_down(
    draft: Draft, stamp: Stamp, payment: Payment, space: Workspace
) -> tuple[bytes, bytes]:
    writer = Writer(IdHasher().key, SEED)
    return writer.write(draft, stamp, payment.data, space.body, space.reasons, space.figures)


def test_every_decision_is_replayed_from_the_log_to_the_byte(host: Host, bundle: Bundle) -> None:
    both = [DEFAULT_POLICY.read_bytes(), DEFAULT_POLICY.read_bytes() + LISTS]
    policies = {p.version: p for p in (load_policy(text, INDEX) for text in both)}
    written(host, list(policies.values()))
    logged_decisions = assert_replayed(host, bundle, policies)
    rungs = Counter(logged.assessment.rung for logged in logged_decisions)
    assert rungs[decision_pb2.RUNG_RULES_ONLY] == DECISIONS // 50
    assert rungs[decision_pb2.RUNG_FULL] > DECISIONS
    codes = {r.code for d in logged_decisions for r in d.assessment.reasons}
    assert "WATCHED" in codes
    records, _, _ = first_records(read_all(host.log))
    assert (records["flags"] & int(Flag.UNUSUAL)).any()


def assert_replayed(
    host: Host, bundle: Bundle, policies: dict[str, Policy]
) -> list[decision_pb2.Decision]:
    """Decide all that stands in the log again, from the log alone."""
    entries = read_all(host.log)
    records, positions, places = first_records(entries)
    on_log = dict(zip(places, records, strict=True))
    past, space = Past(records, positions), Workspace()
    found = []
    for entry in entries:
        if entry.topic != Topic.DECISIONS:
            continue
        logged = decision_pb2.Decision.FromString(entry.value)
        policy = policies[logged.assessment.policy_version]
        again, record = replayed(logged, entry.frame, past, space, bundle, policy)
        assert record[0].tobytes() == on_log[entry.position - 2].tobytes()
        assert again == entry.value
        assert again == logged.SerializeToString(deterministic=True)
        found.append(logged)
    return found


@pytest.mark.parametrize("repeats_one", [False, True])
def test_a_batch_that_others_overtook_is_replayed_too(
    host: Host, bundle: Bundle, repeats_one: bool
) -> None:
    payments, log = Payments(), Interrupted(host.open_log())
    slow, quick = host.scorer(log), host.scorer()
    for scorer in (slow, quick):
        scorer.score(payments.one(), call_now())
    items = [payments.one(customer_id="one") for _ in range(20)]
    won: list[decision_pb2.Assessment] = []

    def overtake() -> None:
        taken = items[7] if repeats_one else payments.one(customer_id="one")
        won.append(quick.score(taken, call_now()))

    log.before.append(overtake)
    answers = [result.assessment for result in slow.score_batch(items, call_now())]
    assert (answers[7].decision_id == won[0].decision_id) == repeats_one
    assert answers[7].trace_id == won[0].trace_id if repeats_one else answers[7].trace_id
    slow.score(payments.one(customer_id="one"), call_now())
    if not repeats_one:  # what was decided on a repeat's state cannot be told from the first's
        assert len(assert_replayed(host, bundle, {host.policy.version: host.policy})) == 24
    for item, answer in zip(items, answers, strict=True):
        for scorer in (slow, quick):
            assert scorer.score(item, call_now()).decision_id == answer.decision_id
    host.fold()
    assert host.scorer().score(items[3], call_now()).decision_id == answers[3].decision_id


def a_decision(
    bundle: Bundle | None, rung: int = decision_pb2.RUNG_FULL
) -> tuple[decision_pb2.Decision, Workspace]:
    space, payment = Workspace(), accepted(Payments().one(), 1 << 42)
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
