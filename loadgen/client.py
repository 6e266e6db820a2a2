"""Connections to a scorer.

Owns channel options and the contract's methods. Must not know when calls are made, nor why.
"""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import grpc
from fraud.v1 import fraud_service_pb2

CONNECTIONS_MAX = 256
_WATCH_S = 0.3  # a little more than grpc's thread takes to see that a channel is watched no more
_OPTIONS = (
    # Without it, channels to one address share one connection.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    # A retry inside the library would hide from the figures.
    ("grpc.enable_retries", 0),
    # The usual pause of a second after a failed connection would hide how soon a server is back.
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Despite its name, how long one attempt may take, greeting and TLS included: a server that is
    # far or busy would never be reached with less.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 500),
)
_SERVICE = fraud_service_pb2.DESCRIPTOR.services_by_name["FraudService"].full_name
SCORE = f"{_SERVICE}/Score"


class TargetUnreachableError(ConnectionError):
    """Nobody answers at the target."""


class Identity(NamedTuple):
    """Files in PEM: who signs the server's certificate, and one's own with its key."""

    authority: Path
    certificate: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        """Return how a socket shows it, for HTTP/2. Raises OSError for files that are wrong."""
        context = ssl.create_default_context(cafile=str(self.authority))
        context.load_cert_chain(self.certificate, self.key)
        context.set_alpn_protocols(["h2"])
        return context


@contextlib.contextmanager
def connect(
    target: str,
    connections: int,
    timeout_s: float,
    *,
    identity: Identity | None = None,
) -> Iterator[list[grpc.Channel]]:
    """Open connections and wait until each is ready; close them at the end.

    With an ``identity`` they are by mutual TLS.
    Raises TargetUnreachableError after ``timeout_s``, ValueError for a number out of range.
    """
    if not 1 <= connections <= CONNECTIONS_MAX:
        raise ValueError(f"connections must be 1 to {CONNECTIONS_MAX}, not {connections}")
    channels = [_channel(target, identity) for _ in range(connections)]
    try:
        for channel in channels:
            _wait_until_ready(channel, target, timeout_s)
            channel.subscribe(_watched, try_to_connect=True)
        yield channels
        for channel in channels:
            channel.unsubscribe(_watched)
        time.sleep(_WATCH_S)
    finally:
        for channel in channels:
            channel.close()


def _channel(target: str, identity: Identity | None) -> grpc.Channel:
    if identity is None:
        return grpc.insecure_channel(target, options=_OPTIONS)
    authority, certificate, key = (path.read_bytes() for path in identity)
    credentials = grpc.ssl_channel_credentials(authority, key, certificate)
    return grpc.secure_channel(target, credentials, _OPTIONS)


def _watched(_: grpc.ChannelConnectivity) -> None:
    """Do nothing: that a channel is watched has grpc look at its socket all the time.

    Else only calls do, and those that fail at once do not: a connection under way then goes on
    when grpc looks by itself, each 5 s, and calls fail until then though the server is back.
    """


def _wait_until_ready(channel: grpc.Channel, target: str, timeout_s: float) -> None:
    try:
        grpc.channel_ready_future(channel).result(timeout=timeout_s)
    except grpc.FutureTimeoutError:
        raise TargetUnreachableError(f"no server answers at {target} in {timeout_s:g} s") from None


def score_method(
    channel: grpc.Channel,
) -> grpc.UnaryUnaryMultiCallable[bytes, fraud_service_pb2.ScoreResponse]:
    """Return Score for requests that are bytes already."""
    return channel.unary_unary(
        f"/{SCORE}",
        request_serializer=None,
        response_deserializer=fraud_service_pb2.ScoreResponse.FromString,
    )


def get_decision_method(
    channel: grpc.Channel,
) -> grpc.UnaryUnaryMultiCallable[
    fraud_service_pb2.GetDecisionRequest, fraud_service_pb2.GetDecisionResponse
]:
    """Return GetDecision."""
    return channel.unary_unary(
        f"/{_SERVICE}/GetDecision",
        request_serializer=fraud_service_pb2.GetDecisionRequest.SerializeToString,
        response_deserializer=fraud_service_pb2.GetDecisionResponse.FromString,
    )


def report_labels_method(
    channel: grpc.Channel,
) -> grpc.UnaryUnaryMultiCallable[
    fraud_service_pb2.ReportLabelsRequest, fraud_service_pb2.ReportLabelsResponse
]:
    """Return ReportLabels."""
    return channel.unary_unary(
        f"/{_SERVICE}/ReportLabels",
        request_serializer=fraud_service_pb2.ReportLabelsRequest.SerializeToString,
        response_deserializer=fraud_service_pb2.ReportLabelsResponse.FromString,
    )


def bytes_method(channel: grpc.Channel, name: str) -> grpc.UnaryUnaryMultiCallable[bytes, bytes]:
    """Return a method of that name, from bytes to bytes."""
    return channel.unary_unary(
        f"/{_SERVICE}/{name}", request_serializer=None, response_deserializer=None
    )
