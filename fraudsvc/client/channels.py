"""Connections of a client: their options, TLS and tokens, taken in turn.

Several, because a connection carries a bounded number of calls at once and leads to one worker.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from fraud.v1 import fraud_service_pb2 as pb

_LOCAL = ("127.", "localhost:", "[::1]:", "unix:", "unix-abstract:")
_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),  # without it, channels to one address share one
    ("grpc.enable_retries", 0),  # attempts.py alone decides about them
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Despite its name, how long one attempt may take, greeting and TLS included: a server that is
    # far or busy would never be reached with less.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # A peer that is gone without a word is noticed while calls wait for it.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 2_000),
)


@dataclass(frozen=True, slots=True)
class Tls:
    """Files in PEM: who signs the server's certificate, and for mutual TLS one's own and its key.

    ``server_name`` is what the server's certificate names, where that is not the target's host.
    """

    ca: Path
    certificate: Path | None = None
    key: Path | None = None
    server_name: str = ""

    def credentials(self) -> grpc.ChannelCredentials:
        """Return what the files hold now. Raises OSError, and ValueError for half a pair."""
        if (self.certificate is None) != (self.key is None):
            raise ValueError("a certificate and its key go together")
        return grpc.ssl_channel_credentials(
            self.ca.read_bytes(),
            None if self.key is None else self.key.read_bytes(),
            None if self.certificate is None else self.certificate.read_bytes(),
        )


class Turns:
    """Gives connections in turn. Threads may share it."""

    def __init__(self, channels: Sequence[Any]) -> None:
        self.channels = channels
        self._turn = itertools.cycle(channels)

    def next(self) -> Any:
        """Return the next connection."""
        return next(self._turn)


def open_channels(target: str, count: int, tls: Tls | None, *, aio: bool) -> Turns:
    """Return ``count`` connections, which connect when they are first used."""
    options: list[tuple[str, Any]] = list(_OPTIONS)
    module: Any = grpc.aio if aio else grpc
    if tls is None:
        return Turns([module.insecure_channel(target, options=options) for _ in range(count)])
    if tls.server_name:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    credentials = tls.credentials()
    return Turns([module.secure_channel(target, credentials, options) for _ in range(count)])


class Method(NamedTuple):
    """A method of the contract: its path, and how its answer is read."""

    path: str
    read: Callable[[bytes], Any]


_SERVICE = pb.DESCRIPTOR.services_by_name["FraudService"].full_name
SCORE = Method(f"/{_SERVICE}/Score", pb.ScoreResponse.FromString)
SCORE_BATCH = Method(f"/{_SERVICE}/ScoreBatch", pb.ScoreBatchResponse.FromString)
REPORT_LABELS = Method(f"/{_SERVICE}/ReportLabels", pb.ReportLabelsResponse.FromString)
GET_DECISION = Method(f"/{_SERVICE}/GetDecision", pb.GetDecisionResponse.FromString)


def callable_of(channel: Any, method: Method) -> Any:
    """Return what calls the method; the request is a message."""
    return channel.unary_unary(
        method.path,
        request_serializer=lambda request: request.SerializeToString(),
        response_deserializer=method.read,
    )


def metadata_of(token: Callable[[], str] | None, traceparent: str) -> tuple[tuple[str, str], ...]:
    """Return what a call sends beside its request; the token is asked for each time."""
    found = (("traceparent", traceparent),) if traceparent else ()
    return found if token is None else (*found, ("authorization", f"Bearer {token()}"))


def check_token(target: str, tls: Tls | None, token: Callable[[], str] | None) -> None:
    """Raise ValueError where a token would go over a network in clear."""
    if token is not None and tls is None and not target.startswith(_LOCAL):
        raise ValueError(f"a token wants TLS: anyone on the way to {target} could read it")
