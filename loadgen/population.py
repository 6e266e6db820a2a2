"""Who lives in the world and what they hold: customers, cards, merchants, terminals.

Owns their lasting traits, drawn once from the seed. Must not know a payment.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loadgen import categories
from loadgen.columns import NUMBERS
from loadgen.draws import Roulette
from loadgen.geography import (
    CITIES,
    CITY_LATITUDE,
    CITY_LONGITUDE,
    CITY_REGION,
    CITY_WEIGHT,
    REGIONS,
)
from loadgen.seasons import LIFE_WEIGHT

DAY_MS = 86_400_000
CATEGORY_COUNT = len(categories.CATEGORIES)
PLACE_GROUPS = len(CITIES) * CATEGORY_COUNT
MERCHANT_GROUPS = PLACE_GROUPS + len(REGIONS) * CATEGORY_COUNT
EMAIL_DOMAINS = (
    "mail.example",
    "post.example",
    "inbox.example",
    "letters.example",
    "office.example",
    "campus.example",
    "swift.example",
    "throwaway.example",
)
_DOMAIN_WEIGHT = (40, 22, 14, 9, 7, 4, 3.5, 0.5)
THROWAWAY_DOMAIN = len(EMAIL_DOMAINS) - 1
_ISSUERS_PER_REGION = 8
# First digits of a brand's numbers, and how common the brand is.
_BRANDS = {
    "VISA": ("4", 50),
    "MASTERCARD": ("5", 36),
    "AMERICAN_EXPRESS": ("37", 7),
    "DISCOVER": ("60", 3),
    "JCB": ("35", 2),
    "UNIONPAY": ("62", 2),
}
_FUNDING = {"CREDIT": 0.42, "DEBIT": 0.50, "PREPAID": 0.08}


@dataclass(frozen=True, slots=True)
class Issuers:
    """Banks by BIN: text[n], contract numbers uint8[n], region int64[n]."""

    bins: tuple[str, ...]
    brand: NDArray[np.uint8]
    funding: NDArray[np.uint8]
    region: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Merchants:
    """Sellers in the order of their group; terminals of one seller are consecutive.

    ``group`` is city * categories + category for a shop, PLACE_GROUPS + region * categories +
    category online. All arrays [merchants], but ``terminal_*`` [terminals].
    """

    group: NDArray[np.int64]
    category: NDArray[np.int64]
    region: NDArray[np.int64]
    online: NDArray[np.bool_]
    terminal_start: NDArray[np.int64]
    terminal_count: NDArray[np.int64]
    terminal_lat: NDArray[np.float64]
    terminal_lon: NDArray[np.float64]
    wheel: Roulette


@dataclass(frozen=True, slots=True)
class Customers:
    """Payers, arrays [customers]; the last ``synthetic`` ones are invented by fraudsters.

    ``rate`` is their relative activity (0 for the invented), ``price_shift`` the logarithm by
    which they pay more than usual, ``created_ms`` when the account was opened.
    """

    city: NDArray[np.int64]
    region: NDArray[np.int64]
    life: NDArray[np.int64]
    rate: NDArray[np.float64]
    price_shift: NDArray[np.float64]
    price_spread: NDArray[np.float64]
    online_shift: NDArray[np.float64]
    created_ms: NDArray[np.int64]
    domain: NDArray[np.int64]
    card_start: NDArray[np.int64]
    card_count: NDArray[np.int64]
    tastes: Roulette
    synthetic: int

    @property
    def real(self) -> int:
        """How many are real people."""
        return len(self.city) - self.synthetic


@dataclass(frozen=True, slots=True)
class Population:
    """Everyone; ``card_issuer`` int64[cards] indexes the issuers.

    ``victims`` draws real customers whose account is open at the start, by their activity;
    ``by_city`` int64[n] is them in the order of their cities, whose first places are
    ``city_start`` int64[cities + 1].
    """

    seed: int
    issuers: Issuers
    merchants: Merchants
    customers: Customers
    card_issuer: NDArray[np.int64]
    victims: Roulette
    by_city: NDArray[np.int64]
    city_start: NDArray[np.int64]

    def residents(self, city: int) -> NDArray[np.int64]:
        """Return int64[n]: the real customers who live in the city."""
        return self.by_city[self.city_start[city] : self.city_start[city + 1]]


def _build_issuers(rng: np.random.Generator) -> Issuers:
    count = len(REGIONS) * _ISSUERS_PER_REGION
    weights = np.array([weight for _, weight in _BRANDS.values()], np.float64)
    brand = rng.choice(len(_BRANDS), count, p=weights / weights.sum())
    funding = rng.choice(len(_FUNDING), count, p=list(_FUNDING.values()))
    first = [digits for digits, _ in _BRANDS.values()]
    tail = rng.permutation(9000)[:count] + 1000
    bins = tuple(f"{first[b]}{t}0"[:6].ljust(6, "0") for b, t in zip(brand, tail, strict=True))
    return Issuers(
        bins=bins,
        brand=np.array([NUMBERS["brand"][name] for name in _BRANDS], np.uint8)[brand],
        funding=np.array([NUMBERS["funding"][name] for name in _FUNDING], np.uint8)[funding],
        region=np.repeat(np.arange(len(REGIONS)), _ISSUERS_PER_REGION),
    )


def _build_merchants(rng: np.random.Generator, extra: int) -> Merchants:
    weight = np.concatenate(
        [
            np.outer(CITY_WEIGHT, (1 - categories.ONLINE) * categories.WEIGHT).ravel(),
            np.outer(np.ones(len(REGIONS)), categories.ONLINE * categories.WEIGHT).ravel(),
        ]
    )
    more = rng.choice(MERCHANT_GROUPS, extra, p=weight / weight.sum())
    group = np.sort(np.concatenate([np.repeat(np.arange(MERCHANT_GROUPS), 2), more]))
    online = group >= PLACE_GROUPS
    city = np.where(online, 0, group // CATEGORY_COUNT)
    region = np.where(online, (group - PLACE_GROUPS) // CATEGORY_COUNT, CITY_REGION[city])
    terminals = np.where(online, 0, 1 + rng.geometric(0.5, len(group)).clip(1, 5))
    owner = np.repeat(np.arange(len(group)), terminals)
    place = rng.normal(0, 0.06, (2, len(group)))[:, owner] + rng.normal(0, 5e-4, (2, len(owner)))
    return Merchants(
        group=group,
        category=group % CATEGORY_COUNT,
        region=region,
        online=online,
        terminal_start=np.cumsum(terminals) - terminals,
        terminal_count=terminals,
        terminal_lat=np.round(CITY_LATITUDE[city[owner]] + place[0], 5),
        terminal_lon=np.round(CITY_LONGITUDE[city[owner]] + place[1], 5),
        wheel=Roulette(rng.lognormal(0, 1.0, len(group)), group),
    )


def _build_customers(
    rng: np.random.Generator, real: int, synthetic: int, start_ms: int
) -> Customers:
    count = real + synthetic
    city = rng.choice(len(CITIES), count, p=CITY_WEIGHT / CITY_WEIGHT.sum())
    rate = rng.lognormal(0, 0.7, count)
    rate[real:] = 0
    # One in seven opens the account while the history runs; the rest did over the years before.
    age_days = np.where(
        rng.random(count) < 0.14, -rng.uniform(0, 365, count), rng.exponential(700, count)
    )
    cards = 1 + rng.choice(3, count, p=[0.62, 0.28, 0.10])
    taste = categories.WEIGHT * rng.gamma(1.5, 1.0, (count, CATEGORY_COUNT))
    domain_weight = np.array(_DOMAIN_WEIGHT)
    return Customers(
        city=city,
        region=CITY_REGION[city],
        life=rng.choice(len(LIFE_WEIGHT), count, p=LIFE_WEIGHT),
        rate=rate,
        price_shift=rng.normal(0, 0.35, count),
        price_spread=rng.uniform(0.7, 1.15, count),
        online_shift=rng.normal(0, 0.22, count),
        created_ms=start_ms - np.round(age_days * DAY_MS).astype(np.int64),
        domain=rng.choice(len(domain_weight), count, p=domain_weight / domain_weight.sum()),
        card_start=np.cumsum(cards) - cards,
        card_count=cards,
        tastes=Roulette.of_rows(taste + 1e-9),
        synthetic=synthetic,
    )


def _issuers_of(rng: np.random.Generator, region: NDArray[np.int64]) -> NDArray[np.int64]:
    home = rng.random(len(region)) < 0.96
    held_in = np.where(home, region, rng.integers(0, len(REGIONS), len(region)))
    bank = (_ISSUERS_PER_REGION * rng.random(len(region)) ** 2).astype(np.int64)
    return held_in * _ISSUERS_PER_REGION + bank


def _known_from_the_start(payers: Customers, customers: int, start_ms: int) -> NDArray[np.int64]:
    """Return the real customers whose account is open at the start, or all where none is.

    Only they fall victim: a campaign does not ask when an account was opened.
    """
    known = np.flatnonzero(payers.created_ms[:customers] <= start_ms)
    return known if len(known) else np.arange(customers)


def build_population(
    seed: int, customers: int, synthetic: int, merchants: int, start_ms: int
) -> Population:
    """Draw everyone from the seed; ``merchants`` come on top of two per city and category."""
    rng = np.random.default_rng([seed, 1])
    issuers = _build_issuers(rng)
    sellers = _build_merchants(rng, merchants)
    payers = _build_customers(rng, customers, synthetic, start_ms)
    owner = np.repeat(np.arange(len(payers.city)), payers.card_count)
    known = _known_from_the_start(payers, customers, start_ms)
    by_city = known[np.argsort(payers.city[known], kind="stable")]
    return Population(
        seed=seed,
        issuers=issuers,
        merchants=sellers,
        customers=payers,
        card_issuer=_issuers_of(rng, payers.region[owner]),
        victims=Roulette.of_rows([np.bincount(known, payers.rate[known], customers)]),
        by_city=by_city,
        city_start=np.searchsorted(payers.city[by_city], np.arange(len(CITIES) + 1)),
    )
