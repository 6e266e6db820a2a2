"""Spans, and what identifies them: values that say what was done when, for whom, and by whom.

Owns names, ids and our own attributes. Must not know who builds spans, nor where they are sent.
Sources: https://www.w3.org/TR/trace-context/, https://opentelemetry.io/docs/specs/semconv/.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import NamedTuple

_TRACEPARENT = re.compile(
    r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?", re.ASCII
)

Value = str | int | float | bool


class Kind(IntEnum):
    """What a span is to its neighbours; the numbers are OTLP's."""

    INTERNAL = 1
    SERVER = 2
    PRODUCER = 4
    CONSUMER = 5


class Context(NamedTuple):
    """A span's identity: 32 and 16 hexadecimal digits."""

    trace_id: str
    span_id: str

    def traceparent(self) -> str:
        """Return it as a W3C traceparent of a sampled trace."""
        return f"00-{self.trace_id}-{self.span_id}-01"


class Span(NamedTuple):
    """One piece of work. ``parent`` is a span id of the same trace, "" for none; times in ns."""

    context: Context
    parent: str
    name: str
    kind: Kind
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Value] = {}
    links: Sequence[Context] = ()
    service: str = ""


class Attribute(NamedTuple):
    """One of our own attributes, and the spans that have it."""

    name: str
    on: str
    meaning: str


TRACE_HEADER = "traceparent"  # of a record in Kafka, one for each span that made a part of it
SCORE = "fraud.v1.FraudService/Score"
SCORE_BATCH = "fraud.v1.FraudService/ScoreBatch"
REPORT = "fraud.v1.FraudService/ReportLabels"
STEPS = ("accept", "snapshot", "view", "model")  # in the order of Decision.step_ns
POLICY, APPEND = "policy", "append"
# Of a ScoreBatch: those that are one frame of the log, and one of them.
FRAME, ITEM = "frame", "item"
# The steps that those share which were decided together, after waiting for their turn.
SHARED_STEPS = ("accept", "snapshot", "assess", POLICY)
TRAIN, GATE, SWAP = "train", "gate", "swap"

ATTRIBUTES = (
    Attribute("fraud.decision.id", "Score, item, process, ReportLabels", "the decision"),
    Attribute("fraud.outcome", "Score, item, process", "approve, review or decline"),
    Attribute("fraud.rung", "Score, item, process", "full, partial or rules_only"),
    Attribute("fraud.rung.cause", "Score, item, process", "why it is not full"),
    Attribute("fraud.score", "Score, item, process", "calibrated probability of fraud"),
    Attribute("fraud.kept", "Score, item, process", "why the trace is kept"),
    Attribute(
        "fraud.scorer", "Score, ScoreBatch, item, process, swap", "host and process of the scorer"
    ),
    Attribute("fraud.log.position", "Score, item, ReportLabels", "of its entry on the host's log"),
    Attribute("fraud.model.version", "Score, item, process, train, gate, swap", "the bundle"),
    Attribute("fraud.policy.version", "Score, item, process", "digest of the policy"),
    Attribute("fraud.append.measured", "append", "false where its end is not known any more"),
    Attribute("fraud.items", "ScoreBatch", "transactions of the call, refused ones included"),
    Attribute("fraud.end.measured", "ScoreBatch", "false where its end is not known"),
    Attribute("fraud.label.verdict", "ReportLabels", "fraud, legitimate, unclear, retracted"),
    Attribute("fraud.label.source", "ReportLabels", "who said so"),
    Attribute("fraud.labels", "train", "labels that were new in the run, linked or not"),
    Attribute("fraud.layers", "train", "what was learnt"),
    Attribute("fraud.change", "train", "what became of it first: promoted, canary, refused"),
    Attribute("fraud.gates", "gate", "each gate with its figure and its limit, in order"),
    Attribute("fraud.gates.passed", "gate", "whether all were passed"),
    Attribute("fraud.traces", "send, process, decide", "kept traces in the batch, linked or not"),
)


def context_of(traceparent: str) -> Context | None:
    """Return the caller's span of a W3C traceparent, None where it names none.

    Source: https://www.w3.org/TR/trace-context/, sections 3.2.2 and 4.3.
    """
    found = _TRACEPARENT.fullmatch(traceparent.lower())
    if found is None or found[1] == "ff" or found[2] == "0" * 32 or found[3] == "0" * 16:
        return None
    return Context(found[2], found[3])


def span_id_of(*parts: str) -> str:
    """Return the id of a span that stands for ``parts``: the same whenever it is built."""
    digest = hashlib.blake2b("\0".join(parts).encode(), digest_size=8).hexdigest()
    return digest if digest != "0" * 16 else "0" * 15 + "1"


def trace_id_of_parts(*parts: str) -> str:
    """Return the id of a trace that begins with ``parts``."""
    digest = hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()
    return digest if digest != "0" * 32 else "0" * 31 + "1"


def score_context(trace_id: str, decision_id: str) -> Context:
    """Return the span in which a decision was made: a call, an item or a payment of the stream."""
    return Context(trace_id, span_id_of(SCORE, decision_id))


def is_of_decision(span: Span) -> bool:
    """Return whether a decision was made in a span."""
    return "fraud.outcome" in span.attributes
