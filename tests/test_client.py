"""The client kit against a real server: deadline, retries, fallback, the command, the examples."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from fraud.v1 import decision_pb2, transaction_pb2
from fraud.v1 import fraud_service_pb2 as pb
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from featurizer.features import INDEX
from fraudsvc.client import (
    AsyncFraudClient,
    ClientSettings,
    FraudClient,
    NoAnswerError,
    RefusedError,
    Tls,
)
from fraudsvc.client.attempts import Attempts, Failure
from fraudsvc.errors import ServiceError, abort
from fraudsvc.policy import DEFAULT_POLICY, load_policy
from fraudsvc.practice import practise
from fraudsvc.server import SERVICE
from tests.conftest import Host, Payments, decisions, free_port, serving
from tests.servers import slow_to_greet

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "docs" / "examples"
TIMEOUT_S = 200
PATIENT = ClientSettings(deadline_ms=120_000.0, channels=2)
CARD_NUMBER = "4111111111111111"


class Scripted:
    """A server that fails its first calls as told, then answers; keeps what it was sent."""

    def __init__(self, *reasons: str) -> None:
        self.reasons = list(reasons)
        self.asked: list[pb.ScoreRequest] = []
        self.metadata: list[dict[str, Any]] = []

    def __call__(self, request: pb.ScoreRequest, context: grpc.ServicerContext) -> Any:
        self.asked.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        if self.reasons:
            reason = self.reasons.pop(0)
            if reason == "SILENT":
                time.sleep(2.5)
            elif reason == "BARE":
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no hint")
            elif reason == "CLOSING":
                context.abort(grpc.StatusCode.CANCELLED, "as gRPC does by itself")
            else:
                abort(context, ServiceError(reason))
        outcome = decision_pb2.OUTCOME_APPROVE
        return pb.ScoreResponse(assessment=decision_pb2.Assessment(outcome=outcome))


@pytest.fixture
def scripted() -> Iterator[Callable[..., tuple[Scripted, str]]]:
    servers: list[grpc.Server] = []

    def start(*reasons: str) -> tuple[Scripted, str]:
        script = Scripted(*reasons)
        handler: Any = grpc.unary_unary_rpc_method_handler(
            script,
            request_deserializer=pb.ScoreRequest.FromString,
            response_serializer=lambda answer: answer.SerializeToString(),
        )
        server = grpc.server(futures.ThreadPoolExecutor(4))
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {"Score": handler}),)
        )
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return script, f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(None).wait()


def review(_: transaction_pb2.Transaction, __: NoAnswerError) -> decision_pb2.Assessment:
    return decision_pb2.Assessment(outcome=decision_pb2.OUTCOME_REVIEW)


def call_sync(target: str, settings: ClientSettings, **more: Any) -> decision_pb2.Assessment:
    with FraudClient(target, settings, **more) as client:
        client.connect(1.0)
        return client.score(transaction_pb2.Transaction(customer_id="c"))


def call_async(target: str, settings: ClientSettings, **more: Any) -> decision_pb2.Assessment:
    async def run() -> decision_pb2.Assessment:
        async with AsyncFraudClient(target, settings, **more) as client:
            await client.connect(1.0)
            return await client.score(transaction_pb2.Transaction(customer_id="c"))

    return asyncio.run(run())


BOTH = pytest.mark.parametrize("call", [call_sync, call_async])
Call = Callable[..., decision_pb2.Assessment]


@BOTH
def test_unavailable_is_tried_again_under_one_request_id(call: Call, scripted: Any) -> None:
    script, target = scripted("LOG_UNAVAILABLE", "CLOSING", "LOG_UNAVAILABLE")
    assert call(target, PATIENT).outcome == decision_pb2.OUTCOME_APPROVE
    assert len(script.asked) == 4
    [request_id] = {each.transaction.request_id for each in script.asked}
    assert len(request_id) == 36


@BOTH
def test_a_hint_is_waited_for(call: Call, scripted: Any) -> None:
    script, target = scripted("OVERLOADED")
    assert call(target, PATIENT).outcome == decision_pb2.OUTCOME_APPROVE
    assert len(script.asked) == 2


@BOTH
@pytest.mark.parametrize(
    ("reason", "error", "code"),
    [
        ("BARE", NoAnswerError, "RESOURCE_EXHAUSTED"),
        ("INTERNAL", NoAnswerError, "INTERNAL"),
        ("INVALID_TRANSACTION", RefusedError, "INVALID_ARGUMENT"),
        ("REQUEST_ID_REUSED", RefusedError, "ALREADY_EXISTS"),
    ],
)
def test_what_else_fails_is_not_tried_again(
    call: Call, scripted: Any, reason: str, error: type[Exception], code: str
) -> None:
    script, target = scripted(reason, reason)
    with pytest.raises(error) as caught:
        call(target, PATIENT)
    assert len(script.asked) == 1
    failure = caught.value.failure  # type: ignore[attr-defined]
    assert failure.code == code
    assert failure.reason == ("" if reason == "BARE" else reason)


@BOTH
def test_without_an_answer_in_time_the_fallback_decides(call: Call, scripted: Any) -> None:
    script, target = scripted("SILENT")
    told: list[NoAnswerError] = []

    def fallback(
        transaction: transaction_pb2.Transaction, error: NoAnswerError
    ) -> decision_pb2.Assessment:
        told.append(error)
        assert transaction.request_id == script.asked[0].transaction.request_id
        return review(transaction, error)

    short = ClientSettings(deadline_ms=1_000.0)
    assert call(target, short, fallback=fallback).outcome == decision_pb2.OUTCOME_REVIEW
    assert told[0].failure.code == "DEADLINE_EXCEEDED"


@BOTH
def test_a_refusal_is_no_case_for_the_fallback(call: Call, scripted: Any) -> None:
    _, target = scripted("INVALID_TRANSACTION")
    with pytest.raises(RefusedError):
        call(target, PATIENT, fallback=review)


@BOTH
def test_nobody_at_the_target_is_no_answer(call: Call) -> None:
    settings = ClientSettings(deadline_ms=300.0)
    answer = call(f"127.0.0.1:{free_port()}", settings, fallback=review)
    assert answer.outcome == decision_pb2.OUTCOME_REVIEW


def test_a_server_that_is_slow_to_greet_is_reached(scripted: Any) -> None:
    _, target = scripted()
    with slow_to_greet(int(target.rpartition(":")[2]), 2.0) as far, FraudClient(far) as client:
        assert client.connect(30.0)


def test_a_hint_beyond_the_deadline_is_not_waited_for(scripted: Any) -> None:
    script, target = scripted("OVERLOADED")
    with pytest.raises(NoAnswerError) as caught:
        call_sync(target, ClientSettings(deadline_ms=90.0))
    assert (caught.value.attempts, len(script.asked)) == (1, 1)
    assert caught.value.failure.reason == "OVERLOADED"


def test_a_token_goes_with_each_attempt_and_not_in_clear_over_a_network(scripted: Any) -> None:
    script, target = scripted("LOG_UNAVAILABLE")
    tokens = iter(["first", "second"])
    call_sync(target, PATIENT, token=lambda: next(tokens))
    sent = [each["authorization"] for each in script.metadata]
    assert sent == ["Bearer first", "Bearer second"]
    with pytest.raises(ValueError, match="a token wants TLS"):
        FraudClient("10.1.2.3:50051", token=lambda: "first")
    with pytest.raises(ValueError, match="go together"):
        FraudClient(target, tls=Tls(Path("ca.pem"), key=Path("key.pem")))


@given(
    st.lists(st.tuples(st.sampled_from(["UNAVAILABLE", "RESOURCE_EXHAUSTED"]), st.floats(0, 1))),
    st.floats(1, 1_000),
)
def test_no_pause_leads_beyond_the_deadline(
    failures: list[tuple[str, float]], deadline_ms: float
) -> None:
    now_s = 5.0
    settings = ClientSettings(attempts_max=5)
    attempts = Attempts(settings, deadline_ms, lambda: now_s, lambda: 0.5)
    end_s = now_s + deadline_ms / 1000
    for code, hint_s in failures:
        attempts.begin()
        try:
            pause_s = attempts.pause_s(Failure(code, retry_after_s=hint_s))
        except NoAnswerError:
            break
        now_s += pause_s
        assert pause_s >= 0
        assert now_s <= end_s - settings.attempt_ms_min / 1000 + 1e-9
    assert attempts.made <= 5


@pytest.mark.parametrize(
    "bad", [{"channels": 0}, {"channels": 65}, {"attempts_max": 0}, {"deadline_ms": 0.0}]
)
def test_settings_that_cannot_be_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be|above 0"):
        ClientSettings(**bad)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[tuple[Host, str]]:
    """A real scorer without a model, which takes payments of now."""
    practise(load_policy(DEFAULT_POLICY, INDEX))  # no first call waits for a kernel
    host = Host(tmp_path, None, now_ms=time.time_ns() // 1_000_000)
    with serving(host.scorer()) as (server, _):
        yield host, f"127.0.0.1:{server.port}"
    host.close()


def test_every_method_answers(here: tuple[Host, str]) -> None:
    host, target = here
    payments = Payments(start_ms=host.now_ms - 86_400_000, step_ms=1_000)
    with FraudClient(target, PATIENT) as client:
        one = payments.one()
        answer = client.score(one)
        assert client.score(one).decision_id == answer.decision_id
        assert client.get_decision(answer.decision_id).transaction == one
        [applied] = client.report_labels([payments.label(one.transaction_id)])
        assert applied.status == pb.LABEL_STATUS_APPLIED
        batch = client.score_batch([payments.one(), payments.one(request_id="")])
        assert [each.WhichOneof("result") for each in batch] == ["assessment"] * 2
        assert not client.score(payments.one(), validate_only=True).decision_id
        with pytest.raises(RefusedError):
            client.get_decision("none")
    assert len(decisions(host.log)) == 3


def test_every_method_answers_in_a_loop(here: tuple[Host, str]) -> None:
    host, target = here
    payments = Payments(start_ms=host.now_ms - 86_400_000, step_ms=1_000)

    async def run() -> None:
        async with AsyncFraudClient(target, PATIENT) as client:
            one = payments.one()
            answer = await client.score(one)
            assert (await client.get_decision(answer.decision_id)).transaction == one
            [applied] = await client.report_labels([payments.label(one.transaction_id)])
            assert applied.status == pb.LABEL_STATUS_APPLIED
            assert len(await client.score_batch([payments.one()])) == 1

    asyncio.run(run())
    assert len(decisions(host.log)) == 2


def command(target: str, file: str, said: str = "", *more: str) -> tuple[int, str, str]:
    argv = [sys.executable, "-m", "fraudsvc", "client", "score", "--address", target]
    done = subprocess.run(
        [*argv, "--file", file, "--deadline-ms", "120000", *more], input=said, check=False,
        cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_the_command_scores_what_a_file_holds(here: tuple[Host, str], tmp_path: Path) -> None:
    host, target = here
    payments = Payments(start_ms=host.now_ms - 86_400_000, step_ms=1_000)
    made = [json_format.MessageToDict(payments.one()) for _ in range(3)]
    lines = "\n".join(map(json.dumps, made))
    # lines on standard input
    status, out, _ = command(target, "-", lines)
    answers = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert [a["transaction_id"] for a in answers] == [m["transactionId"] for m in made]
    assert all(a["assessment"]["decision_id"] for a in answers)
    # a list, as a table
    file = tmp_path / "payments.json"
    file.write_text(json.dumps(made, indent=2))
    status, out, _ = command(target, str(file), "", "--format", "table")
    assert status == 0
    assert out.count("RULES_ONLY") == 3


def test_the_command_tells_what_failed_and_shows_no_card_number(
    here: tuple[Host, str], tmp_path: Path
) -> None:
    host, target = here
    payments = Payments(start_ms=host.now_ms - 86_400_000, step_ms=1_000)
    good = json.dumps(json_format.MessageToDict(payments.one()))
    bad = json.dumps({"transactionId": CARD_NUMBER, "amountMinor": CARD_NUMBER})
    worse = json.dumps({"amountMinor": f"x {CARD_NUMBER}"})
    status, out, err = command(target, "-", f"{good}\n{bad}\n{worse}\n{{broken\n[]\n")
    first, *rest = [json.loads(line) for line in out.splitlines()]
    assert status == 1
    assert "assessment" in first
    assert [each["number"] for each in rest] == [2, 3, 4, 5]
    reasons = [each["error"]["reason"] for each in rest]
    assert reasons == ["CARD_NUMBER_REFUSED", *["NOT_A_TRANSACTION"] * 3]
    assert CARD_NUMBER not in out + err
    # nobody there, nothing to read
    status, out, _ = command(f"127.0.0.1:{free_port()}", "-", good, "--deadline-ms", "200")
    assert (status, json.loads(out)["error"]["code"]) == (1, "UNAVAILABLE")
    status, _, err = command(target, str(tmp_path / "none.json"))
    assert (status, len(err.splitlines())) == (2, 1)


def run_example(*argv: str) -> str:
    path = os.pathsep.join([str(ROOT), str(ROOT / "protos")])
    done = subprocess.run(
        argv, check=False, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_examples_in_python_run(here: tuple[Host, str]) -> None:
    host, target = here
    out = run_example(sys.executable, str(EXAMPLES / "sync.py"), target)
    first, second = out.splitlines()
    assert first.split()[0] == "OUTCOME_REVIEW"
    assert first.split()[1] in {d.assessment.decision_id for d in decisions(host.log).values()}
    assert second == "INVALID_TRANSACTION transaction.currency_code"
    out = run_example(sys.executable, str(EXAMPLES / "asyncio_client.py"), target)
    assert out == "100 decided\n", out
    assert len(decisions(host.log)) == 101
    # without a server the fallback decides
    nobody = f"127.0.0.1:{free_port()}"
    out = run_example(sys.executable, str(EXAMPLES / "sync.py"), nobody)
    assert out == "OUTCOME_REVIEW no decision\n"
