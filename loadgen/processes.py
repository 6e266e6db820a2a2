"""Signals to the processes of a drill. Must not know what they are, nor why they get one."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterable
from typing import Final

STOP_S: Final = 30.0


def signal_process(pid: int, number: signal.Signals) -> None:
    """Send a signal; a process that is gone already is none."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def end_process(process: subprocess.Popen[bytes], children: Iterable[int]) -> None:
    """End a process whose children, by pid, may stand still and die with it; wait for that."""
    for pid in children:
        signal_process(pid, signal.SIGCONT)
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(STOP_S)
