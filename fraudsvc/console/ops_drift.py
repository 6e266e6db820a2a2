"""The page of drift: alarms of the trainer with their evidence, and what stopped learning.

Owns how an alarm is shown. Must not know how one is found.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fraud.v1 import model_event_pb2
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from fraudsvc.console.audit import AuditTrail
from fraudsvc.console.ops_models import change_name, event_of
from fraudsvc.console.pages import Templates
from fraudsvc.console.readmodel import Row
from fraudsvc.console.readmodel_operations import Operations
from fraudsvc.console.sheets import Column, Sheet, exported

COLUMNS = (
    Column("event_time_ms", "When", "time"), Column("change", "What"), Column("code", "Alarm"),
    Column("subject", "About"), Column("method", "Found by"),
    Column("since_ms", "Since", "time"), Column("before", "Before", "number"),
    Column("after", "After", "number"), Column("rows", "Rows", "count"),
    Column("statistic", "Statistic", "number"), Column("limit", "Speaks from", "number"),
    Column("reason", "In words"),
)  # fmt: skip
_CHANGES = (
    model_event_pb2.MODEL_CHANGE_ALARMED, model_event_pb2.MODEL_CHANGE_LEARNING_STOPPED,
    model_event_pb2.MODEL_CHANGE_LEARNING_RESUMED, model_event_pb2.MODEL_CHANGE_REPORTER_DISTRUSTED,
    model_event_pb2.MODEL_CHANGE_REPORTER_TRUSTED,
)  # fmt: skip
_NONE: dict[str, Any] = dict.fromkeys(
    ("code", "subject", "method", "since_ms", "before", "after", "rows", "statistic", "limit")
)
_INTRO = (
    "What the trainer found to be no longer as it was: a feature, the scores, missed fraud, a"
    " reporter. An alarm changes nothing by itself; a stop ends learning until it is resumed."
)


def _rows(row: Row) -> Iterator[dict[str, Any]]:
    event = event_of(row)
    told = {
        "event_time_ms": row["event_time_ms"], "change": change_name(event.change),
        "reason": event.reason,
    }  # fmt: skip
    for alarm in event.alarms:
        yield {
            **told, "code": alarm.code, "subject": alarm.subject, "method": alarm.method,
            "since_ms": alarm.since_time.ToMilliseconds() or None, "before": alarm.before,
            "after": alarm.after, "rows": alarm.rows, "statistic": alarm.statistic,
            "limit": alarm.limit,
        }  # fmt: skip
    if not event.alarms:
        yield {**_NONE, **told}


class DriftPage:
    """Shows alarms."""

    def __init__(self, templates: Templates, operations: Operations, trail: AuditTrail) -> None:
        self._templates, self._operations, self._trail = templates, operations, trail

    def routes(self) -> list[BaseRoute]:
        """Return the paths."""
        return [Route("/drift", self.page)]

    def page(self, request: Request) -> Response:
        """Show alarms, or export them."""
        events = self._operations.model_events(_CHANGES)
        sheet = Sheet("alarms", COLUMNS, [each for row in events for each in _rows(row)])
        answer = exported(request, sheet, self._trail)
        if answer is not None:
            return answer
        return self._templates.page(
            request, "sheet.html", title="Drift", intro=_INTRO, after="", query="", filters=(),
            sheets=[(sheet, "Alarms and stops, newest first", "The trainer found nothing amiss.")],
        )  # fmt: skip
