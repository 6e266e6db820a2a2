"""The store in Redis, for several hosts: one server, or a cluster, with one writer a partition.

Owns what a Store promises. Must not know what a state means; what stands in Redis, and what fences
a writer, is in redis_layout, and what bounds a call in redis_nodes.

A partition is taken over by opening it: from then on an earlier writer's writes change nothing and
raise StoreError. Redis keeps no versions: a snapshot's position is fixed, its states may be newer.
StoreStale tells that the states are gone, as after a restart without a disk, or of another schema.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from featurizer.redis_layout import (
    DISCARDING,
    EVENT_TIME,
    NUMBER,
    PLACE,
    Label,
    Names,
    read_label,
    read_position,
)
from featurizer.redis_nodes import AnswerLost, Nodes, RedisSettings, pack_argument, slot_of
from featurizer.redis_partition import OtherLabel, Partition, Walk
from featurizer.store import StoreError, StoreStale

__all__ = ["RedisSettings", "RedisSnapshot", "RedisStates", "RedisStore"]

Chance = Callable[[int], bytes]
Clock = Callable[[], float]


@contextmanager
def _numbers_checked() -> Iterator[None]:
    try:
        yield
    except struct.error as error:
        raise StoreError(f"keys, places and positions are of 64 bits: {error}") from error


class RedisSnapshot:
    """A position, and reads that never see less than that. Its buffers stay valid for ever.

    Reads raise StoreError where Redis cannot answer, or has other states by now; StoreStale where
    they are gone.
    """

    __slots__ = ("_label", "_partition")

    def __init__(self, partition: Partition, label: Label) -> None:
        self._partition = partition
        self._label = label

    @property
    def position(self) -> int:
        """Every log record before this position is in the states; newer ones may be."""
        return self._label.position

    def get_many(self, keys: Sequence[int]) -> list[memoryview | None]:
        """Return the state of each entity key (int64), in order; None where there is none."""
        found = self._read(self._partition.names.states, keys)
        return [None if value is None else memoryview(value) for value in found]

    def find_many(self, ids: Sequence[int]) -> list[int | None]:
        """Return for each id hash (int64) the position of its frame, or None."""
        found = self._read(self._partition.names.ids, ids)
        return [None if value is None else NUMBER.unpack(value)[0] for value in found]

    def close(self) -> None:
        """Give the snapshot back."""

    def _read(self, head: bytes, keys: Sequence[int]) -> list[bytes | None]:
        pack, partition = NUMBER.pack, self._partition
        with _numbers_checked():
            names = [head + pack(key) for key in keys]
        found: list[bytes | None] = []
        for chunk in partition.chunks(names):
            value, *values = partition.ask(b"MGET", partition.names.label, *chunk)
            label = read_label(value, self._label.schema)
            if label.epoch != self._label.epoch or label.position < self._label.position:
                raise StoreError("the states are not those of the snapshot any more")
            found += values
        return found


class RedisStore:
    """A Store of one partition, which this object takes over: the last one opened writes.

    ``schema`` is what the states are made by; StoreStale where the partition's is another (then
    call ``discard`` and rebuild from the log). Raises StoreError where Redis cannot be reached, or
    would drop states of its own accord. ``chance`` gives as many random bytes.

    A write is one transaction. Where its answer is lost it may have been made, or still be; the
    next call that changes anything finds out first.
    """

    def __init__(
        self,
        settings: RedisSettings,
        partition: int,
        schema: str,
        *,
        clock: Clock = time.monotonic,
        chance: Chance = os.urandom,
    ) -> None:
        self._settings = settings
        self._walks = (Walk(b"s"), Walk(b"i"))
        self._partition = Partition(settings, partition, clock)
        try:
            self._label = self._take_over(schema, chance)
        except BaseException:
            self.close()
            raise
        self._writes = self._label.writes
        # The labels that may stand there: the one we left, and those whose answers were lost.
        self._possible = {self._label.pack(): self._label}

    def _take_over(self, schema: str, chance: Chance) -> Label:
        memory: bytes = self._partition.ask(b"INFO", b"memory")
        if b"maxmemory_policy:allkeys" in memory:
            raise StoreError("Redis drops states when it is full: set maxmemory-policy noeviction")
        found = self._partition.label()
        label = read_label(found, schema) if found else Label(0, 0, chance(8), b"", schema)
        label = label._replace(writes=label.writes + 1, writer=chance(8))
        self._partition.relabel(found, label.pack())
        return label

    @staticmethod
    def discard(
        settings: RedisSettings,
        partition: int,
        *,
        clock: Clock = time.monotonic,
        chance: Chance = os.urandom,
    ) -> None:
        """Delete a partition, so that the next open makes an empty one. Its writer is fenced off.

        Goes through all keys of the node, some at a time. Raises StoreError; then the partition is
        stale until a call got to the end.
        """
        keys = Partition(settings, partition, clock)
        mark = DISCARDING + chance(8)
        try:
            keys.relabel(keys.label(), mark)
            cursor = b""
            while cursor != b"0":
                cursor, found = keys.scan(cursor or b"0", b"[si]")
                keys.drop(mark, found)
            keys.drop(mark, [keys.names.label])
        finally:
            keys.close()

    def snapshot(self) -> RedisSnapshot:
        """Return a view of the newest write. Raises StoreError, StoreStale where it is gone."""
        label = read_label(self._partition.label(), self._label.schema)
        if label.epoch != self._label.epoch:
            raise StoreError("another process made the partition anew")
        return RedisSnapshot(self._partition, label)

    def write(
        self,
        states: Sequence[tuple[int, bytes]],
        ids: Sequence[tuple[int, int]],
        position: int,
    ) -> None:
        """Replace states, add ids and set the position, all or nothing.

        The last blob given for a state and the first position given for an id stay. Raises
        StoreError, with nothing changed unless the answer was lost, when it cannot, for a position
        that goes back, and when another process took the partition over; StoreStale where the
        states are gone.
        """
        before = self._settle()
        if position < self._label.position:
            raise StoreError(f"position {position} goes back")
        blobs, places = dict(states), dict(reversed(ids))
        self._check_sizes(blobs)
        label = self._next_label(position)
        with _numbers_checked():
            after = label.pack()
            pairs = self._pairs(blobs, places)
        self._possible[after] = label
        try:
            self._partition.write(before, pairs, after)
        except AnswerLost:
            raise
        except OtherLabel as error:
            del self._possible[after]
            raise self._fenced(error.found) from error
        except StoreError:
            del self._possible[after]
            raise
        self._label, self._possible = label, {after: label}

    def sweep(self, oldest_event_time_ms: int, oldest_position: int, limit: int) -> int:
        """Look at the next ``limit`` states and ids, drop the old ones, return how many.

        Old is a state whose last event is before ``oldest_event_time_ms``, and an id whose
        position is below ``oldest_position``. At the end it begins again. It may look at fewer
        where most keys of the node are another partition's. Raises StoreError.
        """
        before, partition, dropped = self._settle(), self._partition, 0
        bounds = ((EVENT_TIME, oldest_event_time_ms), (PLACE, oldest_position))
        for walk, (span, oldest) in zip(self._walks, bounds, strict=True):
            for keys in partition.chunks(walk.take(partition, limit)):
                heads = partition.ask_all([(b"GETRANGE", key, *span) for key in keys])
                old = [
                    key
                    for key, head in zip(keys, heads, strict=True)
                    if len(head) == NUMBER.size and NUMBER.unpack(head)[0] < oldest
                ]
                try:
                    dropped += partition.drop(before, old)
                except OtherLabel as error:
                    raise self._fenced(error.found) from error
        return dropped

    def close(self) -> None:
        """Let go of the connections."""
        self._partition.close()

    def _check_sizes(self, blobs: dict[int, bytes]) -> None:
        sizes = [len(blob) for blob in blobs.values()]
        largest, most = max(sizes, default=0), self._settings.state_bytes_max
        if largest > most:
            raise StoreError(f"a state has at most {most} bytes, not {largest}")
        if sum(sizes) > self._settings.write_bytes_max:
            raise StoreError(f"a write has at most {self._settings.write_bytes_max} bytes")

    def _pairs(self, blobs: dict[int, bytes], places: dict[int, int]) -> list[tuple[bytes, bytes]]:
        """Return names and values of states, and of ids that are new.

        Nobody else adds one before the label is another, and then nothing of this is written.
        """
        names, pack = self._partition.names, NUMBER.pack
        ids = [(names.ids + pack(id_), pack(place)) for id_, place in places.items()]
        known = self._partition.values([name for name, _ in ids])
        new = [pair for pair, found in zip(ids, known, strict=True) if found is None]
        return [(names.states + pack(key), blob) for key, blob in blobs.items()] + new

    def _next_label(self, position: int) -> Label:
        self._writes += 1
        return self._label._replace(position=position, writes=self._writes)

    def _settle(self) -> bytes:
        """Return the label that stands there, once it is certain which of ours it is."""
        if len(self._possible) > 1:
            found = self._partition.label()
            if found not in self._possible:
                raise self._fenced(found)
            label = self._next_label(self._possible[found].position)
            self._possible[label.pack()] = label
            self._partition.relabel(found, label.pack())  # what is still under way comes too late
            self._label, self._possible = label, {label.pack(): label}
        return next(iter(self._possible))

    def _fenced(self, found: bytes) -> StoreError:
        """Return why another label stands there. Raises StoreStale where there is none."""
        read_label(found, self._label.schema)
        return OtherLabel(found)


class RedisStates:
    """Reads states of all partitions for a scorer, within a bound. One object for all threads.

    Not to be shared with a forked process. Nothing is asked before the first read.
    """

    def __init__(
        self,
        settings: RedisSettings,
        partitions: int,
        schema: str,
        *,
        clock: Clock = time.monotonic,
    ) -> None:
        self._schema = schema.encode()
        names = [Names(settings.prefix, partition) for partition in range(partitions)]
        # Packed as far as they are known, since a read is all that waits for Redis in a decision.
        self._labels = [pack_argument(each.label) for each in names]
        self._heads = [pack_argument(each.states + bytes(8))[:-10] for each in names]
        self._slots = [slot_of(each.label) for each in names]
        self._nodes = Nodes(settings, settings.socket_timeout_ms, self._slots, clock)

    def read(self, keys: Sequence[int], partition_of: Sequence[int]) -> list[bytes | None]:
        """Return the state of each entity key, in order; None where there is none."""
        return self.read_at(keys, partition_of)[0]

    def read_at(
        self, keys: Sequence[int], partition_of: Sequence[int]
    ) -> tuple[list[bytes | None], dict[int, int]]:
        """Return the states, and the position of each partition that was read.

        States and position of one partition are of one moment. Raises StoreError where a node
        that is needed cannot answer in time; StoreStale where a partition has no states (yet), is
        being deleted, or has those of another schema.
        """
        names = self._names(keys, partition_of)
        labels = self._labels
        with self._nodes as nodes:
            groups = _groups(partition_of, nodes.is_cluster)
            asked = [
                (
                    self._slots[group[0]],
                    _mget([*[labels[p] for p in group], *[names[i] for i in at]]),
                )
                for group, at in groups
            ]
            answers = nodes.ask(asked)
        states: list[bytes | None] = [None] * len(keys)
        positions: dict[int, int] = {}
        for (group, at), answer in zip(groups, answers, strict=True):
            self._read_positions(group, answer, positions)
            for place, state in zip(at, answer[len(group) :], strict=True):
                states[place] = state
        return states, positions

    def close(self) -> None:
        """Let go of the connections."""
        self._nodes.close()

    def _names(self, keys: Sequence[int], partition_of: Sequence[int]) -> list[bytes]:
        heads, pack = self._heads, NUMBER.pack
        try:
            pairs = zip(keys, partition_of, strict=True)
            return [b"%b%b\r\n" % (heads[p], pack(key)) for key, p in pairs]
        except struct.error as error:
            raise StoreError(f"keys are of 64 bits: {error}") from error

    def _read_positions(
        self, group: Sequence[int], labels: Sequence[bytes | None], into: dict[int, int]
    ) -> None:
        partition, schema = 0, self._schema
        try:
            for partition, label in zip(group, labels, strict=False):  # the states follow
                into[partition] = read_position(label, schema)
        except StoreStale as error:
            raise StoreStale(f"partition {partition}: {error}") from error


def _mget(arguments: Sequence[bytes]) -> bytes:
    """Return a packed command of arguments that are packed."""
    return b"*%d\r\n$4\r\nMGET\r\n%b" % (len(arguments) + 1, b"".join(arguments))


def _groups(partition_of: Sequence[int], is_cluster: bool) -> list[tuple[list[int], Sequence[int]]]:
    """Return what goes into one command each: partitions, and places of keys."""
    partitions = sorted(set(partition_of))
    if not is_cluster:
        return [(partitions, range(len(partition_of)))] if partitions else []
    places: dict[int, list[int]] = {partition: [] for partition in partitions}
    for place, partition in enumerate(partition_of):
        places[partition].append(place)
    return [([partition], places[partition]) for partition in partitions]
