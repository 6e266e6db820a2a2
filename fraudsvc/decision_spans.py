"""Spans of what was decided, built after the fact: a call, or what was decided in one go.

Owns which spans there are, how they hang together and what they say. A pure function of Decisions:
the same ones give the same spans, ids included. Must not know logs, databases or collectors.
Source: https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import starmap
from typing import NamedTuple

from fraud.v1 import decision_pb2

from featurizer.spans import (
    APPEND,
    FRAME,
    ITEM,
    POLICY,
    SCORE,
    SCORE_BATCH,
    SHARED_STEPS,
    STEPS,
    Context,
    Kind,
    Span,
    Value,
    context_of,
    score_context,
    span_id_of,
    trace_id_of_parts,
)

SCORER, STREAM = "fraud-serve", "fraud-stream"
RPC: Mapping[str, Value] = {"rpc.system": "grpc", "rpc.service": "fraud.v1.FraudService"}


class Step(NamedTuple):
    """A step and when it ended, ns since 1970."""

    name: str
    end_ns: int


def word(name: str, prefix: str) -> str:
    """Return an enum's name as a label: ``OUTCOME_APPROVE`` is approve."""
    return name.removeprefix(prefix).lower()


def outcome_of(outcome: int) -> str:
    """Return an Outcome in a word."""
    return word(decision_pb2.Outcome.Name(outcome), "OUTCOME_")


def rung_of(rung: int) -> str:
    """Return a Rung in a word."""
    return word(decision_pb2.Rung.Name(rung), "RUNG_")


def spans_of_call(
    decision: decision_pb2.Decision,
    position: int,
    append_ns: int | None,
    why: str,
    swap: Context | None = None,
) -> list[Span]:
    """Return the span of a call of its own and one for each step of the answer.

    ``append_ns`` is how long the append took, None where nobody knows any more. ``swap`` is linked
    to by the first decision with a bundle.
    """
    told = decision.assessment
    context = score_context(told.trace_id, told.decision_id)
    start_ns = decision.receive_time.ToNanoseconds()
    decided_ns = start_ns + told.time_used.ToNanoseconds()
    call = Span(
        context, _caller_of(decision), SCORE, Kind.SERVER, start_ns,
        decided_ns + (append_ns or 0),
        {**RPC, "rpc.method": "Score", **_told_of(decision, why), "fraud.log.position": position},
        _links(swap), SCORER,
    )  # fmt: skip
    ends = [*starmap(Step, zip(STEPS, _after(start_ns, decision.step_ns), strict=False))]
    if ends:
        ends.append(Step(POLICY, decided_ns))
    made = [*_chain(call, start_ns, ends), _append(call, decided_ns, append_ns)]
    return [call, *made]


def spans_of_item(
    decision: decision_pb2.Decision, position: int, why: str, swap: Context | None = None
) -> list[Span]:
    """Return the span of one transaction of a ScoreBatch, and one for each step of its own."""
    told = decision.assessment
    start_ns, end_ns, own = _turn_of(decision)
    item = Span(
        score_context(told.trace_id, told.decision_id), frame_context(decision).span_id, ITEM,
        Kind.INTERNAL, start_ns, end_ns,
        {**_told_of(decision, why), "fraud.log.position": position}, _links(swap), SCORER,
    )  # fmt: skip
    return [item, *_chain(item, start_ns, own)]


def frame_context(decision: decision_pb2.Decision) -> Context:
    """Return the span of the items that were written together with a decision."""
    shared = decision.shared
    frame = span_id_of(FRAME, str(shared.number), str(shared.items_left))
    return Context(decision.assessment.trace_id, frame)


def batch_context(decision: decision_pb2.Decision) -> Context:
    """Return the span of the ScoreBatch that a decision was made in."""
    number = str(decision.shared.number)
    return Context(decision.assessment.trace_id, span_id_of(SCORE_BATCH, number))


def spans_of_frame(decision: decision_pb2.Decision, append_ns: int | None) -> list[Span]:
    """Return the span of items that were written together, and one for each step they share."""
    start_ns, *_ = shared_ends(decision)
    frame = Span(
        frame_context(decision), batch_context(decision).span_id, FRAME, Kind.INTERNAL, start_ns,
        decided_ns(decision) + (append_ns or 0), {}, (), SCORER,
    )  # fmt: skip
    return [frame, *_shared_steps(frame, decision, append_ns)]


def span_of_batch(decision: decision_pb2.Decision, append_ns: int | None) -> Span:
    """Return the span of a ScoreBatch by a decision of the last frame that it is known to have."""
    shared = decision.shared
    told: dict[str, Value] = {
        **RPC,
        "rpc.method": "ScoreBatch",
        "fraud.scorer": decision.scorer,
        "fraud.items": shared.items,
        "fraud.end.measured": shared.items_left == 0 and append_ns is not None,
    }
    return Span(
        batch_context(decision), _caller_of(decision), SCORE_BATCH, Kind.SERVER,
        shared.arrive_time.ToNanoseconds(), decided_ns(decision) + (append_ns or 0), told, (),
        SCORER,
    )  # fmt: skip


def spans_of_alone(
    decision: decision_pb2.Decision, position: int, why: str, swap: Context | None = None
) -> list[Span]:
    """Return what one decision alone tells of its call; how long the append took is not known."""
    if not decision.HasField("shared"):
        return spans_of_call(decision, position, None, why, swap)
    frame, batch = spans_of_frame(decision, None), span_of_batch(decision, None)
    return [batch, *frame, *spans_of_item(decision, position, why, swap)]


