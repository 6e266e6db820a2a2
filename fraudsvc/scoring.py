"""Answers calls of Score: those that are ready at the same time are decided together.

Owns what of a call goes to the scorer, and that each call gets an answer or a status, whatever
happens. Must not know how calls come in, nor what a decision is made of.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import grpc

from fraudsvc.answers import field
from fraudsvc.calls import Call
from fraudsvc.errors import code_of, ending_of, from_exception
from fraudsvc.scorer import Scorer
from fraudsvc.turns import TurnContext

_log = logging.getLogger(__name__)
METHOD = "Score"
Note = Callable[[str, str, int], object]


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

    def answer(self, waiting: Sequence[tuple[bytes, TurnContext]]) -> list[bytes | grpc.Status]:
        """Return for each the bytes of a ScoreResponse, or the status that its call ends with."""
        asked = [self._asked(body, context) for body, context in waiting]
        decided = iter(self._decide([each for each in asked if isinstance(each, Asked)]))
        return [
            self._status(each) if isinstance(each, Exception) else self._told(each, next(decided))
            for each in asked
        ]

    def _asked(self, body: bytes, context: TurnContext) -> Asked | Exception:
        try:
            return self._read(body, context)
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller gets a status
            return error

    def _decide(self, asked: Sequence[Asked]) -> Sequence[bytes | Exception]:
        """Decide one alone, and several together but for those that only want to know."""
        if len(asked) < 2 or any(each.validate_only for each in asked):
            return [self._decide_one(each) for each in asked]
        try:
            transactions, calls, _ = zip(*asked, strict=True)
            return self._scorer.score_several(transactions, calls)
        except Exception as error:  # noqa: BLE001 - as above
            return [error] * len(asked)

    def _decide_one(self, asked: Asked) -> bytes | Exception:
        transaction, call, validate_only = asked
        try:
            return self._scorer.score(transaction, call, validate_only=validate_only)
        except Exception as error:  # noqa: BLE001 - as above
            return error

    def _told(self, asked: Asked, decided: bytes | Exception) -> bytes | grpc.Status:
        if isinstance(decided, Exception):
            return self._status(decided)
        self._note(METHOD, "OK", time.perf_counter_ns() - asked.call.arrival_ns)
        return field(b"\x0a", decided)

    def _status(self, error: Exception) -> grpc.Status:
        known = from_exception(error)
        if known is not error:
            _log.error("a call failed", exc_info=error)
        self._note(METHOD, code_of(known), 0)
        return ending_of(known)
