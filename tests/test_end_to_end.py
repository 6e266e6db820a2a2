"""Every role as a process: killed at any time nothing acknowledged is lost and answers stay."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from fraud.v1 import decision_pb2, label_pb2, transaction_pb2
from fraud.v1 import fraud_service_pb2 as pb

from featurizer.eventlog_file import FileEventLog
from fraudsvc.policy import DEFAULT_POLICY
from tests.conftest import (
    START_S,
    Connected,
    Host,
    Payments,
    Process,
    Trained,
    call_now,
    connected,
    decisions,
    free_port,
    process,
    recomputed,
    until,
)
from trainer.signing import public_path

PAYMENTS = 180
TIMEOUT_S = 10.0
ROLES = ("featurizer", "serve-0", "serve-1")
Code = grpc.StatusCode


def data_directory(folder: Path, trained: Trained) -> Path:
    data = folder / "data"
    data.mkdir()
    (data / "bundle").symlink_to(trained.bundle_path)
    (data / "key.pub").write_bytes(trained.public_key)
    return data


class System(NamedTuple):
    """``up`` with two workers, and where it keeps its data."""

    data: Path
    port: int
    up: Process

    def pids(self, role: str) -> list[int]:
        """Return the process of each start that became ready."""
        return [int(p) for p in re.findall(rf"{role}\s+ready\s+pid (\d+)", self.up.said)]


@pytest.fixture
def system(tmp_path: Path, trained: Trained) -> Iterator[System]:
    data, port = data_directory(tmp_path, trained), free_port()
    with process(
        tmp_path / "output", "fraudsvc", "up", "--data", str(data), "--workers", "2",
        "--console", "127.0.0.1:0",
        "--address", f"127.0.0.1:{port}", "--max-age-days", "0", "--budget-ms", "60000",
    ) as up:  # fmt: skip
        made = System(data, port, up)
        until(lambda: all(made.pids(role) for role in ROLES), "the roles", START_S)
        yield made


def score(client: Connected, transaction: transaction_pb2.Transaction) -> Any:
    request = pb.ScoreRequest(transaction=transaction)
    return client.stub.Score(request, timeout=TIMEOUT_S).assessment


def report(client: Connected, label: label_pb2.Label) -> Any:
    return client.stub.ReportLabels(pb.ReportLabelsRequest(labels=[label]), timeout=TIMEOUT_S)


def surely(port: int, ask: Callable[[Connected], Any]) -> Any:
    """Ask over a new connection, and again while the server is away or too busy."""

    def once() -> Any:
        try:
            with connected(port, wait_s=0.0) as client:
                return ask(client)
        except grpc.RpcError as error:
            if error.code() not in (Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED):
                raise
            return None

    return until(once, "an answer")


def what_is_decided(assessment: decision_pb2.Assessment) -> decision_pb2.Assessment:
    """Return an answer without what is each call's own."""
    kept = decision_pb2.Assessment()
    kept.CopyFrom(assessment)
    for name in ("time_used", "trace_id"):
        kept.ClearField(name)
    return kept


def test_each_role_killed_comes_back_and_no_answer_changes(
    system: System, tmp_path: Path, trained: Trained
) -> None:
    payments = Payments()
    kill_at = dict(zip((40, 90, 140), ROLES, strict=True))
    answers = []
    for i in range(PAYMENTS):
        if i in kill_at:
            os.kill(system.pids(kill_at[i])[-1], signal.SIGKILL)
        payment = payments.one()
        answers.append(surely(system.port, partial(score, transaction=payment)))
        if i % 10 == 9:
            label = payments.label(payments.made[i - 5].transaction_id)
            surely(system.port, partial(report, label=label))
    until(lambda: all(len(system.pids(role)) == 2 for role in ROLES), "the roles", START_S)
    for payment, answer in zip(payments.made, answers, strict=True):
        again = surely(system.port, partial(score, transaction=payment))
        assert what_is_decided(again) == what_is_decided(answer)
    assert system.up.stop() == 0

    log = FileEventLog(system.data / "log", read_only=True)
    logged, (vectors, _) = decisions(log), recomputed(log)
    log.close()
    assert {d.assessment.decision_id for d in logged.values()} >= {a.decision_id for a in answers}
    assert all(logged[frame].features == vector for frame, vector in vectors.items())
    assert len({d.scorer for d in logged.values()}) >= 2  # both workers took calls
    assert_as_undisturbed(tmp_path / "calm", trained, answers)


