"""Owns what goes wrong with labels on a stream: poison (E) and an outage (F). Elsewhere nothing.

Poison: from the onset on one analyst in five says the opposite of what is true, and calls fraud a
few small payments without contact a minute, which nobody asked for. Outage: no label comes for 40
minutes from ten minutes after the onset on; then all of them at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.adaptation.streams import GOOD, Stream
from tests.adaptation.world import MINUTE_MS

FIRST_ANALYST = 1_000
LIAR = 0
LIES_A_MINUTE = 3
OUTAGE_FROM, OUTAGE_UNTIL = 10, 50  # minutes after the onset


class Troubles:
    """No trouble at all."""

    def __init__(self, stream: Stream) -> None:
        self._stream, self._onset_ms = stream, stream.scale.onset_ms

    def lies(self, row: np.void, when: int) -> bool:
        """Return whether who judges the payment says the opposite."""
        return False

    def heard_ms(self, when: int) -> int:
        """Return when what is said comes through."""
        return when

    def false_labels(self, first: int, stop: int) -> Iterator[tuple[Any, ...]]:
        """Yield labels that nobody asked for, of payments ``first`` until ``stop``."""
        return iter(())


class Poison(Troubles):
    """A lying analyst."""

    def __init__(self, stream: Stream) -> None:
        super().__init__(stream)
        rng = np.random.default_rng([stream.seed, 50])
        rows = stream.rows
        late = (rows["time_ms"] >= self._onset_ms) & (rows["kind"] == GOOD)
        pattern = late & (rows["amount_ref"] < 800)
        share = LIES_A_MINUTE * stream.scale.after_minutes / max(int(pattern.sum()), 1)
        self._picked = pattern & (rng.random(len(rows)) < share)

    def lies(self, row: np.void, when: int) -> bool:
        """Return whether it is the liar, from the onset on."""
        return int(row["analyst"]) == LIAR and when >= self._onset_ms

    def false_labels(self, first: int, stop: int) -> Iterator[tuple[Any, ...]]:
        """Yield small payments that the liar calls fraud."""
        for at in (first + np.flatnonzero(self._picked[first:stop])).tolist():
            when = int(self._stream.rows["judged_ms"][at])
            yield at, when, True, True, FIRST_ANALYST + LIAR


class Outage(Troubles):
    """Nobody is heard for a while."""

    def heard_ms(self, when: int) -> int:
        """Return the end of the outage for what is said in it."""
        minute = (when - self._onset_ms) / MINUTE_MS
        if OUTAGE_FROM <= minute < OUTAGE_UNTIL:
            return self._onset_ms + OUTAGE_UNTIL * MINUTE_MS
        return when


def troubles_of(stream: Stream) -> Troubles:
    """Return what goes wrong on a stream."""
    return {"E": Poison, "F": Outage}.get(stream.attack, Troubles)(stream)
