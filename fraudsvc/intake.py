"""From a transaction's bytes to an accepted payment, or to the reasons why not.

Owns which of the two readers has the word: the quick one accepts what is in no doubt, and whatever
else is the judge's, who says what is wrong. Must not know what is done with a payment.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from fraud.v1 import transaction_pb2
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from featurizer.hashing import IdHasher
from fraudsvc.contract import Checker, ContractSettings
from fraudsvc.errors import ServiceError, refusal
from fraudsvc.payment import Payment
from fraudsvc.wire.reader import Acceptor


class Intake:
    """Takes transactions in, one at a time."""

    def __init__(self, hasher: IdHasher, contract: ContractSettings) -> None:
        self._acceptor = Acceptor(hasher, contract)
        self._checker = Checker(hasher, contract)

    def take(
        self, data: bytes, now_ms: int, record: NDArray[np.void], ids: NDArray[np.int64]
    ) -> Payment:
        """Fill ``record`` (RECORD[1]), whose words ``ids`` int64[1, n] are; both are the payment's.

        Raises ServiceError, which names the fields at fault and never their values.
        """
        if self._acceptor.accept(data, now_ms, record):
            return Payment(data, record, ids, now_ms)
        return self._judged(data, now_ms, record, ids)

    def take_all(
        self,
        datas: Sequence[bytes],
        now_ms: int,
        records: NDArray[np.void],
        ids: NDArray[np.int64],
    ) -> list[Payment | ServiceError]:
        """Do as ``take`` for each, with a row of ``records`` RECORD[n] and ``ids`` int64[n, m]."""
        accepted = self._acceptor.accept_all(datas, now_ms, records)
        taken: list[Payment | ServiceError] = []
        for i, data in enumerate(datas):
            record, words = records[i : i + 1], ids[i : i + 1]
            if accepted[i]:
                taken.append(Payment(data, record, words, now_ms))
                continue
            try:
                taken.append(self._judged(data, now_ms, record, words))
            except ServiceError as error:
                taken.append(error)
        return taken

    def _judged(
        self, data: bytes, now_ms: int, record: NDArray[np.void], ids: NDArray[np.int64]
    ) -> Payment:
        """Ask the judge. Raises ServiceError."""
        try:
            message = transaction_pb2.Transaction.FromString(data)
        except DecodeError:
            raise ServiceError("MALFORMED_MESSAGE") from None
        message.DiscardUnknownFields()  # nobody looked at them, so they are not kept
        violations = self._checker.check(message, now_ms, record)
        if violations:
            raise refusal("INVALID_TRANSACTION", violations)
        data = message.SerializeToString(deterministic=True)
        return Payment(data, record, ids, now_ms, message)
