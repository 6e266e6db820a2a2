"""A case on one page: the payment, what decided, what surrounds it, and what came of it.

Owns which facts are on the page and in which order they are looked up. Must not change anything
but the claim of whoever opens it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fraud.v1 import decision_pb2, label_pb2, model_event_pb2
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from fraudsvc.console import case_facts, drawings
from fraudsvc.console.case_rows import standing
from fraudsvc.console.desk import Desk
from fraudsvc.console.pages import person_of
from fraudsvc.console.person import ANALYST, LEAD, Person
from fraudsvc.console.readmodel import Row
from fraudsvc.console.trace_report import of_one
from fraudsvc.policy import LISTABLE

SIMILAR_SHOWN = 4
CODES_COMPARED = 3
LINKED_MAX = 60
FRAUD, LEGITIMATE = label_pb2.VERDICT_FRAUD, label_pb2.VERDICT_LEGITIMATE
LAYERS = {"expert": "T1", "residual": "T2"}
REASONS = {
    "fraud": (
        "stolen card", "account takeover", "card testing", "false identity", "mule or cash-out",
        "known pattern",
    ),
    "legitimate": (
        "customer confirmed", "usual for this customer", "travel", "one large purchase",
        "known merchant", "rule too wide",
    ),
    "unclear": (
        "customer not reached", "too little known", "waits for the issuer", "second opinion",
    ),
}  # fmt: skip


def word(kind: Any, number: int, prefix: str) -> str:
    """Return an enum's name in words; its number where it is none of the contract's."""
    try:
        name: str = kind.Name(number)
    except ValueError:
        return f"#{number}"
    return name.removeprefix(prefix).replace("_", " ").lower()


def verdict_of(number: int) -> str:
    """Return a Verdict in a word."""
    return word(label_pb2.Verdict, number, "VERDICT_")


class CasePages:
    """What the paths that show cases answer."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def routes(self) -> list[BaseRoute]:
        """Return the paths."""
        return [
            Route("/cases/{id}", self.case),
            Route("/cases/{id}/linked", self.linked),
        ]

    def case(self, request: Request) -> Response:
        """Show a case; whoever may decide it, and opens it first, holds it."""
        desk, person, now_ms = self._desk, person_of(request), self._desk.now_ms()
        decision_id = request.path_params["id"]
        row = desk.model.decision(decision_id)
        if row is None:
            what = (
                "No decision of this id is kept. Plain approvals are kept in part only; those that"
                " got a label, and everything else, are. The link may also be cut short."
            )
            back = ("/queue", "Back to the queue")
            return desk.templates.message(request, 404, "No such case", what, back)
        desk.trail.audit(person, "read case", decision_id)
        held = self._hold(row, person, now_ms)
        with desk.model.reading():
            told = self._told(row, person, now_ms)
        return desk.templates.page(request, "case.html", **told, holder=held)

    def _hold(self, row: Row, person: Person, now_ms: int) -> str:
        """Claim an open case for who may decide it; return who holds it then."""
        desk, decision_id = self._desk, row["decision_id"]
        before = desk.queue.held_by([decision_id], now_ms).get(decision_id, "")
        if not row["is_open"] or not person.may(ANALYST):
            return before
        if not desk.queue.claim(decision_id, person.name, now_ms, desk.claim_ms):
            return desk.queue.held_by([decision_id], now_ms).get(decision_id, "")
        if before != person.name:
            desk.trail.audit(person, "claim case", decision_id, before, person.name)
        return person.name

    def _told(self, row: Row, person: Person, now_ms: int) -> dict[str, Any]:
        desk, decision = self._desk, decision_pb2.Decision.FromString(row["body"])
        payment, around = decision.transaction, self._around(row, decision)
        own = around.said.get(row["decision_id"], ())
        labels = [self._label(each, person, now_ms) for each in own]
        left_s = (row["receive_time_ms"] + desk.review_ms - now_ms) / 1000
        contributions = case_facts.contributions(decision)
        return {
            "row": row, "payment": case_facts.payment_facts(payment), "labels": labels,
            "status": self._status(row, labels), "left": left_s, "now_ms": now_ms,
            "event_ms": payment.event_time.ToMilliseconds(),
            "cause": word(
                decision_pb2.RungCause, decision.assessment.rung_cause, "RUNG_CAUSE_"
            ) if decision.assessment.rung_cause else "",
            "limits": desk.limits.of(row["model_version"], row["policy_version"]),
            "hits": case_facts.hits(decision), "contributions": contributions,
            "velocities": [
                (each.entity, drawings.bars(each)) for each in case_facts.velocities(decision)
            ],
            "bar": drawings, "states": case_facts.states(decision),
            "log_position": decision.log_position, "timeline": _timeline(around),
            "graph": _graph(row, around), "shared": len(around.things),
            "similar": _similar(around),
            "steps": drawings.waterfall(
                row["trace_id"], of_one(desk.model.trace(row["trace_id"]), row["decision_id"])
            ),
            "reasons": REASONS, "may": person.may(ANALYST), "may_override": person.may(LEAD),
            "fields": [(n, read(payment)) for n, read in LISTABLE.items() if read(payment)],
            "undo_minutes": desk.options.undo_minutes,
            "claim_seconds": round(desk.options.claim_minutes * 60),
        }  # fmt: skip

    def _label(self, row: Row, person: Person, now_ms: int) -> dict[str, Any]:
        own = row["reporter"] == person.name and row["verdict"] != label_pb2.VERDICT_RETRACTED
        return {
            **row, "verdict_text": verdict_of(row["verdict"]),
            "source_text": word(label_pb2.LabelSource, row["source"], "LABEL_SOURCE_"),
            "may_undo": own and now_ms - row["seen_ms"] < self._desk.undo_ms,
            "learnt": self._learnt(row),
        }  # fmt: skip

    def _learnt(self, label: Row) -> list[dict[str, Any]]:
        """Return what became of the bundles that learnt from a label, and when it was served."""
        found = []
        for row in self._desk.files.runs_on(label["journal"], label["position"]):
            event = model_event_pb2.ModelEvent.FromString(row["body"])
            layers = [LAYERS.get(each, each) for each in event.learning.layers]
            found.append(
                {
                    "what": word(model_event_pb2.ModelChange, row["change"], "MODEL_CHANGE_"),
                    "layers": " and ".join(layers), "version": row["model_version"],
                    "time_ms": row["event_time_ms"], "by": row["author"],
                }
            )  # fmt: skip
        return found

    @staticmethod
    def _status(row: Row, labels: Sequence[Mapping[str, Any]]) -> str:
        left = standing(labels)
        if left:
            return verdict_of(left[-1]["verdict"])
        return "open" if row["is_open"] else "not for review"

    def _around(self, row: Row, decision: decision_pb2.Decision) -> _Around:
        """Look up what surrounds a decision, and what was said of all of it."""
        files, until_ms = self._desk.files, row["receive_time_ms"]
        things = case_facts.shared_things(decision.transaction)
        timeline = files.timeline(row["customer_id"], until_ms)
        sharing = [
            each for each in files.sharing(row["decision_id"], things, until_ms)
            if each["customer_id"] != row["customer_id"]
        ]  # fmt: skip
        alike = files.alike(row["decision_id"], json.loads(row["codes"])[:CODES_COMPARED])
        near = case_facts.likeness(decision.contributions, alike, SIMILAR_SHOWN)
        near = near or [(0.0, each) for each in alike[:SIMILAR_SHOWN]]
        rows = [row, *timeline, *sharing, *(each for _, each in near)]
        said = files.labels_of(sorted({each["decision_id"] for each in rows}))
        return _Around(things, timeline, sharing, near, said)

    def linked(self, request: Request) -> Response:
        """Show the open cases that share something with this, to be decided with it."""
        desk, person, now_ms = self._desk, person_of(request), self._desk.now_ms()
        row = desk.model.decision(request.path_params["id"])
        rows: list[Row] = []
        if row is not None:
            payment = decision_pb2.Decision.FromString(row["body"]).transaction
            found = desk.files.sharing(
                row["decision_id"], case_facts.shared_things(payment), now_ms
            )
            own = desk.files.timeline(row["customer_id"], now_ms)
            ids = {each["decision_id"] for each in (*found, *own)} - {row["decision_id"]}
            rows = desk.files.linked_open(sorted(ids))[:LINKED_MAX]
        held = desk.queue.held_by([each["decision_id"] for each in rows], now_ms)
        told = [{**each, "holder": held.get(each["decision_id"], "")} for each in rows]
        desk.trail.audit(person, "list linked cases", request.path_params["id"])
        return desk.templates.page(request, "linked.html", rows=told)


