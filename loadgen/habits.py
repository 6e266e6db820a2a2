"""How honest people pay: who, when, for what, where, how much, from which device.

Owns the day of habits and `settle`, which turns a wish to pay into a payment; campaigns settle
their payments through it too, so that only what a fraudster changes is different. Must not know
fraud.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loadgen import categories, seasons
from loadgen.addresses import carrier_address, home_address, server_address
from loadgen.columns import NUMBERS
from loadgen.draws import Roulette, key, unit
from loadgen.geography import (
    CITIES,
    CITY_LATITUDE,
    CITY_LONGITUDE,
    CITY_OFFSET_MS,
    CITY_REGION,
    HAS_CENTS,
    MINOR_PER_DOLLAR,
)
from loadgen.payments import ABSENT, NOWHERE, Payments, blank, draw_checks, draw_entry
from loadgen.population import CATEGORY_COUNT, DAY_MS, PLACE_GROUPS, Population

# Purposes of keyed numbers, so that two of them are never the same draw.
_FAVOURITE, _COUNTER, _CARD, _TRIP, _TRIP_DAYS, _TRIP_CITY, _DEVICE, _HOME = range(10, 18)
_TRIP_BLOCK_DAYS = 30
_TRIP_SHARE = 0.35
_TRIP_DAYS_MAX = 9
_EXPLORE_SHARE = 0.12
_DEVICE_DAYS = 420
_LINE_DAYS = 45
_CHAIN_SHARE = 0.28
_RELAY_SHARE = 0.03
_CHANNEL = NUMBERS["channel"]
_HOURS = Roulette.of_rows(seasons.HOUR_WEIGHTS)


@dataclass(frozen=True, slots=True)
class Wishes:
    """Payments about to be made, arrays [n]: who, when, what for, in which city, online or not."""

    customer: NDArray[np.int64]
    time_ms: NDArray[np.int64]
    category: NDArray[np.int64]
    city: NDArray[np.int64]
    online: NDArray[np.bool_]


def city_of(
    people: Population, customer: NDArray[np.int64], day: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return int64[n]: where each customer is on that day, at home or on a trip."""
    block = day // _TRIP_BLOCK_DAYS
    away = unit(key(people.seed, _TRIP, customer, block)) < _TRIP_SHARE
    length = 1 + (_TRIP_DAYS_MAX * unit(key(people.seed, _TRIP_DAYS, customer, block))).astype(int)
    away &= day % _TRIP_BLOCK_DAYS < length
    chosen = unit(key(people.seed, _TRIP_CITY, customer, block)) * len(CITIES)
    return np.where(away, chosen.astype(np.int64), people.customers.city[customer])


