"""Sends spans and metrics to an OpenTelemetry collector. The only importer of its SDK.

Owns the queue between who makes a span and the network: bounded, never waited for, what does not
fit is counted. The SDK itself reads the standard OTEL_EXPORTER_OTLP_* variables; here is read only
whether to export at all.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import export as sdk_metrics
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags

from featurizer.metering import Family
from featurizer.spans import Context, Kind, Span

SCOPE = "fraudsvc"
QUEUE_MAX = 8_192
BATCH_MAX = 512
PAUSE_S = 0.5
CLOSE_S = 2.0
_KINDS = {
    Kind.INTERNAL: SpanKind.INTERNAL,
    Kind.SERVER: SpanKind.SERVER,
    Kind.PRODUCER: SpanKind.PRODUCER,
    Kind.CONSUMER: SpanKind.CONSUMER,
}


def is_wanted(environment: Mapping[str, str], signal: str) -> bool:
    """Return whether the standard variables say to export a signal, TRACES or METRICS, and where.

    Raises ValueError for an exporter or a protocol that is not OTLP over gRPC.
    """
    given = environment.get
    if given("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = given(f"OTEL_{signal}_EXPORTER", "otlp").strip().lower()
    if exporter == "none":
        return False
    for name in (f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if exporter != "otlp" or given(name, "grpc") != "grpc":
            raise ValueError(f"{signal.lower()} are exported by OTLP over gRPC alone; see {name}")
    return any(
        given(name)
        for name in (f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    )


def is_insecure(environment: Mapping[str, str], signal: str) -> bool | None:
    """Return True for a socket of this machine, None to let the SDK judge the endpoint."""
    endpoint = environment.get(
        f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT", environment.get("OTEL_EXPORTER_OTLP_ENDPOINT", "")
    )
    return True if endpoint.startswith("unix") else None


@lru_cache(maxsize=64)
def _resource(service: str) -> Resource:
    return Resource.create({"service.name": service, "service.namespace": "fraud"})


def _context(context: Context) -> SpanContext:
    return SpanContext(
        int(context.trace_id, 16), int(context.span_id, 16), is_remote=True,
        trace_flags=TraceFlags(TraceFlags.SAMPLED),
    )  # fmt: skip


def _readable(span: Span) -> ReadableSpan:
    parent = _context(Context(span.context.trace_id, span.parent)) if span.parent else None
    return ReadableSpan(
        name=span.name, context=_context(span.context), parent=parent,
        resource=_resource(span.service), attributes=dict(span.attributes),
        links=[Link(_context(each)) for each in span.links], kind=_KINDS[span.kind],
        start_time=span.start_ns, end_time=span.end_ns,
        instrumentation_scope=InstrumentationScope(SCOPE),
    )  # fmt: skip


class SpanQueue:
    """Sends spans from a thread of its own; ``put`` never waits.

    ``count`` is told how many spans were "sent" or "dropped", because they did not fit or were not
    taken in time.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        count: Callable[[str, int], object],
        queue_max: int = QUEUE_MAX,
    ) -> None:
        self._count = count
        self._exporter = OTLPSpanExporter(insecure=is_insecure(environment, "TRACES"))
        self._queue: deque[Span] = deque()
        self._queue_max = queue_max
        self._wake = threading.Event()
        self._closing = False
        # It says at every try what it cannot do; one line of ours says how much was lost.
        logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)
        self._thread = threading.Thread(target=self._run, name="otlp", daemon=True)
        self._thread.start()

    def put(self, span: Span) -> None:
        """Queue a span; drop it where the queue is full."""
        if len(self._queue) >= self._queue_max:
            self._count("dropped", 1)
            return
        self._queue.append(span)
        if len(self._queue) >= BATCH_MAX:
            self._wake.set()

    def close(self) -> None:
        """Send what is queued, within CLOSE_S, and end."""
        self._closing = True
        self._wake.set()
        self._thread.join(CLOSE_S)
        self._exporter.shutdown(timeout_millis=0)

    def _run(self) -> None:
        while not self._closing or self._queue:
            self._wake.wait(PAUSE_S)
            self._wake.clear()
            while self._queue:
                self._send([self._queue.popleft() for _ in range(min(BATCH_MAX, len(self._queue)))])

    def _send(self, spans: list[Span]) -> None:
        try:
            taken = self._exporter.export([_readable(each) for each in spans])
        except Exception:  # noqa: BLE001 - whatever a collector answers, this thread must live
            taken = SpanExportResult.FAILURE
        if taken is SpanExportResult.SUCCESS:
            self._count("sent", len(spans))
            return
        self._count("dropped", len(spans))
        logging.getLogger(__name__).warning("%d spans were not taken", len(spans))


def open_spans(
    environment: Mapping[str, str], count: Callable[[str, int], object]
) -> SpanQueue | None:
    """Return where to put spans, None where the standard variables want no export."""
    return SpanQueue(environment, count) if is_wanted(environment, "TRACES") else None


class MetricSender:
    """Sends metrics when told to; blocks, so it is called by who may wait."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._exporter = OTLPMetricExporter(insecure=is_insecure(environment, "METRICS"))
        logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)

    def send(self, families: Sequence[Family], start_ns: int, now_ns: int) -> bool:
        """Send all families as they are now; return whether they were taken."""
        found = [_metric(family, start_ns, now_ns) for family in families]
        scope = sdk_metrics.ScopeMetrics(InstrumentationScope(SCOPE), found, "")
        resource = sdk_metrics.ResourceMetrics(_resource("fraud"), [scope], "")
        try:
            taken = self._exporter.export(sdk_metrics.MetricsData([resource]))
        except Exception:  # noqa: BLE001 - whatever a collector answers, the caller goes on
            return False
        return taken is sdk_metrics.MetricExportResult.SUCCESS

    def close(self) -> None:
        """Let go of the connection."""
        with contextlib.suppress(Exception):
            self._exporter.shutdown(timeout_millis=0)


def open_metrics(environment: Mapping[str, str]) -> MetricSender | None:
    """Return what sends metrics, None where the standard variables want none sent."""
    return MetricSender(environment) if is_wanted(environment, "METRICS") else None


def _metric(family: Family, start_ns: int, now_ns: int) -> sdk_metrics.Metric:
    row = family.metric
    unit = row.unit
    data: sdk_metrics.Gauge | sdk_metrics.Sum | sdk_metrics.Histogram
    cumulative = sdk_metrics.AggregationTemporality.CUMULATIVE
    if row.kind == "histogram":
        points = [
            sdk_metrics.HistogramDataPoint(
                labels, start_ns, now_ns, round(sum(counts)), total, [round(n) for n in counts],
                list(row.buckets), 0.0, 0.0,
            )
            for labels, (*counts, total) in family.series
        ]  # fmt: skip
        data = sdk_metrics.Histogram(points, cumulative)
    else:
        numbers = [
            sdk_metrics.NumberDataPoint(labels, start_ns, now_ns, values[0])
            for labels, values in family.series
        ]
        is_sum = row.kind == "counter"
        data = (
            sdk_metrics.Sum(numbers, cumulative, is_monotonic=True)
            if is_sum
            else sdk_metrics.Gauge(numbers)
        )
    return sdk_metrics.Metric(row.name, row.meaning, unit, data)
