"""What decisions of one go say of their steps, as they end.

Owns which steps are told once for all, by the field ``shared`` of a Decision, and which once each.
Must not know what is done in a step.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np
from fraud.v1 import decision_pb2
from numpy.typing import NDArray

from featurizer.eventlog import Entry, Topic
from fraudsvc.answers import Stamp
from fraudsvc.calls import MS, Call, Clocks

_STEP_MAX = (1 << 32) - 1


class SharedSteps:
    """A call of ``items`` transactions, or so many payments that were read together."""

    in_order = True

    def __init__(self, call: Call, clocks: Clocks, items: int) -> None:
        drawn = os.urandom(24)
        self._trace_id = drawn[:16].hex().encode()
        self._call = call
        self._items_left = items
        self._made = decision_pb2.Decision()
        self._made.shared.number = int.from_bytes(drawn[16:], "little")
        self._made.shared.items = items
        self.now_ns: Callable[[], int] = clocks.monotonic_ns
        arrive_ns = clocks.now_ms() * MS - (clocks.monotonic_ns() - call.arrival_ns)
        self._made.shared.arrive_time.FromNanoseconds(arrive_ns)
        self._ends: list[int] = []

    def begin(self) -> None:
        """Begin with those whose turn it is."""
        self._ends.clear()
        self.end()

    def end(self, now_ns: int = 0) -> int:
        """Take in that a step has ended, now or at ``now_ns``; return when."""
        ended_ns = now_ns or self.now_ns()
        self._ends.append(min(max(0, ended_ns - self._call.arrival_ns), _STEP_MAX))
        return ended_ns

    def accept(self, items: int) -> None:
        """Take in that so many have been accepted, or refused."""
        self._items_left -= items
        self.end()

    def own(self) -> Call:
        """Return the call that one of them is: it begins now, and all are of one trace."""
        _, deadline_ns, traceparent, *_ = call = self._call
        return Call(self.now_ns(), deadline_ns, traceparent, call.arrival_ns, self._trace_id)

    def calls(self, places: Sequence[int]) -> list[Call]:
        """Return the call that each at ``places`` is, if they are decided from now on."""
        return [self.own()] * len(places)

    def stamp(self, stamp: Stamp, calls: Sequence[Call]) -> tuple[Stamp, None]:
        """Return the stamp with what all say that were decided, the last step being over."""
        first = calls[0]
        used_ns = self.end() - first.arrival_ns
        told = stamp._replace(used_ns=used_ns, arrival_ns=first.steps_ns, shared=self.field())
        return told, None

    def field(self) -> bytes:
        """Return the field as it stands in a Decision, its last one."""
        shared = self._made.shared
        shared.items_left = self._items_left
        shared.step_ns[:] = self._ends
        return self._made.SerializeToString(deterministic=True)

    def told(self, entries: Sequence[Entry]) -> Sequence[Entry]:
        """Return the entries of decisions, saying that they were made one by one until now."""
        self.end()
        said = self.field()
        return [
            each._replace(value=each.value + said) if each.topic == Topic.DECISIONS else each
            for each in entries
        ]


class OwnSteps:
    """Calls that are decided in one go, each of which tells its steps as if it were alone."""

    in_order = False

    def __init__(self, calls: Sequence[Call], clocks: Clocks) -> None:
        self._calls = calls
        self.now_ns: Callable[[], int] = clocks.monotonic_ns
        self._accepted_ns = self._loaded_ns = 0

    def begin(self) -> None:
        """Begin."""

    def accept(self, _: int) -> None:
        """Take in that they have been accepted, or refused."""
        self._accepted_ns = self.now_ns()

    def end(self, now_ns: int = 0) -> int:
        """Take in that the states were there at ``now_ns``; what else ends, none tells."""
        self._loaded_ns = now_ns or self._loaded_ns
        return self._loaded_ns

    def calls(self, places: Sequence[int]) -> list[Call]:
        """Return the calls at ``places``."""
        return [self._calls[place] for place in places]

    def stamp(self, stamp: Stamp, calls: Sequence[Call]) -> tuple[Stamp, NDArray[np.int64]]:
        """Return the stamp, and what each says: int64[n, 4] as ``BatchWriter.entries`` has it."""
        now_ns, between = self.now_ns(), (self._accepted_ns, self._loaded_ns)
        rows = [(now_ns - call.arrival_ns, call.arrival_ns, *between) for call in calls]
        return stamp, np.array(rows, np.int64)

    def told(self, entries: Sequence[Entry]) -> Sequence[Entry]:
        """Return the entries of decisions that were made one by one: they say all already."""
        return entries


StepsOfMany = SharedSteps | OwnSteps
