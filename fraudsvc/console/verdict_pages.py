"""Verdicts: what analysts said lately, and what became of it. Must not know SQL."""

from __future__ import annotations

import re
from urllib.parse import urlencode

from fraud.v1 import label_pb2
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from fraudsvc.console.case_pages import verdict_of
from fraudsvc.console.desk import Desk
from fraudsvc.console.pages import person_of
from fraudsvc.console.sheets import Column, Sheet, exported

ROWS, EXPORTED_MAX = 50, 50_000
COLUMNS = (
    Column("seen_ms", "When", "time"), Column("verdict", "Verdict"), Column("reporter", "By"),
    Column("decision_id", "Case"), Column("transaction_id", "Transaction"),
    Column("customer_id", "Customer"), Column("amount_minor", "Amount, minor units", "count"),
    Column("currency_code", "Currency"), Column("note", "Note"),
)  # fmt: skip
_PLACE = re.compile(r"\d{1,18}:\d{1,18}")


class VerdictPages:
    """What the path of verdicts answers."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def routes(self) -> list[BaseRoute]:
        """Return the paths."""
        return [Route("/verdicts", self.verdicts)]

    def verdicts(self, request: Request) -> Response:
        """Show the newest verdicts, of everybody or of who asks."""
        desk, person, now_ms = self._desk, person_of(request), self._desk.now_ms()
        mine = request.query_params.get("by", "") == "me"
        if "format" in request.query_params:
            answer = exported(request, self._sheet(person.name if mine else ""), desk.trail)
            if answer is not None:
                return answer
        before = request.query_params.get("before", "")
        if not _PLACE.fullmatch(before):
            before = ""
        rows, more = desk.files.verdicts(person.name if mine else "", before, ROWS)
        told = []
        for row in rows:
            runs = desk.files.runs_on(row["journal"], row["position"])
            versions = list(dict.fromkeys(run["model_version"] for run in runs))
            own = row["reporter"] == person.name
            young = now_ms - row["seen_ms"] < desk.undo_ms
            is_said = row["verdict"] != label_pb2.VERDICT_RETRACTED
            told.append(
                {
                    **row, "verdict_text": verdict_of(row["verdict"]), "versions": versions,
                    "may_undo": own and young and is_said,
                }
            )  # fmt: skip
        following = {"before": more, **({"by": "me"} if mine else {})}
        desk.trail.audit(person, "list verdicts", "me" if mine else "everybody")
        return desk.templates.page(
            request, "verdicts.html", rows=told, mine=mine,
            following=urlencode(following) if more else "",
        )  # fmt: skip

    def _sheet(self, reporter: str) -> Sheet:
        rows, _ = self._desk.files.verdicts(reporter, "", EXPORTED_MAX)
        told = [{**row, "verdict": verdict_of(row["verdict"])} for row in rows]
        return Sheet("verdicts", COLUMNS, told)
