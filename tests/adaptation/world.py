"""Owns the seeded ground of a stream: people, their past, and an hour's payments as they come.

Everybody has a past at a natural pace; then the stream runs at ``per_minute``, first to warm up and
to learn a base from, then with the new attack. Must not know systems or labels' effects.
"""

from __future__ import annotations

import datetime
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featurizer.backfill import read_history
from featurizer.hashing import IdHasher
from loadgen.campaigns import Mix, Schedule
from loadgen.columns import SCHEMA
from loadgen.habits import habit_day, settle, wish
from loadgen.history import HistoryWriter
from loadgen.payments import Payments
from loadgen.population import DAY_MS, Population, build_population
from loadgen.render import Renderer

DATE = datetime.date(2025, 3, 12)  # a Wednesday
START_MS = (DATE - datetime.date(1970, 1, 1)).days * DAY_MS
OPEN_MS = START_MS + 9 * 3_600_000
MINUTE_MS = 60_000
_MORE = 1.25  # payments drawn for one that is kept, so that no minute lacks any
_CHAIN_SHARE = 0.28
_SYNTHETIC = 4_000
_KEY = bytes(range(16))


@dataclass(frozen=True, slots=True)
class Scale:
    """How large a stream is: payments a minute, minutes before and after the onset, and how much
    of it is fraud of the known kinds, and of the new one."""

    per_minute: int = 1_000
    customers: int = 50_000
    past_days: int = 20
    past_rows_a_day: int = 8_000
    warm_minutes: int = 150
    before_minutes: int = 20
    after_minutes: int = 120
    old_share: float = 0.003
    attack_share: float = 0.006

    @property
    def onset_ms(self) -> int:
        """When the attack begins."""
        return OPEN_MS + (self.warm_minutes + self.before_minutes) * MINUTE_MS

    @property
    def stream_ms(self) -> int:
        """When systems begin to serve."""
        return OPEN_MS + self.warm_minutes * MINUTE_MS

    @property
    def end_ms(self) -> int:
        """The end of the stream."""
        return self.onset_ms + self.after_minutes * MINUTE_MS


class Ground:
    """What all streams of a seed share: people, their past, honest payments and old fraud."""

    def __init__(self, seed: int, scale: Scale) -> None:
        self.seed, self.scale = seed, scale
        self.people: Population = build_population(
            seed, scale.customers, _SYNTHETIC, scale.customers // 10, START_MS
        )
        self._renderer = Renderer(self.people)
        self._ids = 0

    def past(self) -> Payments:
        """Return honest payments of the days before, PAYMENT[n] by time."""
        days = []
        for day in range(-self.scale.past_days, 0):
            rng = np.random.default_rng([self.seed, 30, -day])
            date, start_ms = DATE + datetime.timedelta(days=day), START_MS + day * DAY_MS
            days.append(habit_day(rng, self.people, date, start_ms, self.scale.past_rows_a_day))
        return by_time(np.concatenate(days))

    def dense(self) -> Payments:
        """Return honest payments and old fraud of the warm-up and the stream, PAYMENT[n] by time.

        Of each minute ``per_minute``, of which ``old_share`` are fraud on the mean.
        """
        scale = self.scale
        rng = np.random.default_rng([self.seed, 31])
        fraud, quiet = self._old_fraud(rng)
        good = by_time(np.concatenate([self._honest(rng), quiet]))
        minutes = (scale.end_ms - OPEN_MS) // MINUTE_MS
        taken = np.bincount((fraud["time_ms"] - OPEN_MS) // MINUTE_MS, minlength=minutes)
        kept = _of_each_minute(rng, good["time_ms"], scale.per_minute - taken)
        return by_time(np.concatenate([fraud, good[kept]]))

    def _honest(self, rng: np.random.Generator) -> Payments:
        """Return payments by habit; some follow a payment of the same customer within minutes."""
        span_ms = self.scale.end_ms - OPEN_MS
        count = int(_MORE * self.scale.per_minute * span_ms / MINUTE_MS)
        customer = self.people.victims.draw(0, rng.random(count))
        time_ms = OPEN_MS + rng.integers(0, span_ms, count)
        first = np.flatnonzero(rng.random(count) < _CHAIN_SHARE)[: count // 2]
        second = rng.permutation(np.setdiff1d(np.arange(count), first))[: len(first)]
        customer[second] = customer[first]
        gap_ms = rng.exponential(12 * MINUTE_MS, len(first)).astype(np.int64) + 20_000
        time_ms[second] = OPEN_MS + (time_ms[first] + gap_ms - OPEN_MS) % span_ms
        return settle(rng, self.people, wish(rng, self.people, customer, time_ms))

    def _old_fraud(self, rng: np.random.Generator) -> tuple[Payments, Payments]:
        """Return fraud of the known kinds, and what their campaigns pay to look honest.

        Campaigns of days are folded into the hours of the stream.
        """
        span_ms = self.scale.end_ms - OPEN_MS
        wanted = round(self.scale.old_share * self.scale.per_minute * span_ms / MINUTE_MS)
        rows = Schedule(self.people, Mix(), 1.5 * wanted).start(0, START_MS)
        rows["time_ms"] = OPEN_MS + (rows["time_ms"] - OPEN_MS) % span_ms
        fraud, quiet = rows[rows["campaign"] != 0], rows[rows["campaign"] == 0]
        return by_time(fraud[rng.permutation(len(fraud))[:wanted]]), quiet

    def records(self, rows: Payments, folder: Path) -> NDArray[np.void]:
        """Return RECORD[n] of payments, as a history file would give them, in their order."""
        self._ids += 1
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            path = Path(scratch) / "part.parquet"
            with HistoryWriter(path, SCHEMA) as writer:
                writer.write(self._renderer.table(rows, 10_000 * self.seed + self._ids))
            history = read_history(path, IdHasher(_KEY), {})
        if history.bad_rows or len(history.records) != len(rows):
            raise ValueError(f"{history.bad_rows} payments are no records: {history.problems}")
        return history.records


def by_time(rows: Payments) -> Payments:
    """Return the payments in order of their time."""
    return rows[np.argsort(rows["time_ms"], kind="stable")]


def _of_each_minute(
    rng: np.random.Generator, time_ms: NDArray[np.int64], wanted: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return places of randomly chosen times, ``wanted`` int64[minutes] of each minute."""
    minute = (time_ms - OPEN_MS) // MINUTE_MS
    order = np.lexsort((rng.random(len(minute)), minute))
    first = np.searchsorted(minute[order], np.arange(len(wanted)))
    rank = np.arange(len(order)) - first[minute[order]]
    if (np.bincount(minute, minlength=len(wanted)) < wanted).any():
        raise ValueError("a minute has fewer payments than asked for")
    return np.sort(order[rank < wanted[minute[order]]])
