"""Spans built after the fact, from what stands on the log: a label, a model's life.

Owns which spans there are, how they hang together and what they say. A pure function of events: the
same events give the same spans, ids included. Must not know logs, databases or collectors.
"""

from __future__ import annotations

from collections.abc import Sequence

from fraud.v1 import label_pb2, model_event_pb2

from featurizer.spans import (
    GATE,
    REPORT,
    SWAP,
    TRAIN,
    Context,
    Kind,
    Span,
    Value,
    span_id_of,
    trace_id_of_parts,
)
from fraudsvc.decision_spans import RPC, SCORER, word

TRAINER = "fraud-trainer"


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
        **RPC,
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
