"""Replays one decision on request, in a process of its own.

Owns how it is asked and bounded: one at a time, and for so long. A replay reads the log from its
beginning and compiles kernels, which must not hold up the console.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from typing import Any, NamedTuple

from fraudsvc.console.desk_command import DeskOptions
from fraudsvc.console.priority import yield_process

TIMEOUT_S = 120.0
WAIT_S = 1.0
_WORDS = {"same": "reproduced, 0 bytes differ"}


class Replayed(NamedTuple):
    """What came of it: ``ok`` where the same bytes came out, a text, and what differs."""

    ok: bool
    text: str
    differences: list[dict[str, Any]]


class Replays:
    """Runs `replay` on a host's log. Any thread may ask."""

    def __init__(self, log: str, options: DeskOptions) -> None:
        self._log, self._options = log, options
        self._busy = threading.Semaphore(1)

    def run(self, decision_id: str) -> Replayed:
        """Make a decision again, and tell what came of it or why that is not known."""
        if not self._busy.acquire(timeout=WAIT_S):
            return Replayed(False, "another replay is running: try again in a moment", [])
        try:
            with subprocess.Popen(
                self._argv(decision_id), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            ) as process:
                yield_process(process.pid)
                try:
                    return _told(*process.communicate(timeout=TIMEOUT_S))
                except subprocess.TimeoutExpired:
                    process.kill()
                    return Replayed(
                        False, f"not done within {TIMEOUT_S:.0f} s: the log is long", []
                    )
        finally:
            self._busy.release()

    def _argv(self, decision_id: str) -> list[str]:
        options = self._options
        return [
            sys.executable, "-m", "fraudsvc", "replay", decision_id, "--json", "--log", self._log,
            "--data", str(options.data), "--policy-in-use", str(options.policy),
            "--id-secret", options.id_secret,
        ]  # fmt: skip


def _told(output: str, error: str) -> Replayed:
    try:
        told = json.loads(output)
    except ValueError:
        lines = error.strip().splitlines()
        return Replayed(False, lines[-1] if lines else "the replay ended without a word", [])
    cause = told["cause"] or told["verdict"]
    is_same = told["verdict"] == "same"
    return Replayed(is_same, _WORDS.get(told["verdict"], cause), told["differences"])
