"""The keys of one partition in Redis, and the commands that touch them.

Must not know what a Store promises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, TypeVar

from featurizer.redis_layout import DROP, RELABEL, Names
from featurizer.redis_nodes import Nodes, RedisSettings, pack, slot_of
from featurizer.store import StoreError

T = TypeVar("T")


class OtherLabel(StoreError):  # noqa: N818 - it names a state, as StoreStale
    """Another process took the partition over, or Redis lost it; ``found`` stands there now."""

    def __init__(self, found: bytes) -> None:
        super().__init__("another process took the partition over, or Redis has an older copy")
        self.found = found


class Partition:
    """The keys of one partition, and commands to the node that has them."""

    def __init__(self, settings: RedisSettings, partition: int, clock: Callable[[], float]) -> None:
        self.names = Names(settings.prefix, partition)
        self.settings = settings
        self._slot = slot_of(self.names.label)
        self._nodes = Nodes(settings, settings.write_timeout_ms, [self._slot], clock)

    def ask(self, *command: bytes) -> Any:
        """Return the answer to one command. Raises StoreError."""
        return self.ask_all([command])[0]

    def ask_all(self, commands: Sequence[Sequence[bytes]]) -> list[Any]:
        """Return the answers to commands, sent in one piece. Raises StoreError."""
        with self._nodes as nodes:
            return nodes.ask(self._here(commands))

    def label(self) -> bytes:
        """Return the label as it stands there, b"" where there is none."""
        return self.ask(b"GET", self.names.label) or b""

    def relabel(self, before: bytes, after: bytes) -> None:
        """Put one label in place of another. Raises OtherLabel where it is not there any more."""
        self._run(RELABEL, [], [before, after])

    def drop(self, label: bytes, keys: Sequence[bytes]) -> int:
        """Delete keys, return how many there were. Raises OtherLabel where it is not ``label``."""
        return self._run(DROP, keys, [label])

    def write(self, before: bytes, pairs: Sequence[tuple[bytes, bytes]], after: bytes) -> None:
        """Set values by names and a new label, all or nothing. Raises StoreError.

        Nothing is set, and OtherLabel raised, where the label is not ``before`` at the moment that
        it would be. Redis does nothing else meanwhile; a script would hold it nine times as long.
        """
        commands = [(b"MSET", *chain.from_iterable(chunk)) for chunk in self.chunks(pairs)]
        frame = [(b"MULTI",), *commands, (b"SET", self.names.label, after), (b"EXEC",)]
        with self._nodes as nodes:
            watch = [(b"WATCH", self.names.label), (b"GET", self.names.label)]
            found = nodes.ask(self._here(watch))[1] or b""
            if found != before:
                nodes.ask(self._here([(b"UNWATCH",)]))
                raise OtherLabel(found)
            # By the connection that watches, or not at all.
            done = nodes.ask(self._here(frame), connect=False)[-1]
        if done is None:
            raise OtherLabel(self.label())

    def scan(self, cursor: bytes, kinds: bytes) -> tuple[bytes, list[bytes]]:
        """Return where to go on, b"0" at the end, and some keys of the kinds."""
        pattern = self.names.tag + kinds + b"*"
        count = b"%d" % self.settings.keys_per_command
        cursor, keys = self.ask(b"SCAN", cursor, b"MATCH", pattern, b"COUNT", count)
        return cursor, keys

    def chunks(self, items: Sequence[T]) -> Iterator[Sequence[T]]:
        """Yield as many at a time as one command may have."""
        size = self.settings.keys_per_command
        return (items[start : start + size] for start in range(0, len(items), size))

    def values(self, names: Sequence[bytes]) -> list[bytes | None]:
        """Return what stands at each name, in order. Raises StoreError."""
        if not names:
            return []
        found = self.ask_all([(b"MGET", *chunk) for chunk in self.chunks(names)])
        return list(chain.from_iterable(found))

    def close(self) -> None:
        """Let go of the connections."""
        self._nodes.close()

    def _run(self, script: bytes, keys: Sequence[bytes], arguments: Sequence[bytes]) -> int:
        names = (self.names.label, *keys)
        answer = self.ask(b"EVAL", script, b"%d" % len(names), *names, *arguments)
        if not isinstance(answer, int):
            raise OtherLabel(answer)
        return answer

    def _here(self, commands: Sequence[Sequence[bytes]]) -> list[tuple[int, bytes]]:
        return [(self._slot, pack(command)) for command in commands]


class Walk:
    """Goes round the keys of one kind, some at a time."""

    def __init__(self, kind: bytes) -> None:
        self._kind = kind
        self._cursor = b"0"
        self._found: list[bytes] = []

    def take(self, partition: Partition, limit: int) -> list[bytes]:
        """Return the next ``limit`` keys, or fewer at the end or where scans met their bound."""
        for _ in range(partition.settings.scan_calls_max):
            if len(self._found) >= limit or (self._found and self._cursor == b"0"):
                break  # there are enough, or it was once round and the rest goes first
            self._cursor, found = partition.scan(self._cursor, self._kind)
            self._found += found
            if self._cursor == b"0":
                break
        taken, self._found = self._found[:limit], self._found[limit:]
        return taken
