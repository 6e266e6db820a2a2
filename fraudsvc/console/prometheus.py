"""METRICS in Prometheus' text formats. The only importer of its client.

Owns the exposition alone: what is counted comes in as families.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from featurizer.metering import Family


class _Families(Collector):
    def __init__(self, families: Callable[[], Sequence[Family]]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        for family in self._families():
            yield _metric(family)


def _metric(family: Family) -> Metric:
    row = family.metric
    labels = tuple(row.labels)
    if row.kind == "histogram":
        told = HistogramMetricFamily(row.name, row.meaning, labels=labels)
        for named, (*counts, total) in family.series:
            told.add_metric(list(named.values()), list(_buckets(row.buckets, counts)), total)
        return told
    kind = CounterMetricFamily if row.kind == "counter" else GaugeMetricFamily
    found = kind(row.name.removesuffix("_total"), row.meaning, labels=labels)
    for named, (value,) in family.series:
        found.add_metric(list(named.values()), value)
    return found


def _buckets(bounds: Sequence[float], counts: Sequence[float]) -> Iterator[tuple[str, float]]:
    so_far = 0.0
    for bound, count in zip((*map(str, map(float, bounds)), "+Inf"), counts, strict=True):
        so_far += count
        yield bound, so_far


class Exposition:
    """Renders what ``families`` gives at the time of asking."""

    def __init__(self, families: Callable[[], Sequence[Family]]) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Families(families))

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return the text and its content type, in the format that the header asks for."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type
