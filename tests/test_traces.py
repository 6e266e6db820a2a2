"""One trace from a call to what was learnt from it, every role a process of its own.

Read back from the read model, over HTTP and in the terminal, and from an OpenTelemetry Collector,
which is not ours: its builder makes one of its OTLP receiver and a file exporter.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from fraud.v1 import decision_pb2, label_pb2
from fraud.v1 import fraud_service_pb2 as pb

from featurizer.eventlog_file import FileEventLog
from featurizer.kept import KeepRule, scan
from featurizer.spans import (
    APPEND,
    ATTRIBUTES,
    FRAME,
    ITEM,
    POLICY,
    REPORT,
    SCORE,
    SCORE_BATCH,
    SHARED_STEPS,
    STEPS,
    Context,
    context_of,
    score_context,
)
from tests.conftest import (
    START_S,
    Connected,
    Payments,
    Trained,
    connected,
    decisions,
    free_port,
    process,
    score_patiently,
    until,
)
from tests.consoles import Place, System, data_of

Decision = decision_pb2.Decision
TIMEOUT_S = 10.0
TRAFFIC, BATCHES, ATTACKS = 400, 3, 12
COLLECTOR = "OTELCOL"  # names the binary; .ci/run builds it
CALLER = Context("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7")


@contextlib.contextmanager
def collector(folder: Path) -> Iterator[tuple[str, Path]]:
    """Run a Collector; yield its endpoint and the file that it writes."""
    binary = shutil.which(os.environ.get(COLLECTOR, "otelcol"))
    if binary is None:
        if os.environ.get("CI"):
            raise RuntimeError("the OpenTelemetry Collector is not built")
        pytest.skip("the OpenTelemetry Collector is not built")
    port, out, config = free_port(), folder / "spans.json", folder / "collector.yaml"
    settings = {
        "receivers": {"otlp": {"protocols": {"grpc": {"endpoint": f"127.0.0.1:{port}"}}}},
        "exporters": {"file": {"path": str(out), "flush_interval": "200ms"}},
        "service": {
            "pipelines": {
                signal: {"receivers": ["otlp"], "exporters": ["file"]}
                for signal in ("traces", "metrics")
            },
            "telemetry": {"metrics": {"level": "none"}},
        },
    }
    config.write_text(json.dumps(settings))
    with (folder / "collector.log").open("w") as said:
        running = subprocess.Popen([binary, "--config", str(config)], stdout=said, stderr=said)
        try:
            until(lambda: "Everything is ready" in (folder / "collector.log").read_text())
            yield f"http://127.0.0.1:{port}", out
        finally:
            running.terminate()
            running.wait(TIMEOUT_S)


class Told(NamedTuple):
    """A span, wherever it was read; attributes are ours alone."""

    context: Context
    parent: str
    name: str
    attributes: dict[str, Any]
    links: tuple[Context, ...]
    start_ns: int
    end_ns: int


def from_collector(out: Path) -> dict[Context, Told]:
    """Return the spans in the Collector's file."""
    found: dict[Context, Told] = {}
    for line in out.read_text().splitlines():
        for of_resource in json.loads(line).get("resourceSpans", ()):
            for span in (s for scope in of_resource["scopeSpans"] for s in scope["spans"]):
                context = Context(span["traceId"], span["spanId"])
                attributes = {
                    each["key"]: next(iter(each["value"].values()))
                    for each in span.get("attributes", ())
                }
                links = tuple(Context(e["traceId"], e["spanId"]) for e in span.get("links", ()))
                found[context] = Told(
                    context, span.get("parentSpanId", ""), span["name"], attributes, links,
                    int(span["startTimeUnixNano"]), int(span["endTimeUnixNano"]),
                )  # fmt: skip
    return found


