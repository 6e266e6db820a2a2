"""The scorer on a real log and store: repeats, races, rungs, and what happens when one is gone."""

from __future__ import annotations

import math
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fraud.v1 import decision_pb2, fraud_service_pb2, label_pb2, transaction_pb2

from featurizer.eventlog import Topic
from featurizer.features import FEATURES, INDEX
from featurizer.records import RECORD, Kind
from fraudsvc.calls import Call
from fraudsvc.errors import ServiceError
from fraudsvc.policy import load_policy
from tests.conftest import (
    Asked,
    Host,
    Interrupted,
    Payments,
    call_now,
    decisions,
    first_records,
    read_all,
    recomputed,
)
from trainer.bundle import Bundle

PARTIAL, RULES_ONLY = decision_pb2.RUNG_PARTIAL, decision_pb2.RUNG_RULES_ONLY
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03"


def same(one: decision_pb2.Assessment, other: decision_pb2.Assessment) -> bool:
    """Whether two answers are one; the time used is each call's own."""
    first, second = decision_pb2.Assessment(), decision_pb2.Assessment()
    first.CopyFrom(one)
    second.CopyFrom(other)
    first.ClearField("time_used")
    second.ClearField("time_used")
    return first == second


def refused(scorer: Asked, transaction: transaction_pb2.Transaction, call: Call) -> str:
    with pytest.raises(ServiceError) as caught:
        scorer.score(transaction, call)
    return caught.value.reason


def test_an_answer_is_the_decision_on_the_log(host: Host) -> None:
    scorer, payment = host.scorer(name="here"), Payments().one()
    answer = scorer.score(payment, call_now(traceparent=TRACEPARENT))
    (logged,) = decisions(host.log).values()
    assert same(logged.assessment, answer)
    assert logged.transaction == payment
    assert (logged.scorer, logged.traceparent) == ("here", TRACEPARENT)
    assert answer.trace_id == TRACEPARENT.split("-")[1]
    assert logged.receive_time.ToMilliseconds() == host.now_ms
    assert len(np.frombuffer(logged.contributions, np.float32)) == len(FEATURES)
    assert scorer.get_decision(answer.decision_id) == logged
    assert answer.time_used.ToNanoseconds() >= logged.assessment.time_used.ToNanoseconds() > 0


@pytest.mark.parametrize("folded", [False, True])
def test_a_repeat_gets_the_first_answer_from_any_worker(host: Host, folded: bool) -> None:
    payments, first = Payments(), host.scorer()
    sent = [payments.one() for _ in range(20)]
    answers = [first.score(payment, call_now()) for payment in sent]
    if folded:
        host.fold()
    end = host.log.ends()
    for scorer in (first, host.scorer(host.open_log())):
        for payment, answer in zip(sent, answers, strict=True):
            assert same(scorer.score(payment, call_now()), answer)
            assert scorer.get_decision(answer.decision_id).transaction == payment
    assert host.log.ends() == end


@pytest.mark.parametrize("folded", [False, True])
def test_another_content_under_the_id_is_refused(host: Host, folded: bool) -> None:
    scorer, payment = host.scorer(), Payments().one()
    scorer.score(payment, call_now())
    if folded:
        host.fold()
    end = host.log.ends()
    payment.amount_minor += 1
    for each in (scorer, host.scorer()):
        assert refused(each, payment, call_now()) == "REQUEST_ID_REUSED"
    assert host.log.ends() == end


@pytest.mark.parametrize("fold_between", [False, True])
def test_the_first_append_of_a_request_wins_everywhere(host: Host, fold_between: bool) -> None:
    payments = Payments()
    slow_log = Interrupted(host.open_log())
    slow, quick, third = host.scorer(slow_log), host.scorer(), host.scorer(host.open_log())
    quick.score(payments.one(), call_now())
    payment, won = payments.one(), []

    def overtake() -> None:
        won.append(quick.score(payment, call_now()))
        if fold_between:
            host.fold()
            third.score(payments.one(), call_now())  # has forgotten the first append

    slow_log.before.append(overtake)
    answer = slow.score(payment, call_now())
    assert same(answer, won[0])
    both = [d for d in decisions(host.log).values() if d.transaction == payment]
    assert len(both) == 2
    for scorer in (slow, quick, third, host.scorer()):
        assert same(scorer.score(payment, call_now()), won[0])
        scorer.score(payments.one(customer_id=payment.customer_id), call_now())
    host.fold()
    for scorer in (slow, third, host.scorer()):
        assert same(scorer.score(payment, call_now()), won[0])
    vectors, _ = recomputed(host.log)
    logged = decisions(host.log)
    assert all(logged[frame].features == vectors[frame] for frame in vectors)


