"""Dead letters: what was passed over, shown to a person, and sent again.

Owns how a letter is found and what sending again means. A letter names a place; what stands there
is read when it is asked for, and is gone when the topic no longer keeps it.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import NamedTuple

from fraud.v1 import dead_letter_pb2

from featurizer.eventlog import LogError
from featurizer.eventlog_kafka import Consumer, Message, Partition, Producer, Received
from featurizer.kafka_settings import KafkaSettings
from featurizer.splitter import read_all

TOPIC = "dead-letters"
# What may be shown of a record, and sent again: not one that was refused for a card number.
SECRET_REASONS = ("CARD_NUMBER_REFUSED",)


class Letter(NamedTuple):
    """A letter: its number on the topic, what it says, and as which offsets it was sent again."""

    number: int
    content: dead_letter_pb2.DeadLetter
    resent: tuple[int, ...]

    @property
    def place(self) -> tuple[Partition, int]:
        """The record's partition and offset."""
        return (self.content.topic, self.content.partition), self.content.offset


def joined_letters(told: Iterable[tuple[int, bytes]]) -> list[Letter]:
    """Return the letters of numbers and bytes, oldest first; a note on a resend is no letter."""
    found: dict[tuple[Partition, int], Letter] = {}
    for number, data in told:
        content = dead_letter_pb2.DeadLetter.FromString(data)
        letter = Letter(number, content, ())
        first = found.setdefault(letter.place, letter)
        if content.HasField("resent_offset"):
            resent = (*first.resent, content.resent_offset)
            found[letter.place] = first._replace(resent=resent)
    return list(found.values())


def letter_of(number: int, letters: Sequence[Letter]) -> Letter:
    """Return a letter by its number. Raises LogError where there is none."""
    for letter in letters:
        if letter.number == number:
            return letter
    raise LogError(f"there is no dead letter {number}")


def refuse_secret(letter: Letter) -> None:
    """Raise LogError for a letter whose record must not be sent again as it is."""
    if letter.content.reason in SECRET_REASONS:
        raise LogError("it holds what looks like a card number: whoever sent it must mend it")


def resent_note(letter: Letter, author: str, offset: int) -> bytes:
    """Return what is noted of a letter that was sent again, as ``offset``."""
    note = dead_letter_pb2.DeadLetter()
    note.CopyFrom(letter.content)
    note.author, note.resent_offset = author, offset
    note.letter_time.FromMilliseconds(time.time_ns() // 1_000_000)
    return note.SerializeToString()


@dataclass(frozen=True, slots=True)
class DeadLetters:
    """The letters of a Kafka cluster. Raises LogError."""

    kafka: KafkaSettings

    async def all(self) -> list[Letter]:
        """Return every letter that is kept, oldest first."""
        async with self._reader() as reader:
            return joined_letters(
                [(each.offset, each.value or b"") async for each in read_all(reader, self._at, 0)]
            )

    async def one(self, number: int) -> Letter:
        """Return a letter by its number. Raises LogError where there is none."""
        return letter_of(number, await self.all())

    async def record(self, letter: Letter) -> Received:
        """Return what a letter is about. Raises LogError where that is gone."""
        at, offset = letter.place
        async with self._reader() as reader:
            async for record in read_all(reader, at, offset, offset + 1):
                if record.offset == offset:
                    found: Received = record
                    return found
        raise LogError(f"offset {offset} of {at[0]}-{at[1]} is kept no more")

    async def resend(self, letter: Letter, author: str) -> int:
        """Send a letter's record again, to where it was; return its new offset."""
        refuse_secret(letter)
        record = await self.record(letter)
        at, _ = letter.place
        producer = Producer(self.kafka)
        await producer.start()
        try:
            again = await producer.send({at: [Message(record.key or b"", record.value or b"")]})
            note = resent_note(letter, author, again[at])
            await producer.send({self._at: [Message(b"", note)]})
        finally:
            await producer.stop()
        return again[at]

    @property
    def _at(self) -> Partition:
        return self.kafka.topic(TOPIC), 0

    @asynccontextmanager
    async def _reader(self) -> AsyncIterator[Consumer]:
        reader = Consumer(self.kafka)
        try:
            await reader.start()
            yield reader
        finally:
            await reader.stop()