def from_console(place: Place, trace_id: str) -> dict[Context, Told]:
    """Return a trace, with what it led to, from the console's API; nothing where it has none."""
    try:
        spans = place.get_json(f"/api/traces/{trace_id}")["spans"]
    except urllib.error.HTTPError as error:
        if error.code != 404:
            raise
        return {}
    return {
        Context(s["trace_id"], s["span_id"]): Told(
            Context(s["trace_id"], s["span_id"]), s["parent"], s["name"], s["attributes"],
            tuple(Context(each["trace_id"], each["span_id"]) for each in s["links"]),
            s["start_ns"], s["end_ns"],
        )
        for s in spans
    }  # fmt: skip


def score(client: Connected, payment: Any, traceparent: str = "") -> decision_pb2.Assessment:
    metadata = (("traceparent", traceparent),) if traceparent else ()
    request = pb.ScoreRequest(transaction=payment)
    return score_patiently(client, request, metadata)


def kept_of(log_folder: Path, rule: KeepRule, model: str) -> tuple[list[Decision], Decision]:
    """Return the decisions on a log whose traces the rule keeps, and the first by a new model.

    The console keeps that one whatever the rule says, which who folds it cannot know.
    """
    log = FileEventLog(log_folder, read_only=True)
    batch = log.read(log.ends()[0], 1 << 30)
    log.close()
    found = scan(batch)
    made = [Decision.FromString(batch.value(at)) for at in found.entries.tolist()]
    first = next(each for each in made if each.assessment.model_version == model)
    keeps = rule.keeps(found.rows).tolist()
    return [each for i, each in enumerate(made) if keeps[i]], first


class Parted(NamedTuple):
    """Spans by their trace, and by the spans that they link to."""

    of_trace: dict[str, list[Told]]
    linked: dict[Context, list[Told]]

    def one(self, context: Context) -> Told:
        """Return the one span of a context."""
        [found] = [s for s in self.of_trace[context.trace_id] if s.context == context]
        return found

    def below(self, parent: Told) -> dict[str, Told]:
        """Return the spans right below another, by their names."""
        own = self.of_trace[parent.context.trace_id]
        return {each.name: each for each in own if each.parent == parent.context.span_id}


def parted(spans: dict[Context, Told]) -> Parted:
    found = Parted({}, {})
    for span in spans.values():
        found.of_trace.setdefault(span.context.trace_id, []).append(span)
        for each in span.links:
            found.linked.setdefault(each, []).append(span)
    return found


def are_whole(spans: dict[Context, Told], kept: list[Decision], first: Decision) -> bool:
    found = parted(spans)
    try:
        for decision in kept:
            assert_whole(found, decision)
        assert_told(found, first)
    except (AssertionError, ValueError, KeyError) as error:
        print(error)
        return False
    return True


def assert_whole(spans: Parted, decision: Decision) -> None:
    """A kept decision has its call, its steps below it in order, and what folded it links to it."""
    assert_folded(spans, assert_told(spans, decision))


def assert_told(spans: Parted, decision: Decision) -> Told:
    """A decision has its call, and its steps below it in order; return the call."""
    told = decision.assessment
    call = spans.one(score_context(told.trace_id, told.decision_id))
    assert call.attributes["fraud.decision.id"] == told.decision_id
    if decision.HasField("shared"):
        assert_item_whole(spans, call, decision)
    else:
        assert call.name == SCORE
        steps = STEPS if told.model_version else STEPS[:2]
        assert assert_in_order(spans, call, (*steps, POLICY, APPEND)) == call.end_ns
        assert call.parent == parent_of(decision)
    return call


def parent_of(decision: Decision) -> str:
    caller = context_of(decision.traceparent)
    return "" if caller is None else caller.span_id


def assert_in_order(spans: Parted, parent: Told, names: Sequence[str]) -> int:
    """Below a span are these steps, one beginning where the one before ended; return where."""
    below = spans.below(parent)
    assert [name for name in names if name not in below] == [], (parent, set(below))
    at_ns = below[names[0]].start_ns
    assert at_ns >= parent.start_ns
    for name in names:
        assert below[name].start_ns == at_ns
        assert below[name].end_ns >= at_ns
        at_ns = below[name].end_ns
    assert at_ns <= parent.end_ns
    return at_ns


