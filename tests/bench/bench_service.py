"""The scorer over gRPC: its share of a bare echo, latency at half of capacity, and overload.

A call's cost is the server's CPU time over the calls answered, so that a slow client or a busy
machine bends both sides alike; echo and scorer take turns. It depends on how many calls are in
flight, as those that are ready together are decided together, and on how they come: from gRPC's own
client, as a payment service calls, or many in one write, as `loadgen drive` and a proxy send.
Capacity is by the latter with as many in flight as the server takes; it is what the open loops,
which are driven by it, are halves and doubles of.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from fraudsvc.server import ServerSettings
from tests.bench.claims import claim
from tests.bench.serving import (
    SERVER_CPU,
    Running,
    call_by_grpc,
    drive,
    make_bundle,
    roles,
    started,
)

ROUNDS = 3
ECHO_SHARE_MIN, P99_US_MAX, WITHIN_MIN, ACCEPTED_WITHIN_MIN = 0.6, 1_000.0, 0.9999, 0.9995
FEW, MANY = 16, ServerSettings().calls_max  # in flight: what a worker takes at once is its capacity


Caller = Callable[[Path, Running, int], float]  # how many calls it had answered


def _driven(where: Path, server: Running, in_flight: int) -> float:
    closed = ["--closed", str(in_flight), "--connections", "4", "--seconds", "4", "--warmup", "0"]
    return float(drive(where, server.port, *closed)["answered"])


def _called(_: Path, server: Running, in_flight: int) -> float:
    return call_by_grpc(server.port, in_flight)


def _cost_us(where: Path, server: Running, in_flight: int, caller: Caller) -> float:
    """Return the CPU time of one call, µs."""
    before = server.cpu_s()
    answered = caller(where, server, in_flight)
    return 1e6 * (server.cpu_s() - before) / answered


class _Costs(NamedTuple):
    """CPU of a call, µs, the medians over ROUNDS, with so many in flight."""

    name: str
    pool_us: float
    echo_us: float
    score_us: float
    share: float  # of the echo's rate that Score has, the median over rounds
    pool_share: float

    @classmethod
    def of(
        cls, where: Path, servers: Sequence[Running], in_flight: int, caller: Caller, name: str
    ) -> _Costs:
        rounds = [
            [_cost_us(where, each, in_flight, caller) for each in servers] for _ in range(ROUNDS)
        ]
        pool_us, echo_us, score_us = (median(side) for side in zip(*rounds, strict=True))
        share = median(echo / score for _, echo, score in rounds)
        pool_share = median(pool / score for pool, _, score in rounds)
        return cls(f"{in_flight} in flight {name}", pool_us, echo_us, score_us, share, pool_share)

    def rows(self, bound: float | None = None) -> list[dict[str, object]]:
        """Return what they say."""
        what, bare = f"one Score call, {self.name}", round(1e6 / self.echo_us)
        return [
            claim(f"CPU of {what}, against a bare echo", round(self.score_us, 1), "µs",
                  baseline=round(self.echo_us, 1), ratio=round(self.score_us / self.echo_us, 2)),
            claim(f"calls a core, {self.name}, against the bare echo's",
                  round(1e6 / self.score_us), "calls/s", baseline=bare, ratio=round(self.share, 3)),
            claim(f"the same as a share of it, {self.name}", round(self.share, 3),
                  "share", at_least=bound),
            claim(f"as a share of a bare echo's by gRPC's own pool, {self.name}",
                  round(self.pool_share, 3), "share", baseline=round(1e6 / self.pool_us)),
        ]  # fmt: skip


def rows() -> list[dict[str, object]]:
    """Return one row per claim."""
    with tempfile.TemporaryDirectory() as directory:
        where = Path(directory)
        make_bundle(where)
        with (
            roles(where) as (_, scorer),
            started("echo", ["tests.bench.echo"], where, SERVER_CPU) as pool,
            started("turns", ["tests.bench.echo", "--turns"], where, SERVER_CPU) as echo,
        ):
            _driven(where, scorer, MANY)  # warms up
            servers = (pool, echo, scorer)
            few, many = (
                _Costs.of(where, servers, each, _called, "by gRPC's client") for each in (FEW, MANY)
            )
            together = _Costs.of(where, servers, MANY, _driven, "by loadgen")
            capacity = 1e6 / together.score_us
            calm_echo = _open(where, echo.port, 0.5 * capacity)
            calm = _open(where, scorer.port, 0.5 * capacity)
            over = _open(where, scorer.port, 2.0 * capacity)
    return [
        *few.rows(),
        *many.rows(ECHO_SHARE_MIN),
        *together.rows(),
        *_latency_rows(calm, calm_echo, 0.5 * capacity),
        *_overload_rows(over, 2.0 * capacity),
    ]


def _open(where: Path, port: int, rate: float) -> dict[str, object]:
    return drive(
        where, port, "--rate", str(round(rate)), "--seconds", "8", "--warmup", "2",
        "--connections", "4",
    )  # fmt: skip


def _percentile(figures: dict[str, object], name: str) -> float:
    latency = figures["latency_us"]
    assert isinstance(latency, dict)
    return float(latency[name])


def _latency_rows(
    figures: dict[str, object], echo: dict[str, object], rate: float
) -> list[dict[str, object]]:
    """Return the percentiles, each against the bare echo's at the same rate."""
    name = f"open loop at half of capacity ({rate:,.0f}/s)"
    rows = []
    for percentile, bound in (("p50", None), ("p99", P99_US_MAX), ("p99.9", None)):
        value, bare = _percentile(figures, percentile), _percentile(echo, percentile)
        rows.append(
            claim(f"{name}: {percentile} from the client, against the echo's", value, "µs",
                  baseline=bare, ratio=round(value / bare, 2), at_most=bound)
        )  # fmt: skip
    within = float(str(figures["within_budget"]))
    return [
        *rows,
        claim(f"{name}: answered within 50 ms", within, "share", at_least=WITHIN_MIN),
    ]


def _overload_rows(figures: dict[str, object], rate: float) -> list[dict[str, object]]:
    statuses, shed = figures["statuses"], figures["shed_latency_us"]
    assert isinstance(statuses, dict)
    assert isinstance(shed, dict)
    within = float(str(figures["within_budget_accepted"]))
    refused = statuses.get("RESOURCE_EXHAUSTED", 0) / sum(statuses.values())
    sent_s = float(str(figures["sent"])) / float(str(figures["elapsed_s"]))
    name = f"open loop at twice the capacity ({rate:,.0f}/s due, {sent_s:,.0f}/s sent)"
    return [
        claim(f"{name}: accepted calls within 50 ms", within, "share",
              at_least=ACCEPTED_WITHIN_MIN),
        claim(f"{name}: shed", round(refused, 4), "share"),
        claim(f"{name}: p99 of a shed call", shed.get("p99"), "µs"),
    ]  # fmt: skip


if __name__ == "__main__":
    for row in rows():
        print(row)
