"""Owns how a backtest is shown in a terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

_KNOWN = {"as_known_then": "known then", "as_known_now": "known now"}
_SIDES = ("before", "after")


def print_report(found: Mapping[str, Any], seconds: float) -> None:
    """Show a backtest's report."""
    console = Console(highlight=False)
    decisions = found["decisions"]
    console.print(
        f"{decisions:,} decisions in {seconds:.1f} s ({decisions / max(seconds, 1e-9):,.0f}/s), "
        f"from {found['range'][0]} to {found['range'][1]}; [bold]{found['changed']:,} change[/]"
    )
    for cause, count in found["causes"].items():
        console.print(f"[yellow]{count:,} could not be decided again[/]: {cause}")
    console.print(_changes(found))
    console.print(_sides(found))
    capacity = found["review_capacity_a_day"]
    over = found["days_over_capacity"]
    console.print(
        f"reviews a day: capacity {capacity:,.0f}, exceeded on {over['before']} of "
        f"{len(found['days'])} days before, on {over['after']} after"
    )
    for kind, own in found["segments"].items():
        console.print(_segments(kind, own))


def _changes(found: Mapping[str, Any]) -> Table:
    names = list(found["changes"])
    table = Table("as decided", *(f"now {name}" for name in names))
    for was in names:
        table.add_row(was, *(f"{found['changes'][was][now]:,}" for now in names))
    return table


def _sides(found: Mapping[str, Any]) -> Table:
    table = Table("")
    for text in _KNOWN.values():
        for side in _SIDES:
            table.add_column(f"{text}, {side}", justify="right")
    for name in found["as_known_then"]["before"]:
        values = (found[known][side][name] for known in _KNOWN for side in _SIDES)
        table.add_row(name.replace("_", " "), *(f"{value:,}" for value in values))
    table.add_row("labelled", f"{found['labelled_then']:,}", "", f"{found['labelled_now']:,}", "")
    return table


def _segments(kind: str, own: Mapping[str, Any]) -> Table:
    names = ("reviews", "fraud_caught_money", "fraud_missed_money", "false_declines")
    table = Table(kind, "decisions", "changed")
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    for segment, each in own.items():
        pairs = (f"{each['before'][n]:,} → {each['after'][n]:,}" for n in names)
        table.add_row(segment, f"{each['decisions']:,}", f"{each['changed']:,}", *pairs)
    return table


def print_json(found: Mapping[str, Any]) -> None:
    """Show a backtest's report as JSON."""
    Console().print_json(json.dumps(found))
