"""From a transaction's bytes to an accepted payment, or to the reasons why not.

Owns which of the two readers has the word: the quick one accepts what is in no doubt, and whatever
else is the judge's, who says what is wrong. Must not know what is done with a payment.
"""

from __future__ import annotations

import numpy as np
from fraud.v1 import transaction_pb2
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from featurizer.hashing import IdHasher
from fraudsvc.contract import Checker, ContractSettings
from fraudsvc.errors import ServiceError, refusal
from fraudsvc.payment import Payment
from fraudsvc.wire import Acceptor


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
        try:
            message = transaction_pb2.Transaction.FromString(data)
        except DecodeError:
            raise ServiceError("MALFORMED_MESSAGE") from None
        violations = self._checker.check(message, now_ms, record)
        if violations:
            raise refusal("INVALID_TRANSACTION", violations)
        data = message.SerializeToString(deterministic=True)
        return Payment(data, record, ids, now_ms, message)
