"""Regions and cities of the world: places, clocks, currencies and how well payers are checked.

Owns the tables; must not know who lives there. Exchange rates are rough and never change.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class City(NamedTuple):
    """A place: degrees, hours ahead of UTC, and its weight among all cities."""

    latitude: float
    longitude: float
    utc_offset_hours: float
    weight: float


class Region(NamedTuple):
    """A market: ISO 3166-1 code, ISO 4217 currency, dollars per unit, decimals of its money."""

    code: str
    currency: str
    dollars: float
    decimals: int
    cities: tuple[City, ...]


REGIONS = (
    Region(
        "US",
        "USD",
        1.0,
        2,
        (
            City(40.71, -74.01, -5, 9),
            City(34.05, -118.24, -8, 7),
            City(41.88, -87.63, -6, 5),
            City(29.76, -95.37, -6, 4),
        ),
    ),
    Region("GB", "GBP", 1.24, 2, (City(51.51, -0.13, 0, 7), City(53.48, -2.24, 0, 3))),
    Region(
        "DE",
        "EUR",
        1.03,
        2,
        (City(52.52, 13.41, 1, 4), City(48.14, 11.58, 1, 3), City(53.55, 9.99, 1, 2)),
    ),
    Region("FR", "EUR", 1.03, 2, (City(48.86, 2.35, 1, 6), City(45.76, 4.84, 1, 2))),
    Region("ES", "EUR", 1.03, 2, (City(40.42, -3.70, 1, 4), City(41.39, 2.17, 1, 3))),
    Region("IT", "EUR", 1.03, 2, (City(41.90, 12.50, 1, 3), City(45.46, 9.19, 1, 3))),
    Region("NL", "EUR", 1.03, 2, (City(52.37, 4.90, 1, 3),)),
    Region("PL", "PLN", 0.24, 2, (City(52.23, 21.01, 1, 3), City(50.06, 19.94, 1, 2))),
    Region("SE", "SEK", 0.09, 2, (City(59.33, 18.07, 1, 2),)),
    Region("CA", "CAD", 0.69, 2, (City(43.65, -79.38, -5, 3), City(49.28, -123.12, -8, 2))),
    Region("MX", "MXN", 0.049, 2, (City(19.43, -99.13, -6, 4),)),
    Region("BR", "BRL", 0.16, 2, (City(-23.55, -46.63, -3, 5), City(-22.91, -43.17, -3, 3))),
    Region("JP", "JPY", 0.0064, 0, (City(35.68, 139.69, 9, 5), City(34.69, 135.50, 9, 3))),
    Region("IN", "INR", 0.0117, 2, (City(19.08, 72.88, 5.5, 4), City(28.61, 77.21, 5.5, 4))),
    Region("AU", "AUD", 0.62, 2, (City(-33.87, 151.21, 10, 3), City(-37.81, 144.96, 10, 2))),
)

CITIES = tuple(city for region in REGIONS for city in region.cities)
CITY_REGION = np.array(
    [number for number, region in enumerate(REGIONS) for _ in region.cities], np.int64
)
CITY_LATITUDE = np.array([city.latitude for city in CITIES])
CITY_LONGITUDE = np.array([city.longitude for city in CITIES])
CITY_OFFSET_MS = np.array([int(city.utc_offset_hours * 3_600_000) for city in CITIES], np.int64)
CITY_WEIGHT = np.array([city.weight for city in CITIES], np.float64)
# Minor units of the region's currency per dollar.
MINOR_PER_DOLLAR = np.array([10.0**r.decimals / r.dollars for r in REGIONS])
HAS_CENTS = np.array([r.decimals == 2 for r in REGIONS])
