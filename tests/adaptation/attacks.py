"""Owns what is new in a stream from its onset on: three attacks, and a surge of good customers.

Everything that an attack does not state comes from habits: payments of real customers with their
own devices, addresses and cards. Must not know how it is found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from loadgen import categories
from loadgen.addresses import carrier_address
from loadgen.columns import NUMBERS
from loadgen.geography import CITY_REGION, REGIONS
from loadgen.habits import Wishes, settle, to_minor, wish
from loadgen.payments import ABSENT, Payments
from loadgen.population import Population

Attack = Callable[[np.random.Generator, Population, NDArray[np.int64]], Payments]


def _wishes(
    rng: np.random.Generator,
    people: Population,
    time_ms: NDArray[np.int64],
    names: tuple[str, ...],
    *,
    online: bool,
) -> Wishes:
    customer = people.victims.draw(0, rng.random(len(time_ms)))
    wanted = wish(rng, people, customer, time_ms)
    category = rng.choice(np.array([categories.NUMBER[name] for name in names]), len(time_ms))
    return replace(wanted, category=category, online=np.full(len(time_ms), online))


def _price(
    rng: np.random.Generator, people: Population, rows: Payments, low: float, high: float
) -> None:
    dollars = rng.uniform(low, high, len(rows))
    rows["amount_minor"] = to_minor(dollars, people.merchants.region[rows["merchant"]], rng)


def combination(
    rng: np.random.Generator, people: Population, time_ms: NDArray[np.int64]
) -> Payments:
    """A: games and downloads for 25 to 70 dollars, by telephone orders, from mobile networks.

    Each of the four is common; together they never were.
    """
    rows = settle(rng, people, _wishes(rng, people, time_ms, ("GAMING", "DIGITAL"), online=True))
    _price(rng, people, rows, 25, 70)
    rows["channel"] = NUMBERS["channel"]["MAIL_OR_TELEPHONE"]
    rows["entry_mode"] = NUMBERS["entry_mode"]["MANUAL"]
    rows["ip"] = carrier_address(rng, CITY_REGION[people.customers.city[rows["customer"]]])
    return rows


def unused_feature(
    rng: np.random.Generator, people: Population, time_ms: NDArray[np.int64]
) -> Payments:
    """B: goods sent to a region that is not the payer's.

    Where goods go to was never stated before the stream, so the base cannot have used it.
    """
    names = ("CLOTHING", "ELECTRONICS", "MARKETPLACE")
    rows = settle(rng, people, _wishes(rng, people, time_ms, names, online=True))
    _price(rng, people, rows, 40, 160)
    home = people.customers.region[rows["customer"]]
    rows["shipping_region"] = (home + 1 + rng.integers(0, 3, len(rows))) % len(REGIONS)
    return rows


def good_turned_bad(
    rng: np.random.Generator, people: Population, time_ms: NDArray[np.int64]
) -> Payments:
    """C: fuel, paid without contact at a terminal, for 90 to 140 dollars in whole dollars.

    Fuel in a shop is among the safest payments that there are.
    """
    rows = settle(rng, people, _wishes(rng, people, time_ms, ("FUEL",), online=False))
    _price(rng, people, rows, 90, 140)
    rows["amount_minor"] = np.maximum(rows["amount_minor"] // 100 * 100, 100)
    rows["entry_mode"] = NUMBERS["entry_mode"]["CONTACTLESS"]
    return rows


def surge(rng: np.random.Generator, people: Population, time_ms: NDArray[np.int64]) -> Payments:
    """D: tickets of one seller, bought by good customers on their phones, two or three times the
    usual price.
    """
    rows = settle(rng, people, _wishes(rng, people, time_ms, ("AIRLINE",), online=True))
    rows["merchant"], rows["terminal"] = rows["merchant"][0], ABSENT
    _price(rng, people, rows, 80, 400)
    rows["channel"] = NUMBERS["channel"]["MOBILE_APP"]
    return rows
