"""A card number goes in by every door, and is found nowhere afterwards: no file, page or output.

Found would also be its groups, its hexadecimal, its Base64 and its eight bytes.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import urllib.parse
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fraud.v1 import dead_letter_pb2, label_pb2, transaction_pb2
from fraud.v1 import fraud_service_pb2 as pb
from google.protobuf.message import Message
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp_pb

from featurizer.eventlog import Entry, LogError, Topic
from featurizer.eventlog_file import FileEventLog
from featurizer.history import OPTIONAL, REQUIRED
from fraudsvc.dead_letters_local import LocalDeadLetters
from fraudsvc.policy import DEFAULT_POLICY
from fraudsvc.server import SERVICE
from fraudsvc.up import UpOptions
from loadgen.card_numbers import CONTROL, GROUPS, NUMBER, forms, holders, texts
from tests.conftest import START_S, Connected, connected, free_port, process, until
from tests.consoles import Client, Place
from tests.test_readmodel import postgres

SECRET = "sixteen-bytes-ok"  # noqa: S105 - of this test, and in no file or output afterwards
TIMEOUT_S = 20.0


def varint(number: int) -> bytes:
    low, rest = number & 127, number >> 7
    return bytes([low]) if not rest else bytes([low | 128]) + varint(rest)


def with_unknown_field(message: Message, text: str) -> bytes:
    """Return a message's bytes with a text field of a number that no schema has."""
    return message.SerializeToString() + varint(999 << 3 | 2) + varint(len(text)) + text.encode()


def payment(**more: Any) -> transaction_pb2.Transaction:
    made = transaction_pb2.Transaction(
        request_id=str(uuid.uuid4()), transaction_id=f"order-{uuid.uuid4().hex[:8]}",
        customer_id=CONTROL, amount_minor=1_250, currency_code="EUR", **more,
    )  # fmt: skip
    made.event_time.GetCurrentTime()
    return made


def verdict(transaction_id: str) -> label_pb2.Label:
    label = label_pb2.Label(
        transaction_id=transaction_id, verdict=label_pb2.VERDICT_FRAUD,
        source=label_pb2.LABEL_SOURCE_ANALYST, reporter="desk",
    )  # fmt: skip
    label.label_time.GetCurrentTime()
    return label


def tell(call: Any, said: list[str], **more: Any) -> Any:
    """Call; note what is answered, or refused, as a client would see it."""
    try:
        answer = call(timeout=TIMEOUT_S, **more)
    except grpc.RpcError as error:
        said.append(f"{error.details()} {error.trailing_metadata()}")
        return None
    said.append(str(answer))
    return answer


def send_by_grpc(client: Connected, said: list[str]) -> None:
    good = payment()
    tell(lambda **k: client.stub.Score(pb.ScoreRequest(transaction=good), **k), said)
    for number in (NUMBER, GROUPS, f"tok {NUMBER}"):
        refused = 0
        for at in range(len(list(texts(payment())))):
            made = payment()
            message, field = list(texts(made))[at]
            setattr(message, field.name, number)
            request = pb.ScoreRequest(transaction=made)
            refused += tell(lambda r=request, **k: client.stub.Score(r, **k), said) is None
            batch = pb.ScoreBatchRequest(transactions=[made])
            tell(lambda r=batch, **k: client.stub.ScoreBatch(r, **k), said)
        assert refused == at + 1 > 15
        for at in range(len(list(texts(verdict("x"))))):
            label = verdict(good.transaction_id)
            message, field = list(texts(label))[at]
            setattr(message, field.name, number)
            labels = pb.ReportLabelsRequest(labels=[label])
            answer = tell(lambda r=labels, **k: client.stub.ReportLabels(r, **k), said)
            assert answer.results[0].status == pb.LABEL_STATUS_REJECTED
        asked = pb.GetDecisionRequest(decision_id=number)
        tell(lambda r=asked, **k: client.stub.GetDecision(r, **k), said)
        metadata = [(name, number) for name in ("traceparent", "tracestate", "x-card", "baggage")]
        request = pb.ScoreRequest(transaction=payment())
        answer = tell(
            lambda r=request, m=metadata, **k: client.stub.Score(r, metadata=m, **k), said
        )
        assert answer is not None


