"""Answers calls of Score: those that are ready at the same time are decided together.

Owns what of a call goes to the scorer, and that each call gets an answer or an error, whatever
happens. Must not know how calls come in, nor what a decision is made of.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from fraudsvc.answers import field
from fraudsvc.calls import Call
from fraudsvc.errors import ServiceError, code_of, from_exception
from fraudsvc.scorer import Scorer
from fraudsvc.turns import TurnContext

_log = logging.getLogger(__name__)
METHOD = "Score"
Note = Callable[[str, str, int], object]


def failed(method: str, error: Exception, note: Note) -> ServiceError:
    """Return what the caller of a method is told of an exception; log what is nobody's fault."""
    known = from_exception(error)
    if known is not error:
        _log.error("a call failed", exc_info=error)
    note(method, code_of(known), 0)
    return known


class Asked(NamedTuple):
    """A call that may go on: its transaction's bytes, what is known of it, and its wish."""

    transaction: bytes
    call: Call
    validate_only: bool


class Scoring:
    """Answers calls of Score with ``scorer``.

    ``read`` makes of a request's bytes and its context what is asked, or raises why it may not be.
    ``note`` is told of each call, as in ``Server``.
    """

    def __init__(
        self, scorer: Scorer, read: Callable[[bytes, TurnContext], Asked], note: Note
    ) -> None:
        self._scorer = scorer
        self._read = read
        self._note = note

    def answer(self, waiting: Sequence[tuple[bytes, TurnContext]]) -> list[bytes | ServiceError]:
        """Return for each the bytes of a ScoreResponse, or the error that its call ends with."""
        asked = [self._asked(body, context) for body, context in waiting]
        decided = iter(self._decide([each for each in asked if isinstance(each, Asked)]))
        return [
            failed(METHOD, each, self._note)
            if isinstance(each, Exception)
            else self._told(each, next(decided))
            for each in asked
        ]

    def _asked(self, body: bytes, context: TurnContext) -> Asked | Exception:
        try:
            return self._read(body, context)
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller is told
            return error

    def _decide(self, asked: Sequence[Asked]) -> list[bytes | Exception]:
        """Decide several together, but for those that only want to know; one alone."""
        places = [i for i, each in enumerate(asked) if not each.validate_only]
        together: dict[int, bytes | Exception] = {}
        if len(places) > 1:
            several = self._decide_several([asked[i] for i in places])
            together = dict(zip(places, several, strict=True))
        return [
            together[i] if i in together else self._decide_one(each) for i, each in enumerate(asked)
        ]

    def _decide_several(self, asked: Sequence[Asked]) -> Sequence[bytes | Exception]:
        transactions, calls, _ = zip(*asked, strict=True)
        try:
            return self._scorer.score_several(transactions, calls)
        except Exception as error:  # noqa: BLE001 - as above
            return [error] * len(asked)

    def _decide_one(self, asked: Asked) -> bytes | Exception:
        transaction, call, validate_only = asked
        try:
            return self._scorer.score(transaction, call, validate_only=validate_only)
        except Exception as error:  # noqa: BLE001 - as above
            return error

    def _told(self, asked: Asked, decided: bytes | Exception) -> bytes | ServiceError:
        if isinstance(decided, Exception):
            return failed(METHOD, decided, self._note)
        self._note(METHOD, "OK", time.perf_counter_ns() - asked.call.arrival_ns)
        return field(b"\x0a", decided)
