"""The seeded world: day after day of payments with ground truth.

Owns the settings and the order of events. The same settings give the same rows, whatever the
number of days asked for. Must not know files or calls.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from loadgen.campaigns import LEAD_DAYS, PLANS, Mix, Schedule
from loadgen.habits import habit_day
from loadgen.labels import set_labels
from loadgen.payments import Payments, blank
from loadgen.population import DAY_MS, build_population
from loadgen.render import Renderer
from loadgen.subscriptions import PERIOD_DAYS, build_subscriptions, subscription_day

CUSTOMERS_MAX = 5_000_000
RATE_PER_DAY_MAX = 5_000_000
# Invented people are drawn for this long a history; a longer one uses them again.
_HORIZON_DAYS = 1_000
_SUBSCRIBED_SHARE = 0.04
_EPOCH = datetime.date(1970, 1, 1)


@dataclass(frozen=True, slots=True)
class WorldSettings:
    """What world to make. ``rate_per_day`` is payments a day, ``fraud_rate`` a share of them.

    Raises ValueError for numbers out of range.
    """

    seed: int = 1
    start: datetime.date = datetime.date(2025, 1, 1)
    customers: int = 5_000
    rate_per_day: float = 10_000
    fraud_rate: float = 0.006
    mix: Mix = field(default_factory=Mix)

    def __post_init__(self) -> None:
        if not 1 <= self.customers <= CUSTOMERS_MAX:
            raise ValueError(f"customers must be 1 to {CUSTOMERS_MAX}, not {self.customers}")
        if not 0 < self.rate_per_day <= RATE_PER_DAY_MAX:
            raise ValueError(f"rate_per_day must be above 0, at most {RATE_PER_DAY_MAX}")
        if not 0 <= self.fraud_rate <= 0.5:
            raise ValueError(f"fraud_rate must be 0 to 0.5, not {self.fraud_rate}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, not {self.seed}")


class World:
    """A population and its payments. Building one takes about a second per million customers."""

    def __init__(self, settings: WorldSettings) -> None:
        self.settings = settings
        self._start_ms = (settings.start - _EPOCH).days * DAY_MS
        frauds = settings.rate_per_day * settings.fraud_rate
        identities = frauds * settings.mix.share("SYNTHETIC_IDENTITY")
        synthetic = math.ceil(identities / PLANS["SYNTHETIC_IDENTITY"].mean_frauds * _HORIZON_DAYS)
        self.people = build_population(
            settings.seed,
            settings.customers,
            max(synthetic, 1),
            settings.customers // 10,
            self._start_ms,
        )
        subscriptions = int(settings.rate_per_day * _SUBSCRIBED_SHARE * PERIOD_DAYS)
        self._agreed = build_subscriptions(self.people, subscriptions)
        self._schedule = Schedule(self.people, settings.mix, frauds)
        self._renderer = Renderer(self.people)

    def days(self, count: int) -> Iterator[pa.Table]:
        """Yield ``count`` tables of SCHEMA, one a day from the start (UTC), in event order."""
        for day, rows in enumerate(self.payments(count)):
            yield self._renderer.table(rows, day)

    def payments(self, count: int) -> Iterator[Payments]:
        """Yield PAYMENT[n] for each of ``count`` days: the numbers behind ``days``."""
        later = blank(0)
        for day in range(-LEAD_DAYS, count):
            start_ms = self._start_ms + day * DAY_MS
            rows = np.concatenate([later, self._schedule.start(day, start_ms)])
            now = rows["time_ms"] < start_ms + DAY_MS
            later = rows[~now]
            if day >= 0:
                yield self._finish(day, np.concatenate([rows[now], self._honest(day, start_ms)]))

    def _honest(self, day: int, start_ms: int) -> Payments:
        settings = self.settings
        rng = np.random.default_rng([settings.seed, 3, day])
        date = settings.start + datetime.timedelta(days=day)
        mean = settings.rate_per_day * (1 - _SUBSCRIBED_SHARE - settings.fraud_rate)
        habits = habit_day(rng, self.people, date, start_ms, mean)
        agreed = subscription_day(rng, self.people, self._agreed, day, start_ms)
        rows = np.concatenate([habits, agreed])
        self._schedule.mark_friendly(rng, rows, day)
        return rows

    def _finish(self, day: int, rows: Payments) -> Payments:
        rows = rows[np.argsort(rows["time_ms"], kind="stable")]
        set_labels(np.random.default_rng([self.settings.seed, 5, day]), rows)
        return rows
