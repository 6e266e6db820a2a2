"""What being observed costs: Score's rate with traces, metrics and the read model, and without.

Two scorers, one beside a console that follows it and one alone, take turns, so that a busy machine
bends both alike. A call's cost is the scorer's CPU time over the calls answered.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

from featurizer.metering import CallMeter, Meters
from fraudsvc.calls import Clocks
from tests.bench.claims import claim
from tests.bench.serving import CLIENT_CPU, SERVER_CPU, Running, drive, make_bundle, started

ROUNDS = 7
SHARE_MIN = 0.95
PAID_US_MAX = 2.0
CLOSED = ["--closed", "16", "--connections", "4", "--seconds", "2", "--warmup", "0"]
LOOP = 50_000


@contextlib.contextmanager
def _roles(where: Path, observed: bool) -> Iterator[Running]:
    """Run featurizer and scorer on a log of their own, and a console where they are observed."""
    name = "observed" if observed else "alone"
    places = ["--log", f"file://{where}/{name}/log", "--store", f"lmdb://{where}/{name}/store"]
    model = ["--bundle", str(where / "bundle"), "--public-key", str(where / "key.pub")]
    (where / name).mkdir()
    with contextlib.ExitStack() as stack:
        otlp = f"unix-abstract:fraudsvc-bench-{os.getpid()}"
        told = {"FRAUD_METRICS": f"/dev/shm/fraud-bench-{os.getpid()}"}  # noqa: S108 - in memory
        stack.callback(shutil.rmtree, told["FRAUD_METRICS"], ignore_errors=True)
        if observed:
            stack.enter_context(_environment({**told, "OTEL_EXPORTER_OTLP_ENDPOINT": otlp}))
        featurizer = ["featurizer", "run", *places]
        stack.enter_context(started(f"{name}-featurizer", featurizer, where, CLIENT_CPU, nice=10))
        serve = ["fraudsvc", "serve", *places, *model, "--address", "127.0.0.1:0"]
        scorer = stack.enter_context(started(f"{name}-serve", serve, where, SERVER_CPU))
        if observed:
            stack.enter_context(_environment({}, without="OTEL_EXPORTER_OTLP_ENDPOINT"))
            console = [
                "fraudsvc", "console", *places, "--read-model", f"sqlite:///{where}/rm.sqlite",
                "--http", "127.0.0.1:0", "--otlp", otlp,
            ]  # fmt: skip
            stack.enter_context(started("console", console, where, CLIENT_CPU))
        yield scorer


@contextlib.contextmanager
def _environment(more: dict[str, str], without: str = "") -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(more)
    os.environ.pop(without, None)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _rate(where: Path, scorer: Running) -> tuple[float, float]:
    """Return calls a second that were answered, and the scorer's CPU time of one, µs."""
    before = scorer.cpu_s()
    figures = drive(where, scorer.port, *CLOSED)
    answered = float(figures["answered"])
    return answered / float(figures["elapsed_s"]), 1e6 * (scorer.cpu_s() - before) / answered


def _took_us(work: Callable[[], object]) -> float:
    """Return the least time of one call over a few loops, without that of the loop itself."""
    times = []
    for work_or_nothing in (work, lambda: None) * ROUNDS:
        begin = time.perf_counter()
        for _ in range(LOOP):
            work_or_nothing()
        times.append((time.perf_counter() - begin) / LOOP * 1e6)
    return min(times[::2]) - min(times[1::2])


def _paid_us() -> tuple[float, float]:
    """Return what a call pays in Python to be traced, kept or not, and to be counted.

    Traced: four readings of the clock, and how long the append took. Counted: the call's end.
    """
    meters, clocks = Meters(), Clocks()
    note, appended, now = CallMeter(meters).note, meters.appended, clocks.monotonic_ns

    def trace() -> None:
        now()
        now()
        now()
        now()
        appended(4711, 12_000)

    return _took_us(trace), _took_us(lambda: note("Score", "OK", 300_000))


def rows() -> list[dict[str, object]]:
    """Return one row per claim."""
    with tempfile.TemporaryDirectory() as directory:
        where = Path(directory)
        make_bundle(where)
        with _roles(where, observed=True) as seen, _roles(where, observed=False) as alone:
            for scorer in (seen, alone):
                _rate(where, scorer)
            pairs = [(_rate(where, seen), _rate(where, alone)) for _ in range(ROUNDS)]
    with_it = median(rate for (rate, _), _ in pairs)
    without = median(rate for _, (rate, _) in pairs)
    share = median(a / b for (a, _), (b, _) in pairs)
    traced, counted = _paid_us()
    cost, bare = (median(pair[side][1] for pair in pairs) for side in (0, 1))
    return [
        claim("Score with traces, metrics and read model, as a share of the rate without",
              round(share, 3), "share", baseline=1.0, ratio=round(share, 3), at_least=SHARE_MIN),
        claim("Score with all of them, closed loop", round(with_it), "calls/s",
              baseline=round(without), ratio=round(with_it / without, 3)),
        claim("CPU of a Score call in the scorer with all of them", round(cost, 1), "µs",
              baseline=round(bare, 1), ratio=round(cost / bare, 3)),
        claim("what a call pays for a trace, kept or not", round(traced, 2), "µs",
              at_most=PAID_US_MAX),
        claim("what a call pays to be counted", round(counted, 2), "µs"),
    ]  # fmt: skip


if __name__ == "__main__":
    for row in rows():
        print(row)