def assert_item_whole(spans: Parted, item: Told, decision: Decision) -> None:
    """A kept item has its own steps, those it shares are told once, and all are in the call."""
    frame = spans.one(Context(item.context.trace_id, item.parent))
    batch = spans.one(Context(item.context.trace_id, frame.parent))
    assert (item.name, frame.name, batch.name) == (ITEM, FRAME, SCORE_BATCH)
    assert batch.parent == parent_of(decision)
    assert batch.attributes["fraud.end.measured"] is True
    assert int(batch.attributes["fraud.items"]) == decision.shared.items
    for outer, inner in ((batch, frame), (frame, item)):
        assert outer.start_ns <= inner.start_ns <= inner.end_ns <= outer.end_ns
    if len(decision.shared.step_ns) == 1 + len(SHARED_STEPS):
        assert assert_in_order(spans, frame, (*SHARED_STEPS, APPEND)) == frame.end_ns
        assert set(spans.below(item)) == set(STEPS[2:])
        assert assert_in_order(spans, item, STEPS[2:]) == item.end_ns
    else:
        assert set(spans.below(frame)) == {STEPS[0], APPEND, ITEM}
        own = (*STEPS[1:], POLICY) if decision.assessment.model_version else (STEPS[1], POLICY)
        assert assert_in_order(spans, item, own) == item.end_ns


def assert_folded(spans: Parted, call: Told) -> None:
    folded = [s for s in spans.linked.get(call.context, ()) if s.name.startswith("process")]
    assert folded, f"{call.attributes['fraud.decision.id']} is in no span of a fold"
    ours = {row.name for row in ATTRIBUTES}
    for span in (*spans.of_trace[call.context.trace_id], *folded):
        assert {name for name in span.attributes if name.startswith("fraud.")} <= ours, span


