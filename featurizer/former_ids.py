"""What requests were called under earlier id secrets: a file beside the segments of a log.

Owns that file. Decisions keep the ids that they were given out under; this leads from the request's
hash in such an id to the one that the records have now.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featurizer.eventlog import LogError
from featurizer.hashing import request_hash_of

FILE = "FORMER-IDS.npy"


def write_former_ids(directory: Path, former: NDArray[np.int64], now: NDArray[np.int64]) -> None:
    """Write the hashes that requests had and have, int64[n] each, durably. Raises OSError."""
    order = np.argsort(former, kind="stable")
    with (directory / FILE).open("wb") as file:
        np.save(file, np.stack([former[order], now[order]]), allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())


class FormerIds:
    """The former ids of the log in a directory, mapped and not read: 16 bytes each.

    A log whose secret was never changed has none. Raises LogError for a file that is none of ours.
    """

    def __init__(self, directory: Path) -> None:
        try:
            pairs = np.lib.format.open_memmap(directory / FILE, mode="r")
        except FileNotFoundError:
            pairs = np.zeros((2, 0), np.int64)  # type: ignore[assignment]
        except (OSError, ValueError) as error:
            raise LogError(f"{directory / FILE} cannot be read: {error}") from error
        if pairs.dtype != np.int64 or pairs.ndim != 2 or len(pairs) != 2:
            raise LogError(f"{directory / FILE} holds no former ids")
        self._former, self._now = pairs

    def now(self, request: int) -> int:
        """Return the hash that a request has now, by one that it has or had."""
        at = int(np.searchsorted(self._former, request))
        if at < len(self._former) and self._former[at] == request:
            return int(self._now[at])
        return request

    def have_named(self, decision_id: str, request: int) -> bool:
        """Whether a decision's id was made of an earlier hash of what is ``request`` now."""
        try:
            former = request_hash_of(decision_id)
        except ValueError:
            return False
        return former != request and self.now(former) == request
