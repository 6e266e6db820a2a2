"""Calls as a payment service makes them, by gRPC's own client: so many in flight, for a while.

python -m tests.bench.grpc_client --target HOST:PORT --in-flight 48 --seconds 4

Prints how many were answered. What a call costs a server depends on how calls come, one frame at a
time from clients like this one, or many together from a proxy, and from `loadgen drive`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import threading
import time
import uuid
from typing import Any

import grpc

from loadgen.client import SCORE, connect
from loadgen.driver import prepare, request
from loadgen.rows import table_rows
from loadgen.world import World, WorldSettings

CONNECTIONS = 4
CUSTOMERS = 2_000
PREPARED = 20_000
TIMEOUT_S = 5.0


class _Loop:
    """The end of a call makes the next, until the time is up."""

    def __init__(self, channels: list[grpc.Channel], seconds: float) -> None:
        methods: list[Any] = [each.unary_unary(f"/{SCORE}", None, None) for each in channels]
        self._methods = itertools.cycle(methods)
        table = next(iter(World(WorldSettings(seed=1, customers=CUSTOMERS)).days(1)))
        self._rests = [each.rest for each in prepare(itertools.islice(table_rows(table), PREPARED))]
        self._run, self._number = uuid.uuid4().hex, itertools.count()
        self._end_s = time.monotonic() + seconds
        self._lock = threading.Lock()
        self.answered = self._active = 0
        self.over = threading.Event()

    def start(self, in_flight: int) -> None:
        self._active = in_flight
        for _ in range(in_flight):
            self._next()

    def _next(self) -> None:
        number = next(self._number)
        now_ms = time.time_ns() // 1_000_000
        body = request(self._rests[number % len(self._rests)], self._run, number, now_ms)
        next(self._methods).future(body, timeout=TIMEOUT_S).add_done_callback(self._ended)

    def _ended(self, call: Any) -> None:
        with self._lock:
            self.answered += call.code() is grpc.StatusCode.OK
            last = time.monotonic() > self._end_s
            self._active -= last
        if not last:
            self._next()
        elif self._active == 0:
            self.over.set()


def main() -> None:
    """Run the loop."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", required=True)
    parser.add_argument("--in-flight", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=4.0)
    args = parser.parse_args()
    with connect(args.target, CONNECTIONS, TIMEOUT_S) as channels:
        loop = _Loop(channels, args.seconds)
        loop.start(args.in_flight)
        loop.over.wait(args.seconds + 2 * TIMEOUT_S)
    print(json.dumps({"answered": loop.answered}))


if __name__ == "__main__":
    main()
