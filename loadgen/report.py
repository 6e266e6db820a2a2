"""Figures for people and for files.

Owns the tables that are printed and the answers that are kept. Must not know how they were made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
from fraud.v1 import decision_pb2
from rich.table import Table

from loadgen.columns import TIME, short_names
from loadgen.history import HistoryWriter
from loadgen.replay import Answer, Problem
from loadgen.tally import BUDGET_US, LATE_US, Snapshot

ANSWERS: pa.Schema = pa.schema(
    [
        ("transaction_id", pa.string()),
        ("event_time", TIME),
        ("is_fraud", pa.bool_()),
        ("decision_id", pa.string()),
        ("outcome", pa.string()),
        ("score", pa.float64()),
        ("rung", pa.string()),
        ("model_version", pa.string()),
        ("latency_us", pa.int64()),
    ]
)
_ANSWERS_BATCH = 8_192
_OUTCOMES = {number: name for name, number in short_names(decision_pb2.Outcome).items()}
_RUNGS = {number: name for name, number in short_names(decision_pb2.Rung).items()}


def _counts(counts: Mapping[str, int]) -> str:
    return "  ".join(f"{name} {count:,}" for name, count in sorted(counts.items())) or "none"


def _points(points: Mapping[str, int]) -> str:
    return "  ".join(f"{name} {us / 1000:.2f}" for name, us in points.items())


def summary(snapshot: Snapshot) -> Table:
    """Return a snapshot as a table of two columns."""
    s = snapshot
    known = s.fraud_caught + s.fraud_missed + s.false_alarms + s.honest_approved
    lines = {
        "calls": f"{s.answered:,} answered of {s.sent:,} sent in {s.elapsed_s:.1f} s, "
        f"{s.answered / max(s.elapsed_s, 1e-9):,.0f}/s",
        "latency, ms": _points(s.latency_us),
        f"answered in {BUDGET_US // 1000} ms": f"{s.within_budget:.3%} of all, "
        f"{s.within_budget_accepted:.3%} of accepted",
        "status": _counts(s.statuses),
        "rung": _counts(s.rungs),
        "outcome": _counts(s.outcomes),
        f"late by > {LATE_US // 1000} ms": f"{s.late:,} sends; lateness, ms: {_points(s.late_us)}",
    }
    if "RESOURCE_EXHAUSTED" in s.statuses:
        lines["shed, ms"] = _points(s.shed_latency_us)
    if known:
        lines["fraud"] = f"{s.fraud_caught:,} caught, {s.fraud_missed:,} missed"
        lines["honest"] = f"{s.honest_approved:,} approved, {s.false_alarms:,} stopped"
    table = Table(show_header=False)
    for name, text in lines.items():
        table.add_row(name, text)
    return table


def problem_lines(problems: Iterable[Problem], count: int, shown_max: int = 20) -> list[str]:
    """Return one text a row that was not scored, and one for those that are not shown."""
    lines = [f"line {line}: {reason}" for line, reason in list(problems)[:shown_max]]
    if count > len(lines):
        lines.append(f"and {count - len(lines)} more")
    return lines


class AnswerWriter:
    """Keeps answers as rows of ANSWERS in a file; a context manager like `HistoryWriter`."""

    def __init__(self, path: Path) -> None:
        self._writer = HistoryWriter(path, ANSWERS)
        self._rows: list[dict[str, Any]] = []

    def add(self, answer: Answer) -> None:
        """Add one answer; its time is the row's own, not the one that was sent."""
        row, assessment, latency_us = answer
        self._rows.append(
            {
                "transaction_id": row.transaction.transaction_id,
                "event_time": row.event_ms,
                "is_fraud": row.is_fraud,
                "decision_id": assessment.decision_id,
                "outcome": _OUTCOMES.get(assessment.outcome),
                "score": assessment.score if assessment.HasField("score") else None,
                "rung": _RUNGS.get(assessment.rung),
                "model_version": assessment.model_version,
                "latency_us": latency_us,
            }
        )
        if len(self._rows) >= _ANSWERS_BATCH:
            self._flush()

    def _flush(self) -> None:
        self._writer.write(pa.Table.from_pylist(self._rows, schema=ANSWERS))
        self._rows = []

    def __enter__(self) -> Self:
        self._writer.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._flush()
        self._writer.__exit__(kind, error, trace)
