"""The scorer over gRPC: its share of a bare echo, latency at half of capacity, and overload.

A call's cost is the server's CPU time over the calls answered, so that a slow client or a busy
machine bends both sides alike; echo and scorer take turns.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median

from tests.bench.claims import claim
from tests.bench.serving import SERVER_CPU, Running, drive, make_bundle, roles, started

ROUNDS = 3
ECHO_SHARE_MIN, P99_US_MAX, WITHIN_MIN, ACCEPTED_WITHIN_MIN = 0.6, 1_000.0, 0.9999, 0.9995
CLOSED = ["--closed", "16", "--connections", "4", "--seconds", "4", "--warmup", "1"]


def _cost_us(where: Path, server: Running) -> float:
    """Return the CPU time of one call, µs, the warm-up's calls included on both sides."""
    before = server.cpu_s()
    figures = drive(where, server.port, *CLOSED[:-2], "--warmup", "0")
    return 1e6 * (server.cpu_s() - before) / float(figures["answered"])


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
            drive(where, scorer.port, *CLOSED)
            costs = [
                [_cost_us(where, each) for each in (pool, echo, scorer)] for _ in range(ROUNDS)
            ]
            pool_us, bare_us, full_us = (median(side) for side in zip(*costs, strict=True))
            share = median(bare / full for _, bare, full in costs)
            pool_share = median(bare / full for bare, _, full in costs)
            capacity = 1e6 / full_us
            calm_echo = _open(where, echo.port, 0.5 * capacity)
            calm = _open(where, scorer.port, 0.5 * capacity)
            over = _open(where, scorer.port, 2.0 * capacity)
    return [
        claim("CPU of one Score call on one core, against a bare echo", round(full_us, 1), "µs",
              baseline=round(bare_us, 1), ratio=round(full_us / bare_us, 2)),
        claim("capacity of one core, as a share of the bare echo's", round(share, 3), "share",
              baseline=round(1e6 / bare_us), ratio=round(share, 3), at_least=ECHO_SHARE_MIN),
        claim("the same as a share of a bare echo's by gRPC's own pool", round(pool_share, 3),
              "share", baseline=round(1e6 / pool_us), ratio=round(pool_share, 3)),
        claim("capacity of one core, from that", round(capacity), "calls/s",
              baseline=round(1e6 / bare_us), ratio=round(share, 3)),
        *_latency_rows(calm, calm_echo, 0.5 * capacity),
        *_overload_rows(over, 2.0 * capacity),
    ]  # fmt: skip


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
