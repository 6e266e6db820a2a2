"""How each kind of fraud is carried out: one function a kind.

Owns what a fraudster does differently from an honest payer; everything else of the payments
comes from habits. Must not know how many campaigns there are, nor when labels arrive.

Each function takes a generator, the population, the start (ms) and the campaign's serial number,
and returns its payments in any order, marked with their kind (0 for the honest-looking ones).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from loadgen import categories
from loadgen.addresses import home_address, server_address
from loadgen.columns import NUMBERS
from loadgen.draws import key
from loadgen.geography import CITIES, CITY_LATITUDE, CITY_LONGITUDE, REGIONS
from loadgen.habits import Wishes, place_at_terminal, settle, to_minor, wish
from loadgen.labels import KIND
from loadgen.payments import Payments, draw_checks, draw_entry
from loadgen.population import DAY_MS, Population

HOUR_MS = 3_600_000
_DEVICE, _LINE, _RING = 30, 31, 32
_PROFITABLE = ("ELECTRONICS", "GIFT_CARD", "MARKETPLACE", "JEWELLERY", "CLOTHING", "TRANSFER")
_WORTHLESS = ("DIGITAL", "GAMING", "STREAMING")
_STREET = ("ELECTRONICS", "FUEL", "GROCERY", "CLOTHING", "JEWELLERY", "PHARMACY", "FAST_FOOD")
_RING_MEMBERS = 4


def _pick(rng: np.random.Generator, names: Sequence[str], count: int) -> NDArray[np.int64]:
    return rng.choice(np.array([categories.NUMBER[name] for name in names]), count)


def _spaced(
    rng: np.random.Generator, start_ms: int, count: int, gap_ms: float
) -> NDArray[np.int64]:
    """Return ascending times: log-normal gaps with the median ``gap_ms``."""
    return start_ms + np.cumsum(rng.lognormal(np.log(gap_ms), 0.8, count)).astype(np.int64)


def _victims(rng: np.random.Generator, people: Population, count: int) -> NDArray[np.int64]:
    return people.victims.draw(0, rng.random(count))


def _remote(
    people: Population,
    customer: NDArray[np.int64],
    times: NDArray[np.int64],
    category: NDArray[np.int64],
) -> Wishes:
    everywhere = np.ones(len(times), bool)
    return Wishes(customer, times, category, people.customers.city[customer], everywhere)


def _take_over_line(rng: np.random.Generator, rows: Payments, serial: int) -> None:
    """Give all online rows the attacker's one device and one line, and where it seems to be."""
    at = np.flatnonzero(rows["device"] != 0)
    rows["device"][at] = key(_DEVICE, serial)
    if rng.random() < 0.5:
        rows["ip"][at] = server_address(key(_LINE, serial), rng.integers(0, 4, len(at)))
    else:  # a rented home line, which looks like anybody's
        rows["ip"][at] = home_address(key(_LINE, serial))
    city = rng.integers(0, len(CITIES))
    rows["lat"][at] = np.round(CITY_LATITUDE[city], 3)
    rows["lon"][at] = np.round(CITY_LONGITUDE[city], 3)


def _raise_amounts(rng: np.random.Generator, rows: Payments, factor: float, spread: float) -> None:
    raised = rows["amount_minor"] * rng.lognormal(np.log(factor), spread, len(rows))
    rows["amount_minor"] = np.maximum(np.rint(raised), 1).astype(np.int64)


def card_testing(
    rng: np.random.Generator, people: Population, start_ms: int, serial: int
) -> Payments:
    """Try many cards with tiny amounts at one shop, then spend with a few that worked."""
    count = int(rng.integers(15, 50))
    customer = _victims(rng, people, count)
    times = _spaced(rng, start_ms, count, 14_000)
    rows = settle(rng, people, _remote(people, customer, times, _pick(rng, _WORTHLESS, count)))
    rows["merchant"] = rows["merchant"][0]
    dollars = rng.uniform(0.4, 3.5, count)
    rows["amount_minor"] = to_minor(dollars, people.merchants.region[rows["merchant"]], rng)
    rows["device"] = key(_DEVICE, serial, rng.integers(0, 3, count))
    rows["ip"] = server_address(key(_LINE, serial), rng.integers(0, 60, count))
    draw_checks(rng, rows, np.ones(count, bool), "GUESSED")
    draw_entry(rng, rows, np.ones(count, bool), "TYPED")
    approved = rows["authorization"] == NUMBERS["authorization"]["APPROVED"]
    worked = np.flatnonzero(approved & (rng.random(count) < 0.25))
    spent = _cash_out(rng, people, rows[worked], serial)
    both = np.concatenate([rows, spent])
    both["campaign"] = KIND["CARD_TESTING"]
    return both


