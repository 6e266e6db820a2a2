"""Drills for people at a terminal: the list, the live view, the verdicts.

Owns what is printed. Must not know how a drill is run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from loadgen.drill_run import Progress, Result
from loadgen.drills import Drill
from loadgen.objectives import Verdict
from loadgen.timeline import WINDOW_S

_BARS = " ▁▂▃▄▅▆▇█"
_SHOWN = 40
COMPARED = ("p50_ms", "p99_ms", "p999_ms", "in_time_accepted", "recovery_s", "capacity_per_s")


def list_table(drills: Iterable[Drill]) -> Table:
    """Return the drills with what they do and ask."""
    table = Table("drill", "modes", "what", "objectives", "ends")
    for drill in drills:
        modes, asked = ", ".join(drill.modes), ", ".join(drill.asked)
        table.add_row(drill.name, modes, drill.what, asked, drill.ends)
    return table


def bars(values: Iterable[float]) -> str:
    """Return values as a line of bars, the highest as the full one."""
    kept = list(values)[-_SHOWN:]
    top = max(kept, default=0.0) or 1.0
    return "".join(_BARS[round(value / top * (len(_BARS) - 1))] for value in kept)


def live(progress: Progress) -> RenderableType:
    """Return how a run goes."""
    # The newest windows still have calls in flight.
    found = [w for w in progress.windows if w.sent and w.start_s + WINDOW_S < progress.elapsed_s]
    last = found[-1] if found else None
    table = Table(title=f"{progress.drill}: {progress.elapsed_s:.0f} s, {progress.doing}")
    for name in ("", "now", "last 20 s"):
        table.add_column(name)
    for name, unit, value in _LINES:
        now = f"{value(last):,.1f} {unit}" if last else "-"
        table.add_row(name, now, bars(value(window) for window in found))
    table.add_row("rungs", _counts(last.rungs) if last else "-", "")
    return table


_LINES: tuple[tuple[str, str, Any], ...] = (
    ("sent", "/s", lambda w: w.sent / WINDOW_S),
    ("answered", "/s", lambda w: w.ok / WINDOW_S),
    ("p50", "ms", lambda w: w.p50_ms),
    ("p99", "ms", lambda w: w.p99_ms),
    ("shed", "/s", lambda w: w.shed / WINDOW_S),
    ("failed", "/s", lambda w: w.failed / WINDOW_S),
)


def _counts(counts: Mapping[str, int]) -> str:
    return "  ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))


def shown(value: float | None) -> str:
    """Return a figure as text."""
    if value is None:
        return "not taken"
    return "never" if value == float("inf") else f"{value:,.5g}"


def verdict_mark(verdict: Verdict) -> str:
    """Return met or MISSED."""
    return "met" if verdict.met else "MISSED"


def result_view(result: Result, before: Mapping[str, Any] | None) -> RenderableType:
    """Return the verdicts of a run, and how it compares with the last of its kind."""
    name = result.title
    if result.skipped:
        return Text(f"{name}: SKIPPED, {result.skipped}", style="yellow")
    table = Table("objective", "kind", "figure", "bound", "measured", "verdict", title=name)
    for verdict in result.verdicts:
        asked = verdict.objective
        table.add_row(
            asked.name, asked.kind, asked.figure, asked.bound, shown(verdict.value),
            Text(verdict_mark(verdict), style="green" if verdict.met else "bold red"),
        )  # fmt: skip
    figures = result.figures
    line = (
        f"{figures['calls']:,.0f} calls: {_counts(result.statuses)};"
        f" {figures['late_sends']:.1%} sent late; p50 {figures['p50_ms']:.1f},"
        f" p99 {figures['p99_ms']:.1f} ms; capacity"
        f" {result.capacity_per_s:,.0f}/s; {figures['read_back']:,.0f} decisions read back;"
        f" machine's load {figures['machine_load']:.1f}"
    )
    return Group(table, Text(line), Text(comparison(result, before)))


def comparison(result: Result, before: Mapping[str, Any] | None) -> str:
    """Return how the figures moved since the last run, empty where there is none."""
    if before is None:
        return ""
    now = result.figures | {"capacity_per_s": result.capacity_per_s}
    then = before["figures"] | {"capacity_per_s": before["capacity_per_s"]}
    moved = [
        f"{name} {shown(then[name])} → {shown(now[name])}"
        for name in COMPARED
        if isinstance(then.get(name), float) and name in now
    ]
    return f"since {before['time']}: " + ", ".join(moved)


_COLUMNS: tuple[tuple[str, str], ...] = (
    ("calls", "calls"), ("shed", "shed"), ("failed", "failed"), ("p50_ms", "p50, ms"),
    ("p99_ms", "p99, ms"), ("in_time_accepted", "in time"), ("full_share", "full rung"),
    ("fault_s", "fault, s"), ("recovery_s", "recovery, s"), ("whole_s", "whole, s"),
    ("machine_load", "machine's load"),
)  # fmt: skip


def markdown(results: Sequence[Result], facts: Mapping[str, str]) -> str:
    """Return the verdicts and figures of a run as a page of one table."""
    lines = ["# Drills", "", "This page is made by the command below; what drills are, and what is"
             " asked: [site reliability engineer](users/reliability.md#drills).", ""]  # fmt: skip
    lines += [f"- {name}: `{value}`" for name, value in facts.items()]
    header = ["drill", "verdict", "missed", *(title for _, title in _COLUMNS)]
    rows = [header, ["---"] * len(header), *(_markdown_row(result) for result in results)]
    lines += ["", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines) + "\n"


def _markdown_row(result: Result) -> list[str]:
    figures = [
        shown(result.figures[name]) if name in result.figures else "" for name, _ in _COLUMNS
    ]
    return [result.title, *_verdict(result), *figures]


def _verdict(result: Result) -> tuple[str, str]:
    missed = [v.objective.name for v in result.verdicts if not v.met]
    word = "skipped" if result.skipped else "MISSED" if missed else "met"
    return word, result.skipped or ", ".join(missed)


def summary_table(results: Iterable[Result]) -> Table:
    """Return one line a drill."""
    table = Table("drill", "verdict", "missed")
    for result in results:
        table.add_row(result.title, *_verdict(result))
    return table
