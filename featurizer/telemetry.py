"""What a role tells of itself: spans of its batches, and its meters. Both may be off.

Owns the wiring of the two from the environment that __main__ hands over. Must not know the roles.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from featurizer.kept import KeepRule
from featurizer.metering import Meters, open_meters
from featurizer.tracing import Tracer


@dataclass(frozen=True, slots=True)
class Telemetry:
    """A role's tracer and meters; without arguments, both lead nowhere."""

    tracer: Tracer = field(default_factory=lambda: Tracer(""))
    meters: Meters = field(default_factory=Meters)


@contextlib.contextmanager
def telemetry(role: str, environment: Mapping[str, str]) -> Iterator[Telemetry]:
    """Yield what a role tells with: spans where OTEL_* says, meters where FRAUD_METRICS says.

    Raises ValueError for a setting that cannot be used.
    """
    folder = environment.get("FRAUD_METRICS", "")
    rule = keep_rule(environment)
    meters = open_meters(Path(folder) if folder else None, role)
    queue = None
    if any(name.startswith("OTEL_EXPORTER_OTLP") for name in environment):
        # Here, as it takes half a second and most who run a role have no collector.
        from featurizer.otlp import open_spans  # noqa: PLC0415 - as said

        queue = open_spans(environment, lambda what, n: meters.add("fraud_spans_total", what, by=n))
    try:
        yield Telemetry(Tracer(f"fraud-{role}", None if queue is None else queue.put, rule), meters)
    finally:
        if queue is not None:
            queue.close()
        meters.close()


def keep_rule(environment: Mapping[str, str]) -> KeepRule:
    """Return which traces are kept: FRAUD_TRACE_SHARE of the plain approvals, and all others.

    Raises ValueError for a share that is none.
    """
    share = environment.get("FRAUD_TRACE_SHARE", "")
    return KeepRule(share=float(share)) if share else KeepRule()
