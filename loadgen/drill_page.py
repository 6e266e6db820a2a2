"""Results as one HTML file that needs nothing else: verdicts, plots, command and seed.

Owns the page. Must not know how a drill is run.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
import plotly.io
import plotly.subplots

from loadgen.drill_run import Result
from loadgen.drills_report import shown, verdict_mark

_STYLE = """
body { font-family: sans-serif; margin: 2em auto; max-width: 72em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; }
td, th { border: 1px solid #ccc; padding: .3em .6em; text-align: left; }
.met { background: #dff2df; } .missed { background: #f6d5d5; font-weight: bold; }
code { background: #f2f2f2; padding: .2em .4em; }
"""


def page(results: Sequence[Result], facts: Mapping[str, str]) -> str:
    """Return the page; ``facts`` (command, seed, machine, time) stand at its head."""
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Drills</title>",
        f"<style>{_STYLE}</style></head><body><h1>Drills</h1>",
        _table(("", ""), [(name, f"<code>{html.escape(v)}</code>") for name, v in facts.items()]),
    ]
    script: bool | str = True  # plotly's own script, once, so that the page works offline
    for result in results:
        parts.append(f"<h2>{html.escape(result.title)}</h2>")
        parts.append(f"<p>{html.escape(result.drill.what)}</p>")
        if result.skipped:
            parts.append(f"<p>Skipped: {html.escape(result.skipped)}</p>")
            continue
        parts += [_verdicts(result), _plot(result, script), _figures(result)]
        script = False
    return "\n".join([*parts, "</body></html>"])


def _table(
    header: Sequence[str], rows: Sequence[Sequence[str]], classes: Sequence[str] = ()
) -> str:
    head = "".join(f"<th>{name}</th>" for name in header)
    lines = [
        f"<tr class='{classes[i] if classes else ''}'>"
        + "".join(f"<td>{cell}</td>" for cell in row)
        + "</tr>"
        for i, row in enumerate(rows)
    ]
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def _verdicts(result: Result) -> str:
    rows = [
        (
            v.objective.name, v.objective.kind, html.escape(v.objective.meaning),
            html.escape(v.objective.bound), shown(v.value), verdict_mark(v),
        )
        for v in result.verdicts
    ]  # fmt: skip
    classes = ["met" if verdict.met else "missed" for verdict in result.verdicts]
    return _table(("objective", "kind", "meaning", "bound", "measured", "verdict"), rows, classes)


def _figures(result: Result) -> str:
    figures = result.figures | {"capacity_per_s": result.capacity_per_s}
    rows = [(name, shown(value)) for name, value in sorted(figures.items())]
    return f"<details><summary>all figures</summary>{_table(('figure', 'value'), rows)}</details>"


def _plot(result: Result, script: bool | str) -> str:
    times = [window.start_s for window in result.windows]
    titles = ("calls a window", "latency from when due, ms", "rung")
    figure = plotly.subplots.make_subplots(rows=3, cols=1, shared_xaxes=True, subplot_titles=titles)
    for name in ("sent", "ok", "in_time", "shed", "failed"):
        counts = [getattr(window, name) for window in result.windows]
        figure.add_trace(go.Scatter(x=times, y=counts, name=name), row=1, col=1)
    for name in ("p50_ms", "p99_ms"):
        points = [getattr(window, name) for window in result.windows]
        figure.add_trace(go.Scatter(x=times, y=points, name=name), row=2, col=1)
    for rung in sorted({rung for window in result.windows for rung in window.rungs}):
        counts = [window.rungs.get(rung, 0) for window in result.windows]
        figure.add_trace(go.Bar(x=times, y=counts, name=rung), row=3, col=1)
    if result.fault is not None:
        figure.add_vrect(
            x0=result.fault.began_s, x1=result.fault.ended_s, fillcolor="red", opacity=0.12,
            line_width=0,
        )  # fmt: skip
    figure.update_layout(height=640, barmode="stack", margin={"t": 30, "b": 30})
    figure.update_xaxes(title_text="s", row=3, col=1)
    text: str = plotly.io.to_html(figure, full_html=False, include_plotlyjs=script)
    return text
