"""What it costs a call that callers are told apart: in clear, by certificate, by token.

One call after another over one connection, against a handler that does nothing else, in turns, so
that all meet the same machine. Figures are of the whole round trip, client included.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc

from deploy.testing.certificates import Authority, Pair
from fraudsvc.callers.certificates import Certificates, TlsFiles
from fraudsvc.callers.gate import Gate
from fraudsvc.client import Tls

CALLS, ROUNDS = 500, 9
ADMIT_US_MAX = 20.0  # of a call that takes 300
HOST = "localhost"
FILE = """
[tokens]
jwks = "keys.json"
issuer = "bench"
audience = "fraudsvc"
[callers.payments]
roles = ["score"]
calls_per_second = 1000000
"""


def _echo(gate: Gate | None, costs_ns: list[int]) -> Callable[[bytes, Any], bytes]:
    if gate is None:
        return lambda request, _: request

    def run(request: bytes, context: Any) -> bytes:
        began_ns = time.perf_counter_ns()
        gate.admit("Score", context)
        costs_ns.append(time.perf_counter_ns() - began_ns)
        return request

    return run


def _serve(stack: ExitStack, files: TlsFiles | None, gate: Gate | None, costs_ns: list[int]) -> int:
    server = grpc.server(futures.ThreadPoolExecutor(4))
    handler: Any = grpc.unary_unary_rpc_method_handler(_echo(gate, costs_ns))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("bench", {"Score": handler}),)
    )
    if files is None:
        port = server.add_insecure_port(f"{HOST}:0")
    else:
        port = server.add_secure_port(f"{HOST}:0", Certificates(files, print).credentials())
    server.start()
    stack.callback(lambda: server.stop(None).wait())
    return port


def _setups(stack: ExitStack, folder: Path) -> Iterator[tuple[str, Any, Any, list[int]]]:
    """Yield name, method, metadata and what admitting cost, ns, of each way."""
    from joserfc import jwt  # noqa: PLC0415 - for this figure alone
    from joserfc.jwk import ECKey  # noqa: PLC0415 - as above

    key = ECKey.generate_key("P-256", {"kid": "one"})
    (folder / "keys.json").write_text(json.dumps({"keys": [key.as_dict(private=False)]}))
    (folder / "callers.toml").write_text(FILE)
    gate = Gate(folder / "callers.toml", print)
    authority = Authority(folder / "ca.pem")
    server = authority.write(Pair(folder / "server.crt", folder / "server.key"), HOST)
    client = authority.write(Pair(folder / "client.crt", folder / "client.key"), "payments", ())
    mutual = TlsFiles(server.certificate, server.key, authority.path)
    mine = Tls(authority.path, client.certificate, client.key).credentials()
    claims = {"iss": "bench", "aud": "fraudsvc", "sub": "payments", "exp": time.time() + 3_600}
    token = jwt.encode({"alg": "ES256", "kid": "one"}, claims, key)
    bearer = (("authorization", f"Bearer {token}"),)
    for name, files, admits, metadata in (
        ("in clear", None, None, ()), ("mutual TLS", mutual, None, ()),
        ("mutual TLS, roles by certificate", mutual, gate, ()),
        ("mutual TLS, roles by token", mutual, gate, bearer),
    ):  # fmt: skip
        costs_ns: list[int] = []
        port = _serve(stack, files, admits, costs_ns)
        target = f"{HOST}:{port}"
        channel = (
            grpc.insecure_channel(target) if files is None else grpc.secure_channel(target, mine)
        )
        stack.callback(channel.close)
        yield name, channel.unary_unary("/bench/Score"), metadata, costs_ns


def rows() -> list[dict[str, Any]]:
    """Return a row for each way: the round trip, and what admitting takes of it; medians, µs."""
    body = bytes(300)
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        ways = list(_setups(stack, Path(folder)))
        seen: dict[str, list[float]] = {name: [] for name, *_ in ways}
        for number in range(ROUNDS + 1):
            for name, call, metadata, _ in ways:
                began = time.perf_counter()
                for _ in range(CALLS):
                    call(body, timeout=10, metadata=metadata)
                if number:  # the first connects
                    seen[name].append((time.perf_counter() - began) / CALLS * 1e6)
    plain_us = statistics.median(seen["in clear"])
    found = [_row(f"call, {name}", statistics.median(seen[name]), plain_us) for name in seen]
    for name, _, _, costs_ns in ways:
        if costs_ns:
            cost_us = statistics.median(costs_ns) / 1000
            found.append(_row(f"admitting, {name}", cost_us, 0.0, ADMIT_US_MAX))
    return found


def _row(name: str, value: float, baseline: float, target: float | None = None) -> dict[str, Any]:
    return {
        "name": name, "value": round(value, 1), "unit": "us", "baseline": baseline or None,
        "ratio": round(value / baseline, 3) if baseline else None, "target": target,
        "met": None if target is None else value <= target,
    }  # fmt: skip


if __name__ == "__main__":
    for row in rows():
        print(f"{row['name']:48} {row['value']:8.1f} {row['unit']}")
