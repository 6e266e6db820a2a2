"""When people pay: hours of the day by way of life, weekdays, and holidays by region.

Owns the tables of rhythm; must not know a customer or an amount.
"""

from __future__ import annotations

import datetime

import numpy as np
from numpy.typing import NDArray

from loadgen.geography import REGIONS

# Weight per local hour, 0 to 23: (working day, weekend) per way of life.
_HOURS = {
    "OFFICE": ("100001256434863347986432", "210000112456787766776543"),
    "NIGHT": ("754321111223345455667788", "987532111122345555667789"),
    "HOME": ("100000124678876777654321", "100000123578887777654321"),
    "STUDENT": ("431100113334665556778876", "653210001235677777788888"),
}
LIVES = len(_HOURS)
LIFE_WEIGHT = np.array([0.50, 0.08, 0.25, 0.17])
# Monday to Sunday.
_WEEKDAYS = (0.94, 0.93, 0.97, 1.00, 1.15, 1.14, 0.87)
_CLOSED = 0.55
# (month, day) -> factor, everywhere; then each region's own days off.
_HOLIDAYS = {(1, 1): 0.5, (12, 24): 1.3, (12, 25): 0.4, (12, 26): 0.8, (12, 31): 1.2}
_OWN_HOLIDAYS: dict[str, tuple[tuple[int, int], ...]] = {
    "US": ((7, 4), (6, 19), (11, 11)),
    "GB": ((8, 25),),
    "DE": ((10, 3), (5, 1)),
    "FR": ((7, 14), (5, 1)),
    "ES": ((10, 12), (5, 1)),
    "IT": ((6, 2), (8, 15)),
    "NL": ((4, 27),),
    "PL": ((5, 3), (11, 11)),
    "SE": ((6, 6),),
    "CA": ((7, 1),),
    "MX": ((9, 16),),
    "BR": ((9, 7), (11, 15)),
    "JP": ((5, 3), (5, 4), (5, 5)),
    "IN": ((1, 26), (8, 15)),
    "AU": ((1, 26), (4, 25)),
}


# Rows of hour weights: way of life * 2 + (1 on a weekend).
HOUR_WEIGHTS = np.array([[int(digit) for digit in row] for rows in _HOURS.values() for row in rows])


def black_friday(year: int) -> datetime.date:
    """Return the day after the fourth Thursday of November."""
    first = datetime.date(year, 11, 1)
    return first + datetime.timedelta(days=(3 - first.weekday()) % 7 + 22)


def is_weekend(day: datetime.date) -> bool:
    """Return whether the day is a Saturday or a Sunday."""
    return day.weekday() >= 5


def day_factors(day: datetime.date) -> NDArray[np.float64]:
    """Return float64[regions]: how busy the day is, 1 being an average one."""
    factor = _WEEKDAYS[day.weekday()] * _HOLIDAYS.get((day.month, day.day), 1.0)
    if day == black_friday(day.year):
        factor *= 1.6
    elif day.month == 12 and day.day < 24:
        factor *= 1.15
    own = [_CLOSED if (day.month, day.day) in _OWN_HOLIDAYS[r.code] else 1.0 for r in REGIONS]
    return factor * np.array(own)
