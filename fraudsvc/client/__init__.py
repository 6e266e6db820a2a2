"""What a payment service calls the scorer with: deadline, retries, fallback, several channels."""

from fraudsvc.client.aio import AsyncFraudClient
from fraudsvc.client.attempts import ClientError, ClientSettings, NoAnswerError, RefusedError
from fraudsvc.client.channels import Tls
from fraudsvc.client.sync import FraudClient

__all__ = [
    "AsyncFraudClient",
    "ClientError",
    "ClientSettings",
    "FraudClient",
    "NoAnswerError",
    "RefusedError",
    "Tls",
]
