"""A reading of the log shared out over processes, each of which reads it all and does its part.

Owns the processes. Must not know what they do.
"""

from __future__ import annotations

import multiprocessing
import queue
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

STRETCH_BYTES = 1 << 20  # of the log; such stretches are shared out in turn
LOOK_S = 0.2

Tell = Callable[[int, int], None]  # position reached, decisions done
Job = TypeVar("Job")
Found = TypeVar("Found")


class Share(NamedTuple):
    """Which stretches are a process's: number ``one`` of every ``of``."""

    one: int = 0
    of: int = 1

    def has(self, frame: int) -> bool:
        """Return whether a frame is in a stretch of this share."""
        return frame // STRETCH_BYTES % self.of == self.one

    def has_each(self, frames: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return bool[n]: which frames are in a stretch of this share."""
        found: NDArray[np.bool_] = frames // STRETCH_BYTES % self.of == self.one
        return found


def share_out(
    work: Callable[[Job, Share, Tell], Found], job: Job, processes: int, tell: Tell
) -> list[Found]:
    """Do ``work`` in ``processes`` of them and return what each found.

    ``work`` is a function of a module. ``tell`` hears how far the slowest is. Raises what one of
    them raised.
    """
    if processes == 1:
        return [work(job, Share(), tell)]
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    workers = [
        context.Process(target=_work, args=(work, job, Share(i, processes), out), daemon=True)
        for i in range(processes)
    ]
    for worker in workers:
        worker.start()
    try:
        return _gather(out, workers, tell)
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()


def _work(work: Any, job: Any, share: Share, out: Any) -> None:
    """Be one of the processes; ``out`` is the queue to tell."""
    try:
        found = work(job, share, lambda *done: out.put((share.one, done)))
        out.put((share.one, [found]))
    except Exception as error:  # noqa: BLE001 - told to the parent, who raises it
        out.put((share.one, error))


def _gather(out: Any, workers: list[Any], tell: Tell) -> list[Any]:
    done = dict.fromkeys(range(len(workers)), (0, 0))
    found: list[Any] = []
    while len(found) < len(workers):
        try:
            number, told = out.get(timeout=LOOK_S)
        except queue.Empty:
            if any(worker.exitcode not in (None, 0) for worker in workers):
                raise RuntimeError("a process of the reading died") from None
            continue
        if isinstance(told, Exception):
            raise told
        if isinstance(told, list):
            found += told
            continue
        done[number] = told
        positions, counts = zip(*done.values(), strict=True)
        tell(min(positions), sum(counts))
    return found
