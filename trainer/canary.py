"""Owns which customers a canary decides for, and when it has been seen for long enough.

By the customer's hash alone, so that scorers agree without speaking, a customer stays on one side,
and a replay can say which. The bundle's id shifts the choice: it is not always the same customers.
Pure; must not know bundles or files.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_BITS = 32
_MASK = (1 << _BITS) - 1


class Slice(NamedTuple):
    """The customers of a canary: those whose shifted hash is below ``limit``."""

    salt: int
    limit: int

    def holds(self, customer: int) -> bool:
        """Return whether a customer, by hash, is the canary's. On the path of a decision."""
        return (customer ^ self.salt) & _MASK < self.limit

    def holds_each(self, customers: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return the same for int64[m], bool[m]."""
        found: NDArray[np.bool_] = ((customers ^ self.salt) & _MASK) < self.limit
        return found


def slice_of(model_version: str, share: float) -> Slice:
    """Return the customers of a bundle; ``share`` of them all. Raises ValueError."""
    if not 0.0 < share <= 1.0:
        raise ValueError(f"the share of a canary must be above 0 and up to 1, not {share}")
    digest = hashlib.blake2b(model_version.encode(), digest_size=_BITS // 8).digest()
    return Slice(int.from_bytes(digest, "little"), round(share * (_MASK + 1)))


@dataclass(frozen=True, slots=True)
class CanarySettings:
    """How a new bundle is tried. Raises ValueError for figures without sense.

    ``share`` of the customers, until it made ``decisions_min`` and ``time_min_ms`` passed; after
    ``time_max_ms`` with as many as there are.
    """

    share: float = 0.1
    decisions_min: int = 100
    time_min_ms: int = 15_000
    time_max_ms: int = 600_000

    def __post_init__(self) -> None:
        """Refuse what would never end, or never begin."""
        if not 0.0 < self.share <= 1.0 or self.decisions_min < 1:
            raise ValueError("share must be above 0 and up to 1, decisions_min 1 or more")
        if not 0 <= self.time_min_ms <= self.time_max_ms:
            raise ValueError("time_min_ms must be 0 to time_max_ms")

    def is_over(self, decisions: int, waited_ms: int) -> bool:
        """Return whether a canary that nothing spoke against is to be promoted."""
        if waited_ms >= self.time_max_ms:
            return True
        return decisions >= self.decisions_min and waited_ms >= self.time_min_ms