def send_bytes(client: Connected, said: list[str]) -> None:
    """Send fields that no schema has, bytes that are no message, methods that are not there."""
    inner = with_unknown_field(payment(), NUMBER)
    score = b"\x0a" + varint(len(inner)) + inner
    label = with_unknown_field(verdict("order-1"), NUMBER)
    labels = b"\x0a" + varint(len(label)) + label
    for method, data in (
        ("Score", score), ("ScoreBatch", score), ("ReportLabels", labels),
        ("Score", NUMBER.encode()), ("ReportLabels", NUMBER.encode()), (NUMBER, b""),
    ):  # fmt: skip
        call: Any = client.channel.unary_unary(f"/{SERVICE}/{method}")
        answer = tell(lambda c=call, d=data, **k: c(d, **k), said)
        assert answer is None or NUMBER.encode() not in answer
    report: Any = client.channel.unary_unary(
        f"/{SERVICE}/Score", response_deserializer=pb.ScoreResponse.FromString
    )
    inner = with_unknown_field(payment(), NUMBER)
    scored = report(b"\x0a" + varint(len(inner)) + inner, timeout=TIMEOUT_S)
    decision_id = scored.assessment.decision_id
    asked = pb.GetDecisionRequest(decision_id=decision_id)
    said.append(str(client.stub.GetDecision(asked, timeout=TIMEOUT_S)))


def send_spans(target: str) -> None:
    """Send a trace of somebody else's that has the number as a name and as an attribute."""
    request = otlp_pb.ExportTraceServiceRequest()
    span = request.resource_spans.add().scope_spans.add().spans.add()
    span.trace_id, span.span_id, span.name = b"t" * 16, b"s" * 8, f"pay {NUMBER}"
    span.attributes.add(key="card").value.string_value = NUMBER
    span.attributes.add(key="cards").value.array_value.values.add().string_value = GROUPS
    with grpc.insecure_channel(target) as channel:
        channel.unary_unary(
            "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
            request_serializer=otlp_pb.ExportTraceServiceRequest.SerializeToString,
            response_deserializer=otlp_pb.ExportTraceServiceResponse.FromString,
        )(request, timeout=TIMEOUT_S)


def send_by_http(place: Place) -> list[str]:
    """Ask for paths and pages, and send forms, as somebody who may everything and as a stranger."""
    coded = urllib.parse.quote(base64.urlsafe_b64encode(NUMBER.encode()).decode())
    paths = [
        f"/{NUMBER}", f"/api/decisions/{NUMBER}", f"/api/traces/{NUMBER}",
        f"/api/decisions?outcome={NUMBER}", f"/api/decisions?limit={NUMBER}",
        f"/api/decisions?after={coded}", f"/api/decisions?after={NUMBER}",
        f"/api/decisions?order={NUMBER}", f"/metrics?{NUMBER}", "/api/decisions", "/metrics",
        f"/api/traces/{(b't' * 16).hex()}",
    ]  # fmt: skip
    decision_id = place.get_json("/api/decisions?limit=1")["decisions"][0]["decision_id"]
    case = f"/cases/{decision_id}"
    for page in ("queue", "verdicts", "models", "rules", "agreement", "drift", "audit", "health",
                 "dead-letters", "what-if", case[1:], "sign-in", "sign-in/link"):  # fmt: skip
        names = ("person", "what", "entity", "rule", "by", "before", "after", "next", "token", "q")
        for text in (NUMBER, GROUPS, GROUPS.replace("-", "+"), f"/queue?q={NUMBER}"):
            paths += [f"/{page}?{name}={urllib.parse.quote(text, '+')}" for name in names]
    inside, stranger = place.signed_in(), Client(place.port)
    said = [str(client.get(path)) for path in paths for client in (inside, stranger)]
    forms = [
        (f"{case}/assign", "to"), (f"{case}/verdict", "note"), (f"{case}/override", "why"),
        ("/models/change", "reason"), ("/what-if/run", "text"), ("/what-if/propose", "reason"),
        ("/what-if/proposals/live", "id"), ("/dead-letters/resend", "number"), ("/queue/next", "q"),
    ]  # fmt: skip
    more = {"verdict": "fraud", "review": "0.4", "action": "review", "code": "X", "when": "true"}
    for path, name in forms:
        for text in (NUMBER, GROUPS, f"they used {NUMBER}"):
            answer = inside.post(path, "/nowhere", **{**more, name: text})
            assert (answer.status, "looks like a card number" in answer.text) == (400, True), path
            said += [str(answer), str(stranger.post(path, "/nowhere", **{name: text}))]
    return said


