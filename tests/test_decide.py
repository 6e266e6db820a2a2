"""decide is pure: the log up to a decision's versions gives the same bytes again."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fraud.v1 import decision_pb2
from numpy.typing import NDArray

from featurizer.eventlog import Topic
from featurizer.features import FEATURES, INDEX, SCHEMA_VERSION
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
    Payments,
    Trained,
    accepted,
    call_now,
    decisions,
    first_records,
    overtake,
    read_all,
)
from tests.layers import random_expert, random_trees
from trainer.bundle import Bundle, load_content
from trainer.expert import CELLS, DISCRIMINANTS, EXPERT_FEATURES_MAX
from trainer.model import Model

DECISIONS = 2_000
LISTS = b"""
[[lists]]
code = "WATCHED"
action = "review"
field = "customer_id"
values = ["customer-1"]
"""
MODEL = decision_pb2.REASON_SOURCE_MODEL


def layered(trained: Trained, **more: Any) -> Bundle:
    """Return the bundle with a residual and an expert, of which ``more`` is replaced."""
    content = load_content(
        trained.bundle_path, schema_version=SCHEMA_VERSION, public_key=trained.public_key
    )
    random, width = np.random.default_rng(SEED), len(FEATURES)
    residual = random_trees(random, width, 10, scale=0.2)
    expert = replace(random_expert(random, width, EXPERT_FEATURES_MAX), **more)
    model = Model(content.trees, residual, expert)
    return replace(trained.bundle, model=model, model_version="m-all-layers")


@pytest.fixture(scope="module")
def expert_bundle(trained: Trained) -> Bundle:
    """Return a bundle whose expert lifts some payments."""
    return layered(trained)


@pytest.fixture(scope="module")
def lifting_bundle(trained: Trained) -> Bundle:
    """Return a bundle whose expert lifts whatever comes."""
    shape = EXPERT_FEATURES_MAX, CELLS, DISCRIMINANTS
    terms = np.abs(np.random.default_rng(SEED).normal(size=shape))
    ones = np.ones(DISCRIMINANTS)
    return layered(trained, terms=terms, thresholds=0.0 * ones, gains=ones)


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
            scorer.score_several([payments.one() for _ in range(9)], [call_now()] * 9)
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
        origin_of(logged.traceparent, logged.scorer), True,
    )  # fmt: skip
    decision, told = written_down(draft, stamp, payment, space)
    assert told == assessment.SerializeToString(deterministic=True)
    timed = decision_pb2.Decision(step_ns=logged.step_ns)  # which nobody decided
    if logged.HasField("shared"):
        timed.shared.CopyFrom(logged.shared)
    return decision + timed.SerializeToString(deterministic=True), record


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
    payments = Payments()
    slow, quick, items, answers, won = overtake(host, payments, repeats_one=repeats_one)
    assert (answers[7].decision_id == won.decision_id) == repeats_one
    assert answers[7].trace_id == won.trace_id if repeats_one else answers[7].trace_id
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
    found = space.parts[: len(FEATURES)]
    assert made.logit == pytest.approx(bundle.model.expected_logit + found.sum(), abs=1e-9)
    assert made.assessment.score == bundle.calibrate(made.logit)
    assert (
        np.frombuffer(made.contributions, np.float32).tolist() == found.astype(np.float32).tolist()
    )


def test_model_reasons_are_the_strongest_contributions(bundle: Bundle) -> None:
    made, space = a_decision(bundle)
    reasons = [r for r in made.assessment.reasons if r.source == MODEL]
    sizes = np.abs(space.parts[: len(FEATURES)])
    assert 0 < len(reasons) <= REASONS_MAX
    assert [abs(r.contribution) for r in reasons] == sorted(sizes[sizes > 0])[::-1][: len(reasons)]
    for reason in reasons:
        at = INDEX[reason.code.lower()]
        assert reason.contribution == space.parts[at]
        value = space.vector[at]
        assert reason.HasField("value") == bool(np.isfinite(value))
        assert not reason.HasField("value") or reason.value == value


def test_what_the_expert_adds_is_told_apart(bundle: Bundle, lifting_bundle: Bundle) -> None:
    plain, _ = a_decision(bundle)
    made, space = a_decision(lifting_bundle)
    width = len(FEATURES)
    assert not plain.HasField("expert_logit")
    assert made.expert_logit == space.parts[width] > 0.0
    contributions = np.frombuffer(made.contributions, np.float32)
    expected = lifting_bundle.model.expected_logit
    assert made.logit == pytest.approx(
        contributions.sum(dtype=np.float64) + expected + made.expert_logit, abs=1e-4
    )
    trees = made.logit - made.expert_logit
    assert trees == pytest.approx(expected + space.parts[:width].sum(), abs=1e-9)
    assert made.assessment.score == lifting_bundle.calibrate(made.logit)


def test_the_experts_strongest_terms_are_among_the_reasons(lifting_bundle: Bundle) -> None:
    made, space = a_decision(lifting_bundle)
    width = len(FEATURES)
    reasons = [r for r in made.assessment.reasons if r.source == MODEL]
    sizes = np.abs(np.delete(space.parts, width))
    assert [abs(r.contribution) for r in reasons] == np.sort(sizes)[::-1][: len(reasons)].tolist()
    told = [r for r in reasons if r.code.startswith("EXPERT_")]
    assert told
    for reason in told:
        at = INDEX[reason.code.removeprefix("EXPERT_").lower()]
        assert reason.contribution == space.parts[width + 1 + at] > 0.0
        assert not reason.HasField("value") or reason.value == space.vector[at]


def test_decisions_of_all_layers_are_replayed_to_the_byte(
    host: Host, expert_bundle: Bundle
) -> None:
    host.bundle = expert_bundle
    payments, scorer = Payments(), host.scorer()
    for _ in range(100):
        scorer.score(payments.one(), call_now())
    scorer.score_batch([payments.one() for _ in range(40)], call_now())
    logged = assert_replayed(host, expert_bundle, {host.policy.version: host.policy})
    boosted = [decision.HasField("expert_logit") for decision in logged]
    assert 5 < sum(boosted) < len(logged) - 5


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
