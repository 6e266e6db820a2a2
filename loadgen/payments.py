"""The world's working row: one payment as numbers, before it becomes text.

Owns the row's layout and the tables of checks (3-D Secure, address, code, issuer). Must not know
why a payment is made.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from loadgen.columns import NUMBERS
from loadgen.draws import Roulette

NEVER_MS = np.iinfo(np.int64).min
NOWHERE: Final = 255  # a region that is absent
ABSENT: Final = -1  # a terminal that is absent

PAYMENT = np.dtype(
    [
        ("time_ms", "i8"),
        ("customer", "i4"),
        ("card", "i4"),
        ("merchant", "i4"),
        ("terminal", "i4"),
        ("device", "u8"),  # 0 absent
        ("ip", "u8"),  # 0 absent; see addresses.py
        ("amount_minor", "i8"),
        ("channel", "u1"),  # numbers of the contract's enums; 0 absent
        ("entry_mode", "u1"),
        ("three_ds", "u1"),
        ("avs", "u1"),
        ("cvv", "u1"),
        ("authorization", "u1"),
        ("recurring", "?"),
        ("billing_region", "u1"),
        ("shipping_region", "u1"),
        ("lat", "f8"),
        ("lon", "f8"),
        ("created_ms", "i8"),
        ("campaign", "u1"),  # 0 legitimate
        ("label_source", "u1"),
        ("label_ms", "i8"),  # NEVER_MS where nobody ever says
    ]
)
Payments = NDArray[np.void]
CHECKS = ("three_ds", "avs", "cvv", "authorization")

# Probabilities of each result, in the order of the contract's numbers, the first being absent.
# 3-D Secure: authenticated, attempted, failed, unavailable. Address: match, partial, mismatch,
# unavailable. Code: match, mismatch, unavailable. Issuer: approved, declined.
_RESULTS: dict[str, dict[str, tuple[float, ...]]] = {
    "PRESENT": {
        "three_ds": (1.0, 0, 0, 0, 0),
        "avs": (1.0, 0, 0, 0, 0),
        "cvv": (1.0, 0, 0, 0),
        "authorization": (0, 0.975, 0.025),
    },
    "REMOTE": {
        "three_ds": (0.36, 0.46, 0.09, 0.02, 0.07),
        "avs": (0.10, 0.76, 0.06, 0.04, 0.04),
        "cvv": (0.12, 0.83, 0.02, 0.03),
        "authorization": (0, 0.957, 0.043),
    },
    "AGREED": {
        "three_ds": (0.95, 0.05, 0, 0, 0),
        "avs": (0.6, 0.4, 0, 0, 0),
        "cvv": (1.0, 0, 0, 0),
        "authorization": (0, 0.965, 0.035),
    },
    "GUESSED": {  # card data from a list or a generator
        "three_ds": (0.78, 0.02, 0.08, 0.05, 0.07),
        "avs": (0.25, 0.25, 0.15, 0.27, 0.08),
        "cvv": (0.18, 0.47, 0.28, 0.07),
        "authorization": (0, 0.58, 0.42),
    },
    "STOLEN": {  # the card's data are right, the payer is not
        "three_ds": (0.62, 0.10, 0.14, 0.06, 0.08),
        "avs": (0.15, 0.52, 0.14, 0.14, 0.05),
        "cvv": (0.15, 0.74, 0.06, 0.05),
        "authorization": (0, 0.88, 0.12),
    },
    "CLONED": {
        "three_ds": (1.0, 0, 0, 0, 0),
        "avs": (1.0, 0, 0, 0, 0),
        "cvv": (1.0, 0, 0, 0),
        "authorization": (0, 0.90, 0.10),
    },
}
_WHEELS = {
    kind: {check: Roulette.of_rows([weights]) for check, weights in table.items()}
    for kind, table in _RESULTS.items()
}

# Probability of each entry mode, by the contract's names, per situation.
_ENTRY: dict[str, dict[str, float]] = {
    "PRESENT": {"CHIP": 0.34, "CONTACTLESS": 0.58, "MAGNETIC_STRIPE": 0.06, "MANUAL": 0.02},
    "CASH": {"CHIP": 0.92, "CONTACTLESS": 0.04, "MAGNETIC_STRIPE": 0.04},
    "REMOTE": {"ECOMMERCE": 0.68, "CREDENTIAL_ON_FILE": 0.32},
    "KEYED": {"MANUAL": 1.0},
    "STOLEN": {"CONTACTLESS": 0.62, "CHIP": 0.20, "MAGNETIC_STRIPE": 0.18},
    "CLONED": {"MAGNETIC_STRIPE": 0.66, "CONTACTLESS": 0.20, "CHIP": 0.14},
    "TYPED": {"ECOMMERCE": 0.93, "CREDENTIAL_ON_FILE": 0.07},
}
_ENTRY_NUMBERS = {
    kind: np.array([NUMBERS["entry_mode"][name] for name in table])
    for kind, table in _ENTRY.items()
}
_ENTRY_WHEELS = {kind: Roulette.of_rows([list(table.values())]) for kind, table in _ENTRY.items()}


def blank(count: int) -> Payments:
    """Return PAYMENT[count] with everything optional absent."""
    rows = np.zeros(count, PAYMENT)
    rows["terminal"] = ABSENT
    rows["billing_region"] = NOWHERE
    rows["shipping_region"] = NOWHERE
    rows["lat"] = np.nan
    rows["lon"] = np.nan
    rows["label_ms"] = NEVER_MS
    return rows


def draw_checks(
    rng: np.random.Generator, rows: Payments, where: NDArray[np.bool_], kind: str
) -> None:
    """Set the results of all checks of the rows ``where`` says, from the table ``kind``."""
    count = int(where.sum())
    for check, wheel in _WHEELS[kind].items():
        rows[check][where] = wheel.column(np.zeros(count, np.int64), rng.random(count))


def draw_entry(
    rng: np.random.Generator, rows: Payments, where: NDArray[np.bool_], kind: str
) -> None:
    """Set the entry mode of the rows ``where`` says, from the table ``kind``."""
    count = int(where.sum())
    column = _ENTRY_WHEELS[kind].column(np.zeros(count, np.int64), rng.random(count))
    rows["entry_mode"][where] = _ENTRY_NUMBERS[kind][column]
