"""A core for what sends the load, the others for what it is sent to.

Owns which is whose. On one machine they are each other's noise otherwise: a caller that waits for
a core is late, and its lateness is in the figures of the service.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence


@contextlib.contextmanager
def apart() -> Iterator[tuple[int, ...]]:
    """Keep this thread, and those that it starts, to the last core meanwhile; yield the others.

    Yields none, and keeps nothing, where there is only one or nothing could be kept to the others.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2 or shutil.which("taskset") is None:
        yield ()
        return
    os.sched_setaffinity(0, cores[-1:])
    try:
        yield tuple(cores[:-1])
    finally:
        os.sched_setaffinity(0, cores)


def kept_to(cores: Sequence[int]) -> tuple[str, ...]:
    """Return the words before a command that keep it to ``cores``; none where those are none."""
    return ("taskset", "--cpu-list", ",".join(map(str, cores))) if cores else ()
