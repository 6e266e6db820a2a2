"""How a capacity run is shown. Owns the tables. Must not measure or plan."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table

from loadgen.capacity import SHARE, Measured, Rung
from loadgen.capacity_plan import Assumptions, Effect, Plan, Target

EFFECTS_SHOWN = 8


def measured_table(measured: Sequence[Measured], p99_ms: float) -> Table:
    """Return a row for each number of workers."""
    table = Table(title="measured", title_justify="left")
    for name in ("workers", "closed /s", "CPU a call", "base p50, p99", f"/s within {p99_ms:g} ms",
                 "/s a core", "predicted p99", "held out", "error"):  # fmt: skip
        table.add_column(name, justify="right")
    for each in measured:
        light = each.light
        table.add_row(
            str(each.workers), f"{each.closed.answered_per_s:,.0f}",
            f"{each.closed.cpu_s * 1e6:,.0f} µs",
            f"{light.percentile_s(0.5) * 1e3:.2f}, {light.percentile_s(SHARE) * 1e3:.2f} ms",
            f"{each.within_per_s:,.0f}", f"{each.per_core_s:,.0f}",
            f"{each.predicted_s * 1e3:.2f} ms",
            f"{each.held_out.percentile_s(SHARE) * 1e3:.2f} ms", f"{each.error:+.0%}",
        )  # fmt: skip
    return table


def rung_table(rungs: Sequence[Rung]) -> Table:
    """Return what a call of each rung costs."""
    table = Table("rung", "CPU a call", title="rungs", title_justify="left")
    for each in rungs:
        table.add_row(each.name, f"{each.cpu_s * 1e6:,.0f} µs")
    return table


def plan_tables(target: Target, given: Assumptions, made: Plan, effects: Sequence[Effect]) -> Group:
    """Return the plan, and what it rests on."""
    zones = f"{target.zones} zones, one may fail" if target.zones > 1 else "one zone"
    title = f"plan: {target.calls_per_s:,.0f} calls/s, p99 {target.p99_ms:g} ms, {zones}"
    plan = Table("what", "how many", title=title, title_justify="left")
    for name, value in made.to_json().items():
        plan.add_row(name.replace("_", " "), f"{value:,}")
    title = "what a fifth less or more of an assumption does to the cost"
    table = Table("assumption", "value", "-20 %", "+20 %", title=title, title_justify="left")
    for effect in effects[:EFFECTS_SHOWN]:
        value = getattr(given, effect.name)
        table.add_row(effect.name, f"{value:,g}", f"{effect.less:+.1%}", f"{effect.more:+.1%}")
    return Group(plan, table)
