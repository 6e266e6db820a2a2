"""What is done with a case: claim, release, assign, verdict, undo, override, replay.

Owns what may be done when, and what is told. A verdict is a label that the scorer puts on the log;
the read model shows it once it has read it from there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from fraud.v1 import decision_pb2, fraud_service_pb2, label_pb2
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from fraudsvc.console.access import is_name
from fraudsvc.console.desk import Desk, Form, posted
from fraudsvc.console.pages import person_of, see, wants_json
from fraudsvc.console.person import LEAD, Person
from fraudsvc.console.policy_entries import Entry, add_entry
from fraudsvc.console.readmodel import Row
from fraudsvc.console.scorer_client import ScorerGoneError
from fraudsvc.policy import LISTABLE, PolicyError

VERDICTS = {
    "fraud": label_pb2.VERDICT_FRAUD,
    "legitimate": label_pb2.VERDICT_LEGITIMATE,
    "unclear": label_pb2.VERDICT_UNCLEAR,
}
MANY_MAX = 200  # cases of one verdict
NOTE_BYTES_MAX = 1_024  # of the contract
HOURS_MAX = 24.0 * 90
SHOWN_WITHIN_S = 2.0  # how long an answer waits for the read model to show what was done
LOOK_S = 0.05
_REJECTED = fraud_service_pb2.LABEL_STATUS_REJECTED


class RefusedError(Exception):
    """What was asked for cannot be done: status, title and text for a person."""

    def __init__(self, status: int, title: str, what: str) -> None:
        super().__init__(what)
        self.status, self.title, self.what = status, title, what


class CaseActions:
    """What the paths that change something answer."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def routes(self) -> list[BaseRoute]:
        """Return the paths."""
        named = {
            "claim": self.claim, "release": self.release, "assign": self.assign,
            "verdict": self.verdict, "undo": self.undo, "override": self.override,
            "replay": self.replay,
        }  # fmt: skip
        return [
            Route(f"/cases/{{id}}/{name}", posted(self._answering(act)), methods=["POST"])
            for name, act in named.items()
        ]

    def _answering(self, act: Any) -> Any:
        """Return a handler that answers what ``act`` tells, or why it refused."""

        def handler(request: Request, form: Form) -> Response:
            decision_id = request.path_params["id"]
            try:
                told = act(person_of(request), decision_id, form)
            except RefusedError as error:
                back = (f"/cases/{decision_id}", "Back to the case")
                return self._desk.templates.message(
                    request, error.status, error.title, error.what, back
                )
            if wants_json(request):
                return JSONResponse(told)
            return see(told.get("path", f"/cases/{decision_id}"))

        return handler

    def claim(self, person: Person, decision_id: str, form: Form) -> dict[str, Any]:
        """Take a case, or hold it for longer."""
        del form
        desk, now_ms = self._desk, self._desk.now_ms()
        before = desk.queue.held_by([decision_id], now_ms).get(decision_id, "")
        if desk.queue.case(decision_id, now_ms) is None:
            raise RefusedError(404, "No such case", "Only what is to be reviewed can be claimed.")
        if not desk.queue.claim(decision_id, person.name, now_ms, desk.claim_ms):
            raise RefusedError(409, "Held", f"{before or 'Somebody else'} holds this case.")
        if before != person.name:
            desk.trail.audit(person, "claim case", decision_id, before, person.name)
        return {"holder": person.name}

    def release(self, person: Person, decision_id: str, form: Form) -> dict[str, Any]:
        """Let go of a case."""
        del form
        self._desk.trail.audit(person, "release case", decision_id, person.name)
        if not self._desk.queue.release(decision_id, person.name):
            raise RefusedError(409, "Not held", "You do not hold this case (any more).")
        return {"path": "/queue", "text": "Released"}

    def assign(self, person: Person, decision_id: str, form: Form) -> dict[str, Any]:
        """Give a case to somebody: one's own, or anybody's where the person leads."""
        desk, now_ms, heir = self._desk, self._desk.now_ms(), form["to"]
        if not is_name(heir):
            raise RefusedError(400, "No name", "Say to whom: the name that they sign in by.")
        if desk.queue.case(decision_id, now_ms) is None:
            raise RefusedError(404, "No such case", "Only what is to be reviewed can be assigned.")
        before = desk.queue.held_by([decision_id], now_ms).get(decision_id, "")
        if before not in ("", person.name) and not person.may(LEAD):
            raise RefusedError(409, "Held", f"{before} holds this case; a lead can give it away.")
        desk.trail.audit(person, "assign case", decision_id, before, heir)
        desk.queue.assign(decision_id, heir, now_ms, desk.claim_ms)
        return {"path": "/queue", "text": f"Given to {heir}"}

    def verdict(self, person: Person, decision_id: str, form: Form) -> dict[str, Any]:
        """Send a verdict on a case, and on those that were ticked with it."""
        word = form["verdict"]
        if word not in VERDICTS:
            raise RefusedError(400, "No verdict", f"One of {', '.join(VERDICTS)}.")
        note = " — ".join(filter(None, (form["reason"], form["note"])))
        if len(note.encode()) > NOTE_BYTES_MAX:
            raise RefusedError(400, "Too long", "A note has 1,024 bytes at most, its reason too.")
        rows = self._rows([decision_id, *form.all("also")])
        held = self._desk.queue.held_by([row["decision_id"] for row in rows], self._desk.now_ms())
        others = sorted({name for name in held.values() if name != person.name})
        if others:
            what = f"{', '.join(others)} holds it, or one of those with it: nothing was sent."
            raise RefusedError(409, "Held", what)
        self._send(person, rows, VERDICTS[word], note, f"verdict {word}")
        for row in rows:
            self._desk.queue.release(row["decision_id"], person.name)
        count = f" on {len(rows)} cases" if len(rows) > 1 else ""
        ids = [row["decision_id"] for row in rows]
        return {"text": f"{word.capitalize()}{count}, on the log", "ids": ids}

    def undo(self, person: Person, decision_id: str, form: Form) -> dict[str, Any]:
        """Take back one's own verdicts, as a label of its own; the cases are open again."""
        desk = self._desk
        rows = [
            row for row in self._rows([decision_id, *form.all("also")])
            if self._may_undo(person, row["decision_id"])
        ]  # fmt: skip
        if not rows:
            minutes = f"{desk.options.undo_minutes:g}"
            what = f"There is no verdict of yours here that is younger than {minutes} minutes."
            raise RefusedError(409, "Nothing to undo", what)
        self._send(person, rows, label_pb2.VERDICT_RETRACTED, "undone", "undo verdict")
        return {"text": "Undone: it is in the queue again"}

    def _may_undo(self, person: Person, decision_id: str) -> bool:
        own = [e for e in self._desk.model.labels(decision_id) if e["reporter"] == person.name]
        is_said = bool(own) and own[-1]["verdict"] != label_pb2.VERDICT_RETRACTED
        return is_said and self._desk.now_ms() - own[-1]["seen_ms"] < self._desk.undo_ms

    def _rows(self, decision_ids: Sequence[str]) -> list[Row]:
        ids = list(dict.fromkeys(decision_ids))
        if len(ids) > MANY_MAX:
            raise RefusedError(400, "Too many", f"At most {MANY_MAX} cases at once.")
        found = [self._desk.model.decision(each) for each in ids]
        rows = [row for row in found if row is not None]
        if len(rows) < len(ids):
            raise RefusedError(404, "No such case", "One of these is not kept: nothing was sent.")
        return rows

    def _send(
        self, person: Person, rows: Sequence[Row], verdict: Any, note: str, what: str
    ) -> None:
        """Report a label on each; wait until it is shown, but not for long."""
        desk, labels = self._desk, []
        now_ms = desk.now_ms()
        before = {row["decision_id"]: len(desk.model.labels(row["decision_id"])) for row in rows}
        for row in rows:
            label = label_pb2.Label(
                transaction_id=row["transaction_id"], verdict=verdict, note=note,
                source=label_pb2.LABEL_SOURCE_ANALYST, reporter=person.name,
            )  # fmt: skip
            label.label_time.FromMilliseconds(now_ms)
            labels.append(label)
            desk.trail.audit(person, what, row["decision_id"], why=note)
        try:
            results = desk.scorer.report(labels)
        except ScorerGoneError as error:
            text = f"{error}. What you wrote is still here: send it again in a moment."
            raise RefusedError(503, "The scorer does not answer", text) from error
        refused = [each.error.message for each in results if each.status == _REJECTED]
        if refused:
            raise RefusedError(422, "Not taken", f"{len(refused)} of {len(rows)}: {refused[0]}")
        deadline = time.monotonic() + SHOWN_WITHIN_S
        while time.monotonic() < deadline and any(
            len(desk.model.labels(each)) <= count for each, count in before.items()
        ):
            time.sleep(LOOK_S)

    def override(self, person: Person, decision_id: str, form: Form) -> dict[str, Any]:
        """Put an override or a list entry with an end into the policy."""
        if not person.may(LEAD):
            raise RefusedError(403, "Not allowed", "Only a lead may change the policy.")
        (row,) = self._rows([decision_id])
        payment = decision_pb2.Decision.FromString(row["body"]).transaction
        field, why = form["field"], form["why"]
        value = LISTABLE[field](payment) if field in LISTABLE else ""
        kind, _, action = form["action"].partition(" ")
        hours = _hours(form["hours"])
        if not value or not why or kind not in ("override", "list"):
            raise RefusedError(400, "Incomplete", "It needs a field, an action, and a reason.")
        now_ms = self._desk.now_ms()
        end_ms = now_ms + round(hours * 3_600_000)
        entry = Entry(kind, action, field, value, end_ms, person.name, why)
        self._desk.trail.audit(
            person, f"{kind} entry", f"{field} {value}", new=json.dumps(entry._asdict()), why=why
        )
        try:
            version = add_entry(self._desk.options.policy, entry, now_ms)
        except (PolicyError, OSError) as error:
            raise RefusedError(409, "The policy stays as it was", str(error)) from error
        return {"text": f"In the policy as {version}, for {hours:g} hours"}

    def replay(self, person: Person, decision_id: str, form: Form) -> dict[str, Any]:
        """Make the decision again, and tell whether the same bytes came out."""
        del form
        self._rows([decision_id])
        self._desk.trail.audit(person, "replay decision", decision_id)
        return self._desk.replays.run(decision_id)._asdict()


def _hours(text: str) -> float:
    try:
        hours = float(text)
    except ValueError:
        hours = 0.0
    if not 0 < hours <= HOURS_MAX:
        raise RefusedError(400, "No end", f"It ends within {HOURS_MAX:g} hours.")
    return hours
