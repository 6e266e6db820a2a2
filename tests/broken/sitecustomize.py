"""Breaks every fold that is started with this folder on PYTHONPATH: its fence comes too late.

States are written, and only then it is asked whether another has taken the partition over. It
also takes its time before a write, so that one that is stopped has most likely a write to make
when it goes on. Whoever starts the roles does not know of it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from itertools import chain

if "fold" in sys.orig_argv:
    from featurizer.folder import FoldLane
    from featurizer.redis_partition import OtherLabel, Partition

    _write = FoldLane._write

    def write_late(self: FoldLane, changed: set[int], offset: int) -> None:
        """Write as before, after a second."""
        time.sleep(1.0)
        _write(self, changed, offset)

    def write_unfenced(
        self: Partition, before: bytes, pairs: Sequence[tuple[bytes, bytes]], after: bytes
    ) -> None:
        """Set values, whoever has the partition now."""
        self.ask_all([(b"MSET", *chain.from_iterable(chunk)) for chunk in self.chunks(pairs)])
        if (found := self.label()) != before:
            raise OtherLabel(found)
        self.ask(b"SET", self.names.label, after)

    FoldLane._write = write_late  # type: ignore[method-assign]
    Partition.write = write_unfenced  # type: ignore[method-assign]
