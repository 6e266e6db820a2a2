"""When fraud happens: which campaigns start on which day, so that the fraud rate is as asked.

Owns the mix of kinds and the schedule, which needs no memory: any day's starts follow from the
seed alone. Must not know how a campaign is carried out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from loadgen import attacks
from loadgen.draws import key, unit
from loadgen.labels import KIND
from loadgen.payments import Payments, blank
from loadgen.population import DAY_MS, Population

Attack = Callable[[np.random.Generator, Population, int, int], Payments]

_PHASE = 20


@dataclass(frozen=True, slots=True)
class Plan:
    """How a kind is carried out, its share of all fraud, and fraudulent payments a campaign.

    Campaigns start ``lead_days`` before the history, so that its first days have some in progress.
    """

    attack: Attack | None
    share: float
    mean_frauds: float
    lead_days: int


# A friendly chargeback is an honest-looking payment that is marked afterwards, so it has no attack.
PLANS: dict[str, Plan] = {
    "CARD_TESTING": Plan(attacks.card_testing, 0.22, 36.6, 3),
    "ACCOUNT_TAKEOVER": Plan(attacks.account_takeover, 0.20, 4.5, 1),
    "STOLEN_CARD": Plan(attacks.stolen_card, 0.20, 6.5, 1),
    "COMPROMISED_TERMINAL": Plan(attacks.compromised_terminal, 0.20, 23.5, 30),
    "FRIENDLY_CHARGEBACK": Plan(None, 0.08, 1.0, 0),
    "SYNTHETIC_IDENTITY": Plan(attacks.synthetic_identity, 0.10, 9.0, 46),
}
LEAD_DAYS = max(plan.lead_days for plan in PLANS.values())


@dataclass(frozen=True, slots=True)
class Mix:
    """Which kinds of fraud there are: weights by kind, and the day from which a kind appears.

    Raises ValueError for an unknown kind or weights that are negative or all 0.
    """

    weights: Mapping[str, float] = field(
        default_factory=lambda: {kind: plan.share for kind, plan in PLANS.items()}
    )
    first_day: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = (set(self.weights) | set(self.first_day)) - set(PLANS)
        if unknown:
            raise ValueError(f"no such campaign: {', '.join(sorted(unknown))}; {', '.join(PLANS)}")
        if min(self.weights.values(), default=-1) < 0 or sum(self.weights.values()) <= 0:
            raise ValueError("campaign weights must not be negative nor all 0")

    def share(self, kind: str) -> float:
        """Return the kind's share of all fraudulent payments."""
        return self.weights.get(kind, 0.0) / sum(self.weights.values())


@dataclass(frozen=True, slots=True)
class Schedule:
    """Spreads campaigns evenly over days; ``frauds_per_day`` is over all kinds."""

    people: Population
    mix: Mix
    frauds_per_day: float

    def campaigns_per_day(self, kind: str) -> float:
        """Return the mean number of campaigns of the kind that start in a day."""
        return self.frauds_per_day * self.mix.share(kind) / PLANS[kind].mean_frauds

    def serials(self, kind: str, day: int) -> range:
        """Return the serial numbers of the campaigns of this kind that start on the day."""
        first = self.mix.first_day.get(kind, -PLANS[kind].lead_days)
        if day < first:
            return range(0)
        rate = self.campaigns_per_day(kind)
        phase = float(unit(key(self.people.seed, _PHASE, KIND[kind]))[0])
        elapsed = day - first
        return range(math.floor(rate * elapsed + phase), math.floor(rate * (elapsed + 1) + phase))

    def start(self, day: int, day_start_ms: int) -> Payments:
        """Return all payments of the campaigns that start on the day, also those of later days."""
        parts = [blank(0)]
        for kind, plan in PLANS.items():
            if plan.attack is None:
                continue
            for serial in self.serials(kind, day):
                rng = np.random.default_rng([self.people.seed, 4, KIND[kind], serial])
                at = day_start_ms + int(rng.integers(0, DAY_MS))
                parts.append(plan.attack(rng, self.people, at, serial))
        return np.concatenate(parts)

    def mark_friendly(self, rng: np.random.Generator, rows: Payments, day: int) -> None:
        """Turn some honest online payments into ones that their payer will dispute."""
        count = len(self.serials("FRIENDLY_CHARGEBACK", day))
        online = np.flatnonzero((rows["device"] != 0) & (rows["campaign"] == 0))
        if count == 0 or len(online) == 0:
            return
        # One customer in ten does most of it.
        prone = unit(key(self.people.seed, _PHASE, rows["customer"][online])) < 0.10
        weight = np.where(prone, 12.0, 1.0)
        chosen = rng.choice(online, min(count, len(online)), replace=False, p=weight / weight.sum())
        rows["campaign"][chosen] = KIND["FRIENDLY_CHARGEBACK"]
