"""The spans of a lane of the stream: of each payment whose trace is kept, and of a whole read.

Owns what is told of a read and when. Must not know how payments are decided.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from fraud.v1 import decision_pb2

from featurizer.eventlog import Batch, Topic
from featurizer.eventlog_kafka import Partition
from featurizer.spans import TRACE_HEADER, Context, Value
from featurizer.tracing import LINKS_MAX, Tracer
from fraudsvc.answers import field
from fraudsvc.decision_spans import spans_of_payment, spans_of_read
from fraudsvc.trace_ids import trace_id_of

TRACEPARENT_MAX = 64  # as for a call
_TRACEPARENT = b"\x4a"  # the tag of a Decision's field 9

Kept = Mapping[int, tuple[Context, str]]  # by row: its span, and why it is kept


def caller_of(headers: Sequence[tuple[str, bytes]], origin: bytes) -> tuple[bytes, bytes]:
    """Return the trace id of a record, b"" for none, and its origin: ``origin`` and who sent it."""
    for name, value in headers:
        if name == TRACE_HEADER:
            text = value[:TRACEPARENT_MAX].decode("ascii", "replace")
            trace_id = trace_id_of(text)
            return trace_id, field(_TRACEPARENT, text.encode()) + origin if trace_id else origin
    return b"", origin


class StreamSpans:
    """Tells of the reads of one partition at ``at``. Where nobody takes spans, it does nothing."""

    def __init__(self, tracer: Tracer, at: Partition) -> None:
        self._tracer = tracer.patient()
        self._source: dict[str, Value] = {
            "messaging.system": "kafka",
            "messaging.destination.name": at[0],
            "messaging.destination.partition.id": str(at[1]),
        }

    def kept(self, decisions: Sequence[bytes]) -> Kept:
        """Return which decisions' traces are kept, by their rows.

        Nobody waits for an answer here, so none is kept for being slow.
        """
        if not self._tracer.is_on:
            return {}
        lengths = np.array([len(each) for each in decisions], np.int64)
        numbers = np.arange(len(decisions), dtype=np.int64)
        batch = Batch(
            b"".join(decisions), np.full(len(decisions), Topic.DECISIONS, np.uint8), numbers,
            np.cumsum(lengths) - lengths, lengths, numbers, numbers, 0,
        )  # fmt: skip
        return self._tracer.kept_and_why(batch)

    def tell(
        self, decisions: Sequence[bytes], offsets: Sequence[int], kept: Kept, append_ns: int
    ) -> None:
        """Make the spans of what was read, and is now written; ``offsets`` are the payments'."""
        if not kept:
            return
        for row, (_, why) in kept.items():
            decision = decision_pb2.Decision.FromString(decisions[row])
            place = {**self._source, "messaging.kafka.offset": offsets[row]}
            self._tracer.put(spans_of_payment(decision, why, place))
        links = [context for context, _ in kept.values()][:LINKS_MAX]
        self._tracer.put(spans_of_read(decision, append_ns, links, len(kept), self._source))
