"""An accepted transaction in the three forms that a decision needs."""

from __future__ import annotations

import numpy as np
from fraud.v1 import transaction_pb2
from numpy.typing import NDArray

from featurizer.records import RECORD


class Payment:
    """A valid transaction: its bytes, its record, and its message for whoever asks.

    ``data`` is the deterministic serialisation, ``record`` RECORD[1], ``ids`` int64[1, n] the same
    memory as words, ``received_ms`` the scorer's clock when it came, ms since 1970. The message
    is parsed when it is first read, which most decisions never do.
    """

    __slots__ = ("_message", "data", "ids", "received_ms", "record")

    def __init__(
        self,
        data: bytes,
        record: NDArray[np.void],
        ids: NDArray[np.int64],
        received_ms: int,
        message: transaction_pb2.Transaction | None = None,
    ) -> None:
        self.data = data
        self.record = record
        self.ids = ids
        self.received_ms = received_ms
        self._message = message

    def detach(self) -> None:
        """Go on with a record in memory of its own."""
        self.ids = self.ids.copy()
        self.record = self.ids.reshape(-1).view(RECORD)

    @property
    def message(self) -> transaction_pb2.Transaction:
        """The transaction as a message; not to be changed."""
        if self._message is None:
            self._message = transaction_pb2.Transaction.FromString(self.data)
        return self._message