def spans_of_payment(
    decision: decision_pb2.Decision, why: str, source: Mapping[str, Value]
) -> list[Span]:
    """Return the span of one payment of the stream, and one for each step of its own.

    ``source`` says where in Kafka it stood. Its producer's span, where there is one, is its parent
    and, as in all of messaging, linked to.
    """
    told, producer = decision.assessment, context_of(decision.traceparent)
    start_ns, end_ns, own = _turn_of(decision)
    payment = Span(
        score_context(told.trace_id, told.decision_id), _caller_of(decision),
        f"process {source['messaging.destination.name']}", Kind.CONSUMER, start_ns, end_ns,
        {
            **source, "messaging.operation.type": "process", "messaging.operation.name": "process",
            **_told_of(decision, why),
        },
        _links(producer), STREAM,
    )  # fmt: skip
    return [payment, *_chain(payment, start_ns, own)]


def spans_of_read(
    decision: decision_pb2.Decision,
    append_ns: int,
    links: Sequence[Context],
    traces: int,
    source: Mapping[str, Value],
) -> list[Span]:
    """Return the span of payments that were read and decided together, and of what they share.

    ``links`` are the spans of those that are kept, ``traces`` how many.
    """
    shared = decision.shared
    trace_id = trace_id_of_parts("stream", str(shared.number))
    told: dict[str, Value] = {
        **source,
        "messaging.operation.type": "process",
        "messaging.operation.name": "decide",
        "messaging.batch.message_count": shared.items,
        "fraud.traces": traces,
    }
    read = Span(
        Context(trace_id, span_id_of("read", trace_id)), "",
        f"decide {source['messaging.destination.name']}", Kind.CONSUMER,
        shared.arrive_time.ToNanoseconds(), decided_ns(decision) + append_ns, told, tuple(links),
        STREAM,
    )  # fmt: skip
    return [read, *_shared_steps(read, decision, append_ns)]


def shared_ends(decision: decision_pb2.Decision) -> list[int]:
    """Return when the shared steps ended, waiting for the turn the first, ns since 1970."""
    shared = decision.shared
    return _after(shared.arrive_time.ToNanoseconds(), shared.step_ns)


def decided_ns(decision: decision_pb2.Decision) -> int:
    """Return when all that were written together had been decided, ns since 1970."""
    return shared_ends(decision)[-1]


def _turn_of(decision: decision_pb2.Decision) -> tuple[int, int, list[Step]]:
    """Return when the turn of one among others began and ended, and its own steps."""
    shared = shared_ends(decision)
    if not decision.step_ns:  # by rules alone, and with all the others
        return shared[1], shared[-1], []
    arrive_ns = decision.shared.arrive_time.ToNanoseconds()
    start_ns, *ends = _after(arrive_ns, decision.step_ns)
    if len(shared) > len(SHARED_STEPS):
        return start_ns, ends[-1], [*starmap(Step, zip(STEPS[2:], ends, strict=False))]
    decided = start_ns + decision.assessment.time_used.ToNanoseconds()
    own = [*starmap(Step, zip(STEPS[1:], ends, strict=False)), Step(POLICY, decided)]
    return start_ns, decided, own


def _shared_steps(
    parent: Span, decision: decision_pb2.Decision, append_ns: int | None
) -> list[Span]:
    turn_ns, *ends = shared_ends(decision)
    names = SHARED_STEPS if len(ends) == len(SHARED_STEPS) else SHARED_STEPS[:1]
    steps = starmap(Step, zip(names, ends, strict=False))
    return [*_chain(parent, turn_ns, steps), _append(parent, ends[-1], append_ns)]


def _after(start_ns: int, each_ns: Iterable[int]) -> list[int]:
    return [start_ns + ns for ns in each_ns]


def _links(context: Context | None) -> tuple[Context, ...]:
    return () if context is None else (context,)


def _caller_of(decision: decision_pb2.Decision) -> str:
    caller = context_of(decision.traceparent)
    return "" if caller is None else caller.span_id


def _chain(parent: Span, begin_ns: int, steps: Iterable[Step]) -> list[Span]:
    """Return a span for each step below a parent, one beginning where the one before ended."""
    made = []
    for step in steps:
        end_ns = max(begin_ns, step.end_ns)
        made.append(_below(parent, step.name, begin_ns, end_ns))
        begin_ns = end_ns
    return made


def _append(parent: Span, begin_ns: int, append_ns: int | None) -> Span:
    told = {"fraud.append.measured": append_ns is not None}
    return _below(parent, APPEND, begin_ns, begin_ns + (append_ns or 0), told)


def _below(
    parent: Span, name: str, begin_ns: int, end_ns: int, attributes: Mapping[str, Value] = {}
) -> Span:
    own = Context(parent.context.trace_id, span_id_of(name, parent.context.span_id))
    return Span(
        own, parent.context.span_id, name, Kind.INTERNAL, begin_ns, end_ns, attributes, (),
        parent.service,
    )  # fmt: skip


def _told_of(decision: decision_pb2.Decision, why: str) -> dict[str, Value]:
    told = decision.assessment
    found: dict[str, Value] = {
        "fraud.decision.id": told.decision_id,
        "fraud.outcome": outcome_of(told.outcome),
        "fraud.rung": rung_of(told.rung),
        "fraud.kept": why,
        "fraud.scorer": decision.scorer,
        "fraud.model.version": told.model_version,
        "fraud.policy.version": told.policy_version,
    }
    if told.HasField("score"):
        found["fraud.score"] = told.score
    if told.rung_cause:
        name = decision_pb2.RungCause.Name(told.rung_cause)
        found["fraud.rung.cause"] = word(name, "RUNG_CAUSE_")
    return found
