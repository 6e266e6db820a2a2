"""The page of dead letters: what was passed over, and sending it again.

Owns how a letter is shown. What sending again means is ``dead_letters_local``'s.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from featurizer.eventlog import EventLog, LogError
from fraudsvc.console.audit import AuditTrail
from fraudsvc.console.forms import Form, posted
from fraudsvc.console.pages import Templates, see
from fraudsvc.console.person import LEAD
from fraudsvc.console.readmodel_operations import Operations
from fraudsvc.console.sheets import Column, Sheet, exported
from fraudsvc.dead_letters import SECRET_REASONS, Letter, joined_letters
from fraudsvc.dead_letters_local import LocalDeadLetters

COLUMNS = (
    Column("number", "Number", "count"), Column("letter_time_ms", "When", "time"),
    Column("topic", "Topic"), Column("offset", "Position", "count"), Column("reason", "Why"),
    Column("detail", "In detail"), Column("author", "By"), Column("resent", "Sent again as"),
)  # fmt: skip
SHOWN = 200


def _row(letter: Letter) -> dict[str, Any]:
    content = letter.content
    return {
        "number": letter.number, "letter_time_ms": content.letter_time.ToMilliseconds(),
        "topic": content.topic, "offset": content.offset, "reason": content.reason,
        "detail": content.detail, "author": content.author,
        "resent": ", ".join(map(str, letter.resent)),
        "can": content.reason not in SECRET_REASONS,
    }  # fmt: skip


class LettersPage:
    """Shows letters of this host's log, and sends one again."""

    def __init__(
        self, templates: Templates, operations: Operations, trail: AuditTrail, log: EventLog
    ) -> None:
        self._templates, self._operations, self._trail = templates, operations, trail
        self._letters = LocalDeadLetters(log)

    def routes(self) -> list[BaseRoute]:
        """Return the paths."""
        return [Route("/dead-letters", self.page), posted("/dead-letters/resend", self._resend)]

    def page(self, request: Request) -> Response:
        """Show letters, newest first, or export them."""
        letters = joined_letters(self._operations.letters())[::-1]
        wanted = request.query_params.get("reason", "")
        rows = [_row(each) for each in letters if each.content.reason.startswith(wanted)]
        sheet = Sheet("dead-letters", COLUMNS, rows)
        answer = exported(request, sheet, self._trail)
        if answer is not None:
            return answer
        return self._templates.page(
            request, "letters.html", sheet=Sheet("dead-letters", COLUMNS, rows[:SHOWN]),
            total=len(rows), reason=wanted, may=request.state.person.may(LEAD),
            reasons=sorted({each.content.reason for each in letters}),
        )  # fmt: skip

    def _resend(self, request: Request, form: Form) -> Response:
        back, number = ("/dead-letters", "Back to the letters"), form("number")
        told = {str(each.number): each for each in joined_letters(self._operations.letters())}
        letter = told.get(number)
        if letter is None or letter.content.reason in SECRET_REASONS:
            what = "There is no such letter, or it may hold a card number: its sender must mend it."
            return self._templates.message(request, 400, "Not sent", what, back)
        if letter.resent and form("again") != "yes":
            what = f"It was sent again already, as {letter.resent[-1]}. Send it once more by hand."
            return self._templates.message(request, 409, "Not sent", what, back)
        person = request.state.person
        self._trail.audit(person, "resend dead letter", number, new=letter.content.reason)
        try:
            self._letters.resend(letter, person.name)
        except LogError as error:
            what = f"It cannot be sent again: {error}."
            return self._templates.message(request, 409, "Not sent", what, back)
        return see("/dead-letters")
