"""Arithmetic with the same bits on every machine: no call into a C library's mathematics.

libm may choose another code path per processor; a replay on another host must still give the
same bytes. Only additions, multiplications, divisions and square roots of IEEE 754 are used, over
tables whose bytes are part of the schema's digest.
"""

from __future__ import annotations

from fractions import Fraction
from math import isqrt

import numpy as np
from numba import njit
from numpy.typing import NDArray

_STEPS = 1024
_BITS = 60


def _power_table() -> NDArray[np.float64]:
    """2 ** (-i / 1024) by repeated exact square roots in integers, rounded once."""
    roots = [1 << (2 * _BITS)]  # 2 ** -(1 / 2 ** k) with 2 * _BITS fraction bits
    value = 1 << (2 * _BITS - 1)
    for _ in range(10):
        value = isqrt(value << (2 * _BITS))
        roots.append(value)
    table = []
    for i in range(_STEPS):
        product = 1 << (2 * _BITS)
        for bit in range(10):
            if i >> (9 - bit) & 1:
                product = product * roots[bit + 1] >> (2 * _BITS)
        table.append(float(Fraction(product, 1 << (2 * _BITS))))
    return np.array(table)


POWERS = _power_table()
POWERS.flags.writeable = False
_LN2 = 0.6931471805599453
_PI = 3.141592653589793
_RADIANS_PER_E6 = _PI / 180e6


@njit(cache=True, nogil=True)
def half(elapsed_ms, half_life_ms, powers):  # type: ignore[no-untyped-def]
    """Return 2 ** (-elapsed / half_life) for elapsed >= 0; relative error below 1e-10."""
    scaled = elapsed_ms * 1024
    steps = scaled // half_life_ms
    whole = steps >> 10
    if whole >= 60:
        return 0.0
    rest = (scaled - steps * half_life_ms) / (half_life_ms * 1024.0) * _LN2
    return powers[steps & 1023] * (1.0 - rest + 0.5 * rest * rest) / (1 << whole)


@njit(cache=True, nogil=True)
def sine(x):  # type: ignore[no-untyped-def]
    """Return the sine of x in [-pi, pi] by its Taylor series to x ** 17; error below 1e-11."""
    if x > 0.5 * _PI:
        x = _PI - x
    elif x < -0.5 * _PI:
        x = -_PI - x
    square = x * x
    total = 1.0
    for n in range(16, 0, -2):
        total = 1.0 - square * total / (n * (n + 1))
    return x * total


@njit(cache=True, nogil=True)
def cosine(x):  # type: ignore[no-untyped-def]
    """Return the cosine of x in [-pi, pi]."""
    return sine(0.5 * _PI - abs(x))


@njit(cache=True, nogil=True)
def on_sphere(latitude_e6, longitude_e6):  # type: ignore[no-untyped-def]
    """Return the point of the unit sphere at a place given in millionths of a degree."""
    latitude = latitude_e6 * _RADIANS_PER_E6
    longitude = longitude_e6 * _RADIANS_PER_E6
    across = cosine(latitude)
    return across * cosine(longitude), across * sine(longitude), sine(latitude)