class _Around(NamedTuple):
    """What surrounds a decision: things it may share, decisions, and labels by decision."""

    things: list[tuple[int, str]]
    timeline: list[Row]
    sharing: list[Row]
    near: list[tuple[float, Row]]
    said: dict[str, list[Row]]

    def standing(self, row: Row, then_ms: int | None = None) -> str:
        """Return what is known of one of the decisions."""
        return _word_of(self.said.get(row["decision_id"], ()), then_ms)


def _timeline(around: _Around) -> list[dict[str, Any]]:
    return [{**each, "standing": around.standing(each)} for each in around.timeline]


def _similar(around: _Around) -> list[dict[str, Any]]:
    return [
        {**each, "likeness": close, "standing": around.standing(each)}
        for close, each in around.near
    ]


def _graph(row: Row, around: _Around) -> drawings.Graph:
    """Return who else used the same things until then, one row a customer."""
    until_ms = row["receive_time_ms"]
    others: dict[tuple[int, str], dict[str, Any]] = {}
    for each in around.sharing:
        standing_then = around.standing(each, until_ms)
        of_thing = others.setdefault((each["kind"], each["value"]), {})
        known = of_thing.get(each["customer_id"])
        if known is None or _RANK[standing_then] < _RANK[known["standing"]]:
            of_thing[each["customer_id"]] = {**each, "standing": standing_then}
    ranked = {
        thing: sorted(found.values(), key=lambda one: _RANK[one["standing"]])
        for thing, found in others.items()
    }
    return drawings.graph(row["customer_id"], around.things, ranked)


_RANK = {
    "fraud": 0, "fraud later": 1, "legitimate": 2, "legitimate later": 3, "unclear": 4,
    "unclear later": 5, "open": 6, "none": 7,
}  # fmt: skip


def _word_of(labels: Sequence[Row], then_ms: int | None) -> str:
    """Return what is known of a decision; "… later" for what was not at a time."""
    left = standing(labels)
    if not left:
        return "none"
    later = then_ms is not None and left[-1]["seen_ms"] > then_ms
    return verdict_of(left[-1]["verdict"]) + (" later" if later else "")