def test_threads_that_race_get_one_answer(host: Host) -> None:
    payments = Payments()
    scorers = [host.scorer(host.open_log()) for _ in range(3)]
    sent = [payments.one() for _ in range(60)]
    answers: list[list[decision_pb2.Assessment]] = [[] for _ in scorers]

    def run(which: int) -> None:
        for payment in sent:
            answers[which].append(scorers[which].score(payment, call_now()))
            if which == 0:
                host.fold(1)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(scorers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, two, three in zip(*answers, strict=True):
        assert same(one, two)
        assert same(one, three)
    vectors, _ = recomputed(host.log)
    assert len(vectors) == len(sent)
    logged = decisions(host.log)
    assert all(logged[frame].features == vectors[frame] for frame in vectors)


def test_a_lost_store_costs_the_states_and_nothing_else(host: Host) -> None:
    payments, scorer = Payments(), host.scorer()
    known = payments.one()
    first = scorer.score(known, call_now())
    host.store.close()
    payment = payments.one(customer_id=known.customer_id)
    answer = scorer.score(payment, call_now())
    assert (answer.rung, answer.rung_cause) == (
        PARTIAL, decision_pb2.RUNG_CAUSE_STATE_UNAVAILABLE,
    )  # fmt: skip
    logged = decisions(host.log)[max(decisions(host.log))]
    vector = np.frombuffer(logged.features, np.float32)
    named = [i for i, f in enumerate(FEATURES) if f.entity == "customer"]
    assert named
    assert np.isnan(vector[named]).all()
    assert vector[INDEX["amount"]] == vector[INDEX["amount"]]
    assert set(logged.entity_versions) == {0}
    assert same(scorer.score(known, call_now()), first)
    assert same(scorer.score(payment, call_now()), answer)
    records, _, _ = first_records(read_all(host.log))
    assert records["entities"][-1][0] == records["entities"][0][0] != 0  # the event is whole
    with pytest.raises(ServiceError, match="LOG_UNAVAILABLE"):
        scorer.report_labels([payments.label(known.transaction_id)])


def test_without_a_bundle_rules_answer_until_one_comes(host: Host) -> None:
    payments, bundle = Payments(), host.bundle
    host.bundle = None
    scorer = host.scorer()
    answer = scorer.score(payments.one(), call_now())
    assert (answer.rung, answer.rung_cause) == (RULES_ONLY, decision_pb2.RUNG_CAUSE_NO_MODEL)
    assert not answer.HasField("score")
    assert answer.model_version == ""
    assert answer.outcome != decision_pb2.OUTCOME_UNSPECIFIED
    assert decisions(host.log)[0].features == b""
    host.bundle = bundle
    assert scorer.score(payments.one(), call_now()).rung == decision_pb2.RUNG_FULL


def test_without_time_rules_answer(host: Host) -> None:
    scorer = host.scorer(budget_ms=50.0, full_ms=50.0)
    answer = scorer.score(Payments().one(), call_now())
    assert (answer.rung, answer.rung_cause) == (RULES_ONLY, decision_pb2.RUNG_CAUSE_DEADLINE)
    assert len(decisions(host.log)) == 1


def test_a_deadline_that_passed_decides_nothing(host: Host) -> None:
    scorer = host.scorer()
    assert refused(scorer, Payments().one(), call_now(-1.0)) == "DEADLINE_EXCEEDED"
    assert read_all(host.log) == []


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_log_decides_nothing_and_recovers(host: Host) -> None:
    payments, scorer = Payments(), host.scorer()
    scorer.score(payments.one(), call_now())
    _, end = host.log.ends()
    payment = payments.one()
    with file_size_limit(end + 100):
        assert refused(scorer, payment, call_now()) == "LOG_UNAVAILABLE"
        with pytest.raises(ServiceError, match="LOG_UNAVAILABLE"):
            scorer.report_labels([payments.label(payments.made[0].transaction_id)])
    assert len(decisions(host.log)) == 1
    answer = scorer.score(payment, call_now())
    assert scorer.get_decision(answer.decision_id).transaction == payment
    vectors, _ = recomputed(host.log)
    assert {f: d.features for f, d in decisions(host.log).items()} == vectors


def test_validate_only_writes_nothing(host: Host) -> None:
    payments, scorer = Payments(), host.scorer()
    done = payments.one()
    first = scorer.score(done, call_now())
    end = host.log.ends()
    payment = payments.one()
    tried = scorer.score(payment, call_now(), validate_only=True)
    again = scorer.score(done, call_now(), validate_only=True)
    assert host.log.ends() == end
    assert (tried.decision_id, again.decision_id) == ("", "")
    assert again.score == first.score
    assert tried.rung == decision_pb2.RUNG_FULL
    answer = scorer.score(payment, call_now())
    assert (answer.score, answer.outcome) == (tried.score, tried.outcome)


def test_a_bad_transaction_is_refused_and_changes_nothing(host: Host) -> None:
    scorer = host.scorer()
    with pytest.raises(ServiceError) as caught:
        scorer.score(transaction_pb2.Transaction(), call_now())
    assert caught.value.reason == "INVALID_TRANSACTION"
    fields = {violation.field for violation in caught.value.violations}
    assert {"transaction.request_id", "transaction.customer_id"} <= fields
    assert read_all(host.log) == []


def test_a_batch_is_in_order_and_a_bad_item_fails_alone(host: Host) -> None:
    payments, scorer = Payments(), host.scorer()
    items = [payments.one(customer_id="one") for _ in range(30)]
    items[7].currency_code = "???"
    items.append(items[3])
    results = scorer.score_batch(items, call_now())
    assert [r.WhichOneof("result") for r in results] == ["assessment"] * 7 + ["error"] + [
        "assessment"
    ] * 23
    assert results[7].error.reason == "INVALID_TRANSACTION"
    assert results[7].error.field_violations[0].field == "transaction.currency_code"
    assert same(results[30].assessment, results[3].assessment)
    vectors, _ = recomputed(host.log)
    assert {f: d.features for f, d in decisions(host.log).items()} == vectors
    assert len(vectors) == 29


def said(decision: decision_pb2.Decision) -> bytes:
    """What does not depend on where in the log a decision stands, nor on when it was made."""
    for name in ("entity_versions", "log_position", "receive_time", "step_ns", "shared"):
        decision.ClearField(name)
    for name in ("time_used", "trace_id"):
        decision.assessment.ClearField(name)
    return decision.SerializeToString(deterministic=True)


def batch(scorer: Asked, items: list[transaction_pb2.Transaction]) -> list[Any]:
    return [result.assessment for result in scorer.score_batch(items, call_now())]


def several(scorer: Asked, items: list[transaction_pb2.Transaction]) -> list[Any]:
    return [*scorer.score_several(items, [call_now()] * len(items))]


@pytest.mark.parametrize("together", [batch, several])
@pytest.mark.parametrize("folded", [False, True])
def test_together_says_what_calls_one_by_one_would(
    host: Host,
    tmp_path: Path,
    bundle: Bundle,
    together: Callable[[Asked, list[transaction_pb2.Transaction]], list[Any]],
    *,
    folded: bool,
) -> None:
    other = Host(tmp_path / "other", bundle)
    payments, batched, single = Payments(), host.scorer(), other.scorer()
    for few in range(4):
        items = [payments.one(customer_id=f"customer-{n % 5}") for n in range(25 + few)]
        items[few].amount_minor = 10_000_000 + few  # a rule and an unusual amount
        answers = together(batched, items)
        assert {answer.rung for answer in answers} == {decision_pb2.RUNG_FULL}
        for item in items:
            single.score(item, call_now())
        if folded:
            host.fold()
            other.fold()
            batched, single = host.scorer(), other.scorer()  # with states from the store
    first, second = (
        {d.transaction.request_id: said(d) for d in decisions(each.log).values()}
        for each in (host, other)
    )
    assert len(first) == 4 * 25 + 6
    assert first == second
    other.close()


def test_each_item_of_a_batch_has_a_budget_of_its_own(host: Host) -> None:
    payments, scorer = Payments(), host.scorer(budget_ms=1_000.0, full_ms=700.0, items_max=6_000)
    payments.one()
    results = scorer.score_batch([payments.one() for _ in range(6_000)], call_now())
    assert {r.assessment.rung for r in results} == {decision_pb2.RUNG_FULL}


def test_too_many_items_are_refused(host: Host) -> None:
    payments, scorer = Payments(), host.scorer(items_max=3)
    four = [payments.one() for _ in range(4)]
    with pytest.raises(ServiceError, match="BATCH_TOO_LARGE"):
        scorer.score_batch(four, call_now())
    with pytest.raises(ServiceError, match="BATCH_TOO_LARGE"):
        scorer.report_labels([payments.label("t")] * 4)
    assert read_all(host.log) == []


@pytest.mark.parametrize("folded", [False, True])
def test_labels_join_their_transactions(host: Host, folded: bool) -> None:
    payments, scorer = Payments(), host.scorer()
    for _ in range(3):
        scorer.score(payments.one(), call_now())
    if folded:
        host.fold()
    label = payments.label(payments.made[1].transaction_id)
    bad = payments.label(payments.made[1].transaction_id)
    bad.verdict = label_pb2.VERDICT_UNSPECIFIED
    results = host.scorer().report_labels([label, payments.label("unheard of"), bad])
    assert [r.status for r in results] == [
        fraud_service_pb2.LABEL_STATUS_APPLIED,
        fraud_service_pb2.LABEL_STATUS_UNMATCHED,
        fraud_service_pb2.LABEL_STATUS_REJECTED,
    ]
    assert results[2].error.field_violations[0].field == "label.verdict"
    entries = read_all(host.log)
    told = [e for e in entries if e.topic == Topic.LABELS]
    assert label_pb2.Label.FromString(told[0].value) == label
    assert len(told) == 2
    (feedback,) = (e for e in entries if e.topic == Topic.FEEDBACK)
    record = np.frombuffer(feedback.value, RECORD)[0]
    source = [np.frombuffer(e.value, RECORD)[0] for e in entries if e.topic == Topic.TRANSACTIONS]
    assert record["kind"] == Kind.FEEDBACK
    assert record["verdict"] == label.verdict
    assert record["known_time_ms"] == label.label_time.ToMilliseconds()
    assert record["transaction"] == source[1]["transaction"]
    assert record["flags"] == source[1]["flags"]


def test_a_label_joins_the_first_transaction_of_its_id(host: Host) -> None:
    payments, scorer = Payments(), host.scorer()
    first = payments.one(amount_minor=111)
    scorer.score(first, call_now())
    host.fold()
    scorer.score(payments.one(transaction_id=first.transaction_id, amount_minor=222), call_now())
    scorer.report_labels([payments.label(first.transaction_id)])
    (feedback,) = (e for e in read_all(host.log) if e.topic == Topic.FEEDBACK)
    assert np.frombuffer(feedback.value, RECORD)["amount_minor"][0] == 111


def test_decisions_are_found_or_refused(host: Host) -> None:
    payments, scorer = Payments(), host.scorer()
    answer = scorer.score(payments.one(), call_now())
    other = answer.decision_id[:-1] + ("0" if answer.decision_id[-1] != "0" else "1")
    for wanted, reason in (
        (other, "DECISION_NOT_FOUND"),
        ("7" + answer.decision_id[1:], "DECISION_NOT_FOUND"),
        ("", "INVALID_DECISION_ID"),
        (payments.made[0].request_id, "INVALID_DECISION_ID"),
    ):
        with pytest.raises(ServiceError, match=reason):
            scorer.get_decision(wanted)


@pytest.mark.parametrize(
    ("traceparent", "kept"),
    [
        (TRACEPARENT, True),
        (TRACEPARENT.upper(), True),
        ("", False),
        ("00-" + "0" * 32 + "-00f067aa0ba902b7-01", False),
        ("00-" + "x" * 32 + "-00f067aa0ba902b7-01", False),
        ("00-abc-00f067aa0ba902b7-01", False),
    ],
)
def test_the_trace_id_is_the_callers_or_new(host: Host, traceparent: str, kept: bool) -> None:
    answer = host.scorer().score(Payments().one(), call_now(traceparent=traceparent))
    assert (answer.trace_id == TRACEPARENT.split("-")[1]) == kept
    assert len(answer.trace_id) == 32
    assert int(answer.trace_id, 16) > 0


def test_a_new_policy_takes_effect_between_two_decisions(host: Host) -> None:
    payments, scorer = Payments(), host.scorer()
    before = scorer.score(payments.one(), call_now())
    text = b"""version = "2"\nthresholds = { review = 0.0, decline = 0.0 }
    fallback = { bands = [], beyond = "decline" }"""
    host.policy = load_policy(text, INDEX)
    after = scorer.score(payments.one(), call_now())
    assert after.policy_version == host.policy.version != before.policy_version
    assert after.outcome == decision_pb2.OUTCOME_DECLINE
    assert math.isfinite(after.score)


def test_a_full_log_fails_what_a_batch_would_have_kept(host: Host) -> None:
    payments, scorer = Payments(), host.scorer()
    known = payments.one()
    first = scorer.score(known, call_now())
    _, end = host.log.ends()
    items = [payments.one(customer_id="one") for _ in range(5)]
    items[1].currency_code = "???"
    items.insert(3, known)
    with file_size_limit(end + 100):
        results = scorer.score_batch(items, call_now())
    reasons = [result.error.reason for result in results]
    full = "LOG_UNAVAILABLE"
    assert reasons == [full, "INVALID_TRANSACTION", full, "", full, full]
    assert same(results[3].assessment, first)
    assert len(decisions(host.log)) == 1
    again = scorer.score_batch(items, call_now())
    assert [result.error.reason for result in again] == ["", "INVALID_TRANSACTION", "", "", "", ""]
    vectors, _ = recomputed(host.log)
    assert {f: d.features for f, d in decisions(host.log).items()} == vectors


def test_a_batch_repeats_its_own_requests(host: Host) -> None:
    payments, scorer = Payments(), host.scorer()
    items = [payments.one() for _ in range(3)]
    other = payments.one(request_id=items[0].request_id)
    results = scorer.score_batch([*items, items[1], other, *items], call_now())
    answers = [result.assessment for result in results]
    assert same(answers[3], answers[1])
    assert results[4].error.reason == "REQUEST_ID_REUSED"
    assert all(same(a, b) for a, b in zip(answers[:3], answers[5:], strict=True))
    assert len(decisions(host.log)) == 3


def test_a_bug_in_a_batch_keeps_nothing_of_it(host: Host) -> None:
    payments, scorer = Payments(), host.scorer()
    scorer.score(payments.one(), call_now())
    policy, asked = host.policy, [0]

    def breaks(*args: object) -> object:
        asked[0] += 1
        if asked[0] == 1:
            raise ZeroDivisionError
        return type(policy).rule_by_score(policy, *args)  # type: ignore[arg-type]

    policy.rule_by_score = breaks  # type: ignore[method-assign, assignment]
    items = [payments.one() for _ in range(5)]
    with pytest.raises(ZeroDivisionError):
        scorer.score_batch(items, call_now())
    assert len(decisions(host.log)) == 1
    results = scorer.score_batch(items, call_now())
    assert all(result.assessment.decision_id for result in results)
    vectors, _ = recomputed(host.log)
    assert {f: d.features for f, d in decisions(host.log).items()} == vectors
