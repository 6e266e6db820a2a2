"""Which pages the analysts' desk has. Owns nothing but the list."""

from __future__ import annotations

from starlette.routing import BaseRoute

from fraudsvc.console.case_actions import CaseActions
from fraudsvc.console.case_pages import CasePages
from fraudsvc.console.desk import Desk
from fraudsvc.console.queue_pages import QueuePages
from fraudsvc.console.verdict_pages import VerdictPages


def desk_routes(desk: Desk) -> list[BaseRoute]:
    """Return the paths of queue, cases and verdicts."""
    pages = (QueuePages(desk), CasePages(desk), CaseActions(desk), VerdictPages(desk))
    return [route for each in pages for route in each.routes()]
