"""Score one payment from a thread, and know what to do when no answer comes.

python docs/examples/sync.py 127.0.0.1:50051
"""

import sys
import uuid

from fraud.v1 import decision_pb2, transaction_pb2

from fraudsvc.client import ClientSettings, FraudClient, NoAnswerError, RefusedError

REVIEW_FROM_MINOR = 50_000  # without an answer, a person looks at what is worth more


def without_answer(
    transaction: transaction_pb2.Transaction, error: NoAnswerError
) -> decision_pb2.Assessment:
    """Decide by the amount alone."""
    print(f"no answer after {error.attempts} attempts: {error}", file=sys.stderr)
    large = transaction.amount_minor >= REVIEW_FROM_MINOR
    outcome = decision_pb2.OUTCOME_REVIEW if large else decision_pb2.OUTCOME_APPROVE
    return decision_pb2.Assessment(outcome=outcome)


def payment() -> transaction_pb2.Transaction:
    """Return what the payment service knows of one payment."""
    made = transaction_pb2.Transaction(
        request_id=str(uuid.uuid4()),
        transaction_id=f"order-{uuid.uuid4()}",
        customer_id="customer-1",
        amount_minor=125_000,
        currency_code="EUR",
        channel=transaction_pb2.CHANNEL_ECOMMERCE,
    )
    made.event_time.GetCurrentTime()
    return made


def main() -> None:
    """Score a good payment, and one that is refused."""
    settings = ClientSettings(deadline_ms=500, channels=2)
    with FraudClient(sys.argv[1], settings, fallback=without_answer) as client:
        client.connect(timeout_s=5)
        answer = client.score(payment())
        print(decision_pb2.Outcome.Name(answer.outcome), answer.decision_id or "no decision")
        wrong = payment()
        wrong.currency_code = "euro"
        try:
            client.score(wrong)
        except RefusedError as error:
            print(error.failure.reason, *(field for field, _ in error.failure.fields))


if __name__ == "__main__":
    main()
