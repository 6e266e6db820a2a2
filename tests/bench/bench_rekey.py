"""How long a log takes to be written once more under another id secret, by the decision."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from featurizer.hashing import SECRET_BYTES, IdHasher
from fraudsvc.rekey import NO_HISTORY, rekey
from tests.conftest import Host, Payments, call_now, train_tiny

DECISIONS, BATCH, LABELS = 20_000, 200, 1_000


def _play(host: Host) -> None:
    payments, scorer = Payments(), host.scorer()
    while len(payments.made) < DECISIONS:
        scorer.score_batch([payments.one() for _ in range(BATCH)], call_now())
        host.fold()
    every = DECISIONS // LABELS
    for start in range(0, DECISIONS, every * BATCH):
        some = payments.made[start : start + every * BATCH : every]
        scorer.report_labels([payments.label(each.transaction_id) for each in some])


def rows() -> list[dict[str, Any]]:
    """Return a row for a decision's time, and one for the log's bytes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        host = Host(folder, train_tiny(folder).bundle)
        _play(host)
        host.close()
        hashers = IdHasher(), IdHasher(bytes([1]) * SECRET_BYTES)
        began = time.perf_counter()
        found = rekey(folder / "log", folder / "new", hashers, NO_HISTORY, lambda _done, _all: None)
        seconds = time.perf_counter() - began
    return [
        _row("rekey, a decision", seconds / found.decided * 1e6, "us"),
        _row("rekey, of the log", found.end / seconds / 1e6, "MB/s"),
    ]


def _row(name: str, value: float, unit: str) -> dict[str, Any]:
    return {
        "name": name, "value": round(value, 1), "unit": unit, "baseline": None, "ratio": None,
        "target": None, "met": None,
    }  # fmt: skip


if __name__ == "__main__":
    for row in rows():
        print(f"{row['name']:48} {row['value']:8.1f} {row['unit']}")
