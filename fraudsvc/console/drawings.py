"""Small drawings as numbers for SVG: bars of velocities, a graph of what is shared, a waterfall.

Owns where things are drawn. Pure: templates write the elements, so every text is escaped there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from featurizer.records import Entity
from featurizer.spans import Span
from fraudsvc.console.case_facts import Velocity
from fraudsvc.console.trace_report import begin_of, duration

BAR_PX, GAP_PX, HEIGHT_PX = 17, 3, 34
GRAPH_WIDTH, GRAPH_HEIGHT = 440, 250
NEIGHBOURS_MAX = 5  # of one thing
SPANS_MAX = 18
_NAMES = {
    Entity.DEVICE: "device", Entity.NETWORK: "IP", Entity.EMAIL: "e-mail",
    Entity.TERMINAL: "terminal", Entity.CARD: "card",
}  # fmt: skip


class Bar(NamedTuple):
    """One bar with its title."""

    x: int
    y: float
    height: float
    level: str
    title: str
    label: str


def bars(velocity: Velocity) -> list[Bar]:
    """Return the bars of an entity, on a scale where 10 times the usual rate is half the height."""
    found = []
    for number, (window, count, times) in enumerate(velocity.bars):
        height = min(1.0, math.log10(1 + 9 * times) / 2) * HEIGHT_PX
        height = max(height, 1.0) if count else 0.0
        level = "high" if times >= 5 else "raised" if times >= 2 else "usual"
        before = f"{count:,} within {window}, {times:,.1f} × the usual rate"
        found.append(
            Bar(number * (BAR_PX + GAP_PX), HEIGHT_PX - height, height, level, before, window)
        )
    return found


class Node(NamedTuple):
    """A circle with a text; ``kind`` is its class, ``link`` where it leads."""

    x: float
    y: float
    radius: int
    kind: str
    text: str
    title: str
    link: str
    anchor: str


class Edge(NamedTuple):
    """A line between two nodes."""

    x1: float
    y1: float
    x2: float
    y2: float


class Graph(NamedTuple):
    """What a payment shares with others."""

    nodes: list[Node]
    edges: list[Edge]
    hidden: int


def graph(
    customer: str,
    things: Sequence[tuple[int, str]],
    others: Mapping[tuple[int, str], Sequence[Any]],
) -> Graph:
    """Draw the customer, its things around it, and around each who else used it.

    ``others`` has per (kind, value) rows with customer_id, decision_id, and ``standing`` (fraud,
    legitimate, later fraud, open, none), one a customer.
    """
    nodes, edges, hidden = [], [], 0
    x0, y0 = GRAPH_WIDTH / 2, GRAPH_HEIGHT / 2
    for number, thing in enumerate(things):
        angle = 2 * math.pi * number / len(things) - math.pi / 2
        x, y = x0 + 92 * math.cos(angle), y0 + 62 * math.sin(angle)
        edges.append(Edge(x0, y0, x, y))
        name = _NAMES.get(Entity(thing[0]), "")
        nodes.append(
            Node(x, y, 5, "thing", f"{name} {short(thing[1])}", f"{name} {thing[1]}", "", "middle")
        )
        rows = others.get(thing, ())
        hidden += max(0, len(rows) - NEIGHBOURS_MAX)
        for place, row in enumerate(rows[:NEIGHBOURS_MAX]):
            count = min(len(rows), NEIGHBOURS_MAX)
            spread = angle + (place - (count - 1) / 2) * (0.95 / max(1, len(things) / 3))
            far = (x0 + 196 * math.cos(spread), y0 + 108 * math.sin(spread))
            edges.append(Edge(x, y, *far))
            text = f"customer {row['customer_id']}: {row['standing']}"
            nodes.append(
                Node(*far, 6, row["standing"].replace(" ", "-"), "", text,
                     f"/cases/{row['decision_id']}", "middle")
            )  # fmt: skip
    nodes.append(Node(x0, y0, 9, "self", short(customer), customer, "", "middle"))
    return Graph(nodes, edges, hidden)


def short(text: str) -> str:
    """Return a text that fits beside a node."""
    return text if len(text) <= 13 else f"{text[:6]}…{text[-5:]}"


class Step(NamedTuple):
    """A span as a row: where its bar begins and how wide it is, in percent."""

    name: str
    service: str
    depth: int
    begin: float
    width: float
    took: str
    after: str
    told: str


def waterfall(trace_id: str, spans: Sequence[Span]) -> list[Step]:
    """Return the spans of a call to scale, and below what it led to, each run to its own scale."""
    own = [each for each in spans if each.context.trace_id == trace_id]
    if not own:
        return []
    begin_ns = begin_of(own)
    groups: dict[str, list[Span]] = {trace_id: own}
    for each in spans:
        if each.context.trace_id != trace_id:
            groups.setdefault(each.context.trace_id, []).append(each)
    steps: list[Step] = []
    for group in groups.values():
        first, last = min(s.start_ns for s in group), max(s.end_ns for s in group)
        whole = max(1, last - first)
        for span, depth in _tree(group):
            left = 100 * (span.start_ns - first) / whole
            wide = max(0.6, 100 * (span.end_ns - span.start_ns) / whole)
            steps.append(
                Step(
                    span.name, span.service.removeprefix("fraud-"), depth, min(left, 99.4),
                    min(wide, 100 - min(left, 99.4)), duration(span.end_ns - span.start_ns),
                    f"+{duration(max(0, span.start_ns - begin_ns))}", _told(span),
                )
            )  # fmt: skip
    return steps[:SPANS_MAX]


def _told(span: Span) -> str:
    keys = ("fraud.label.verdict", "fraud.layers", "fraud.change", "fraud.model.version")
    return " ".join(str(span.attributes[key]) for key in keys if span.attributes.get(key))


def _tree(spans: Sequence[Span], parent: str = "", depth: int = 0) -> Iterator[tuple[Span, int]]:
    ids = {each.context.span_id for each in spans}
    for span in spans:
        if span.parent == parent if parent else span.parent not in ids:
            yield span, depth
            if depth < 8:
                yield from _tree(spans, span.context.span_id, depth + 1)
