"""Earlier runs of drills: a line of JSON each in one file.

Owns that file. Must not know what a figure means.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def last_run(path: Path, drill: str, quick: bool) -> dict[str, Any] | None:
    """Return the newest run of the drill at that length, None where there is none."""
    if not path.exists():
        return None
    found = None
    for line in path.read_text().splitlines():
        try:
            run = json.loads(line)
        except ValueError:
            continue  # a run that was cut off while it wrote
        if run["drill"] == drill and run["quick"] == quick and not run["skipped"]:
            found = run
    return found


def add_runs(path: Path, runs: Sequence[dict[str, Any]]) -> None:
    """Append runs in one write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write("".join(json.dumps(run) + "\n" for run in runs))
