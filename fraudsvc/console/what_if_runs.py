"""Backtests of the what-if page: one at a time, in a process of their own, within a time.

Owns the process. What it does is `backtest`'s; what becomes of its result is told to ``proposals``.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fraudsvc.console.priority import yield_process
from fraudsvc.console.proposals import DONE, FAILED, Proposals, ProposalsError

KILL_S = 5.0
OUTPUT_BYTES_MAX = 4 << 20
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What every backtest is given, and how long one may take."""

    log: str
    data: Path
    policy: Path
    capacity: float
    seconds: float = 300.0


class Runs:
    """Runs backtests, one at a time."""

    def __init__(self, options: RunOptions, proposals: Proposals) -> None:
        self._options, self._proposals = options, proposals
        self._lock = threading.Lock()  # held while one runs
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._closing = False

    def start(self, what_if: str, text: str, first: str, stop: str) -> bool:
        """Begin one with a policy's text over a range; False where another runs."""
        if not self._lock.acquire(blocking=False):
            return False
        self._thread = threading.Thread(
            target=self._run, args=(what_if, text, first, stop), name="what-if", daemon=True
        )
        self._thread.start()
        return True

    @property
    def busy(self) -> bool:
        """Whether one runs."""
        return self._lock.locked()

    def close(self) -> None:
        """End the one that runs, and wait until that is noted."""
        self._closing = True
        if (process := self._process) is not None:
            process.kill()
        if self._thread is not None:
            self._thread.join(KILL_S)

    def _run(self, what_if: str, text: str, first: str, stop: str) -> None:
        try:
            try:
                with tempfile.TemporaryDirectory() as folder:
                    state, told = self._backtest(Path(folder), text, first, stop)
            finally:
                self._process = None
                self._lock.release()  # before it is told: who sees it done may begin another
            self._proposals.step(what_if, state, **told)
        except (OSError, ProposalsError) as error:
            _log.error("the what-if %s was lost: %s", what_if, error)

    def _backtest(
        self, folder: Path, text: str, first: str, stop: str
    ) -> tuple[str, dict[str, str]]:
        """Return the state that it came to, and what is to be noted."""
        file = folder / "policy.toml"
        file.write_text(text)
        with (folder / "out").open("w+b") as out, (folder / "err").open("w+b") as err:
            self._process = subprocess.Popen(self._argv(file, first, stop), stdout=out, stderr=err)
            yield_process(self._process.pid)
            if self._closing:
                self._process.kill()
            try:
                status = self._process.wait(self._options.seconds)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(KILL_S)
                return FAILED, {"trouble": f"not done within {self._options.seconds:.0f} s: choose"
                                " a shorter range"}  # fmt: skip
            out.seek(0)
            err.seek(0)
            result, said = out.read(OUTPUT_BYTES_MAX), err.read(OUTPUT_BYTES_MAX).decode()
        if status:
            lines = said.strip().splitlines() or [f"it ended with status {status}"]
            return FAILED, {"trouble": lines[-1].removeprefix("error: ")[:500]}
        return DONE, {"result": json.dumps(json.loads(result))}

    def _argv(self, file: Path, first: str, stop: str) -> Sequence[str]:
        options = self._options
        return [
            sys.executable, "-m", "fraudsvc", "backtest", "--json", "--log", options.log,
            "--data", str(options.data), "--policy", str(file),
            "--policy-in-use", str(options.policy), "--processes", "1",
            "--review-capacity", str(options.capacity), f"--from={first}", f"--to={stop}",
        ]  # fmt: skip
