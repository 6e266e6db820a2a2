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

FILE = "FORMER-IDS"
_MAGIC = np.frombuffer(b"FORMER01", "<i8")  # then all former hashes, sorted, then those of now


def write_former_ids(directory: Path, former: NDArray[np.int64], now: NDArray[np.int64]) -> None:
    """Write the hashes that requests had and have, int64[n] each, durably. Raises OSError."""
    order = np.argsort(former, kind="stable")
    with (directory / FILE).open("wb") as file:
        for part in (_MAGIC, former[order], now[order]):
            file.write(part.astype("<i8").tobytes())
        file.flush()
        os.fsync(file.fileno())


class FormerIds:
    """The former ids of the log in a directory, mapped and not read: 16 bytes each.

    A log whose secret was never changed has none. Raises LogError for a file that is none of ours.
    """

    def __init__(self, directory: Path) -> None:
        try:
            words = np.memmap(directory / FILE, "<i8", mode="r")
        except FileNotFoundError:
            words = _MAGIC  # type: ignore[assignment]
        except (OSError, ValueError) as error:
            raise LogError(f"{directory / FILE} cannot be read: {error}") from error
        count = len(words) // 2
        if words[0] != _MAGIC[0] or len(words) != 1 + 2 * count:
            raise LogError(f"{directory / FILE} holds no former ids")
        self._former, self._now = words[1 : 1 + count], words[1 + count :]

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
