"""The page of what-ifs: a changed threshold or rule, what history says of it, and taking it live.

Owns the steps from a form to the policy in use and who may take which; each is in the audit trail
before it is done. How history is decided again is `backtest`'s, how a file is changed is
``editing``'s.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from featurizer.features import INDEX
from fraudsvc.console.audit import AuditTrail
from fraudsvc.console.forms import Form, posted
from fraudsvc.console.pages import Templates, see
from fraudsvc.console.person import ANALYST, LEAD, Person
from fraudsvc.console.proposals import DONE, LIVE, PROPOSED, REJECTED, RUNNING, Proposals
from fraudsvc.console.sheets import Column, Sheet, exported
from fraudsvc.console.streams import Streams
from fraudsvc.console.what_if_runs import Runs
from fraudsvc.look_back_command import span_of
from fraudsvc.policy import PolicyError, load_policy
from fraudsvc.policy.editing import replace_policy, with_rule, with_threshold

TEXT_MAX = 4_000  # characters of a rule
EVERY_S = 1.0
RULE_ACTIONS = ("review", "decline", "approve", "flag")
COLUMNS = (
    Column("id", "What if", "text", "/what-if/"), Column("made_ms", "When", "time"),
    Column("author", "By"), Column("summary", "Change"), Column("state", "State"),
    Column("decided_by", "Decided by"), Column("why", "Why"),
)  # fmt: skip
MONEY = (
    Column("what", ""), Column("before", "As decided", "number"),
    Column("after", "With the change", "number"), Column("difference", "Difference", "number"),
)  # fmt: skip
MOVES = (
    Column("was", "As decided"), Column("approve", "Now approve", "count"),
    Column("review", "Now review", "count"), Column("decline", "Now decline", "count"),
)  # fmt: skip
DAYS = (
    Column("day", "Day"), Column("decisions", "Decisions", "count"),
    Column("reviews_before", "Reviews as decided", "count"),
    Column("reviews_after", "Reviews with the change", "count"),
    Column("capacity", "Capacity", "number"),
)  # fmt: skip


class WhatIfOptions(NamedTuple):
    """The policy in use, and whether going live needs another person than who made it."""

    policy: Path
    second_person: bool


class WhatIfPages:
    """Shows what-ifs and takes them on. ``now_ms`` is the wall clock."""

    def __init__(
        self,
        templates: Templates,
        trail: AuditTrail,
        proposals: Proposals,
        runs: Runs,
        options: WhatIfOptions,
        streams: Streams,
        now_ms: Any,
    ) -> None:
        self._templates, self._trail, self._streams = templates, trail, streams
        self._proposals, self._runs = proposals, runs
        self._options, self._now_ms = options, now_ms

    def routes(self) -> list[BaseRoute]:
        """Return the paths."""
        return [
            Route("/what-if", self.page),
            Route("/what-if/{id}", self.one),
            Route("/what-if/{id}/live", self._streams.live(self.one_live, EVERY_S)),
            posted("/what-if/run", self._run),
            posted("/what-if/propose", self._propose),
            posted("/what-if/proposals/live", self._go_live),
            posted("/what-if/proposals/reject", self._reject),
        ]

    def page(self, request: Request) -> Response:
        """Show the form and the newest what-ifs, or export them."""
        sheet = Sheet("what-ifs", COLUMNS, self._proposals.newest())
        return exported(request, sheet, self._trail) or self._form(request, 200, "", sheet, {})

    def _form(
        self, request: Request, status: int, trouble: str, sheet: Sheet, given: Mapping[str, str]
    ) -> Response:
        try:
            parsed = tomllib.loads(self._options.policy.read_text())
        except (OSError, ValueError) as error:
            parsed, trouble = {}, trouble or f"The policy in use cannot be read: {error}"
        limits, chosen = parsed.get("thresholds", {}), request.query_params.get("rule", "")
        rule: dict[str, Any] = next(
            (r for r in parsed.get("rules", []) if r.get("code") == chosen), {}
        )
        values = {
            "review": str(limits.get("review", "")), "decline": str(limits.get("decline", "")),
            "first": "", "stop": "", **{k: str(rule.get(k, "")) for k in
                                        ("code", "when", "action", "text")}, **given,
        }  # fmt: skip
        return self._templates.page(
            request, "what_if.html", status, sheet=sheet, values=values, trouble=trouble,
            rules=[r.get("code", "") for r in parsed.get("rules", [])], chosen=chosen,
            actions=RULE_ACTIONS, busy=self._runs.busy, may=request.state.person.may(ANALYST),
        )  # fmt: skip

    def one(self, request: Request) -> Response:
        """Show one with its result."""
        return self._one(request, "what_if_one.html")

    def one_live(self, request: Request) -> Response:
        """Show what of one changes while it runs."""
        return self._one(request, "what_if_live.html")

    def _one(self, request: Request, template: str) -> Response:
        row = self._proposals.one(request.path_params["id"])
        if row is None:
            what = "There is no such what-if; the link may be cut short."
            return self._templates.message(
                request, 404, "Not found", what, ("/what-if", "All what-ifs")
            )
        person, result = request.state.person, row["result"] or None
        current = self._current()
        return self._templates.page(
            request, template, row=row, result=result, running=row["state"] == RUNNING,
            difference=_difference(row["base"], row["text"]), outdated=row["base"] != current,
            tables=[] if result is None else list(_tables(result)),
            refusal=self._refusal(person, row), second_person=self._options.second_person,
            may_propose=row["state"] == DONE and person.may(ANALYST),
            may_decide=row["state"] in (DONE, PROPOSED) and person.may(LEAD),
        )  # fmt: skip

    def _current(self) -> str:
        try:
            return self._options.policy.read_text()
        except (OSError, ValueError):
            return ""

    def _run(self, request: Request, form: Form) -> Response:
        names = ("review", "decline", "code", "when", "action", "text", "first", "stop")
        given = {name: form(name)[:TEXT_MAX] for name in names}
        try:
            base = self._options.policy.read_text()
            text, summary = _changed(base, given)
            load_policy(text.encode(), INDEX)
            span_of(given["first"], given["stop"])
        except (PolicyError, OSError, ValueError) as error:
            return self._again(request, 400, f"This change cannot be: {error}.", given)
        if self._runs.busy:
            return self._again(request, 409, "Another what-if runs: wait for it.", given)
        person = request.state.person
        self._trail.audit(person, "run what-if", "policy", new=summary)
        span = f"{given['first'] or 'the beginning'} to {given['stop'] or 'now'}"
        made = self._proposals.add(person.name, self._now_ms(), summary, base, text, span)
        if not self._runs.start(made, text, given["first"], given["stop"]):
            self._proposals.step(made, "failed", trouble="another began at the same moment")
        return see(f"/what-if/{made}")

    def _again(
        self, request: Request, status: int, trouble: str, given: Mapping[str, str]
    ) -> Response:
        sheet = Sheet("what-ifs", COLUMNS, self._proposals.newest())
        return self._form(request, status, trouble, sheet, given)

    def _propose(self, request: Request, form: Form) -> Response:
        person, row, reason = request.state.person, self._proposals.one(form("id")), form("reason")
        if row is None or not reason:
            return self._not_done(request, form("id"), "a proposal wants a reason")
        self._trail.audit(person, "propose policy", row["id"], new=row["summary"], why=reason)
        if not self._proposals.step(row["id"], PROPOSED, proposed_by=person.name, why=reason):
            return self._not_done(request, row["id"], "it was taken on by somebody else meanwhile")
        return see(f"/what-if/{row['id']}")

    def _reject(self, request: Request, form: Form) -> Response:
        person, row, reason = request.state.person, self._proposals.one(form("id")), form("reason")
        if row is None or not reason:
            return self._not_done(request, form("id"), "a rejection wants a reason")
        self._trail.audit(person, "reject policy", row["id"], new=row["summary"], why=reason)
        told = {"decided_by": person.name, "decided_ms": self._now_ms(), "why": reason}
        if not self._proposals.step(row["id"], REJECTED, **told):
            return self._not_done(request, row["id"], "it was taken on by somebody else meanwhile")
        return see(f"/what-if/{row['id']}")

    def _go_live(self, request: Request, form: Form) -> Response:
        person, row, reason = request.state.person, self._proposals.one(form("id")), form("reason")
        if row is None or not reason:
            return self._not_done(request, form("id"), "going live wants a reason")
        refusal = self._refusal(person, row)
        if refusal:
            return self._not_done(request, row["id"], refusal)
        told = {"decided_by": person.name, "decided_ms": self._now_ms(), "why": reason}
        if not self._proposals.step(row["id"], LIVE, **told):
            return self._not_done(request, row["id"], "it was taken on by somebody else meanwhile")
        try:
            replace_policy(self._options.policy, lambda text: self._swap(person, row, text, reason),
                           INDEX)  # fmt: skip
        except (PolicyError, OSError) as error:
            self._proposals.back(row["id"], row["state"], str(error))
            return self._not_done(request, row["id"], str(error))
        return see(f"/what-if/{row['id']}")

    def _swap(self, person: Person, row: Mapping[str, Any], text: str, why: str) -> str:
        """Return the policy that goes live where that in use is the one it was made from."""
        if text != row["base"]:
            raise PolicyError("the policy in use has changed since: run the what-if again")
        old, new = (load_policy(each.encode(), INDEX).version for each in (text, row["text"]))
        self._trail.audit(person, "put policy live", row["id"], old, new, why)
        return str(row["text"])

    def _refusal(self, person: Person, row: Mapping[str, Any]) -> str:
        """Return why a person may not take one live, "" where they may."""
        if row["state"] not in (DONE, PROPOSED):
            return f"it is {row['state']}"
        if not self._options.second_person:
            return ""
        if row["state"] != PROPOSED:
            return "it must be proposed first, as another person has to agree"
        if person.name in (row["author"], row["proposed_by"]):
            return "another person than who made or proposed it must take it live"
        return ""

    def _not_done(self, request: Request, what_if: str, why: str) -> Response:
        what = f"Nothing was changed: {why}."
        return self._templates.message(
            request, 409, "Not done", what, (f"/what-if/{what_if}", "Back to it")
        )


def _changed(base: str, given: Mapping[str, str]) -> tuple[str, str]:
    """Return the changed text, and in words what is changed. Raises PolicyError, ValueError."""
    text, said = base, []
    limits = tomllib.loads(base).get("thresholds", {})
    for name in ("review", "decline"):
        if given[name] and given[name] != str(limits.get(name)):
            text = with_threshold(text, name, given[name])
            said.append(f"{name} from {given[name]}")
    if given["code"]:
        if not given["when"] or given["action"] not in RULE_ACTIONS:
            raise PolicyError("a rule wants its condition (CEL) and its action")
        rule = {**given, "text": given["text"] or given["code"]}
        text = with_rule(text, rule)
        said.append(f"rule {given['code']}: {given['action']} when {given['when']}")
    if text == base:
        raise PolicyError("nothing is changed")
    return text, "; ".join(said)


def _difference(before: str, after: str) -> str:
    lines = difflib.unified_diff(
        before.splitlines(), after.splitlines(), "in use", "with the change", lineterm="", n=2
    )
    return "\n".join(lines)


def _tables(result: Mapping[str, Any]) -> Iterator[tuple[Sheet, str, str]]:
    """Yield the result's tables with their captions and what an empty one says."""
    moves = [{"was": was, **to} for was, to in result["changes"].items()]
    yield Sheet("moves", MOVES, moves), "Decisions by outcome, before and after", ""
    for known, title in (("as_known_now", "known now"), ("as_known_then", "known then")):
        before, after = result[known]["before"], result[known]["after"]
        rows = [
            {"what": name.replace("_", " "), "before": before[name], "after": after[name],
             "difference": round(after[name] - before[name], 2)}
            for name in before
        ]  # fmt: skip
        yield Sheet("sides", MONEY, rows), f"By labels as {title}; money in US dollars", ""
    capacity = result["review_capacity_a_day"]
    days = [{**day, "capacity": capacity} for day in result["days"]]
    over = result["days_over_capacity"]
    caption = f"Reviews a day: over capacity on {over['before']} days before, {over['after']} after"
    yield Sheet("days", DAYS, days), caption, ""
