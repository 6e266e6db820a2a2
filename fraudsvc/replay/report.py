"""Owns how a replay is shown: its progress, a verdict, what differs, a range's summary."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fraudsvc.replay.again import Kind, Verdict
from fraudsvc.replay.range import Summary, example
from fraudsvc.shares import Tell

ROWS_MAX = 40
_STYLES = {Kind.SAME: "green", Kind.DIFFERENT: "red", Kind.GONE: "yellow"}


@contextmanager
def shown_progress(what: str, total: int) -> Iterator[Tell]:
    """Show a bar on the terminal's error stream; yield what moves it."""
    columns = (
        TextColumn("[progress.description]{task.description}"), BarColumn(),
        TextColumn("{task.fields[done]:,} decisions, {task.fields[rate]:,.0f}/s"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=max(total, 1), done=0, rate=0.0)
        start = time.monotonic()

        def tell(position: int, done: int) -> None:
            rate = done / max(time.monotonic() - start, 1e-9)
            progress.update(task, completed=position, done=done, rate=rate)

        yield tell


def print_verdict(verdict: Verdict, *, in_json: bool) -> None:
    """Show what came of one decision."""
    if in_json:
        Console().print_json(json.dumps(example(verdict)))
        return
    console, told = Console(highlight=False), verdict.case.decision.assessment
    style = _STYLES[verdict.kind]
    console.print(
        f"{told.decision_id}  [{style}]{verdict.kind.value}[/]"
        + (f": {verdict.cause}" if verdict.cause else f", {len(verdict.case.value):,} bytes")
    )
    if verdict.differences:
        rows = [each._asdict() for each in verdict.differences]
        console.print(_differences(rows))


def _differences(rows: list[dict[str, Any]]) -> Table:
    table = Table("field", "on the log", "made again", "bits")
    for row in rows[:ROWS_MAX]:
        table.add_row(row["field"], row["logged"], row["made"], str(row["bits"] or ""))
    if len(rows) > ROWS_MAX:
        table.add_row(f"and {len(rows) - ROWS_MAX} more", "", "", "")
    return table


def summary_json(summary: Summary, seconds: float) -> dict[str, Any]:
    """Return a range's summary as plain values."""
    return {
        "decisions": summary.decisions,
        "same": summary.kinds[Kind.SAME.value],
        "different": summary.kinds[Kind.DIFFERENT.value],
        "cannot_be_reproduced": summary.kinds[Kind.GONE.value],
        "rungs": dict(summary.rungs),
        "bundles": dict(summary.bundles),
        "policies": dict(summary.policies),
        "causes": dict(summary.causes),
        "fields": dict(summary.fields.most_common()),
        "repeated_requests": summary.repeats,
        "on_older_states": summary.rebuilt,
        "lost_bytes": summary.lost_bytes,
        "log_begins": summary.log_begins,
        "examples": summary.examples,
        "seconds": round(seconds, 3),
        "decisions_per_second": round(summary.decisions / max(seconds, 1e-9), 1),
    }


def print_summary(summary: Summary, seconds: float, *, in_json: bool) -> None:
    """Show what came of a range."""
    if in_json:
        Console().print_json(json.dumps(summary_json(summary, seconds)))
        return
    console = Console(highlight=False)
    rate = summary.decisions / max(seconds, 1e-9)
    style = "green" if summary.is_same else "red"
    console.print(
        f"{summary.decisions:,} decisions made again in {seconds:.1f} s ({rate:,.0f}/s), "
        f"[{style}]{summary.kinds[Kind.SAME.value]:,} the same to the byte[/], "
        f"{summary.kinds[Kind.DIFFERENT.value]:,} different, "
        f"{summary.kinds[Kind.GONE.value]:,} cannot be reproduced"
    )
    table = Table("", "decisions", show_header=False, box=None, padding=(0, 2))
    for name, counts in (
        ("rung", summary.rungs), ("bundle", summary.bundles), ("policy", summary.policies),
    ):  # fmt: skip
        for value, count in counts.most_common():
            table.add_row(f"{name} {value}", f"{count:,}")
    table.add_row("on states older than the log", f"{summary.rebuilt:,}")
    table.add_row("second decisions on a request, left out", f"{summary.repeats:,}")
    console.print(table)
    if summary.lost_bytes:
        console.print(f"[yellow]{summary.lost_bytes:,} bytes of the log could not be read[/]")
    if summary.log_begins:
        console.print(f"[yellow]the log begins at {summary.log_begins}: older records are gone[/]")
    for cause, count in summary.causes.most_common():
        console.print(f"[red]{count:,}[/] {cause}")
    for each in summary.examples[:3]:
        console.print(f"{each['decision_id']} at {each['position']}: {each['cause']}")
        if each["differences"]:
            console.print(_differences(each["differences"]))
