"""Dead letters of one host without Kafka: labels that the trainer could not use, on its own log.

Owns how they are found there and what sending again means: the label alone, as what it says of
features was taken in when it came. A letter's number is its position. Raises LogError.
"""

from __future__ import annotations

from collections.abc import Iterator

from featurizer.eventlog import Entry, EventLog, LogError, Topic
from fraudsvc.dead_letters import Letter, joined_letters, letter_of, refuse_secret, resent_note

READ_BYTES = 4 << 20


class LocalDeadLetters:
    """The letters of a host's log."""

    def __init__(self, log: EventLog) -> None:
        self._log = log

    def all(self) -> list[Letter]:
        """Return every letter that is kept, oldest first."""
        told = self._entries(Topic.DEAD_LETTERS)
        return joined_letters((position, entry.value) for position, entry in told)

    def one(self, number: int) -> Letter:
        """Return a letter by its number. Raises LogError where there is none."""
        return letter_of(number, self.all())

    def record(self, letter: Letter) -> Entry:
        """Return what a letter is about. Raises LogError where that is gone."""
        for position, entry in self._entries(Topic.LABELS):
            if position == letter.content.offset:
                return entry
        raise LogError(f"position {letter.content.offset} is kept no more")

    def resend(self, letter: Letter, author: str) -> int:
        """Append a letter's label again; return its new position."""
        refuse_secret(letter)
        [frame, _] = self._log.append([[self.record(letter)]])
        note = resent_note(letter, author, frame + 1)
        self._log.append([[Entry(Topic.DEAD_LETTERS, 0, note)]])
        return frame + 1

    def _entries(self, topic: Topic) -> Iterator[tuple[int, Entry]]:
        position = self._log.ends()[0]
        while (batch := self._log.read(position, READ_BYTES)).next_position != position:
            position = batch.next_position
            for i in (batch.topics == topic).nonzero()[0].tolist():
                yield int(batch.positions[i]), Entry(topic, int(batch.keys[i]), batch.value(i))
