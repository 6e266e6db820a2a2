"""Owns how figures look in a terminal. Must not compute any."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table

_FIGURES = (
    ("ROC AUC", "auc"),
    ("average precision", "average_precision"),
    ("card precision at 100", "card_precision_at_100"),
    ("  ceiling, by a perfect ranker", "card_precision_at_100_ceiling"),
    ("expected calibration error", "expected_calibration_error"),
)


def report_tables(report: Mapping[str, Any], title: str) -> RenderableType:
    """Return a report of ``evaluate`` as tables."""
    return Group(_figures(report, title), _reliability(report), _outcomes(report))


def utc_text(time_ms: int) -> str:
    """Return a time as text, in UTC to the minute."""
    return str(np.datetime64(time_ms, "ms").astype("datetime64[m]")).replace("T", " ") + " UTC"


def _figures(report: Mapping[str, Any], title: str) -> Table:
    table = Table("figure", "value", title=title, title_justify="left")
    table.columns[1].justify = "right"
    table.add_row("rows / frauds", f"{report['rows']:,} / {report['frauds']:,}")
    table.add_row("from", utc_text(report["first_event_ms"]))
    table.add_row("to", utc_text(report["last_event_ms"]))
    for label, key in _FIGURES:
        table.add_row(label, f"{report[key]:.4f}")
    for rate, recall in report["recall_at_false_positive_rate"].items():
        table.add_row(f"recall at {float(rate):.1%} false positives", f"{recall:.4f}")
    return table


def _reliability(report: Mapping[str, Any]) -> Table:
    table = Table("forecast up to", "rows", "mean forecast", "observed", title="Reliability")
    for column in table.columns:
        column.justify = "right"
    for row in report["reliability"]:
        numbers = (f"{row['forecast']:.5f}", f"{row['observed']:.5f}")
        table.add_row(f"{row['until']:g}", f"{row['rows']:,}", *numbers)
    return table


def _outcomes(report: Mapping[str, Any]) -> Table:
    table = Table("outcome", "rows", "frauds", title="By the bundle's thresholds")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, counts in report["outcomes"].items():
        table.add_row(name, f"{counts['rows']:,}", f"{counts['frauds']:,}")
    return table
