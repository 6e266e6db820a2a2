"""Asks the scorer at an address, HOST:PORT, whether it serves; exit status 0 if it does.

With TLS: HOST:PORT CA [CERTIFICATE KEY], files in PEM.
"""

from __future__ import annotations

import sys
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVICE = "fraud.v1.FraudService"
TIMEOUT_S = 3.0


def _channel(address: str, *files: str) -> grpc.Channel:
    if not files:
        return grpc.insecure_channel(address)
    ca, certificate, key = ([Path(file).read_bytes() for file in files] + [None, None])[:3]
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(ca, key, certificate))


def main() -> int:
    """Ask once."""
    request = health_pb2.HealthCheckRequest(service=SERVICE)
    with _channel(*sys.argv[1:]) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            sys.stderr.write(f"{error}\n")
            return 1
    return 0 if answer.status == health_pb2.HealthCheckResponse.SERVING else 1


if __name__ == "__main__":
    sys.exit(main())