def _cash_out(
    rng: np.random.Generator, people: Population, tested: Payments, serial: int
) -> Payments:
    customer = tested["customer"].astype(np.int64)
    times = tested["time_ms"] + rng.integers(2 * HOUR_MS, 40 * HOUR_MS, len(tested))
    rows = settle(
        rng, people, _remote(people, customer, times, _pick(rng, _PROFITABLE, len(customer)))
    )
    rows["card"] = tested["card"]
    _take_over_line(rng, rows, serial + 1_000_003)
    _raise_amounts(rng, rows, 1.6, 0.5)
    draw_checks(rng, rows, np.ones(len(rows), bool), "STOLEN")
    return rows


def account_takeover(
    rng: np.random.Generator, people: Population, start_ms: int, serial: int
) -> Payments:
    """Enter a known customer's account from a new device and have larger goods sent elsewhere."""
    count = int(rng.integers(2, 8))
    customer = np.repeat(_victims(rng, people, 1), count)
    times = _spaced(rng, start_ms, count, 14 * 60_000)
    rows = settle(rng, people, _remote(people, customer, times, _pick(rng, _PROFITABLE, count)))
    _take_over_line(rng, rows, serial)
    _raise_amounts(rng, rows, 2.6, 0.6)
    elsewhere = rng.integers(0, len(REGIONS))
    moved = (rng.random(count) < 0.6) & (rows["shipping_region"] < len(REGIONS))
    rows["shipping_region"][moved] = elsewhere
    draw_checks(rng, rows, np.ones(count, bool), "STOLEN")
    rows["campaign"] = KIND["ACCOUNT_TAKEOVER"]
    return rows


def stolen_card(
    rng: np.random.Generator, people: Population, start_ms: int, serial: int
) -> Payments:
    """Spend with one stolen card, mostly in shops near by, until it is blocked."""
    count = int(rng.integers(3, 11))
    customer = np.repeat(_victims(rng, people, 1), count)
    home = int(people.customers.city[customer[0]])
    city = home if rng.random() < 0.65 else int(rng.integers(0, len(CITIES)))
    wishes = Wishes(
        customer=customer,
        time_ms=_spaced(rng, start_ms, count, 22 * 60_000),
        category=_pick(rng, _STREET, count),
        city=np.full(count, city),
        online=rng.random(count) < 0.25,
    )
    rows = settle(rng, people, wishes)
    rows["card"] = rows["card"][0]
    _strangers_terminals(rng, people, rows)
    _take_over_line(rng, rows, serial)
    _raise_amounts(rng, rows, 1.7, 0.5)
    rows["amount_minor"] = (rows["amount_minor"] * np.linspace(0.7, 1.6, count)).astype(
        np.int64
    ) + 1
    draw_checks(rng, rows, wishes.online, "STOLEN")
    draw_checks(rng, rows, ~wishes.online, "CLONED")
    draw_entry(rng, rows, ~wishes.online, "STOLEN")
    rows["campaign"] = KIND["STOLEN_CARD"]
    return rows


def _strangers_terminals(rng: np.random.Generator, people: Population, rows: Payments) -> None:
    """Send in-person rows to any shop of the same group: a thief has no favourites."""
    at = np.flatnonzero(rows["terminal"] >= 0)
    sellers = people.merchants
    merchant = sellers.wheel.draw(sellers.group[rows["merchant"][at]], rng.random(len(at)))
    rows["merchant"][at] = merchant
    rows["terminal"][at] = sellers.terminal_start[merchant] + (
        sellers.terminal_count[merchant] * rng.random(len(at))
    ).astype(np.int64)
    place_at_terminal(people, rows)


