"""Who finds out, and how long it takes: label sources and delays per kind of campaign.

Owns the table of what becomes known. Must not know how a payment is made.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from loadgen.columns import NUMBERS
from loadgen.draws import Roulette
from loadgen.payments import NEVER_MS, Payments

HOUR_MS = 3_600_000
_NOBODY = "NOBODY"


class Route(NamedTuple):
    """One way a verdict comes: source, share, and a log-normal delay after a fixed wait."""

    source: str
    share: float
    median_hours: float
    spread: float
    wait_hours: float = 0


# The kinds of campaign; a payment's number is its place here, 0 being an honest one.
KINDS = (
    "",
    "CARD_TESTING",
    "ACCOUNT_TAKEOVER",
    "STOLEN_CARD",
    "COMPROMISED_TERMINAL",
    "FRIENDLY_CHARGEBACK",
    "SYNTHETIC_IDENTITY",
)
KIND = {name: number for number, name in enumerate(KINDS)}

ROUTES: dict[str, tuple[Route, ...]] = {
    # A payment nobody disputes counts as good after a week or more; nobody says so of one in eight.
    "": (
        Route("ISSUER", 0.85, 60, 0.8, wait_hours=168),
        Route("ANALYST", 0.025, 30, 0.9),
        Route(_NOBODY, 0.125, 0, 0),
    ),
    "CARD_TESTING": (
        Route("ISSUER", 0.62, 5, 0.8),
        Route("CHARGEBACK", 0.28, 300, 0.5),
        Route(_NOBODY, 0.10, 0, 0),
    ),
    "ACCOUNT_TAKEOVER": (
        Route("CUSTOMER", 0.64, 9, 0.9),
        Route("ANALYST", 0.14, 4, 0.7),
        Route("CHARGEBACK", 0.20, 430, 0.5),
        Route(_NOBODY, 0.02, 0, 0),
    ),
    "STOLEN_CARD": (
        Route("CUSTOMER", 0.55, 7, 1.0),
        Route("ISSUER", 0.30, 6, 0.8),
        Route("CHARGEBACK", 0.13, 400, 0.5),
        Route(_NOBODY, 0.02, 0, 0),
    ),
    "COMPROMISED_TERMINAL": (
        Route("ISSUER", 0.50, 40, 0.9),
        Route("CUSTOMER", 0.22, 30, 0.9),
        Route("CHARGEBACK", 0.24, 380, 0.5),
        Route(_NOBODY, 0.04, 0, 0),
    ),
    "FRIENDLY_CHARGEBACK": (Route("CHARGEBACK", 1.0, 620, 0.45, wait_hours=48),),
    "SYNTHETIC_IDENTITY": (
        Route("ISSUER", 0.45, 260, 0.6, wait_hours=72),
        Route("ANALYST", 0.25, 50, 0.8),
        Route("CHARGEBACK", 0.22, 550, 0.5),
        Route(_NOBODY, 0.08, 0, 0),
    ),
}


def set_labels(rng: np.random.Generator, rows: Payments) -> None:
    """Draw source and time of every row's verdict from the routes of its kind."""
    for number in np.unique(rows["campaign"]):
        at = np.flatnonzero(rows["campaign"] == number)
        routes = ROUTES[KINDS[number]]
        wheel = Roulette.of_rows([[route.share for route in routes]])
        taken = wheel.column(np.zeros(len(at), np.int64), rng.random(len(at)))
        _, _, median, spread, wait = zip(*routes, strict=True)
        lag = np.array(median)[taken] * np.exp(
            np.array(spread)[taken] * rng.standard_normal(len(at))
        )
        delay_ms = np.rint((np.array(wait)[taken] + lag) * HOUR_MS).astype(np.int64)
        sources = np.array([NUMBERS["label_source"].get(route.source, 0) for route in routes])
        rows["label_source"][at] = sources[taken]
        told = sources[taken] > 0
        rows["label_ms"][at] = np.where(told, rows["time_ms"][at] + delay_ms, NEVER_MS)
