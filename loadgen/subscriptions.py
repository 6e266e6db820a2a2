"""Recurring payments: the same amount to the same seller every 30 days.

Owns who subscribes to what. Must not know fraud.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loadgen import categories
from loadgen.columns import NUMBERS
from loadgen.habits import to_minor
from loadgen.payments import Payments, blank, draw_checks
from loadgen.population import CATEGORY_COUNT, PLACE_GROUPS, Population

PERIOD_DAYS = 30


@dataclass(frozen=True, slots=True)
class Subscriptions:
    """Agreements, arrays [n]: the payer, the seller, the price, and the day of the period."""

    customer: NDArray[np.int64]
    card: NDArray[np.int64]
    merchant: NDArray[np.int64]
    amount_minor: NDArray[np.int64]
    due_day: NDArray[np.int64]
    due_time_ms: NDArray[np.int64]


def build_subscriptions(people: Population, count: int) -> Subscriptions:
    """Draw ``count`` agreements among the real customers."""
    rng = np.random.default_rng([people.seed, 2])
    payers = people.customers
    customer = rng.integers(0, payers.real, count)
    category = rng.choice(categories.SUBSCRIBED, count)
    group = PLACE_GROUPS + payers.region[customer] * CATEGORY_COUNT + category
    merchant = people.merchants.wheel.draw(group, rng.random(count))
    dollars = np.exp(
        categories.LOG_MEDIAN[category]
        + payers.price_shift[customer]
        + categories.SPREAD[category] * rng.standard_normal(count)
    )
    return Subscriptions(
        customer=customer,
        card=payers.card_start[customer],
        merchant=merchant,
        amount_minor=to_minor(dollars, people.merchants.region[merchant], rng),
        due_day=rng.integers(0, PERIOD_DAYS, count),
        due_time_ms=rng.integers(0, 6 * 3_600_000, count),
    )


def subscription_day(
    rng: np.random.Generator, people: Population, agreed: Subscriptions, day: int, start_ms: int
) -> Payments:
    """Return the agreed payments that fall due on the day."""
    opened = people.customers.created_ms[agreed.customer] <= start_ms
    due = np.flatnonzero((agreed.due_day == day % PERIOD_DAYS) & opened)
    rows = blank(len(due))
    rows["time_ms"] = start_ms + agreed.due_time_ms[due] + rng.integers(0, 60_000, len(due))
    rows["customer"] = agreed.customer[due]
    rows["card"] = agreed.card[due]
    rows["merchant"] = agreed.merchant[due]
    rows["amount_minor"] = agreed.amount_minor[due]
    rows["created_ms"] = people.customers.created_ms[rows["customer"]]
    rows["billing_region"] = people.customers.region[rows["customer"]]
    rows["channel"] = NUMBERS["channel"]["ECOMMERCE"]
    rows["entry_mode"] = NUMBERS["entry_mode"]["CREDENTIAL_ON_FILE"]
    rows["recurring"] = True
    draw_checks(rng, rows, np.ones(len(due), bool), "AGREED")
    return rows