def compromised_terminal(
    rng: np.random.Generator, people: Population, start_ms: int, serial: int
) -> Payments:
    """Run cloned cards through a tampered terminal for days, and abuse cards that it copied."""
    city = int(people.customers.city[_victims(rng, people, 1)[0]])
    neighbours = people.residents(city)
    days = rng.uniform(3, 12)
    count = int(rng.integers(8, 21))
    customer = rng.choice(neighbours, count)
    times = start_ms + (rng.uniform(0, days, count) * DAY_MS).astype(np.int64)
    category = np.repeat(_pick(rng, (*_STREET, "RESTAURANT", "CASH"), 1), count)
    here = np.full(count, city)
    rows = settle(rng, people, Wishes(customer, times, category, here, np.zeros(count, bool)))
    terminal = rows["terminal"][0]
    rows["merchant"] = rows["merchant"][0]
    rows["terminal"] = terminal
    place_at_terminal(people, rows)
    _raise_amounts(rng, rows, 1.3, 0.5)
    draw_checks(rng, rows, np.ones(count, bool), "CLONED")
    draw_entry(rng, rows, np.ones(count, bool), "CLONED")
    both = np.concatenate([rows, _abuse_copies(rng, people, neighbours, times.max(), serial)])
    both["campaign"] = KIND["COMPROMISED_TERMINAL"]
    return both


def _abuse_copies(
    rng: np.random.Generator,
    people: Population,
    neighbours: NDArray[np.int64],
    until_ms: int,
    serial: int,
) -> Payments:
    """Use skimmed cards of people who live near the terminal, days later and far away."""
    count = int(rng.integers(5, 15))
    customer = rng.choice(neighbours, count)
    wishes = Wishes(
        customer=customer,
        time_ms=until_ms + (rng.lognormal(np.log(4), 0.7, count) * DAY_MS).astype(np.int64),
        category=_pick(rng, ("CASH", *_STREET), count),
        city=np.full(count, rng.integers(0, len(CITIES))),
        online=rng.random(count) < 0.35,
    )
    rows = settle(rng, people, wishes)
    _strangers_terminals(rng, people, rows)
    _take_over_line(rng, rows, serial)
    _raise_amounts(rng, rows, 1.8, 0.5)
    draw_checks(rng, rows, wishes.online, "STOLEN")
    draw_checks(rng, rows, ~wishes.online, "CLONED")
    draw_entry(rng, rows, ~wishes.online, "CLONED")
    return rows


def synthetic_identity(
    rng: np.random.Generator, people: Population, start_ms: int, serial: int
) -> Payments:
    """Open an account for nobody, pay well for weeks, then spend and vanish."""
    payers = people.customers
    who = payers.real + serial % payers.synthetic
    history, bust = int(rng.integers(8, 22)), int(rng.integers(6, 13))
    weeks_ms = rng.uniform(20, 42) * DAY_MS
    built = start_ms + np.sort(rng.uniform(0.02, 1, history) * weeks_ms).astype(np.int64)
    quiet = settle(rng, people, wish(rng, people, np.full(history, who), built))
    end = _spaced(rng, start_ms + int(weeks_ms), bust, 2 * HOUR_MS)
    loud = settle(
        rng, people, _remote(people, np.full(bust, who), end, _pick(rng, _PROFITABLE, bust))
    )
    _raise_amounts(rng, loud, 2.4, 0.5)
    draw_checks(rng, loud, np.ones(bust, bool), "REMOTE")
    loud["campaign"] = KIND["SYNTHETIC_IDENTITY"]
    both = np.concatenate([quiet, loud])
    online = both["device"] != 0
    # A ring shares its equipment.
    both["device"][online] = key(_RING, serial // _RING_MEMBERS)
    both["ip"][online] = home_address(key(_RING, serial // _RING_MEMBERS))
    both["created_ms"] = start_ms
    return both
