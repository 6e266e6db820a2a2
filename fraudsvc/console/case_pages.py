"""A case on one page: the payment, what decided, what surrounds it, and what came of it.

Owns which facts are on the page and in which order they are looked up. Must not change anything
but the claim of whoever opens it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

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
        if row["is_open"] and person.may(ANALYST):
            before = desk.queue.held_by([decision_id], now_ms).get(decision_id, "")
            taken = desk.queue.claim(decision_id, person.name, now_ms, desk.claim_ms)
            if taken and before != person.name:
                desk.trail.audit(person, "claim case", decision_id, before, person.name)
        with desk.model.reading():
            told = self._told(row, person, now_ms)
        return desk.templates.page(request, "case.html", **told)

    def _told(self, row: Row, person: Person, now_ms: int) -> dict[str, Any]:
        desk, decision = self._desk, decision_pb2.Decision.FromString(row["body"])
        payment, decision_id = decision.transaction, row["decision_id"]
        labels = [self._label(each, person, now_ms) for each in desk.model.labels(decision_id)]
        shared = case_facts.shared_things(payment)
        held = desk.queue.held_by([decision_id], now_ms).get(decision_id, "")
        left_s = (row["receive_time_ms"] + desk.review_ms - now_ms) / 1000
        contributions = case_facts.contributions(decision)
        return {
            "row": row, "payment": case_facts.payment_facts(payment), "labels": labels,
            "status": self._status(row, labels), "holder": held, "left": left_s, "now_ms": now_ms,
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
            "log_position": decision.log_position, "timeline": self._timeline(row),
            "graph": self._graph(row, shared), "shared": len(shared),
            "similar": self._similar(row, decision),
            "steps": drawings.waterfall(row["trace_id"], desk.model.trace(row["trace_id"])),
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

    def _timeline(self, row: Row) -> list[dict[str, Any]]:
        rows = self._desk.files.timeline(row["customer_id"], row["receive_time_ms"])
        said = self._desk.files.labels_of([each["decision_id"] for each in rows])
        return [
            {**each, "standing": _word_of(said.get(each["decision_id"], ()), None)} for each in rows
        ]

    def _graph(self, row: Row, shared: Sequence[tuple[int, str]]) -> drawings.Graph:
        """Return who else used the same things until then, one row a customer."""
        until_ms = row["receive_time_ms"]
        rows = self._desk.files.sharing(row["decision_id"], shared, until_ms)
        rows = [each for each in rows if each["customer_id"] != row["customer_id"]]
        said = self._desk.files.labels_of(sorted({each["decision_id"] for each in rows}))
        others: dict[tuple[int, str], dict[str, Any]] = {}
        for each in rows:
            standing_then = _word_of(said.get(each["decision_id"], ()), until_ms)
            of_thing = others.setdefault((each["kind"], each["value"]), {})
            known = of_thing.get(each["customer_id"])
            if known is None or _RANK[standing_then] < _RANK[known["standing"]]:
                of_thing[each["customer_id"]] = {**each, "standing": standing_then}
        ranked = {
            thing: sorted(found.values(), key=lambda one: _RANK[one["standing"]])
            for thing, found in others.items()
        }
        return drawings.graph(row["customer_id"], shared, ranked)

    def _similar(self, row: Row, decision: decision_pb2.Decision) -> list[dict[str, Any]]:
        files, codes = self._desk.files, json.loads(row["codes"])[:CODES_COMPARED]
        rows = files.alike(row["decision_id"], codes)
        near = case_facts.likeness(decision.contributions, rows, SIMILAR_SHOWN)
        if not near:
            near = [(0.0, each) for each in rows[:SIMILAR_SHOWN]]
        said = files.labels_of([each["decision_id"] for _, each in near])
        return [
            {**each, "likeness": close, "standing": _word_of(said[each["decision_id"]], None)}
            for close, each in near
        ]  # fmt: skip

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
