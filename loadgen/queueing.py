"""How long a call waits: a queue of c servers, M/G/c, by its usual approximation.

Owns the formulas. Must not know what is served. Arrivals are Poisson; a server is one worker,
whose interpreter does one call at a time.

- Chance of waiting: Erlang's C (Erlang, 1917).
- Mean wait: that of M/M/c times a variability v (Lee and Longton, 1959; Allen, 1990). For M/G/c v
  is (1 + s²) / 2 with s the service time's coefficient of variation: 1 for M/M/c, 1/2 for M/D/c.
- Given that a call waits, its wait is exponential (Kingman, 1962: exact for M/M/c, and in heavy
  traffic for all).
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float64]
_STEPS: Final = 60  # of bisection: far below a nanosecond


class Queue(NamedTuple):
    """A fitted queue. ``base_s`` are times of calls that did not wait, in seconds, any number.

    ``service_s`` is for how long a call keeps a server busy, which is less than what a caller
    sees, as network and client are not in it.
    """

    servers: int
    service_s: float
    variability: float
    base_s: Samples

    @property
    def limit_per_s(self) -> float:
        """The rate beyond which the queue grows without end."""
        return self.servers / self.service_s


def erlang_c(servers: int, load: float) -> float:
    """Return the chance that a call waits; ``load`` is rate times service time, in servers.

    Raises ValueError for no server or a negative load.
    """
    if servers < 1 or load < 0:
        raise ValueError("there is at least one server, and no negative load")
    if load >= servers:
        return 1.0
    blocked = 1.0  # Erlang's B by its recursion, which neither overflows nor cancels
    for count in range(1, servers + 1):
        blocked = load * blocked / (count + load * blocked)
    return blocked / (1 - load / servers * (1 - blocked))


def mean_wait_s(queue: Queue, rate_per_s: float) -> float:
    """Return the mean wait of all calls, infinite at the limit and beyond."""
    load = rate_per_s * queue.service_s
    if load >= queue.servers:
        return math.inf
    chance = erlang_c(queue.servers, load)
    return queue.variability * chance * queue.service_s / (queue.servers - load)


def percentile_s(queue: Queue, rate_per_s: float, share: float) -> float:
    """Return the time within which ``share`` of the calls are answered, infinite at the limit.

    Solves P(base + wait > t) = 1 - share, where base is one of the samples and the wait is 0 or
    exponential.
    """
    wait = mean_wait_s(queue, rate_per_s)
    if math.isinf(wait):
        return math.inf
    chance = erlang_c(queue.servers, rate_per_s * queue.service_s)
    if chance <= 0.0 or wait <= 0.0:
        return float(np.quantile(queue.base_s, share))
    scale = wait / chance
    low, high = 0.0, float(queue.base_s.max()) + scale * math.log(1e6 / (1 - share))
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if _beyond(queue.base_s, chance, scale, middle) > 1 - share:
            low = middle
        else:
            high = middle
    return high


def _beyond(base_s: Samples, chance: float, scale_s: float, time_s: float) -> float:
    """Return the share of calls that take longer."""
    left = time_s - base_s
    waits = np.where(left <= 0, 1.0, chance * np.exp(-np.maximum(left, 0) / scale_s))
    return float(waits.mean())


def rate_within(queue: Queue, share: float, objective_s: float) -> float:
    """Return the highest rate at which ``share`` of the calls are answered within the objective.

    0 where not even a lone call is.
    """
    if percentile_s(queue, 0.0, share) > objective_s:
        return 0.0
    low, high = 0.0, queue.limit_per_s
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if percentile_s(queue, middle, share) <= objective_s:
            low = middle
        else:
            high = middle
    return low


class Seen(NamedTuple):
    """A measured percentile at a rate."""

    rate_per_s: float
    percentile_s: float


def fitted(
    servers: int, service_s: float, base_s: Samples, seen: list[Seen], share: float
) -> Queue:
    """Return the queue whose variability meets what was seen best, in the logarithm.

    A golden-section search over the logarithm of the variability, from 1/50 to 50: what a shared
    machine does to a worker is in it, too. Raises ValueError where nothing was seen.
    """
    if not seen or not len(base_s):
        raise ValueError("a queue is fitted to at least one rate and one sample")

    def misfit(exponent: float) -> float:
        queue = Queue(servers, service_s, math.exp(exponent), base_s)
        errors = [
            math.log(min(percentile_s(queue, each.rate_per_s, share), 1e3) / each.percentile_s)
            for each in seen
        ]
        return sum(error * error for error in errors)

    ratio = (math.sqrt(5) - 1) / 2
    low, high = math.log(1 / 50), math.log(50)
    for _ in range(40):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if misfit(left) <= misfit(right):
            high = right
        else:
            low = left
    return Queue(servers, service_s, math.exp((low + high) / 2), base_s)
