"""When calls are due.

Owns the arithmetic of arrivals. Must not know what is sent.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Arrivals = Literal["poisson", "constant"]
CALLS_MAX = 20_000_000
NS = 1_000_000_000


def due_times_ns(
    rate_per_s: float, seconds: float, arrivals: Arrivals, seed: int
) -> NDArray[np.int64]:
    """Return int64[n], ascending in [0, seconds): when each call is due, ns after the start.

    Raises ValueError for a rate or time that is not above 0, or more than CALLS_MAX calls.
    """
    if not (rate_per_s > 0 and seconds > 0):
        raise ValueError("rate and seconds must be above 0")
    if rate_per_s * seconds > CALLS_MAX:
        raise ValueError(f"at most {CALLS_MAX} calls a run")
    if arrivals == "constant":
        count = int(np.ceil(rate_per_s * seconds - 1e-9))
        return (np.arange(count) * (NS / rate_per_s)).astype(np.int64)
    rng = np.random.default_rng(seed)
    # Given their number, the arrivals of a Poisson process are independent and uniform.
    count = int(rng.poisson(rate_per_s * seconds))
    return np.sort(rng.integers(0, int(seconds * NS), count))