@pytest.fixture
def exported(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    with collector(tmp_path) as found:
        yield found


@contextlib.contextmanager
def running(folder: Path, trained: Trained) -> Iterator[System]:
    data = data_of(folder, trained)
    with process(
        folder / "output", "fraudsvc", "up", "--data", str(data), "--address", "127.0.0.1:0",
        "--console", "127.0.0.1:0", "--max-age-days", "0", "--budget-ms", "60000",
    ) as up:  # fmt: skip
        for name in ("serve-0", "console"):
            up.wait_for(data / f"{name}.ready")
        until((data / "trainer.ready").exists, "the trainer", START_S)
        ports = [int((data / f"{name}.ready").read_text()) for name in ("serve-0", "console")]
        yield System(data, ports[0], Place(data, ports[1]))
        up.stop()


def score_batch(client: Connected, payments: list[Any], traceparent: str = "") -> None:
    metadata = (("traceparent", traceparent),) if traceparent else ()
    request = pb.ScoreBatchRequest(transactions=payments)

    def answered() -> Any:
        try:
            return client.stub.ScoreBatch(request, timeout=TIMEOUT_S, metadata=metadata)
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.RESOURCE_EXHAUSTED:  # shed, on a busy machine
                raise
            return None

    assert len(until(answered).results) == len(payments)


def score_batches(client: Connected, payments: Payments) -> None:
    """Score batches of several frames: decided together, one by one, and with refused items."""
    known, poor = payments.one(), payments.one()
    score(client, known)
    poor.currency_code = "XXQ"
    score_batch(client, [payments.one() for _ in range(80)], CALLER.traceparent())
    score_batch(client, [payments.one() for _ in range(70)])
    # Of a frame with one that was answered before, each is decided alone.
    score_batch(client, [known, *(payments.one() for _ in range(20)), poor])


def attack(payments: Payments, number: int) -> Any:
    return payments.one(
        customer_id=f"mule-{number}", amount_minor=2_600 + number, currency_code="EUR",
        channel=1, cvv_result=1,
    )  # fmt: skip


def learn(client: Connected, payments: Payments) -> tuple[list[str], str]:
    """Score traffic and an attack, label it, and wait for what was learnt.

    Returns the decisions that were labelled, and the model that decides afterwards.
    """
    answers = [score(client, payments.one()) for _ in range(TRAFFIC)]
    score_batches(client, payments)
    attacks = [attack(payments, number) for number in range(ATTACKS)]
    told = [score(client, each, CALLER.traceparent()) for each in attacks]
    for each in attacks:
        label = payments.label(each.transaction_id)
        label.verdict, label.source = label_pb2.VERDICT_FRAUD, label_pb2.LABEL_SOURCE_ANALYST
        client.stub.ReportLabels(pb.ReportLabelsRequest(labels=[label]), timeout=TIMEOUT_S)
    first = answers[0].model_version

    def changed() -> str:
        version = score(client, payments.one()).model_version
        return version if version != first else ""

    return [each.decision_id for each in told], until(changed, "another model", 90.0)


def test_every_kept_decision_has_its_whole_trace_here_and_in_a_collector(
    tmp_path: Path,
    trained: Trained,
    exported: tuple[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    endpoint, out = exported
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    monkeypatch.setenv("FRAUD_TRACE_SHARE", "0.2")
    monkeypatch.delenv("FRAUD_METRICS", raising=False)
    with running(tmp_path, trained) as system:
        with connected(system.port) as client:
            labelled, model = learn(client, Payments())
        kept, first = kept_of(system.data / "log", KeepRule(share=0.2), model)
        assert len(kept) > 0.1 * TRAFFIC

        # A console is a moment behind, and a Collector behind that.
        until(lambda: are_whole(from_collector(out), kept, first), "the Collector")
        for decision in kept:
            spans = from_console(system.console, decision.assessment.trace_id)
            assert_whole(parted(spans), decision)
        of_caller = from_console(system.console, CALLER.trace_id)
        for told in (from_collector(out), of_caller):
            chained = assert_chain(told, labelled, model)
        assert_looked_at(system, chained, kept)
        assert_metrics(system, out)


def assert_chain(spans: dict[Context, Told], labelled: Sequence[str], model: str) -> str:
    """From a call over label, training, gate and swap to the next decision, by links.

    Returns the decision of the call. A bundle that another replaces before a scorer looks is
    promoted and never swapped, so the chain begins at a label that the served one learnt first.
    """
    [train] = [
        s for s in spans.values()
        if s.name == "train" and s.attributes["fraud.model.version"] == model
    ]  # fmt: skip
    assert train.context.trace_id != CALLER.trace_id
    label = next(s for s in spans.values() if s.name == REPORT and s.context in train.links)
    [call] = [s for s in spans.values() if s.context in label.links]
    assert (call.name, call.parent) == (SCORE, CALLER.span_id)
    assert call.context.trace_id == CALLER.trace_id
    assert call.attributes["fraud.decision.id"] in labelled
    below = {s.name: s for s in spans.values() if s.parent == train.context.span_id}
    assert set(below) == {"gate", "swap"}
    assert train.attributes["fraud.change"] == "promoted"
    assert below["gate"].attributes["fraud.gates"]
    assert below["swap"].attributes["fraud.model.version"] == model
    following = [s for s in spans.values() if below["swap"].context in s.links]
    assert [s.name for s in following] == [SCORE]
    assert following[0].attributes["fraud.model.version"] == model
    return str(call.attributes["fraud.decision.id"])


def assert_looked_at(system: System, decision_id: str, kept: list[Decision]) -> None:
    """The API pages, the terminal draws, and what is not kept is drawn from the log."""
    seen: list[str] = []
    after = ""
    while True:
        page = system.console.get_json(f"/api/decisions?limit=7&after={after}")
        seen += [each["decision_id"] for each in page["decisions"]]
        if not (after := page["after"]):
            break
    assert len(seen) == len(set(seen)), "no row twice"
    assert {d.assessment.decision_id for d in kept} <= set(seen)
    queue = system.console.get_json("/api/decisions?order=expected_loss")["decisions"]
    losses = [each["expected_loss"] for each in queue]
    assert losses == sorted(losses, reverse=True)
    row = system.console.get_json(f"/api/decisions/{decision_id}")
    assert [each["decision_id"] for each in row["labels"]] == [decision_id]
    for path, status in (("/api/decisions/none", 404), ("/api/decisions?limit=x", 400)):
        with pytest.raises(urllib.error.HTTPError) as caught:
            system.console.get_json(path)
        assert caught.value.code == status
    drawn = trace_command(system, decision_id)
    for name in (*STEPS, POLICY, APPEND, REPORT, "train", "gate", "swap"):
        assert name in drawn
    log = FileEventLog(system.data / "log", read_only=True)
    ids = {d.assessment.decision_id for d in decisions(log).values()}
    log.close()
    assert "snapshot" in trace_command(system, min(ids - set(seen)))


def trace_command(system: System, decision_id: str) -> str:
    data = system.data
    done = subprocess.run(
        [
            sys.executable, "-m", "fraudsvc", "trace", decision_id, "--log", f"file://{data}/log",
            "--store", f"lmdb://{data}/store", "--read-model", f"sqlite:///{data}/readmodel.sqlite",
        ],
        check=True, capture_output=True, text=True, timeout=START_S,
    )  # fmt: skip
    return done.stdout


def assert_metrics(system: System, out: Path) -> None:
    """Prometheus' text and OTLP say what was done; nobody is far behind."""
    assert system.console.get_json("/healthz")["status"] == "ok"
    text = system.console.get_json("/metrics")
    log = FileEventLog(system.data / "log", read_only=True)
    made = [*decisions(log).values()]
    log.close()
    shared = [each.shared for each in made if each.HasField("shared")]
    calls = len(made) - len(shared)
    appends = calls + len({(each.number, each.items_left) for each in shared}) + ATTACKS

    def value(pattern: str) -> float:
        return sum(float(each) for each in re.findall(rf"^{pattern} (\S+)$", text, re.MULTILINE))

    assert value(r'fraud_calls_total\{code="OK",method="Score"\}') == calls
    assert value(r'fraud_calls_total\{code="OK",method="ScoreBatch"\}') == BATCHES
    assert value(r"fraud_decisions_total\{[^}]*\}") == len(made)
    assert value("fraud_append_seconds_count") == appends  # each label is one, too
    assert value(r'fraud_labels_total\{source="analyst",verdict="fraud"\}') == ATTACKS
    assert value("fraud_label_to_serving_seconds_count") > 0
    assert value(r'fraud_spans_total\{what="dropped"\}') == 0
    assert value(r'fraud_spans_total\{what="received"\}') > 0
    until(lambda: "fraud_decisions_total" in out.read_text(), "metrics by OTLP")


def test_a_console_made_anew_from_the_log_has_the_same_decisions(
    tmp_path: Path, trained: Trained
) -> None:
    with running(tmp_path, trained) as system, connected(system.port) as client:
        payments = Payments()
        for _ in range(60):
            score(client, payments.one())
        until(lambda: system.console.get_json("/healthz")["behind_bytes"] == 0)
        until(lambda: system.console.get_json("/api/decisions?limit=500")["decisions"], "decisions")
        before = system.console.get_json("/api/decisions?limit=500")["decisions"]
    data = system.data
    with process(
        tmp_path / "again", "fraudsvc", "console", "--log", f"file://{data}/log",
        "--store", f"lmdb://{data}/store", "--read-model", f"sqlite:///{data}/readmodel.sqlite",
        "--http", "127.0.0.1:0", "--otlp", "", "--ready-file", str(data / "again"), "--rebuild",
    ) as console:  # fmt: skip
        console.wait_for(data / "again")
        again = Place(data, int((data / "again").read_text()))
        path = "/api/decisions?limit=500"
        until(lambda: again.get_json(path)["decisions"] == before, "the same")


def test_what_is_unknown_is_said_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    unknown = "0f8fad5b-d9cb-869f-a165-70867728950e"
    for more in ([unknown], ["no-id"]):
        done = subprocess.run(
            [sys.executable, "-m", "fraudsvc", "trace", *more, "--log", f"file://{tmp_path}/log",
             "--read-model", f"sqlite:///{tmp_path}/none.sqlite"],
            check=False, capture_output=True, text=True, timeout=START_S,
        )  # fmt: skip
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