def assert_as_undisturbed(folder: Path, trained: Trained, answers: list[Any]) -> None:
    """The same payments through one scorer that nobody kills get the same answers."""
    host, payments = Host(folder, trained.bundle), Payments()
    scorer = host.scorer()
    for i, answer in enumerate(answers):
        calm = scorer.score(payments.one(), call_now())
        assert what_is_decided(calm) == what_is_decided(answer)
        if i % 10 == 9:
            scorer.report_labels([payments.label(payments.made[i - 5].transaction_id)])
    host.close()


def serve_command(folder: Path, data: Path, *more: str) -> tuple[str, ...]:
    return (
        "fraudsvc", "serve", "--log", f"file://{data}/log", "--store", f"lmdb://{data}/store",
        "--bundle", str(data / "bundle"), "--public-key", str(data / "key.pub"),
        "--address", "127.0.0.1:0", "--ready-file", str(folder / "port"), *more,
    )  # fmt: skip


class Caller(threading.Thread):
    """Sends payments until the server is gone; keeps what came of each."""

    def __init__(self, port: int, seed: int) -> None:
        super().__init__()
        self._port, self._payments = port, Payments(seed)
        self.answers: list[str] = []
        self.codes: set[Any] = set()

    def run(self) -> None:
        with connected(self._port) as client:
            while not self.codes:
                try:
                    self.answers.append(score(client, self._payments.one()).decision_id)
                except grpc.RpcError as error:
                    self.codes.add(error.code())


def test_a_drain_under_load_loses_no_answer(tmp_path: Path, trained: Trained, host: Host) -> None:
    data = data_directory(tmp_path, trained)
    host.close()  # it made an empty log and store there, which the process takes over
    (tmp_path / "log").rename(data / "log")
    (tmp_path / "store").rename(data / "store")
    policy = tmp_path / "policy.toml"
    policy.write_bytes(DEFAULT_POLICY.read_bytes())
    command = serve_command(
        tmp_path, data, "--max-age-days", "0", "--policy", str(policy), "--wait-ms-max", "60000"
    )
    with process(tmp_path / "output", *command) as serve:
        serve.wait_for(tmp_path / "port")
        port = int((tmp_path / "port").read_text())
        assert_a_broken_policy_changes_nothing(serve, port, policy)
        callers = [Caller(port, seed) for seed in (1, 2, 3)]
        for caller in callers:
            caller.start()
        until(lambda: all(len(caller.answers) > 50 for caller in callers))
        assert serve.stop() == 0
        for caller in callers:
            caller.join(TIMEOUT_S)
    # CANCELLED is what crosses gRPC's goodbye on the wire; clients try both again.
    for caller in callers:
        assert caller.codes
        assert caller.codes <= {Code.UNAVAILABLE, Code.CANCELLED}
    log = FileEventLog(data / "log", read_only=True)
    ids = {d.assessment.decision_id for d in decisions(log).values()}
    log.close()
    assert ids >= {answer for caller in callers for answer in caller.answers}
    assert "4111" not in serve.said


def assert_a_broken_policy_changes_nothing(serve: Process, port: int, policy: Path) -> None:
    payments = Payments()
    with connected(port) as client:
        before = score(client, payments.one())
        with pytest.raises(grpc.RpcError, match="card number"):
            score(client, payments.one(customer_id="4111111111111111"))
        good = policy.read_bytes()
        policy.write_bytes(good + b"[[rules]]\n")
        until(lambda: "policy refused" in serve.said, "the refusal")
        assert score(client, payments.one()).policy_version == before.policy_version
        policy.write_bytes(good + b"# changed\n")

        def is_new() -> bool:
            time.sleep(0.1)
            version = score(client, payments.one()).policy_version
            return bool(version != before.policy_version)

        until(is_new, "the new policy")


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (("--policy", "nowhere.toml"), "nowhere.toml"),
        (("--log", "redis://x"), "the log wants a URL"),
        (("--store", "file://x"), "the store wants lmdb://DIR"),
        (("--workers", "2"), "--address needs its number"),
    ],
)
def test_options_that_cannot_be_used_are_one_line(
    tmp_path: Path, more: tuple[str, ...], why: str
) -> None:
    (tmp_path / "data").mkdir()
    with process(tmp_path / "output", *serve_command(tmp_path, tmp_path / "data", *more)) as serve:
        assert serve.popen.wait(START_S) == 2
    assert why in serve.said.splitlines()[-1]
    assert "Traceback" not in serve.said


def test_the_key_that_signs_stays_with_the_trainer(trained: Trained) -> None:
    assert public_path(trained.key_path).read_bytes() == trained.public_key
    assert b"PRIVATE" not in trained.public_key