def device_of(
    people: Population, customer: NDArray[np.int64], slot: NDArray[np.int64], day: NDArray[np.int64]
) -> NDArray[np.uint64]:
    """Return uint64[n]: the customer's phone (slot 0), laptop or tablet; replaced now and then."""
    age = (unit(key(people.seed, _DEVICE, customer, slot)) * _DEVICE_DAYS).astype(np.int64)
    return key(people.seed, _DEVICE, customer, slot, (day + age) // _DEVICE_DAYS)


def home_line_of(
    people: Population, customer: NDArray[np.int64], day: NDArray[np.int64]
) -> NDArray[np.uint64]:
    """Return uint64[n]: the address of the customer's home line, which changes after weeks."""
    age = (unit(key(people.seed, _HOME, customer)) * _LINE_DAYS).astype(np.int64)
    return home_address(key(people.seed, _HOME, customer, (day + age) // _LINE_DAYS))


def to_minor(
    dollars: NDArray[np.float64], region: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return int64[n]: the price in minor units of the region's currency, often a usual price."""
    minor = np.maximum(np.rint(dollars * MINOR_PER_DOLLAR[region]), 1).astype(np.int64)
    habit = rng.random(len(minor))
    cents = HAS_CENTS[region] & (minor >= 300)
    minor = np.where(cents & (habit < 0.30), minor // 100 * 100 + 99, minor)
    priced: NDArray[np.int64] = np.where(cents & (habit > 0.86), minor // 100 * 100, minor)
    return priced


def wish(
    rng: np.random.Generator,
    people: Population,
    customer: NDArray[np.int64],
    time_ms: NDArray[np.int64],
) -> Wishes:
    """Draw what each customer wants at each time, by the customer's own tastes."""
    category = people.customers.tastes.column(customer, rng.random(len(customer)))
    share = categories.ONLINE[category]
    shifted = share + people.customers.online_shift[customer] * share * (1 - share) * 4
    return Wishes(
        customer=customer,
        time_ms=time_ms,
        category=category,
        city=city_of(people, customer, time_ms // DAY_MS),
        online=rng.random(len(customer)) < shifted,
    )


def _choose_merchant(
    rng: np.random.Generator, people: Population, wishes: Wishes
) -> NDArray[np.int64]:
    customer, category = wishes.customer, wishes.category
    count = len(customer)
    abroad = rng.random(count) < 0.10
    region = np.where(
        abroad, CITY_REGION[rng.integers(0, len(CITIES), count)], people.customers.region[customer]
    )
    group = np.where(
        wishes.online,
        PLACE_GROUPS + region * CATEGORY_COUNT + category,
        wishes.city * CATEGORY_COUNT + category,
    )
    rank = np.minimum(rng.geometric(0.5, count), 4)
    favourite = unit(key(people.seed, _FAVOURITE, customer, group, rank))
    chance = np.where(rng.random(count) < _EXPLORE_SHARE, rng.random(count), favourite)
    return people.merchants.wheel.draw(group, chance)


def _choose_terminal(rng: np.random.Generator, people: Population, rows: Payments) -> None:
    sellers = people.merchants
    merchant = rows["merchant"]
    usual = unit(key(people.seed, _COUNTER, rows["customer"], merchant))
    chance = np.where(rng.random(len(rows)) < 0.3, rng.random(len(rows)), usual)
    count = sellers.terminal_count[merchant]
    terminal = sellers.terminal_start[merchant] + (count * chance).astype(np.int64)
    rows["terminal"] = np.where(count > 0, terminal, ABSENT)


def place_at_terminal(people: Population, rows: Payments) -> None:
    """Set the position of every row that has a terminal to the terminal's."""
    at = rows["terminal"] >= 0
    rows["lat"][at] = people.merchants.terminal_lat[rows["terminal"][at]]
    rows["lon"][at] = people.merchants.terminal_lon[rows["terminal"][at]]


def _choose_card(rng: np.random.Generator, people: Population, wishes: Wishes) -> NDArray[np.int64]:
    payers = people.customers
    usual = unit(key(people.seed, _CARD, wishes.customer, wishes.category)) ** 2
    count = len(usual)
    chance = np.where(rng.random(count) < 0.2, rng.random(count), usual)
    slot = (payers.card_count[wishes.customer] * chance).astype(np.int64)
    return payers.card_start[wishes.customer] + slot


def _set_channel(
    rng: np.random.Generator, rows: Payments, wishes: Wishes, phone: NDArray[np.bool_]
) -> None:
    cash = ~wishes.online & (wishes.category == categories.NUMBER["CASH"])
    transfer = wishes.online & (wishes.category == categories.NUMBER["TRANSFER"])
    keyed = wishes.online & ~transfer & (rng.random(len(rows)) < 0.015)
    app = wishes.online & phone & (rng.random(len(rows)) < 0.55)
    rows["channel"] = np.select(
        [cash, ~wishes.online, transfer, keyed, app],
        [
            _CHANNEL[name]
            for name in (
                "CASH_MACHINE",
                "POINT_OF_SALE",
                "TRANSFER",
                "MAIL_OR_TELEPHONE",
                "MOBILE_APP",
            )
        ],
        _CHANNEL["ECOMMERCE"],
    )
    for kind, where in (
        ("CASH", cash),
        ("PRESENT", ~wishes.online & ~cash),
        ("KEYED", keyed),
        ("REMOTE", wishes.online & ~keyed),
    ):
        draw_entry(rng, rows, where, kind)


def _set_line(rng: np.random.Generator, people: Population, rows: Payments, wishes: Wishes) -> None:
    """Set device, address and position of online payments."""
    at = np.flatnonzero(wishes.online)
    customer, city = wishes.customer[at], wishes.city[at]
    day = wishes.time_ms[at] // DAY_MS
    slot = np.minimum(rng.geometric(0.62, len(at)) - 1, 2)
    rows["device"][at] = device_of(people, customer, slot, day)
    away = city != people.customers.city[customer]
    mobile = (slot == 0) & (rng.random(len(at)) < 0.55)
    address = np.where(
        mobile | away,
        carrier_address(rng, CITY_REGION[city]),
        home_line_of(people, customer, day),
    )
    relay = rng.random(len(at)) < _RELAY_SHARE
    rows["ip"][at] = np.where(
        relay, server_address(rng.integers(0, 512, len(at)), rng.integers(0, 200, len(at))), address
    )
    known = np.where(rng.random(len(at)) < 0.75, 0.0, np.nan)
    rows["lat"][at] = np.round(CITY_LATITUDE[city] + rng.normal(0, 0.04, len(at)), 3) + known
    rows["lon"][at] = np.round(CITY_LONGITUDE[city] + rng.normal(0, 0.04, len(at)), 3) + known
    _set_channel(
        rng,
        rows,
        wishes,
        rows["device"]
        == device_of(
            people, wishes.customer, np.zeros_like(wishes.customer), wishes.time_ms // DAY_MS
        ),
    )


def _set_regions(
    rng: np.random.Generator, people: Population, rows: Payments, wishes: Wishes
) -> None:
    home = people.customers.region[wishes.customer]
    rows["billing_region"] = np.where(wishes.online, home, NOWHERE)
    shipped = wishes.online & categories.SHIPPED[wishes.category]
    gift = rng.random(len(rows)) < 0.03
    where_to = np.where(gift, CITY_REGION[rng.integers(0, len(CITIES), len(rows))], home)
    rows["shipping_region"] = np.where(shipped, where_to, NOWHERE)


def settle(rng: np.random.Generator, people: Population, wishes: Wishes) -> Payments:
    """Return PAYMENT[n]: the wishes as payments, in the order given."""
    payers = people.customers
    rows = blank(len(wishes.customer))
    rows["time_ms"] = wishes.time_ms
    rows["customer"] = wishes.customer
    rows["created_ms"] = payers.created_ms[wishes.customer]
    rows["merchant"] = _choose_merchant(rng, people, wishes)
    rows["card"] = _choose_card(rng, people, wishes)
    _choose_terminal(rng, people, rows)
    place_at_terminal(people, rows)
    _set_line(rng, people, rows, wishes)
    _set_regions(rng, people, rows, wishes)
    spread = categories.SPREAD[wishes.category] * payers.price_spread[wishes.customer]
    log_price = categories.LOG_MEDIAN[wishes.category] + payers.price_shift[wishes.customer]
    dollars = np.exp(log_price + spread * rng.standard_normal(len(rows)))
    rows["amount_minor"] = to_minor(dollars, people.merchants.region[rows["merchant"]], rng)
    draw_checks(rng, rows, wishes.online, "REMOTE")
    draw_checks(rng, rows, ~wishes.online, "PRESENT")
    return rows


def _times(
    rng: np.random.Generator,
    people: Population,
    customer: NDArray[np.int64],
    date: datetime.date,
    start_ms: int,
) -> NDArray[np.int64]:
    """Draw when in the day each payment falls; ``customer`` ascends, so that visits can chain."""
    count = len(customer)
    row = people.customers.life[customer] * 2 + seasons.is_weekend(date)
    local = _HOURS.column(row, rng.random(count)) * 3_600_000 + rng.integers(0, 3_600_000, count)
    offset = CITY_OFFSET_MS[people.customers.city[customer]]
    chained = np.zeros(count, bool)
    chained[1:] = (customer[1:] == customer[:-1]) & (rng.random(count - 1) < _CHAIN_SHARE)
    follows = np.flatnonzero(chained)
    gap_ms = rng.exponential(12 * 60_000, len(follows)).astype(np.int64) + 20_000
    local[follows] = local[follows - 1] + gap_ms
    return start_ms + (local - offset) % DAY_MS


def habit_day(
    rng: np.random.Generator,
    people: Population,
    date: datetime.date,
    start_ms: int,
    mean_rows: float,
) -> Payments:
    """Return the payments of one day's habits, about ``mean_rows`` on an average day, unsorted."""
    payers = people.customers
    rate = np.where(payers.created_ms <= start_ms, payers.rate, 0.0)
    rate = rate * (mean_rows / max(rate.sum(), 1e-9)) * seasons.day_factors(date)[payers.region]
    customer = np.repeat(np.arange(len(rate)), rng.poisson(rate))
    if len(customer) == 0:
        return blank(0)
    return settle(
        rng, people, wish(rng, people, customer, _times(rng, people, customer, date, start_ms))
    )
