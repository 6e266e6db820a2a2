"""Owns what is made of the figures: adaptation.json, one page of HTML, and pictures.

Of whatever streams have been run. Must not know how they were.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

CAUGHT = ("A", "B", "C", "G")  # where recall is the question
TITLES = {
    "A": "a new combination of known features",
    "B": "a feature the base never used",
    "C": "a known good pattern turned bad",
    "D": "a surge of good customers",
    "E": "poisoned labels",
    "F": "a label outage (attack A goes on)",
    "G": "two attacks at once",
}
COLOURS = (
    "#777777", "#d62728", "#ff9896", "#9467bd", "#1f77b4", "#17becf", "#2ca02c", "#98df8a",
    "#bcbd22",
)  # fmt: skip
_REACHED = ("recall_50", "recall_80", "recall_at_50", "recall_at_80")
_SHARES = ("false_share", "alert_share", "old_recall", "old_recall_static", "attack_recall")

_MARKS = ("<!-- adaptation -->", "<!-- /adaptation -->")

Runs = dict[str, list[dict[str, Any]]]


def write_tables(page: Path, text: str) -> None:
    """Put the tables between the two marks of a page in Markdown."""
    before, found, rest = page.read_text().partition(_MARKS[0])
    _, ended, after = rest.partition(_MARKS[1])
    if not (found and ended):
        raise ValueError(f"{page} has no marks {' and '.join(_MARKS)}")
    page.write_text(f"{before}{_MARKS[0]}\n{text}{_MARKS[1]}{after}")


def write_report(out: Path) -> str:
    """Write everything into ``out``; return the tables in Markdown."""
    runs: Runs = {}
    for path in sorted(out.glob("[A-Z]-*.json")):
        found = json.loads(path.read_bytes())
        runs.setdefault(found["attack"], []).append(found)
    if not runs:
        return f"nothing was run into {out}"
    table = {attack: _rows(many) for attack, many in runs.items()}
    document = {
        "scale": next(iter(runs.values()))[0]["scale"],
        "seeds": {attack: [run["seed"] for run in many] for attack, many in runs.items()},
        "streams": {
            attack: {k: many[0][k] for k in ("rows", "frauds", "attacks", "unused")}
            for attack, many in runs.items()
        },
        "table": table,
    }
    (out / "adaptation.json").write_text(json.dumps(document, indent=1) + "\n")
    parts, script = [], True
    for attack, many in runs.items():
        parts.append(f"<h2>{attack}: {TITLES[attack]}</h2>{_html_table(attack, table[attack])}")
        parts.append(_figure(attack, many).to_html(full_html=False, include_plotlyjs=script))
        script = False
        _picture(attack, many, out / f"adaptation-{attack}.png")
    (out / "adaptation.html").write_text(_PAGE.format(body="\n".join(parts)), encoding="utf-8")
    return "\n".join(
        f"**{attack}: {TITLES[attack]}**, {len(runs[attack])} seeds\n\n{text_table(attack, rows)}"
        for attack, rows in table.items()
    )


_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Adaptation</title>
<style>body{{font-family:sans-serif;max-width:1200px;margin:2em auto}}
table{{border-collapse:collapse;font-size:90%}}
td,th{{border:1px solid #ccc;padding:3px 7px}}</style>
<h1>How fast a new attack is caught</h1>
<p>Every system on the same seeded streams. Recall is that of the model of a moment on the 100
payments of the attack that come next; minutes and confirmed labels count from the onset. Ticks
below a line of recall are swaps of the first seed. Figures of several seeds are medians, with the
range in brackets.</p>
{body}</html>
"""


def _names(many: list[dict[str, Any]]) -> list[str]:
    """Return every system that was run on one of the seeds at least."""
    return list(dict.fromkeys(name for run in many for name in run["systems"]))


