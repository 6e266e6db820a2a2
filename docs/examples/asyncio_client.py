"""Score many payments at once from one event loop.

python docs/examples/asyncio_client.py 127.0.0.1:50051
"""

import asyncio
import collections
import sys
import uuid

from fraud.v1 import decision_pb2, transaction_pb2

from fraudsvc.client import AsyncFraudClient, ClientSettings, NoAnswerError

PAYMENTS = 100
AT_ONCE = 8  # more would only wait for each other


def without_answer(_: transaction_pb2.Transaction, __: NoAnswerError) -> decision_pb2.Assessment:
    """Let a person decide."""
    return decision_pb2.Assessment(outcome=decision_pb2.OUTCOME_REVIEW)


def payment(number: int) -> transaction_pb2.Transaction:
    """Return what the payment service knows of one payment."""
    made = transaction_pb2.Transaction(
        request_id=str(uuid.uuid4()),
        transaction_id=f"order-{uuid.uuid4()}",
        customer_id=f"customer-{number % 10}",
        amount_minor=1_000 + number,
        currency_code="EUR",
    )
    made.event_time.GetCurrentTime()
    return made


async def main() -> None:
    """Score them, a few at once, and count what came."""
    settings = ClientSettings(deadline_ms=10_000, channels=4)  # nobody waits at a till
    gate = asyncio.Semaphore(AT_ONCE)
    counts: collections.Counter[str] = collections.Counter()

    async with AsyncFraudClient(sys.argv[1], settings, fallback=without_answer) as client:
        await client.connect(timeout_s=5)

        async def score(number: int) -> None:
            async with gate:
                answer = await client.score(payment(number))
            decided = "decided" if answer.decision_id else "not answered"
            counts[decided] += 1

        await asyncio.gather(*(score(number) for number in range(PAYMENTS)))
    for decided, count in counts.items():
        print(count, decided)


if __name__ == "__main__":
    asyncio.run(main())
