"""Spans of a stage's batches, linked to the kept traces in them, off the stage's hot loop.

Owns when a batch is worth a span. Must not know where spans go: whoever takes them must not block.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from featurizer.eventlog import Batch
from featurizer.kept import KeepRule, scan
from featurizer.spans import TRACE_HEADER, Context, Kind, Span, Value, context_of

LINKS_MAX = 1_000  # of one span; beyond them the traces are counted

Take = Callable[[Span], object]


def traces_of(headers: Sequence[tuple[str, bytes]]) -> list[Context]:
    """Return the spans that a record in Kafka was made in."""
    found = (
        context_of(value.decode("ascii", "replace"))
        for name, value in headers
        if name == TRACE_HEADER
    )
    return [context for context in found if context is not None]


def new_context() -> Context:
    """Return a span's identity in a trace of its own."""
    return Context(os.urandom(16).hex(), os.urandom(8).hex())


class Tracer:
    """Makes the spans of one service. Without ``take`` nothing is looked at and nothing made."""

    def __init__(
        self, service: str, take: Take | None = None, rule: KeepRule | None = None
    ) -> None:
        self._service = service
        self._take = take
        self._rule = rule or KeepRule()

    @property
    def is_on(self) -> bool:
        """Whether anybody takes spans."""
        return self._take is not None

    def patient(self) -> Tracer:
        """Return one that keeps no trace for being slow: of work that nobody waits for."""
        return Tracer(self._service, self._take, replace(self._rule, slow_ms=math.inf))

    def kept_of(self, batch: Batch) -> dict[int, Context]:
        """Return the calls of kept decisions by their entries' numbers in the batch."""
        return {entry: context for entry, (context, _) in self.kept_and_why(batch).items()}

    def kept_and_why(self, batch: Batch) -> dict[int, tuple[Context, str]]:
        """Return the same, each with the word that says why."""
        if self._take is None:
            return {}
        found = scan(batch)
        chosen = self._rule.keeps(found.rows).nonzero()[0].tolist()
        contexts, entries = found.contexts(chosen), found.entries[chosen].tolist()
        why = [self._rule.why(row) for row in found.rows[chosen]]
        return dict(zip(entries, zip(contexts, why, strict=True), strict=True))

    def put(self, spans: Iterable[Span]) -> None:
        """Hand spans over that were built elsewhere."""
        if self._take is not None:
            for span in spans:
                self._take(span)

    def batch(
        self,
        operation: str,
        destination: str,
        start_ns: int,
        links: Sequence[Context],
        *,
        context: Context | None = None,
        attributes: Mapping[str, Value] = {},
    ) -> None:
        """Make the span of a batch that has kept traces in it: sent or processed until now."""
        if self._take is None or not links:
            return
        kind = Kind.PRODUCER if operation == "send" else Kind.CONSUMER
        told = {
            "messaging.operation.type": operation,
            "messaging.operation.name": operation,
            "messaging.destination.name": destination,
            "fraud.traces": len(links),
            **attributes,
        }
        self._take(
            Span(
                context or new_context(), "", f"{operation} {destination}", kind, start_ns,
                time.time_ns(), told, tuple(links[:LINKS_MAX]), self._service,
            )
        )  # fmt: skip
