"""Owns the speed of ``featurizer backfill`` on one core, against pandas' rolling windows.

Run with ``python -m tests.bench backfill``. The command is run whole, from Parquet to Parquet; an
event is a transaction, or a label that became known. The public data of the Fraud Detection
Handbook is measured too where it is there.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from featurizer.backfill import order_events
from featurizer.features import FEATURES
from tests.bench.claims import SEED, claim, in_turn, make_world, pin, read_world, spent
from tests.bench.serving import SERVER_CPU
from tests.handbook import FILE_ARGUMENTS, HANDBOOK

ROUNDS = 2
WORLD_DAYS = 20
HANDBOOK_ROWS = 200_000
EVENTS_S_MIN = 40_000.0
# What the Handbook's own features are made of: windows in days, over customer and terminal.
WINDOWS = ("1D", "7D", "30D")
PANDAS_KEYS = ("customer_id", "terminal_id")
PANDAS_VALUES = 2 * len(WINDOWS) * len(PANDAS_KEYS)  # count and mean of each


def _rolled_cpu_s(history: Path) -> float:
    """Return the CPU seconds of PANDAS_VALUES rolling features by pandas, from file to file."""
    start = time.process_time()
    names = ["event_time", "amount_minor", *PANDAS_KEYS]
    frame = pq.read_table(history, columns=names).to_pandas().sort_values("event_time")
    made = {}
    for key in PANDAS_KEYS:
        amounts = frame.dropna(subset=[key]).groupby(key, observed=True)
        for window in WINDOWS:
            rolled = amounts.rolling(window, on="event_time")["amount_minor"].agg(["count", "mean"])
            made[f"{key} {window} count"] = rolled["count"].to_numpy()
            made[f"{key} {window} mean"] = rolled["mean"].to_numpy()
    for name, values in made.items():
        assert np.isfinite(values).all(), name
    return time.process_time() - start


def _rows_of(name: str, events: int, payments: int, cpu_s: float) -> list[dict[str, Any]]:
    per_s, each_s = events / cpu_s, payments / cpu_s
    return [
        claim(f"backfill of {name}", round(per_s), "events/s of CPU", at_least=EVENTS_S_MIN),
        claim(f"backfill of {name}: transactions", round(each_s), "transactions/s of CPU"),
    ]


def _world_rows(where: Path) -> list[dict[str, Any]]:
    history, out = where / "world.parquet", where / "vectors.parquet"
    make_world(history, WORLD_DAYS)
    payments, events = pq.read_metadata(history).num_rows, len(order_events(read_world(history)))
    walls: list[float] = []

    def ours_cpu_s() -> float:
        took = spent(SERVER_CPU, "featurizer", "backfill", str(history), str(out))
        walls.append(took.wall_s)
        return took.cpu_s

    cpu_s, pandas_s = in_turn(ROUNDS, ours_cpu_s, lambda: _rolled_cpu_s(history))
    ours_ns = 1e9 * cpu_s / payments / len(FEATURES)
    theirs_ns = 1e9 * pandas_s / payments / PANDAS_VALUES
    name = "a world, 9 entities"
    return [
        *_rows_of(name, events, payments, cpu_s),
        claim(f"backfill of {name}: by the clock", round(min(walls), 1), "s"),
        claim(
            f"a value of a feature, against pandas' rolling ({PANDAS_VALUES} features)",
            round(ours_ns, 1), "ns of CPU", baseline=round(theirs_ns, 1),
            ratio=round(theirs_ns / ours_ns, 1),
        ),
    ]  # fmt: skip


def _handbook_rows(where: Path) -> list[dict[str, Any]]:
    name = f"{HANDBOOK_ROWS:,} rows of the Handbook's data, 3 entities"
    if not HANDBOOK.exists():
        return [claim(f"backfill of {name}: the file is not there", None, "events/s of CPU")]
    history, out = where / "handbook.parquet", where / "vectors.parquet"
    with pq.ParquetFile(HANDBOOK) as file:
        pq.write_table(file.read().slice(0, HANDBOOK_ROWS), history)
    command = ("featurizer", "backfill", str(history), str(out), *FILE_ARGUMENTS)
    (cpu_s,) = in_turn(ROUNDS, lambda: spent(SERVER_CPU, *command).cpu_s)
    return _rows_of(name, 2 * HANDBOOK_ROWS, HANDBOOK_ROWS, cpu_s)


def rows() -> list[dict[str, Any]]:
    """Return one row per claim: name, value, unit, baseline, ratio, target, met."""
    pin(SERVER_CPU)
    with tempfile.TemporaryDirectory() as directory:
        where = Path(directory)
        return [*_world_rows(where), *_handbook_rows(where)]


if __name__ == "__main__":
    print(f"seed {SEED}")
    for row in rows():
        print(row)