@contextlib.contextmanager
def system(folder: Path) -> Iterator[tuple[Place, str, Any]]:
    data, port, http = folder / "data", free_port(), free_port()
    data.mkdir()
    (data / "policy.toml").write_bytes(DEFAULT_POLICY.read_bytes())
    with process(
        folder / "output", "fraudsvc", "up", "--data", str(data),
        "--address", f"127.0.0.1:{port}", "--console", f"127.0.0.1:{http}",
        "--budget-ms", "60000", "--policy", str(data / "policy.toml"),
    ) as up:  # fmt: skip
        for role in ("featurizer", "serve-0", "console"):
            up_ready = data / f"{role}.ready"
            until(up_ready.exists, role, START_S)
        yield Place(data, http), f"127.0.0.1:{port}", up


def otlp_of(data: Path) -> str:
    """Return where the console of embedded mode takes spans."""
    return UpOptions(data, "", 1, False, "").otlp


@pytest.fixture
def dumps_allowed() -> Iterator[None]:
    """Let processes that are started here dump what they hold, unless they say otherwise."""
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_CORE, before)


def dump_of(pid: int) -> None:
    """Let a role die as by a bug in native code, and see that the system may keep no dump of it."""
    limits = Path(f"/proc/{pid}/limits").read_text()
    core = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
    assert core.split()[4:6] == ["0", "0"]
    os.kill(pid, signal.SIGABRT)


def rows_in_postgres(folder: Path, data: Path) -> bytes:
    """Let a console fill PostgreSQL from the same log; return all rows of all tables."""
    with postgres(folder) as url:
        http = free_port()
        with process(
            folder / "pg-output", "fraudsvc", "console", "--log", f"file://{data}/log",
            "--store", f"lmdb://{data}/store", "--read-model", url, "--data", str(data),
            "--http", f"127.0.0.1:{http}",
        ):  # fmt: skip
            place = Place(data, http)
            until(lambda: CONTROL in _asked(place), "PostgreSQL's read model", START_S)
        port = url.rpartition(":")[2].partition("/")[0]
        dump = shutil.which("pg_dump") or "pg_dump"
        done = subprocess.run(
            [dump, "-h", "127.0.0.1", "-p", port, "-U", "fraud", "postgres"],
            check=True, capture_output=True, timeout=START_S,
        )  # fmt: skip
    return done.stdout


def _asked(place: Place) -> str:
    try:
        return str(place.get_json("/api/decisions"))
    except OSError:  # not up yet
        return ""


