"""Spans built after the fact, from what stands on the log: a call, a label, a model's life.

Owns which spans there are, how they hang together and what they say. A pure function of events: the
same events give the same spans, ids included. Must not know logs, databases or collectors.
"""

from __future__ import annotations

from collections.abc import Sequence

from fraud.v1 import decision_pb2, label_pb2, model_event_pb2

from featurizer.spans import (
    APPEND,
    GATE,
    POLICY,
    REPORT,
    SCORE,
    STEPS,
    SWAP,
    TRAIN,
    Context,
    Kind,
    Span,
    Value,
    context_of,
    score_context,
    span_id_of,
    trace_id_of_parts,
)

SCORER = "fraud-serve"
TRAINER = "fraud-trainer"
_MS = 1_000_000
_RPC = {"rpc.system": "grpc", "rpc.service": "fraud.v1.FraudService"}


def word(name: str, prefix: str) -> str:
    """Return an enum's name as a label: ``OUTCOME_APPROVE`` is approve."""
    return name.removeprefix(prefix).lower()


def outcome_of(outcome: int) -> str:
    """Return an Outcome in a word."""
    return word(decision_pb2.Outcome.Name(outcome), "OUTCOME_")


def rung_of(rung: int) -> str:
    """Return a Rung in a word."""
    return word(decision_pb2.Rung.Name(rung), "RUNG_")


def spans_of_decision(
    decision: decision_pb2.Decision,
    position: int,
    append_ns: int | None,
    why: str,
    swap: Context | None = None,
) -> list[Span]:
    """Return the call's span and one for each step of the answer.

    ``append_ns`` is how long the append took, None where nobody knows any more. ``swap`` is linked
    to by the first decision with a bundle.
    """
    told = decision.assessment
    context = score_context(told.trace_id, told.decision_id)
    start_ns = decision.receive_time.ToNanoseconds()
    decided_ns = start_ns + told.time_used.ToNanoseconds()
    end_ns = decided_ns + (append_ns or 0)
    caller = context_of(decision.traceparent)
    call = Span(
        context, "" if caller is None else caller.span_id, SCORE, Kind.SERVER, start_ns, end_ns,
        _told_of(decision, position, why), () if swap is None else (swap,), SCORER,
    )  # fmt: skip
    spans = [call]

    def add(name: str, begin_ns: int, stop_ns: int, **attributes: Value) -> None:
        own = Context(told.trace_id, span_id_of(name, told.decision_id))
        named = {key.replace("__", "."): value for key, value in attributes.items()}
        stop_ns = max(begin_ns, stop_ns)
        spans.append(
            Span(own, context.span_id, name, Kind.INTERNAL, begin_ns, stop_ns, named, (), SCORER)
        )

    at_ns = start_ns
    for name, step_ns in zip(STEPS, decision.step_ns, strict=False):
        add(name, at_ns, start_ns + step_ns)
        at_ns = max(at_ns, start_ns + step_ns)
    if decision.step_ns:
        add(POLICY, at_ns, decided_ns)
    add(APPEND, decided_ns, end_ns, fraud__append__measured=append_ns is not None)
    return spans


def _told_of(decision: decision_pb2.Decision, position: int, why: str) -> dict[str, Value]:
    told = decision.assessment
    found: dict[str, Value] = {
        **_RPC,
        "rpc.method": "Score",
        "fraud.decision.id": told.decision_id,
        "fraud.outcome": outcome_of(told.outcome),
        "fraud.rung": rung_of(told.rung),
        "fraud.kept": why,
        "fraud.scorer": decision.scorer,
        "fraud.log.position": position,
        "fraud.model.version": told.model_version,
        "fraud.policy.version": told.policy_version,
    }
    if told.HasField("score"):
        found["fraud.score"] = told.score
    if told.rung_cause:
        name = decision_pb2.RungCause.Name(told.rung_cause)
        found["fraud.rung.cause"] = word(name, "RUNG_CAUSE_")
    return found


