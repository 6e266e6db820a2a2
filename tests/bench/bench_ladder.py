"""Owns the ladder's rows: a decision from the naive way to ours. `make ladder` also draws it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from tests.ladder.run import Size, climb, places, prepare
from tests.ladder.run import rows as rows_of


def rows() -> list[dict[str, Any]]:
    """Return one row per step: name, value, unit, baseline, ratio, target, met."""
    size = Size()
    with tempfile.TemporaryDirectory() as directory:
        where = Path(directory)
        transactions, now_ms = prepare(where, size)
        with places(where) as at:
            return rows_of(climb(at, transactions, now_ms, size.rounds))
