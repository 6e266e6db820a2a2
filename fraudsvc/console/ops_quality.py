"""The pages of rules and of agreement: what labels say of rules and of analysts.

Owns how both are shown. Counting is ``label_figures``'.
"""

from __future__ import annotations

import time
import tomllib
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from fraudsvc.console.audit import AuditTrail
from fraudsvc.console.label_figures import (
    analyst_rows,
    overlap_rows,
    overturned_rows,
    rule_rows,
    standing,
)
from fraudsvc.console.pages import Templates
from fraudsvc.console.readmodel_operations import DECISIONS_MAX, Operations
from fraudsvc.console.sheets import Column, Sheet, exported

DAY_MS = 86_400_000
DAYS, DAYS_MAX = 7, 365
RULES = (
    Column("code", "Rule"), Column("action", "Does"), Column("when", "When (CEL)"),
    Column("hits", "Hits", "count"), Column("approved", "Approved all the same", "count"),
    Column("labelled", "Labelled", "count"), Column("fraud", "Fraud", "count"),
    Column("precision", "Precision", "number"),
)  # fmt: skip
OVERLAPS = (
    Column("one", "Rule"), Column("other", "And"), Column("both", "Both hit", "count"),
    Column("of_one", "Of the first's hits", "number"),
    Column("of_other", "Of the second's hits", "number"),
)  # fmt: skip
ANALYSTS = (
    Column("analyst", "Analyst"), Column("verdicts", "Verdicts", "count"),
    Column("confirmed", "Confirmed later", "count"),
    Column("overturned", "Overturned later", "count"),
    Column("agreement", "Share confirmed", "number"),
    Column("with_others", "Same as other analysts", "number"),
)  # fmt: skip
OVERTURNED = (
    Column("decision_id", "Case", "text", "/cases/"), Column("analyst", "Analyst"),
    Column("said", "Said"), Column("said_ms", "At", "time"), Column("known", "Known as"),
    Column("source", "From"), Column("known_ms", "Since", "time"),
    Column("amount", "Amount", "number"), Column("currency_code", "Currency"),
)  # fmt: skip
_RULES_INTRO = (
    "What each rule of the policy in use hit within {days} days, and what is known of the payments"
    " by now: precision is the share of labelled hits that were fraud. Of plain approvals only a"
    " share is kept here, so a rule that approves or flags shows fewer hits than it had; at most"
    " the newest {most:,} decisions count."
)
_AGREEMENT_INTRO = (
    "Verdicts of analysts within {days} days beside what a customer, an issuer or a chargeback said"
    " of the same payment later, and beside other analysts' verdicts."
)


class QualityPages:
    """Shows rules and agreement. ``policy`` is the file in use."""

    def __init__(
        self, templates: Templates, operations: Operations, trail: AuditTrail, policy: Path
    ) -> None:
        self._templates, self._operations, self._trail = templates, operations, trail
        self._policy = policy

    def routes(self) -> list[BaseRoute]:
        """Return the paths."""
        return [Route("/rules", self.rules), Route("/agreement", self.agreement)]

    def rules(self, request: Request) -> Response:
        """Show what rules hit, or export it."""
        try:
            rules = tomllib.loads(self._policy.read_text()).get("rules", [])
        except (OSError, ValueError) as error:
            what = f"The policy file cannot be read: {error}."
            return self._templates.message(
                request, 503, "Not available right now", what, ("/rules", "Try again")
            )
        days, from_ms = _range(request)
        decisions = self._operations.codes(from_ms)
        known = standing(self._operations.labels(from_ms))
        rows = rule_rows(rules, decisions, known)
        sheet = Sheet("rules", RULES, rows)
        answer = exported(request, sheet, self._trail)
        if answer is not None:
            return answer
        overlaps = Sheet("overlap", OVERLAPS, overlap_rows([r["code"] for r in rows], decisions))
        intro = _RULES_INTRO.format(days=days, most=DECISIONS_MAX)
        return self._page(
            request, "Rules", intro, days,
            (sheet, f"Hits among {len(decisions):,} decisions", "The policy has no rules."),
            (overlaps, "Overlap: rules that hit together", "No two rules hit one decision."),
        )  # fmt: skip

    def agreement(self, request: Request) -> Response:
        """Show how verdicts held, or export those that did not."""
        days, from_ms = _range(request)
        labels = self._operations.labels(from_ms)
        overturned = Sheet("overturned", OVERTURNED, overturned_rows(labels))
        answer = exported(request, overturned, self._trail)
        if answer is not None:
            return answer
        self._trail.audit(request.state.person, "list overturned verdicts", f"{days} days")
        analysts = Sheet("analysts", ANALYSTS, analyst_rows(labels))
        return self._page(
            request, "Agreement", _AGREEMENT_INTRO.format(days=days), days,
            (analysts, "Analysts", "No analyst gave a verdict in this time."),
            (overturned, "Overturned verdicts", "Nothing became known that an analyst had "
             "judged otherwise."),
        )  # fmt: skip

    def _page(self, request: Request, title: str, intro: str, days: int, *sheets: Any) -> Response:
        return self._templates.page(
            request, "sheet.html", title=title, intro=intro, after="", query=f"days={days}",
            filters=[("days", "Days back", days)], sheets=sheets,
        )  # fmt: skip


def _range(request: Request) -> tuple[int, int]:
    """Return the days that are asked for, and when they began (ms since 1970)."""
    text = request.query_params.get("days", "")
    days = min(max(int(text), 1), DAYS_MAX) if text.isascii() and text.isdigit() else DAYS
    return days, time.time_ns() // 1_000_000 - days * DAY_MS
