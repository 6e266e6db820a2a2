"""What is bought: merchant categories with their usual price, spread and share of online sales.

Owns the table; must not know who buys.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Category(NamedTuple):
    """A line of business and how people buy there.

    ISO 18245 code, median price, spread (standard deviation of the price's logarithm), share of
    online sales, weight in a payer's life, and whether goods are shipped.
    """

    mcc: str
    median_dollars: float
    spread: float
    online: float
    weight: float
    shipped: bool


CATEGORIES: dict[str, Category] = {
    "GROCERY": Category("5411", 32, 0.75, 0.06, 20, shipped=False),
    "FUEL": Category("5541", 45, 0.40, 0.00, 8, shipped=False),
    "RESTAURANT": Category("5812", 34, 0.65, 0.05, 10, shipped=False),
    "FAST_FOOD": Category("5814", 12, 0.50, 0.20, 14, shipped=False),
    "PHARMACY": Category("5912", 21, 0.70, 0.10, 6, shipped=True),
    "CLOTHING": Category("5651", 58, 0.75, 0.45, 6, shipped=True),
    "ELECTRONICS": Category("5732", 140, 1.05, 0.60, 3, shipped=True),
    "MARKETPLACE": Category("5311", 38, 0.95, 0.90, 12, shipped=True),
    "DIGITAL": Category("5815", 11, 0.70, 1.00, 6, shipped=False),
    "GAMING": Category("7994", 16, 0.90, 1.00, 3, shipped=False),
    "GIFT_CARD": Category("5947", 40, 0.70, 0.55, 1.5, shipped=False),
    "JEWELLERY": Category("5944", 150, 1.00, 0.30, 0.6, shipped=True),
    "HOTEL": Category("7011", 160, 0.70, 0.60, 1.2, shipped=False),
    "AIRLINE": Category("4511", 230, 0.80, 0.95, 1.0, shipped=False),
    "TRANSIT": Category("4111", 5, 0.60, 0.35, 8, shipped=False),
    "CASH": Category("6011", 80, 0.60, 0.00, 4, shipped=False),
    "TRANSFER": Category("4829", 110, 1.00, 1.00, 1.5, shipped=False),
    "TELECOM": Category("4814", 34, 0.40, 1.00, 0.8, shipped=False),
    "STREAMING": Category("4899", 12, 0.35, 1.00, 0.8, shipped=False),
    "UTILITY": Category("4900", 75, 0.50, 1.00, 0.6, shipped=False),
}
NUMBER = {name: number for number, name in enumerate(CATEGORIES)}
_ROWS = tuple(CATEGORIES.values())
MCC = tuple(row.mcc for row in _ROWS)
LOG_MEDIAN = np.log([row.median_dollars for row in _ROWS])
SPREAD = np.array([row.spread for row in _ROWS])
ONLINE = np.array([row.online for row in _ROWS])
WEIGHT = np.array([row.weight for row in _ROWS])
SHIPPED = np.array([row.shipped for row in _ROWS])
SUBSCRIBED = np.array([NUMBER["TELECOM"], NUMBER["STREAMING"], NUMBER["UTILITY"]])
