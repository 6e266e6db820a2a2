"""A trace as a waterfall in the terminal.

Owns how spans are laid out. Must not know where they come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from featurizer.spans import FRAME, ITEM, SCORE_BATCH, Span, is_of_decision

BAR_CELLS = 40
WIDTH = 160  # where there is no terminal to ask
_TOLD = (
    "fraud.outcome", "fraud.score", "fraud.rung", "fraud.rung.cause", "fraud.label.verdict",
    "fraud.label.source", "fraud.labels", "fraud.layers", "fraud.change", "fraud.gates",
    "fraud.model.version", "fraud.items", "fraud.traces", "messaging.destination.partition.id",
)  # fmt: skip


def duration(ns: int) -> str:
    """Return a duration for a person."""
    for unit, size in (("d", 86_400e9), ("h", 3_600e9), ("min", 60e9), ("s", 1e9), ("ms", 1e6)):
        if ns >= size:
            return f"{ns / size:.3g} {unit}"
    return f"{ns / 1e3:.3g} µs"


def bar(start_ns: int, end_ns: int, from_ns: int, until_ns: int) -> str:
    """Return where a span lies between two times, as BAR_CELLS cells; at least one of them full."""
    whole = max(1, until_ns - from_ns)
    first = min(BAR_CELLS - 1, max(0, (start_ns - from_ns) * BAR_CELLS // whole))
    last = min(BAR_CELLS, max(first + 1, -(-(end_ns - from_ns) * BAR_CELLS // whole)))
    return " " * first + "█" * (last - first) + " " * (BAR_CELLS - last)


def of_one(spans: Sequence[Span], decision_id: str) -> list[Span]:
    """Return the spans without those of a ScoreBatch that are about its other items alone."""
    items = [each for each in spans if each.name == ITEM]
    own = {s.parent for s in items if s.attributes["fraud.decision.id"] == decision_id}
    others = {
        each.context.span_id
        for each in spans
        if own and each.name == FRAME and each.context.span_id not in own
    } | {
        each.context.span_id
        for each in items
        if own and each.attributes["fraud.decision.id"] != decision_id
    }
    return [s for s in spans if s.context.span_id not in others and s.parent not in others]


def begin_of(own: Sequence[Span]) -> int:
    """Return when the decision's call began, or the first span of its trace, ns since 1970."""
    calls = (each.start_ns for each in own if each.name == SCORE_BATCH or is_of_decision(each))
    return min(calls, default=own[0].start_ns)


def _tree(spans: Sequence[Span], parent: str = "", depth: int = 0) -> Iterator[tuple[Span, int]]:
    """Yield spans below a parent, each before its children; "" is for roots."""
    ids = {each.context.span_id for each in spans}
    for span in spans:
        is_here = span.parent == parent if parent else span.parent not in ids
        if is_here:
            yield span, depth
            yield from _tree(spans, span.context.span_id, depth + 1)


def _told(span: Span) -> str:
    pairs = ((name, span.attributes[name]) for name in _TOLD if name in span.attributes)
    return ", ".join(
        f"{name.rpartition('fraud.')[2]} {value:.4g}" if isinstance(value, float)
        else f"{name.rpartition('fraud.')[2]} {value}"
        for name, value in pairs if value != ""
    )  # fmt: skip


def _add(table: Table, spans: Sequence[Span], begin_ns: int, span: tuple[int, int]) -> None:
    for each, depth in _tree(spans):
        table.add_row(
            Text("  " * depth + each.name), each.service.removeprefix("fraud-"),
            f"+{duration(max(0, each.start_ns - begin_ns))}",
            duration(each.end_ns - each.start_ns),
            bar(each.start_ns, each.end_ns, *span), Text(_told(each)),
        )  # fmt: skip


def print_trace(trace_id: str, spans: Sequence[Span]) -> None:
    """Print the call with its steps, drawn to scale, and below what it led to, by start time."""
    own = [each for each in spans if each.context.trace_id == trace_id]
    begin_ns = begin_of(own)
    table = Table(title=f"trace {trace_id}", title_justify="left")
    for name, ratio in (("span", 3), ("by", 1), ("after", 1), ("took", 1)):
        right = name in ("after", "took")
        table.add_column(name, ratio=ratio, no_wrap=True, justify="right" if right else "left")
    table.add_column("", width=BAR_CELLS, no_wrap=True)
    table.add_column("what", ratio=4, overflow="fold")
    within = (min(each.start_ns for each in own), max(each.end_ns for each in own))
    _add(table, own, begin_ns, within)
    later: dict[str, list[Span]] = {}
    for each in spans:
        if each.context.trace_id != trace_id:
            later.setdefault(each.context.trace_id, []).append(each)
    for group in later.values():
        table.add_section()
        bounds = (min(each.start_ns for each in group), max(each.end_ns for each in group))
        _add(table, group, begin_ns, bounds)
    console = Console()
    (console if console.is_terminal else Console(width=WIDTH)).print(table)
