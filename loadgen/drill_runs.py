"""Earlier runs of drills: a line of JSON each in one file.

Owns that file. Must not know what a figure means.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

_KIND: Final = ("drill", "mode", "quick")


def last_run(path: Path, run: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the newest run of the same drill, mode and length, None where there is none."""
    if not path.exists():
        return None
    found = None
    for line in path.read_text().splitlines():
        try:
            earlier = json.loads(line)
        except ValueError:
            continue  # a run that was cut off while it wrote
        if not earlier["skipped"] and all(earlier.get(name) == run[name] for name in _KIND):
            found = earlier
    return found


def add_runs(path: Path, runs: Sequence[dict[str, Any]]) -> None:
    """Append runs in one write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write("".join(json.dumps(run) + "\n" for run in runs))
