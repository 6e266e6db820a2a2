"""Owns the one page of a backtest: HTML with plots, everything in the file."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

_SIDES = {"before": "as decided", "after": "with the change"}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
"""


def write_page(found: Mapping[str, Any], path: Path) -> None:
    """Write the page of a backtest's report. Raises OSError."""
    figures = (
        ("What changed", _matrix(found)),
        ("Fraud, as known now", _fraud(found)),
        ("Reviews a day", _reviews(found)),
        *((f"By {kind}", _segment(own)) for kind, own in found["segments"].items()),
    )
    parts = [f"<h2>{html.escape(title)}</h2>{_embedded(figure)}" for title, figure in figures]
    path.write_text(
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>Backtest</title>"
        f"<style>{_STYLE}</style><script>{get_plotlyjs()}</script><h1>Backtest</h1>"
        f"{_lead(found)}{_table(found)}{''.join(parts)}</html>",
        encoding="utf-8",
    )


def _embedded(figure: Any) -> str:
    text: str = figure.to_html(full_html=False, include_plotlyjs=False, default_height="360px")
    return text


def _lead(found: Mapping[str, Any]) -> str:
    change = ", ".join(f"{name} {value}" for name, value in found["change"].items() if value)
    return html.escape(
        f"{found['decisions']:,} decisions from {found['range'][0]} to {found['range'][1]}; "
        f"{found['changed']:,} change with {change or 'nothing changed'}. "
        f"{found['not_decided_again']:,} could not be decided again. Money is in units of the "
        "reference currency."
    ).join(("<p>", "</p>"))


def _table(found: Mapping[str, Any]) -> str:
    names = list(found["as_known_then"]["before"])
    head = "".join(
        f"<th>{k}, {s}</th>" for k in ("known then", "known now") for s in _SIDES.values()
    )
    rows = []
    for name in names:
        cells = "".join(
            f"<td>{found[known][side][name]:,}</td>"
            for known in ("as_known_then", "as_known_now")
            for side in _SIDES
        )
        rows.append(f"<tr><td>{name.replace('_', ' ')}</td>{cells}</tr>")
    return f"<table><tr><th></th>{head}</tr>{''.join(rows)}</table>"


def _matrix(found: Mapping[str, Any]) -> Any:
    names = list(found["changes"])
    counts = [[found["changes"][was][now] for now in names] for was in names]
    heat = go.Heatmap(
        z=counts, x=names, y=names, text=counts, texttemplate="%{text:,}", colorscale="Blues",
        showscale=False,
    )  # fmt: skip
    return _laid_out([heat], "with the change", "as decided")


def _fraud(found: Mapping[str, Any]) -> Any:
    names = ("fraud_caught_money", "fraud_missed_money", "false_declines_money")
    bars = [
        go.Bar(
            name=text, x=[n.replace("_", " ") for n in names],
            y=[found["as_known_now"][side][n] for n in names],
        )
        for side, text in _SIDES.items()
    ]  # fmt: skip
    return _laid_out(bars, "", "money")


def _reviews(found: Mapping[str, Any]) -> Any:
    days = [day["day"] for day in found["days"]]
    lines = [
        go.Scatter(name=text, x=days, y=[day[f"reviews_{side}"] for day in found["days"]])
        for side, text in _SIDES.items()
    ]
    capacity = go.Scatter(
        name="capacity", x=days, y=[found["review_capacity_a_day"]] * len(days),
        line={"dash": "dot", "color": "grey"},
    )  # fmt: skip
    return _laid_out([*lines, capacity], "", "reviews")


def _segment(own: Mapping[str, Any]) -> Any:
    names = list(own)
    bars = [
        go.Bar(
            name=f"missed fraud, {text}", x=names,
            y=[own[name][side]["fraud_missed_money"] for name in names],
        )
        for side, text in _SIDES.items()
    ]  # fmt: skip
    changed = go.Bar(name="decisions changed", x=names, y=[own[n]["changed"] for n in names])
    return _laid_out([*bars, changed], "", "")


def _laid_out(traces: list[Any], across: str, up: str) -> Any:
    figure = go.Figure(traces)
    figure.update_layout(
        template="plotly_white", xaxis_title=across, yaxis_title=up, barmode="group",
        margin={"t": 20, "b": 40},
    )  # fmt: skip
    return figure
