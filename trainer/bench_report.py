"""Owns how protocol A2's figures look in a terminal. Must not compute any."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

_METRICS = (
    ("AUC", "auc"),
    ("AP", "average_precision"),
    ("CP@100", "card_precision_at_100"),
)
_CEILING = "card_precision_at_100_ceiling"
_OURS = (("in_protocol", "this product"), ("all_history", "this product, all that was knowable *"))


def handbook_tables(report: Mapping[str, Any]) -> RenderableType:
    """Return the report of ``handbook.run`` as tables: fold by fold, then beside the published."""
    folds = [_folds(report[key], name) for key, name in _OURS]
    took = f"vectors {report['vectors_s']:.0f} s, all {report['took_s']:.0f} s"
    return Group(*folds, _compared(report), f"* outside the protocol · {took}")


def _table(first: str, title: str, *more: str) -> Table:
    table = Table(first, *more, *(head for head, _ in _METRICS), title=title, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _folds(part: Mapping[str, Any], name: str) -> Table:
    table = _table("trained from", name, "test rows / frauds")
    table.add_column("CP@100, perfect", justify="right")
    for fold in part["folds"]:
        figures = [f"{fold[key]:.4f}" for _, key in (*_METRICS, ("", _CEILING))]
        table.add_row(fold["train_from"], f"{fold['rows']:,} / {fold['frauds']:,}", *figures)
    return table


def _compared(report: Mapping[str, Any]) -> Table:
    table = _table("mean over the folds", f"Protocol {report['protocol']}")
    for row in report["published"]:
        name = row["name"] if row["inside"] else f"{row['name']} *"
        table.add_row(name, *(f"{row[key]:.3f}" for _, key in _METRICS))
    table.add_section()
    for part, name in _OURS:
        over = report[part]["over_folds"]
        table.add_row(name, *(_spread(over[key]) for _, key in _METRICS))
    ceiling = report["in_protocol"]["over_folds"][_CEILING]
    table.add_row("a perfect ranker", "1.000", "1.000", _spread(ceiling))
    return table


def _spread(figure: Mapping[str, float]) -> str:
    return f"{figure['mean']:.3f} ± {figure['deviation']:.3f}"
