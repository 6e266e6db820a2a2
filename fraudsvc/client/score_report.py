"""Answers on a terminal or in a pipe, as they come."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

from fraud.v1 import decision_pb2
from google.protobuf import json_format
from rich.console import Console
from rich.table import Table

from fraudsvc.client.attempts import Failure


class Told(NamedTuple):
    """What came of the ``number``-th transaction: an assessment, or why there is none."""

    number: int
    transaction_id: str
    assessment: decision_pb2.Assessment | None
    failure: Failure | None = None


def write_json(answers: Iterable[Told]) -> bool:
    """Write an object a line; return whether all were answered."""
    well = True
    for told in answers:
        well &= told.assessment is not None
        sys.stdout.write(json.dumps(_fields(told)) + "\n")
        sys.stdout.flush()
    return well


def write_table(answers: Iterable[Told]) -> bool:
    """Print a table; return whether all were answered."""
    table = Table("number", "transaction", "outcome", "score", "rung", "first reason")
    well = True
    for told in answers:
        well &= told.assessment is not None
        table.add_row(*_cells(told))
    Console().print(table)
    return well


def _fields(told: Told) -> dict[str, Any]:
    fields: dict[str, Any] = {"number": told.number, "transaction_id": told.transaction_id}
    if told.assessment is not None:
        fields["assessment"] = json_format.MessageToDict(
            told.assessment, preserving_proto_field_name=True
        )
    if told.failure is not None:
        code, reason, message, _, at_fault = told.failure
        fields["error"] = {"code": code, "reason": reason, "message": message}
        fields["error"]["fields"] = dict(at_fault)
    return fields


def _cells(told: Told) -> tuple[str, ...]:
    answer = told.assessment
    if answer is None:
        failure = told.failure or Failure("UNKNOWN")
        return (
            str(told.number),
            told.transaction_id,
            failure.code,
            "",
            failure.reason,
            failure.message,
        )
    score = f"{answer.score:.4f}" if answer.HasField("score") else ""
    reason = f"{answer.reasons[0].code} {answer.reasons[0].text}" if answer.reasons else ""
    outcome = decision_pb2.Outcome.Name(answer.outcome).removeprefix("OUTCOME_")
    rung = decision_pb2.Rung.Name(answer.rung).removeprefix("RUNG_")
    return (str(told.number), told.transaction_id, outcome, score, rung, reason)
