"""Owns what of the console has low priority: all work that no person waits for.

Persons' requests are few and short, and keep the priority that the process was started with.
"""

from __future__ import annotations

import os

NICENESS = 10


def yield_thread() -> None:
    """Give this thread, and those that it starts from now on, low priority."""
    os.nice(NICENESS)


def yield_process(pid: int) -> None:
    """Give a child that was just started low priority."""
    os.setpriority(os.PRIO_PROCESS, pid, NICENESS)