def _of(many: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Return what a system did on each seed that it was run on."""
    return [run["systems"][name] for run in many if name in run["systems"]]


def _rows(many: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return per system its figures over the seeds: median, least, most, and how many reached."""
    out: dict[str, dict[str, Any]] = {}
    for name in _names(many):
        each = _of(many, name)
        row: dict[str, Any] = {"seeds": len(each)}
        for what in _REACHED:
            for place, unit in enumerate(("minutes", "labels")):
                values = [e["reached"][what][place] for e in each if e["reached"][what]]
                row[f"{what}_{unit}"] = _spread(values, len(each))
        for what in _SHARES:
            row[what] = _spread([e[what] for e in each], len(each))
        losses = [e["old_recall_static"] - e["old_recall"] for e in each]
        row["old_recall_lost"] = _spread(losses, len(each))
        losses = [e["old_recall_static_within"] - e["old_recall"] for e in each]
        row["old_recall_lost_within"] = _spread(losses, len(each))
        row["swaps"] = _spread([len(e["swaps"]) for e in each], len(each))
        row["labels"] = _spread([e["labels"] for e in each], len(each))
        row["cpu_s"] = _spread([e["cpu_s"] for e in each], len(each))
        longest = [max(e["harmful_seconds"], default=0.0) for e in each]
        row["longest_harm_s"] = _spread(longest, len(each))
        out[name] = row
    return out


def _spread(values: list[float], seeds: int) -> dict[str, float | None] | None:
    """Return median, least, most and how many seeds have a value; None where none has."""
    if not values:
        return None
    # A seed that never got there is later than all that did.
    padded = sorted([*values, *[float("inf")] * (seeds - len(values))])
    middle = statistics.median_high(padded)
    return {
        "median": round(middle, 5) if np.isfinite(middle) else None,
        "least": round(min(values), 5),
        "most": round(max(values), 5),
        "reached": len(values),
    }


def _cell(value: dict[str, Any] | None, seeds: int, digits: int = 0, times: float = 1.0) -> str:
    if value is None:
        return "never"

    def number(figure: float | None) -> str:
        return "never" if figure is None else f"{times * figure:.{digits}f}"

    if seeds == 1:
        return number(value["median"])
    text = f"{number(value['median'])} ({number(value['least'])} to {number(value['most'])})"
    return text if value["reached"] == seeds else f"{text}, {value['reached']} of {seeds} seeds"


def columns(attack: str) -> list[tuple[str, str, int, float]]:
    """Return heading, name, digits and factor of what a table of an attack shows."""
    shares = [
        ("false alerts, % of good", "false_share", 2, 100.0),
        ("old-fraud recall, %", "old_recall", 1, 100.0),
        ("points lost", "old_recall_lost", 1, 100.0),
        ("points lost against the base at 0.5 %", "old_recall_lost_within", 1, 100.0),
    ]
    if attack in (*CAUGHT, "F"):
        return [
            ("50 %: min", "recall_50_minutes", 1, 1.0),
            ("labels", "recall_50_labels", 0, 1.0),
            ("80 %: min", "recall_80_minutes", 1, 1.0),
            ("labels", "recall_80_labels", 0, 1.0),
            ("80 % at 0.5 %: min", "recall_at_80_minutes", 1, 1.0),
            ("labels", "recall_at_80_labels", 0, 1.0),
            *shares,
            *([("longest harm, s", "longest_harm_s", 0, 1.0)] if attack == "F" else []),
        ]
    return [
        ("alerts, % of all", "alert_share", 2, 100.0),
        *shares,
        ("longest harm, s", "longest_harm_s", 0, 1.0),
    ]


def table_cells(attack: str, rows: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Return the table of an attack, the heading first."""
    shown = columns(attack)
    cells = [["system", "seeds", *(heading for heading, *_ in shown), "swaps", "CPU s"]]
    for name, row in rows.items():
        seeds = row["seeds"]
        cells.append(
            [name, str(seeds)]
            + [_cell(row[what], seeds, digits, times) for _, what, digits, times in shown]
            + [_cell(row["swaps"], seeds), _cell(row["cpu_s"], seeds)]
        )
    return cells


def text_table(attack: str, rows: dict[str, dict[str, Any]]) -> str:
    """Return the table of an attack in Markdown."""
    heading, *body = table_cells(attack, rows)
    lines = [heading, ["---"] * len(heading), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _html_table(attack: str, rows: dict[str, dict[str, Any]]) -> str:
    heading, *body = table_cells(attack, rows)
    head = "".join(f"<th>{cell}</th>" for cell in heading)
    lines = "".join(
        "<tr>" + "".join(f"<td>{cell}</td>" for cell in line) + "</tr>" for line in body
    )
    return f"<table><tr>{head}</tr>{lines}</table>"


def _over_minutes(many: list[dict[str, Any]], name: str, place: int) -> tuple[Any, Any]:
    """Return minutes and the mean over seeds of one column of the points."""
    each = _of(many, name)
    grid = np.arange(0.0, 1.0 + max(one["points"][-1][0] for one in each), 1.0)
    lines = []
    for one in each:
        known = [p for p in one["points"] if p[place] is not None]
        at = np.searchsorted([p[0] for p in known], grid, side="right") - 1
        lines.append([known[max(i, 0)][place] for i in at])
    return grid, np.array(lines, float).mean(axis=0)


def _binned(many: list[dict[str, Any]], name: str, place: int) -> tuple[Any, Any]:
    each = [one["bins"] for one in _of(many, name)]
    length = min(len(bins) for bins in each)
    first = [row[0] for row in each[0][:length]]
    values = np.array([[row[place] for row in bins[:length]] for bins in each])
    return first, values.mean(axis=0)


def _traces(many: list[dict[str, Any]]) -> list[tuple[int, int, str, Any, Any]]:
    """Return row, column, system and the points of each line of a figure."""
    traces = []
    attacked = many[0]["attacks"] > 0
    for name in _names(many):
        if attacked:
            minutes, recall = _over_minutes(many, name, 2)
            _, labels = _over_minutes(many, name, 1)
            traces += [(1, 1, name, minutes, recall), (1, 2, name, labels, recall)]
        for row, place in ((2, 1), (3, 2)):
            traces.append((row, 1, name, *_binned(many, name, place)))
    return traces


_PANELS = (
    "recall of the attack over minutes", "over confirmed labels", "false alerts, share of good",
    "recall of old fraud",
)  # fmt: skip


def _figure(attack: str, many: list[dict[str, Any]]) -> go.Figure:
    names = _names(many)
    figure = make_subplots(
        rows=3, cols=2, specs=[[{}, {}], [{"colspan": 2}, None], [{"colspan": 2}, None]],
        subplot_titles=_PANELS, vertical_spacing=0.09,
    )  # fmt: skip
    for row, column, name, x, y in _traces(many):
        figure.add_trace(
            go.Scatter(
                x=np.asarray(x), y=np.asarray(y), name=name, legendgroup=name, mode="lines",
                showlegend=(row, column) == (2, 1),
                line={"color": COLOURS[names.index(name) % len(COLOURS)]},
            ),
            row=row, col=column,
        )  # fmt: skip
    if many[0]["attacks"]:
        for number, name in enumerate(names):
            swaps = [s for s in _of(many, name)[0]["swaps"] if s >= 0]
            figure.add_trace(
                go.Scatter(
                    x=swaps, y=[-0.02 - 0.015 * number] * len(swaps), mode="markers", name=name,
                    legendgroup=name, showlegend=False,
                    marker={"symbol": "line-ns-open", "size": 6, "color": COLOURS[number]},
                ),
                row=1, col=1,
            )  # fmt: skip
    figure.update_layout(height=900, template="plotly_white", title=f"{attack}: {TITLES[attack]}")
    return figure


def _picture(attack: str, many: list[dict[str, Any]], path: Path) -> None:
    names = _names(many)
    figure, axes = plt.subplots(2, 2, figsize=(13, 8))
    places = {(1, 1): axes[0, 0], (1, 2): axes[0, 1], (2, 1): axes[1, 0], (3, 1): axes[1, 1]}
    for row, column, name, x, y in _traces(many):
        colour = COLOURS[names.index(name) % len(COLOURS)]
        places[row, column].plot(x, y, label=name, color=colour, linewidth=1.4)
    for number, name in enumerate(names):
        swaps = [s for s in _of(many, name)[0]["swaps"] if s >= 0]
        heights = np.full(len(swaps), -0.02 - 0.015 * number)
        axes[0, 0].plot(swaps, heights, "|", markersize=4, color=COLOURS[number])
    for axis, title in zip(axes.ravel(), _PANELS, strict=True):
        axis.set_title(title)
        axis.grid(alpha=0.3)
    axes[1, 0].legend(fontsize=8)
    figure.suptitle(f"{attack}: {TITLES[attack]}")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