@pytest.mark.usefixtures("dumps_allowed")
@pytest.mark.timeout(900)  # on a machine that has just been set up every kernel is compiled
def test_a_card_number_that_comes_in_is_found_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "id.secret").write_text(SECRET)
    monkeypatch.setenv("FRAUD_ID_SECRET", str(tmp_path / "id.secret"))
    said: list[str] = []
    with system(tmp_path) as (place, target, up):
        data = place.data
        with connected(int(target.rpartition(":")[2])) as client:
            send_by_grpc(client, said)
            send_bytes(client, said)
        send_spans(otlp_of(data))
        # a policy that lists it is refused, and neither shown nor archived
        policy = DEFAULT_POLICY.read_text()
        expires = "2999-01-01T00:00:00Z"
        (data / "policy.toml").write_text(
            f'{policy}\n[[lists]]\ncode = "X"\naction = "deny"\nfield = "customer_id"\n'
            f'values = [{{value = "{NUMBER}", expires = {expires}}}]\n'
        )
        until(lambda: "policy refused" in up.said, "the refusal", START_S)
        (data / "policy.toml").write_text(policy)
        until(lambda: CONTROL in str(place.get_json("/api/decisions")), "the read model", START_S)
        said += send_by_http(place)
        dump_of(json.loads((data / "roles.json").read_text())["serve-0"]["pid"])
        metrics = Path("/dev/shm") / otlp_of(data).partition(":")[2]  # noqa: S108 - in memory
        counted = holders(metrics, forms()) if metrics.is_dir() else {}
        up.stop()  # a busy machine may have to be told twice
        said.append(up.said)
    assert counted == {}
    assert holders(data, forms()) == {}
    assert holders(data, [SECRET.encode()]) == {}
    assert not [text for text in said if SECRET in text]
    held = [text[:400] for text in said if any(form.decode(errors="replace") in text
            for form in forms()[:4])]  # fmt: skip
    assert held == []
    # and the search does find what was kept
    found = holders(data, [CONTROL.encode()])
    assert any("/log/" in name for name in found)
    assert any("readmodel" in name for name in found)
    said_by_postgres = rows_in_postgres(tmp_path, data)
    assert CONTROL.encode() in said_by_postgres
    assert not [form for form in forms() if form in said_by_postgres]
    assert holders(tmp_path / "postgres", forms()) == {}


def test_a_history_with_card_numbers_brings_none_onto_the_log(tmp_path: Path) -> None:
    """Ids become keyed numbers; what is refused is told by its column and line alone.

    The vectors keep a history's own ids, for whoever made it: docs/security.md says so.
    """
    names = [*REQUIRED, *OPTIONAL]
    good = dict.fromkeys(names, "")
    good |= {
        "transaction_id": NUMBER, "customer_id": NUMBER, "event_time": "2025-01-01T00:00:00Z",
        "amount_minor": "1250", "currency_code": "EUR",
    }  # fmt: skip
    rows = [good, dict.fromkeys(names, NUMBER)]
    rows += [{**good, name: NUMBER} for name in names]
    lines = [",".join(names), *(",".join(row[name] for name in names) for row in rows)]
    (tmp_path / "history.csv").write_text("\n".join(lines) + "\n")
    out = tmp_path / "out"
    out.mkdir()
    done = subprocess.run(
        [
            sys.executable, "-m", "featurizer", "backfill", str(tmp_path / "history.csv"),
            str(out / "vectors.parquet"), "--log", f"file://{out}/log",
        ],
        check=False, capture_output=True, text=True, timeout=START_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (out / "vectors.parquet").stat().st_size > 0
    assert NUMBER not in done.stdout + done.stderr
    assert list(holders(out, forms())) == [str(out / "vectors.parquet")]


def test_a_letter_about_a_card_number_is_not_sent_again(tmp_path: Path) -> None:
    log = FileEventLog(tmp_path / "log")
    [at, _] = log.append([[Entry(Topic.LABELS, 0, verdict("x").SerializeToString())]])
    letter = dead_letter_pb2.DeadLetter(
        topic="labels", offset=at + 1, reason="CARD_NUMBER_REFUSED"
    ).SerializeToString()
    log.append([[Entry(Topic.DEAD_LETTERS, 0, letter)]])
    letters = LocalDeadLetters(log)
    [found] = letters.all()
    with pytest.raises(LogError, match="must mend it"):
        letters.resend(found, "me")
    assert len(letters.all()) == 1
    log.close()
