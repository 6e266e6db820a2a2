"""Calls of Score that are ready at the same time are decided together, each as if alone."""

from __future__ import annotations

from dataclasses import replace

from fraud.v1 import decision_pb2
from fraud.v1 import fraud_service_pb2 as pb

from featurizer.eventlog import Topic
from fraudsvc.calls import Call
from fraudsvc.models import Canary
from tests.conftest import (
    Host,
    Payments,
    call_now,
    decisions,
    read_all,
    recomputed,
    serving,
)
from trainer.bundle import Bundle
from trainer.canary import Slice

TIMEOUT_S = 30.0
STEPS = 4  # of a decision that tells its own


def traceparent(number: int) -> str:
    return f"00-{number:032x}-00f067aa0ba902b7-01"


def frames(host: Host) -> list[int]:
    """Return how many decisions each frame of the log has."""
    found: dict[int, int] = {}
    for entry in read_all(host.log):
        if entry.topic == Topic.DECISIONS:
            found[entry.frame] = found.get(entry.frame, 0) + 1
    return list(found.values())


def test_calls_together_get_what_each_would_alone(host: Host) -> None:
    payments = Payments()
    items = [payments.one() for _ in range(40)]
    items[5].amount_minor = -1
    calls = [call_now(traceparent=traceparent(i + 1)) for i in range(40)]
    answers = host.scorer().score_several(items, calls)
    assert [i for i, each in enumerate(answers) if each == "INVALID_TRANSACTION"] == [5]
    assert frames(host) == [31, 8]
    logged = {d.assessment.decision_id: d for d in decisions(host.log).values()}
    for i, each in enumerate(answers):
        if isinstance(each, str):
            continue
        decision = logged[each.decision_id]
        assert decision.assessment == each
        assert each.trace_id == f"{i + 1:032x}"
        assert decision.traceparent == calls[i].traceparent
        assert each.time_used.ToNanoseconds() > 0
        assert len(decision.step_ns) == STEPS
        assert list(decision.step_ns) == sorted(decision.step_ns)
        assert not decision.HasField("shared")
    vectors, _ = recomputed(host.log)
    assert {at: d.features for at, d in decisions(host.log).items()} == vectors


def test_calls_without_a_trace_get_one_that_no_other_worker_gives(host: Host) -> None:
    payments = Payments()
    answers = [
        each
        for worker in (host.scorer(), host.scorer())
        for each in worker.score_several([payments.one(), payments.one()], [call_now()] * 2)
    ]
    traces = {each.trace_id for each in answers if isinstance(each, decision_pb2.Assessment)}
    assert len(traces) == 4


def test_the_canarys_customers_are_decided_by_it(host: Host, bundle: Bundle) -> None:
    payments, scorer = Payments(), host.scorer()
    host.canary = Canary(replace(bundle, model_version="m-canary"), Slice(0, 0x4FFF_FFFF))
    items = [payments.one(customer_id=f"customer-{n}") for n in range(40)]
    alone = [scorer.score(each, call_now(), validate_only=True).model_version for each in items]
    together = scorer.score_several(items, [call_now()] * len(items))
    answered = [each for each in together if isinstance(each, decision_pb2.Assessment)]
    assert [each.model_version for each in answered] == alone
    assert 0 < alone.count("m-canary") < 40
    assert frames(host) == [32, 8]
    vectors, _ = recomputed(host.log)
    assert {at: d.features for at, d in decisions(host.log).items()} == vectors


def test_a_request_that_two_calls_have_is_decided_once(host: Host) -> None:
    payments, scorer = Payments(), host.scorer()
    items = [payments.one() for _ in range(3)]
    other = payments.one(request_id=items[0].request_id)
    several = [*items, items[1], other, payments.one()]
    answers = scorer.score_several(several, [call_now()] * len(several))
    first, repeat = answers[1], answers[3]
    assert isinstance(first, decision_pb2.Assessment)
    assert isinstance(repeat, decision_pb2.Assessment)
    assert repeat.decision_id == first.decision_id
    assert answers[4] == "REQUEST_ID_REUSED"
    assert len(decisions(host.log)) == 4


def test_a_call_whose_time_is_over_fails_alone(host: Host) -> None:
    payments, scorer = Payments(), host.scorer(full_ms=5.0)
    usual = call_now()
    calls = [usual, Call(usual.arrival_ns, usual.arrival_ns + 1), usual]
    answers = scorer.score_several([payments.one() for _ in calls], calls)
    assert answers[1] == "DEADLINE_EXCEEDED"
    assert frames(host) == [2]
    for each in (answers[0], answers[2]):
        assert isinstance(each, decision_pb2.Assessment)
        assert each.rung == decision_pb2.RUNG_FULL
    assert len(decisions(host.log)) == 2


def test_calls_that_come_while_one_is_decided_share_a_frame(host: Host) -> None:
    payments = Payments()
    bodies = [payments.one() for _ in range(30)]
    poor = payments.one(currency_code="???")
    with serving(host.scorer()) as (_, client):
        call = client.stub.Score
        request = pb.ScoreRequest
        host.gate.clear()  # the first is not decided until the others are there
        first = call.future(request(transaction=payments.one()), timeout=TIMEOUT_S)
        others = [call.future(request(transaction=each), timeout=TIMEOUT_S) for each in bodies]
        asks = [
            call.future(request(transaction=poor), timeout=TIMEOUT_S),
            call.future(request(transaction=payments.one(), validate_only=True), timeout=TIMEOUT_S),
        ]
        host.gate.set()
        answers = [each.result().assessment for each in (first, *others)]
        assert asks[0].code().name == "INVALID_ARGUMENT"
        assert asks[1].result().assessment.decision_id == ""
    assert len({each.decision_id for each in answers}) == 31
    assert {d.assessment.decision_id for d in decisions(host.log).values()} == {
        each.decision_id for each in answers
    }
    assert max(frames(host)) > 1
    vectors, _ = recomputed(host.log)
    assert {at: d.features for at, d in decisions(host.log).items()} == vectors