def label_context(journal: str, position: int) -> Context:
    """Return the span of the call that reported the label at a position of a host's log."""
    trace_id = trace_id_of_parts("label", journal, str(position))
    return Context(trace_id, span_id_of(REPORT, trace_id))


def span_of_label(
    label: label_pb2.Label,
    context: Context,
    position: int,
    decided: Context,
    decision_id: str,
    seen_ns: int,
) -> Span:
    """Return the span of a label that was joined to its decision, whose call it links to."""
    attributes: dict[str, Value] = {
        **_RPC,
        "rpc.method": "ReportLabels",
        "fraud.decision.id": decision_id,
        "fraud.label.verdict": word(label_pb2.Verdict.Name(label.verdict), "VERDICT_"),
        "fraud.label.source": word(label_pb2.LabelSource.Name(label.source), "LABEL_SOURCE_"),
        "fraud.log.position": position,
    }
    return Span(
        context, "", REPORT, Kind.SERVER, seen_ns, seen_ns, attributes, (decided,), SCORER
    )  # fmt: skip


def train_context(model_version: str) -> Context:
    """Return the span of the run that learnt a bundle."""
    trace_id = trace_id_of_parts("model", model_version)
    return Context(trace_id, span_id_of(TRAIN, trace_id))


def swap_context(event: model_event_pb2.ModelEvent) -> Context:
    """Return the span of a scorer taking a bundle up."""
    trace_id = train_context(event.model_version).trace_id
    return Context(trace_id, span_id_of(SWAP, trace_id, event.author, str(event.event_time)))


def spans_of_model_event(
    event: model_event_pb2.ModelEvent, labels: Sequence[Context], labels_count: int, learnt: bool
) -> list[Span]:
    """Return the spans of a training run that was judged, or of a swap; none for other events.

    The first event of a bundle is that of its run: it is promoted, tried or refused.

    ``labels`` are those of the run that are new, ``learnt`` is whether there is a run's span that a
    swap is a child of.
    """
    if event.change == model_event_pb2.MODEL_CHANGE_LOADED:
        return [_swap(event, learnt)]
    if not event.HasField("learning"):
        return []
    run, context = event.learning, train_context(event.model_version)
    told_ns = event.event_time.ToNanoseconds()
    attributes: dict[str, Value] = {
        "fraud.model.version": event.model_version,
        "fraud.labels": labels_count,
        "fraud.layers": " ".join(run.layers),
        "fraud.change": word(model_event_pb2.ModelChange.Name(event.change), "MODEL_CHANGE_"),
    }
    gates = ", ".join(f"{g.name} {g.value:.4g} of {g.limit:.4g}" for g in event.gates)
    judge = Span(
        Context(context.trace_id, span_id_of(GATE, context.trace_id)), context.span_id, GATE,
        Kind.INTERNAL, run.end_time.ToNanoseconds(), max(told_ns, run.end_time.ToNanoseconds()),
        {
            "fraud.model.version": event.model_version,
            "fraud.gates": gates,
            "fraud.gates.passed": all(gate.passed for gate in event.gates),
        },
        (), TRAINER,
    )  # fmt: skip
    train = Span(
        context, "", TRAIN, Kind.CONSUMER, run.start_time.ToNanoseconds(), judge.end_ns,
        attributes, tuple(labels), TRAINER,
    )  # fmt: skip
    return [train, judge]


def _swap(event: model_event_pb2.ModelEvent, learnt: bool) -> Span:
    return Span(
        swap_context(event), train_context(event.model_version).span_id if learnt else "", SWAP,
        Kind.INTERNAL, event.learning.start_time.ToNanoseconds(),
        event.event_time.ToNanoseconds(),
        {"fraud.model.version": event.model_version, "fraud.scorer": event.author}, (), SCORER,
    )  # fmt: skip
