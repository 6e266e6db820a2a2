"""Where dead letters are shown from and sent again: this host's log, and Kafka where there is one.

Owns what the page asks of both. What sending again means is ``dead_letters``'.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Protocol, TypeVar

from featurizer.eventlog import EventLog, LogError
from featurizer.kafka_settings import KafkaSettings
from fraudsvc.console.readmodel_operations import Operations
from fraudsvc.dead_letters import DeadLetters, Letter, joined_letters
from fraudsvc.dead_letters_local import LocalDeadLetters

WAIT_S = 20.0  # for Kafka
T = TypeVar("T")


class Letters(Protocol):
    """The letters of one place. Raises LogError, ReadModelError."""

    def all(self) -> list[Letter]:
        """Return every letter that is kept, oldest first."""
        ...

    def resend(self, letter: Letter, author: str) -> int:
        """Send a letter's record again; return its new number."""
        ...


class HostLetters:
    """Letters of this host: shown from the read model, sent again by its log."""

    def __init__(self, operations: Operations, log: EventLog) -> None:
        self._operations, self._log = operations, LocalDeadLetters(log)

    def all(self) -> list[Letter]:
        """Return every letter that is kept, oldest first."""
        return joined_letters(self._operations.letters())

    def resend(self, letter: Letter, author: str) -> int:
        """Append a letter's label again; return its position."""
        return self._log.resend(letter, author)


class KafkaLetters:
    """Letters of the stages that read Kafka, read from there each time."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self._letters = DeadLetters(kafka)

    def all(self) -> list[Letter]:
        """Return every letter that is kept, oldest first."""
        return _within(self._letters.all())

    def resend(self, letter: Letter, author: str) -> int:
        """Send a letter's record again, to where it was; return its offset."""
        return _within(self._letters.resend(letter, author))


def _within(asked: Coroutine[None, None, T]) -> T:
    try:
        return asyncio.run(asyncio.wait_for(asked, WAIT_S))
    except TimeoutError as error:
        raise LogError(f"Kafka does not answer within {WAIT_S:.0f} s") from error
