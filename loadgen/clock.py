"""A time of day that can be stepped for some processes alone; the machine's clock stays as it is.

Owns a small library, compiled here, that the processes load ahead of the C library
(clock_step.c), and the file that tells it by how much the time is off. Must not know who is off.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SOURCE: Final = Path(__file__).with_name("clock_step.c")
COMPILE_S: Final = 60.0
_OFF_NS: Final = struct.Struct("=q")


class ClockError(RuntimeError):
    """There is no compiler, or it does not take the source."""


@dataclass(frozen=True, slots=True)
class Clock:
    """The library and the file, in a folder."""

    folder: Path

    def make(self) -> None:
        """Compile the library. Raises ClockError."""
        compiler = shutil.which("cc")
        if compiler is None:
            raise ClockError("no C compiler, so no clock that can be stepped")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.step(0.0)
        done = subprocess.run(
            (compiler, "-shared", "-fPIC", "-O2", "-o", self._library, SOURCE, "-ldl"),
            check=False, capture_output=True, text=True, timeout=COMPILE_S,
        )  # fmt: skip
        if done.returncode:
            raise ClockError(f"no clock that can be stepped: {done.stderr.strip()[-500:]}")

    @property
    def command(self) -> tuple[str, ...]:
        """What stands before a command whose time of day, and its children's, is this one."""
        return ("env", f"LD_PRELOAD={self._library}", f"FRAUD_DRILL_CLOCK={self._off}")

    def step(self, off_s: float) -> None:
        """Let the time of day be off by so much from now on."""
        mode = "r+b" if self._off.exists() else "wb"
        with self._off.open(mode) as file:  # the same file: it is mapped
            file.write(_OFF_NS.pack(round(off_s * 1e9)))

    @property
    def _library(self) -> Path:
        return self.folder / "clock_step.so"

    @property
    def _off(self) -> Path:
        return self.folder / "off_ns"
