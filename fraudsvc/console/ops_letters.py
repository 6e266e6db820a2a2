"""The page of dead letters: what was passed over, and sending it again.

Owns how a letter is shown. Where letters come from, and what sending again means, is ``letters``'.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from featurizer.eventlog import LogError
from fraudsvc.console.audit import AuditTrail
from fraudsvc.console.forms import Form, posted
from fraudsvc.console.letters import Letters
from fraudsvc.console.pages import Templates, see
from fraudsvc.console.person import LEAD
from fraudsvc.console.sheets import Column, Sheet, exported
from fraudsvc.dead_letters import SECRET_REASONS, Letter

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
    """Shows letters of each of ``places``, the first unless told, and sends one again."""

    def __init__(
        self, templates: Templates, trail: AuditTrail, places: Mapping[str, Letters]
    ) -> None:
        self._templates, self._trail, self._places = templates, trail, places

    def _at(self, name: str) -> tuple[str, Letters]:
        """Return the place of a name, the first for none of ours."""
        name = name if name in self._places else next(iter(self._places))
        return name, self._places[name]

    def routes(self) -> list[BaseRoute]:
        """Return the paths."""
        return [Route("/dead-letters", self.page), posted("/dead-letters/resend", self._resend)]

    def page(self, request: Request) -> Response:
        """Show letters, newest first, or export them."""
        at, place = self._at(request.query_params.get("at", ""))
        try:
            letters = place.all()[::-1]
        except LogError as error:
            what, again = f"They cannot be read: {error}.", (f"/dead-letters?at={at}", "Try again")
            return self._templates.message(request, 503, "Not available right now", what, again)
        wanted = request.query_params.get("reason", "")
        rows = [_row(each) for each in letters if each.content.reason.startswith(wanted)]
        sheet = Sheet("dead-letters", COLUMNS, rows)
        answer = exported(request, sheet, self._trail)
        if answer is not None:
            return answer
        return self._templates.page(
            request, "letters.html", sheet=Sheet("dead-letters", COLUMNS, rows[:SHOWN]),
            total=len(rows), reason=wanted, at=at, places=[*self._places],
            may=request.state.person.may(LEAD),
            reasons=sorted({each.content.reason for each in letters}),
        )  # fmt: skip

    def _resend(self, request: Request, form: Form) -> Response:
        at, place = self._at(form("at"))
        path, number = f"/dead-letters?at={at}", form("number")
        back = (path, "Back to the letters")
        try:
            told = {str(each.number): each for each in place.all()}
        except LogError as error:
            what = f"Letters cannot be read: {error}."
            return self._templates.message(request, 503, "Not sent", what, back)
        letter = told.get(number)
        if letter is None or letter.content.reason in SECRET_REASONS:
            what = "There is no such letter, or it may hold a card number: its sender must mend it."
            return self._templates.message(request, 400, "Not sent", what, back)
        if letter.resent and form("again") != "yes":
            what = f"It was sent again already, as {letter.resent[-1]}. Send it once more by hand."
            return self._templates.message(request, 409, "Not sent", what, back)
        person = request.state.person
        self._trail.audit(person, "resend dead letter", f"{at} {number}", new=letter.content.reason)
        try:
            place.resend(letter, person.name)
        except LogError as error:
            what = f"It cannot be sent again: {error}."
            return self._templates.message(request, 409, "Not sent", what, back)
        return see(path)
