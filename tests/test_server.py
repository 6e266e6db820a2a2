"""The server over real gRPC: every error of the contract, health, shedding, drain."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from functools import partial
from typing import Any

import grpc
import pytest
from fraud.v1 import decision_pb2, label_pb2
from fraud.v1 import fraud_service_pb2 as pb
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from grpc_status import rpc_status  # type: ignore[import-untyped]

from fraudsvc.errors import DOMAIN, REASONS, RETRY_DELAY_MS
from fraudsvc.server import SERVICE
from tests.conftest import (
    WAIT_S,
    Connected,
    Host,
    Payments,
    connected,
    decisions,
    read_all,
    serving,
    until,
)

Code = grpc.StatusCode
TIMEOUT_S = 10.0
CARD_NUMBER = "4111 1111 1111 1111"
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03"


@pytest.fixture
def client(host: Host) -> Iterator[Connected]:
    with serving(host.scorer()) as (_, connection):
        yield connection


class Failure:
    """The status of a call that failed, with its details by type."""

    def __init__(self, call: Callable[[], Any]) -> None:
        with pytest.raises(grpc.RpcError) as caught:
            call()
        self.code = caught.value.code()
        self.text = caught.value.details() or ""
        self.status = rpc_status.from_call(caught.value)
        self.details: dict[str, list[Any]] = {}
        for packed in self.status.details if self.status else ():
            name = packed.TypeName().rpartition(".")[2]
            detail = getattr(error_details_pb2, name)()
            packed.Unpack(detail)
            self.details.setdefault(name, []).append(detail)

    def is_reason(self, reason: str) -> bool:
        """Whether there is exactly one ErrorInfo with the reason, and the code of the table."""
        (info,) = self.details["ErrorInfo"]
        assert (info.domain, info.reason) == (DOMAIN, reason)
        return bool(self.code.value[0] == REASONS[reason].code == self.status.code)

    @property
    def fields(self) -> set[str]:
        (bad,) = self.details["BadRequest"]
        return {violation.field for violation in bad.field_violations}


def raw(client: Connected, method: str) -> Any:
    """Return a method that sends and gets bytes."""
    return client.channel.unary_unary(f"/{SERVICE}/{method}")


def score(client: Connected, transaction: Any, **more: Any) -> Any:
    request = pb.ScoreRequest(transaction=transaction, validate_only=more.pop("dry", False))
    return client.stub.Score(request, timeout=TIMEOUT_S, **more).assessment


def sent(client: Connected, payments: Payments, count: int) -> list[Any]:
    """Send calls without waiting for their answers."""
    requests = [pb.ScoreRequest(transaction=payments.one()) for _ in range(count)]
    return [client.stub.Score.future(request) for request in requests]


def test_an_answer_is_the_decision_on_the_log(host: Host, client: Connected) -> None:
    payments = Payments()
    payment = payments.one()
    answer = score(client, payment, metadata=(("traceparent", TRACEPARENT),))
    assert answer.trace_id == TRACEPARENT.split("-")[1]
    request = pb.GetDecisionRequest(decision_id=answer.decision_id)
    decision = client.stub.GetDecision(request, timeout=TIMEOUT_S).decision
    assert decision == decisions(host.log)[0]
    assert (decision.transaction, decision.traceparent) == (payment, TRACEPARENT)
    assert score(client, payment).decision_id == answer.decision_id
    assert len(decisions(host.log)) == 1
    dry = score(client, payments.one(), dry=True)
    assert dry.decision_id == ""
    assert len(decisions(host.log)) == 1


def test_fields_at_fault_are_named(host: Host, client: Connected) -> None:
    payment = Payments().one(currency_code="XXQ", amount_minor=-1, transaction_id="")
    payment.event_time.FromMilliseconds(host.now_ms + 301_000)
    failure = Failure(lambda: score(client, payment))
    assert failure.is_reason("INVALID_TRANSACTION")
    assert failure.fields == {
        f"transaction.{name}"
        for name in ("currency_code", "amount_minor", "transaction_id", "event_time")
    }
    assert read_all(host.log) == []


def test_a_card_number_is_refused_and_repeated_nowhere(
    client: Connected, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    failure = Failure(lambda: score(client, Payments().one(customer_id=CARD_NUMBER)))
    assert failure.is_reason("CARD_NUMBER_REFUSED")
    assert failure.fields == {"transaction.customer_id"}
    assert "FRAUD_EXEMPT_FIELDS" in failure.text
    told = str(failure.status) + caplog.text + "".join(capfd.readouterr())
    assert "4111" not in told


def test_another_content_under_a_request_id_is_refused(host: Host, client: Connected) -> None:
    payment = Payments().one()
    score(client, payment)
    payment.amount_minor += 1
    assert Failure(lambda: score(client, payment)).is_reason("REQUEST_ID_REUSED")
    assert len(decisions(host.log)) == 1


def not_utf8() -> bytes:
    payment = Payments().one(customer_id="QQQQ")
    return pb.ScoreRequest(transaction=payment).SerializeToString().replace(b"QQQQ", b"\xff\xfeQQ")


@pytest.mark.parametrize("method", ["Score", "ScoreBatch", "ReportLabels", "GetDecision"])
@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", b"\x0a\x7fabc", b"\x0b"])
def test_bytes_that_are_no_message_are_refused(
    host: Host, client: Connected, method: str, data: bytes
) -> None:
    failure = Failure(lambda: raw(client, method)(data, timeout=TIMEOUT_S))
    assert failure.is_reason("MALFORMED_MESSAGE")
    assert read_all(host.log) == []


def test_texts_that_are_not_utf8_are_refused(host: Host, client: Connected) -> None:
    failure = Failure(lambda: raw(client, "Score")(not_utf8(), timeout=TIMEOUT_S))
    assert failure.is_reason("MALFORMED_MESSAGE")
    assert read_all(host.log) == []


def test_an_empty_message_names_what_is_missing(client: Connected) -> None:
    failure = Failure(lambda: raw(client, "Score")(b"", timeout=TIMEOUT_S))
    assert failure.is_reason("INVALID_TRANSACTION")
    assert {"transaction.request_id", "transaction.event_time"} <= failure.fields


def test_messages_too_large_are_refused(host: Host) -> None:
    payments = Payments()
    payment = payments.one(device_id="d" * 20_000)
    with serving(host.scorer(), message_bytes_max=64 << 10) as (_, client):
        failure = Failure(lambda: score(client, payment))
        assert failure.is_reason("MALFORMED_MESSAGE")
        payment.device_id = "d" * (65 << 10)
        assert Failure(lambda: score(client, payment)).code is Code.RESOURCE_EXHAUSTED
        assert score(client, payments.one()).decision_id
    assert len(decisions(host.log)) == 1


def test_a_batch_answers_each_item(host: Host, client: Connected) -> None:
    payments = Payments()
    items = [payments.one() for _ in range(5)]
    items[2].customer_id = ""
    items[3].terminal_id = CARD_NUMBER
    request = pb.ScoreBatchRequest(transactions=items)
    results = client.stub.ScoreBatch(request, timeout=TIMEOUT_S).results
    assert [r.WhichOneof("result") for r in results] == [
        "assessment", "assessment", "error", "error", "assessment",
    ]  # fmt: skip
    assert [results[i].error.reason for i in (2, 3)] == [
        "INVALID_TRANSACTION", "CARD_NUMBER_REFUSED",
    ]  # fmt: skip
    assert results[2].error.code == Code.INVALID_ARGUMENT.value[0]
    assert results[2].error.field_violations[0].field == "transaction.customer_id"
    assert [d.transaction for d in decisions(host.log).values()] == [items[i] for i in (0, 1, 4)]


def test_batches_have_a_bound(host: Host, client: Connected) -> None:
    payment, label = Payments().one(), label_pb2.Label()
    batch = pb.ScoreBatchRequest(transactions=[payment] * 1_025)
    labels = pb.ReportLabelsRequest(labels=[label] * 1_025)
    for call in (
        lambda: client.stub.ScoreBatch(batch, timeout=TIMEOUT_S),
        lambda: client.stub.ReportLabels(labels, timeout=TIMEOUT_S),
    ):
        assert Failure(call).is_reason("BATCH_TOO_LARGE")
    assert read_all(host.log) == []


def test_labels_are_applied_kept_or_rejected(client: Connected) -> None:
    payments = Payments()
    score(client, payments.one())
    known, future = payments.made[0].transaction_id, payments.label("x")
    future.label_time.FromMilliseconds(1 << 43)
    labels = [payments.label(known), payments.label("unheard of"), future]
    request = pb.ReportLabelsRequest(labels=labels)
    results = client.stub.ReportLabels(request, timeout=TIMEOUT_S).results
    assert [result.status for result in results] == [
        pb.LABEL_STATUS_APPLIED, pb.LABEL_STATUS_UNMATCHED, pb.LABEL_STATUS_REJECTED,
    ]  # fmt: skip
    assert results[2].error.field_violations[0].field == "label.label_time"


@pytest.mark.parametrize(
    ("decision_id", "reason"),
    [
        ("00000000-0000-8000-8000-000000000000", "DECISION_NOT_FOUND"),
        ("not an id", "INVALID_DECISION_ID"),
        ("", "INVALID_DECISION_ID"),
    ],
)
def test_decisions_that_are_not_there(client: Connected, decision_id: str, reason: str) -> None:
    request = pb.GetDecisionRequest(decision_id=decision_id)
    failure = Failure(lambda: client.stub.GetDecision(request, timeout=TIMEOUT_S))
    assert failure.is_reason(reason)


def test_a_bug_is_internal_and_tells_nothing(
    host: Host, client: Connected, caplog: pytest.LogCaptureFixture
) -> None:
    host.policy = "secret text"  # type: ignore[assignment]
    failure = Failure(lambda: score(client, Payments().one()))
    assert failure.is_reason("INTERNAL")
    assert "secret" not in str(failure.status)
    assert "AttributeError" in caplog.text
    assert read_all(host.log) == []


def test_a_log_that_is_gone_is_unavailable(host: Host) -> None:
    log = host.open_log()
    with serving(host.scorer(log)) as (_, client):
        log.close()
        assert Failure(lambda: score(client, Payments().one())).is_reason("LOG_UNAVAILABLE")
    assert read_all(host.log) == []


def test_a_deadline_that_passes_while_waiting_decides_nothing(host: Host) -> None:
    payments = Payments()
    with serving(host.scorer(), threads=1, wait_ms_max=60_000.0) as (_, client):
        host.gate.clear()
        first = client.stub.Score.future(pb.ScoreRequest(transaction=payments.one()))
        request = pb.ScoreRequest(transaction=payments.one())
        failure = Failure(lambda: client.stub.Score(request, timeout=0.2))
        host.gate.set()
        assert first.result(TIMEOUT_S).assessment.decision_id
    assert failure.code is Code.DEADLINE_EXCEEDED
    assert [d.transaction for d in decisions(host.log).values()] == payments.made[:1]


def test_a_call_that_waited_too_long_is_shed_with_a_hint(host: Host) -> None:
    payments = Payments()
    with serving(host.scorer(), threads=1, wait_ms_max=25.0) as (_, client):
        host.gate.clear()
        calls = sent(client, payments, 3)
        time.sleep(0.2)
        host.gate.set()
        assert calls[0].result(TIMEOUT_S).assessment.decision_id
        for call in calls[1:]:
            failure = Failure(lambda call=call: call.result(TIMEOUT_S))  # type: ignore[misc]
            assert failure.is_reason("OVERLOADED")
            (retry,) = failure.details["RetryInfo"]
            assert retry.retry_delay.ToMilliseconds() == RETRY_DELAY_MS
        assert score(client, payments.made[1]).decision_id  # shed, so not decided before
    assert len(decisions(host.log)) == 2


def test_a_call_too_many_is_shed(host: Host) -> None:
    payments = Payments()
    with serving(host.scorer(), calls_max=2, wait_ms_max=60_000.0) as (_, client):
        host.gate.clear()
        calls = sent(client, payments, 8)
        time.sleep(0.2)  # all are there, and none has been decided
        host.gate.set()
        shed = [Failure(partial(c.result, TIMEOUT_S)) for c in calls if c.exception(TIMEOUT_S)]
        assert all(failure.is_reason("OVERLOADED") for failure in shed)
        answered = [c.result(TIMEOUT_S) for c in calls if c.exception(TIMEOUT_S) is None]
    # Those that came while the first was decided find its place free.
    assert len(answered) in (2, 3)
    assert len(decisions(host.log)) == len(answered) == 8 - len(shed)


def test_a_call_without_a_message_is_refused_and_others_go_on(host: Host) -> None:
    with serving(host.scorer(), calls_max=1) as (_, client):
        for _ in range(3):  # none of them stays inside
            empty: Any = client.channel.stream_unary(f"/{SERVICE}/Score")
            failure = Failure(partial(empty, iter([]), timeout=TIMEOUT_S))
            assert failure.code is Code.UNIMPLEMENTED
        assert score(client, Payments().one()).decision_id


def test_a_call_that_its_caller_gave_up_leaves_room_for_others(host: Host) -> None:
    payments = Payments()
    with serving(host.scorer(), calls_max=4, wait_ms_max=60_000.0) as (_, client):
        host.gate.clear()
        calls = sent(client, payments, 4)
        time.sleep(0.1)
        for call in calls[1:]:
            call.cancel()
        host.gate.set()
        assert calls[0].result(TIMEOUT_S).assessment.decision_id
        for _ in range(8):
            assert score(client, payments.one()).decision_id


def health_of(client: Connected, service: str) -> Any:
    stub = health_pb2_grpc.HealthStub(client.channel)
    request = health_pb2.HealthCheckRequest(service=service)
    return stub.Check(request, timeout=TIMEOUT_S).status


def test_health_is_told_by_service(host: Host) -> None:
    with serving(host.scorer()) as (server, client):
        serving_now = health_pb2.HealthCheckResponse.SERVING
        assert [health_of(client, name) for name in ("", SERVICE)] == [serving_now] * 2
        assert Failure(lambda: health_of(client, "other")).code is Code.NOT_FOUND
        watch = health_pb2_grpc.HealthStub(client.channel).Watch(
            health_pb2.HealthCheckRequest(service=SERVICE), timeout=TIMEOUT_S
        )
        assert next(watch).status == serving_now
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()
        stopping.join(WAIT_S)


def test_reflection_is_a_setting(host: Host) -> None:
    with serving(host.scorer(), reflection=True) as (_, client):
        database = ProtoReflectionDescriptorDatabase(client.channel)
        assert SERVICE in database.get_services()
        assert database.FindFileByName("fraud/v1/label.proto").package == "fraud.v1"
    with serving(host.scorer()) as (_, client):
        database = ProtoReflectionDescriptorDatabase(client.channel)
        assert Failure(database.get_services).code is Code.UNIMPLEMENTED


def test_a_drain_finishes_what_is_in_flight(host: Host) -> None:
    payments = Payments()
    with serving(host.scorer(), threads=2, linger_s=3.0) as (server, client):
        host.gate.clear()
        call = client.stub.Score.future(pb.ScoreRequest(transaction=payments.one()))
        until(call.running)
        time.sleep(0.1)
        with futures.ThreadPoolExecutor(1) as pool:
            stopped = pool.submit(server.stop)
            time.sleep(0.1)
            assert not stopped.done()
            host.gate.set()
            assert call.result(TIMEOUT_S).assessment.decision_id
            assert health_of(client, SERVICE) == health_pb2.HealthCheckResponse.NOT_SERVING
            assert score(client, payments.one()).decision_id  # before it says goodbye
            stopped.result(TIMEOUT_S)
        assert Failure(lambda: score(client, payments.one())).code is Code.UNAVAILABLE
    assert [d.transaction for d in decisions(host.log).values()] == payments.made[:2]


def test_calls_of_many_threads_are_each_decided_once(host: Host) -> None:
    payments = Payments()
    sent = [payments.one() for _ in range(200)]
    host.worker.step()
    with serving(host.scorer()) as (server, _), futures.ThreadPoolExecutor(4) as pool:

        def run(part: int) -> list[decision_pb2.Assessment]:
            with connected(server.port) as own:
                return [score(own, payment) for payment in sent[part::2]]

        answers = [a for part in pool.map(run, [0, 1, 0, 1]) for a in part]
    assert len(answers) == 400
    assert len({a.decision_id for a in answers}) == 200
    assert len(decisions(host.log)) == 200
