"""The audit trail's page: who read and changed what.

Owns how the trail is shown. Must not know how an event gets onto it.
"""

from __future__ import annotations

from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from fraudsvc.console.audit import AuditTrail
from fraudsvc.console.pages import Templates
from fraudsvc.console.readmodel_operations import Operations
from fraudsvc.console.sheets import Column, Sheet, exported

SHOWN, EXPORTED_MAX = 100, 100_000
COLUMNS = (
    Column("event_time_ms", "When", "time"), Column("person", "Who"), Column("roles", "As"),
    Column("what", "What"), Column("entity", "Of what"), Column("old", "Before"),
    Column("new", "After"), Column("why", "Why"),
)  # fmt: skip
_FILTERS = (("person", "Who"), ("what", "What"), ("entity", "Of what"))
_INTRO = (
    "Every read of a customer's data and every change, newest first. Each is an event on the log;"
    " nothing changes or removes one."
)


class TrailPage:
    """Shows the trail."""

    def __init__(self, templates: Templates, operations: Operations, trail: AuditTrail) -> None:
        self._templates, self._operations, self._trail = templates, operations, trail

    def routes(self) -> list[BaseRoute]:
        """Return the paths."""
        return [Route("/audit", self.page)]

    def page(self, request: Request) -> Response:
        """Show a page of the trail, or export it."""
        asked = request.query_params
        wanted = {name: asked.get(name, "") for name, _ in _FILTERS}
        limit = EXPORTED_MAX if "format" in asked else SHOWN
        try:
            rows, after = self._operations.audit(wanted, asked.get("after", ""), limit)
        except ValueError:
            what = "The link to older entries is not one that a page gave."
            return self._templates.message(request, 400, "Bad link", what, ("/audit", "The trail"))
        sheet = Sheet("audit", COLUMNS, rows)
        answer = exported(request, sheet, self._trail)
        if answer is not None:
            return answer
        self._trail.audit(request.state.person, "read audit trail", asked.get("entity", ""))
        query = urlencode({name: text for name, text in wanted.items() if text})
        return self._templates.page(
            request, "sheet.html", title="Audit trail", intro=_INTRO, after=after, query=query,
            filters=[(name, title, wanted[name]) for name, title in _FILTERS],
            sheets=[(sheet, "Audit trail", "Nobody has read or changed anything that fits.")],
        )  # fmt: skip
