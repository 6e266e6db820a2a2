"""The keys of one partition in Redis, and the commands and scripts that touch them.

Must not know what a Store promises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from hashlib import sha1
from typing import Any

from featurizer.redis_layout import DROP, PEEK, RELABEL, WRITE, Names
from featurizer.redis_nodes import Nodes, RedisSettings, ScriptUnknown, slot_of
from featurizer.store import StoreError

_DIGESTS = {
    script: sha1(script, usedforsecurity=False).hexdigest().encode()
    for script in (WRITE, RELABEL, DROP, PEEK)
}


class Partition:
    """The keys of one partition, and commands to the node that has them."""

    def __init__(self, settings: RedisSettings, partition: int, clock: Callable[[], float]) -> None:
        self.names = Names(settings.prefix, partition)
        self.settings = settings
        self._slot = slot_of(self.names.label)
        self._nodes = Nodes(settings, settings.write_timeout_ms, [self._slot], clock)

    def ask(self, *command: bytes) -> Any:
        """Return the answer to one command. Raises StoreError."""
        with self._nodes as nodes:
            return nodes.ask([(self._slot, command)])[0]

    def run(self, script: bytes, keys: Sequence[bytes], arguments: Sequence[bytes]) -> Any:
        """Run a script, which a server forgets when it starts anew. Raises StoreError."""
        command = (b"EVALSHA", _DIGESTS[script], b"%d" % len(keys), *keys, *arguments)
        try:
            return self.ask(*command)
        except ScriptUnknown:
            self.ask(b"SCRIPT", b"LOAD", script)
            return self.ask(*command)

    def label(self) -> bytes:
        """Return the label as it stands there, b"" where there is none."""
        return self.ask(b"GET", self.names.label) or b""

    def relabel(self, before: bytes, after: bytes) -> None:
        """Put one label in place of another. Raises StoreError where it is not there any more."""
        if self.run(RELABEL, [self.names.label], [before, after]) != 1:
            raise StoreError("another process took the partition over at this moment")

    def scan(self, cursor: bytes, kinds: bytes) -> tuple[bytes, list[bytes]]:
        """Return where to go on, b"0" at the end, and some keys of the kinds."""
        pattern = self.names.tag + kinds + b"*"
        count = b"%d" % self.settings.keys_per_command
        cursor, keys = self.ask(b"SCAN", cursor, b"MATCH", pattern, b"COUNT", count)
        return cursor, keys

    def chunks(self, keys: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
        """Yield as many keys at a time as one command may have."""
        size = self.settings.keys_per_command
        return (keys[start : start + size] for start in range(0, len(keys), size))

    def close(self) -> None:
        """Let go of the connections."""
        self._nodes.close()


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
