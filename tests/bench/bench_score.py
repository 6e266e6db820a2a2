"""Owns the CPU that an answer costs beside gRPC, one by one, step by step and in batches.

Run with ``python -m tests.bench score``. The server's own handlers are called in this process with
fresh bytes of a world, from the bytes of the request to those of the answer, with a featurizer on
the other core that folds in between, or at the same time. CPU is that of the process, its log's
syncing thread included.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any, NoReturn

import grpc
import pyarrow.parquet as pq
from fraud.v1 import decision_pb2
from fraud.v1 import fraud_service_pb2 as pb

from featurizer.adapters import open_log, open_store
from featurizer.features import INDEX, SCHEMA_VERSION
from featurizer.hashing import IdHasher
from fraudsvc import server
from fraudsvc.calls import ScorerSettings
from fraudsvc.contract import ContractSettings
from fraudsvc.intake import Intake
from fraudsvc.policy import DEFAULT_POLICY, load_policy
from fraudsvc.scorer import Scorer
from fraudsvc.single_decider import SingleDecider
from fraudsvc.tail import Tail, local_tail
from loadgen.rows import HistoryRow, Span, read_rows, request_id
from tests.bench.claims import SEED, claim, make_world, pin, spent
from tests.bench.serving import CLIENT_CPU, SERVER_CPU, Running, started
from trainer.bundle import load_bundle

HISTORY_DAYS, LIVE_DAYS = 10, 4
WARM_UP, ROUND, ROUNDS = 2_000, 1_000, 5
SEVERAL = 16
STEPPED = 2_000
CATCH_UP_S = 0.5
BATCH, BATCHES, BATCHES_AT_ONCE = 256, 30, 6
CALL_TIMEOUT_S = 10.0
SCORE_US_MAX, BATCH_S_MIN = 50.0, 25_000.0
DAY_MS = 86_400_000

# What is timed in a call, by where it hangs; none of them calls another.
STEPS: tuple[tuple[str, Any, str], ...] = (
    ("check and hash", Intake, "take"),
    ("tail and snapshot", Tail, "refresh"),
    ("look for a repeat", Tail, "find"),
    ("states", Tail, "load"),
    ("view, model, contributions, policy and the answer", SingleDecider, "decide"),
    ("append", Scorer, "_append"),
    ("take in ahead of the append", Tail, "stage"),
    ("note the append", Tail, "commit"),
)


class NoTransport:
    """What a handler asks of its call, without a connection."""

    @property
    def arrival_ns(self) -> int:
        return time.perf_counter_ns()

    def time_remaining(self) -> float | None:
        return None

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()

    def abort_with_status(self, status: grpc.Status) -> NoReturn:
        raise AssertionError(f"a call failed: {status.code}, {status.details}")


def prepare(where: Path) -> int:
    """Make a world, a log that holds its history, and a bundle; return when the live part begins.

    The time is in ms since 1970.
    """
    world, vectors = where / "world.parquet", where / "vectors.parquet"
    make_world(world, HISTORY_DAYS + LIVE_DAYS)
    times = pq.read_table(world, columns=["event_time"])["event_time"].cast("int64").to_numpy()
    live_ms = int(times[0]) // DAY_MS * DAY_MS + HISTORY_DAYS * DAY_MS
    text = str(time.strftime("%Y-%m-%d", time.gmtime(live_ms / 1000)))
    both = f"{SERVER_CPU},{CLIENT_CPU}"
    log = ("--log", f"file://{where}/log", "--log-until", text)
    spent(both, "featurizer", "backfill", str(world), str(vectors), *log)
    bundle, key = str(where / "bundle"), str(where / "key")
    spent(both, "trainer", "train", str(vectors), "--out", bundle, "--key", key, "--until", text)
    return live_ms


def live_requests(world: Path, live_ms: int) -> list[pb.ScoreRequest]:
    """Return the live part's payments, each as a request."""
    requests = []
    for row in read_rows(world, {}, None, Span(live_ms, None)):
        assert isinstance(row, HistoryRow), row
        row.transaction.request_id = request_id(row.transaction.transaction_id)
        requests.append(pb.ScoreRequest(transaction=row.transaction))
    return requests


def make_handlers(where: Path) -> Callable[[str], Any]:
    """Return what gives the handler of a method of the service, over a scorer of this process."""
    public_key = (where / "key.pub").read_bytes()
    bundle = load_bundle(where / "bundle", schema_version=SCHEMA_VERSION, public_key=public_key)
    policy = load_policy(DEFAULT_POLICY, INDEX)
    log = open_log(f"file://{where}/log")
    store = open_store(f"lmdb://{where}/store", schema=SCHEMA_VERSION, read_only=True)
    decider = Scorer(
        log, local_tail(log, store, ScorerSettings()), IdHasher(), lambda: bundle, lambda: policy,
        ContractSettings(max_age_days=None),
        ScorerSettings(),
    )  # fmt: skip
    settings = server.ServerSettings()
    # A servicer each: of a thread it keeps when the last Score came, and a batch would be late.
    scoring, others = (
        server.Servicer(decider, server._Arrivals(settings.threads), settings) for _ in range(2)
    )
    generic = server._handlers(others)
    scores = server._scoring(decider, scoring)
    score = SimpleNamespace(unary_unary=lambda body, context: scores([(body, context)])[0])
    several = SimpleNamespace(
        unary_unary=lambda bodies, context: scores([(b, context) for b in bodies])
    )
    own = {"Score": score, "several": several}
    return lambda method: (
        own.get(method)
        or generic.service(
            SimpleNamespace(method=f"/{server.SERVICE}/{method}", invocation_metadata=())
        )
    )


def _answer(handler: Any, body: Any) -> Any:
    """Do all that the server does beside gRPC: from bytes to bytes, of one call or several."""
    return handler.unary_unary(body, NoTransport())


def _cpu_us(handler: Any, bodies: Sequence[bytes]) -> tuple[float, list[bytes]]:
    """Return the CPU time of this process a body, µs, and the answers."""
    start_ns = time.process_time_ns()
    answers = [_answer(handler, body) for body in bodies]
    return (time.process_time_ns() - start_ns) / 1e3 / len(bodies), answers


def _bare_us(bodies: Sequence[bytes], answer: bytes) -> float:
    """Return the CPU time of reading the same requests and writing a ready answer, µs each."""
    ready = pb.ScoreResponse.FromString(answer)
    start_ns = time.process_time_ns()
    for body in bodies:
        pb.ScoreRequest.FromString(body)
        ready.SerializeToString()
    return (time.process_time_ns() - start_ns) / 1e3 / len(bodies)


def _one_by_one(handler: Any, bodies: Iterator[bytes], featurizer: Running) -> list[dict[str, Any]]:
    """Return the cost of a call with the featurizer standing still, and with it at work."""
    _cpu_us(handler, _take(bodies, WARM_UP))
    alone, beside, bare, rungs = [], [], [], []
    for _ in range(ROUNDS):
        time.sleep(CATCH_UP_S)
        some = _take(bodies, ROUND)
        with featurizer.paused():
            us, answers = _cpu_us(handler, some)
            bare.append(_bare_us(some, answers[0]))
        alone.append(us)
        rungs += [pb.ScoreResponse.FromString(answer).assessment.rung for answer in answers]
        time.sleep(CATCH_UP_S)
        beside.append(_cpu_us(handler, _take(bodies, ROUND))[0])
    share = rungs.count(decision_pb2.RUNG_FULL) / len(rungs)
    value, baseline = median(alone), median(bare)
    return [
        claim(
            f"everything in Score beside gRPC, against parse and serialise alone "
            f"(rung FULL {share:.2%})",
            round(value, 1), "µs of CPU", baseline=round(baseline, 2),
            ratio=round(value / baseline, 1), at_most=SCORE_US_MAX, right=share > 0.99,
        ),
        claim(
            "the same with a featurizer at work on the other core, against without",
            round(median(beside), 1), "µs of CPU", baseline=round(value, 1),
            ratio=round(median(beside) / value, 2),
        ),
    ]  # fmt: skip


def _take(bodies: Iterator[bytes], count: int) -> list[bytes]:
    return [next(bodies) for _ in range(count)]


class Stopwatch:
    """Times the STEPS of calls while its block lasts; ``taken_ns`` holds each call's."""

    def __init__(self) -> None:
        self.taken_ns: dict[str, list[int]] = defaultdict(list)
        self._originals = [(owner, name, getattr(owner, name)) for _, owner, name in STEPS]

    def _timed(self, label: str, work: Callable[..., Any]) -> Callable[..., Any]:
        taken = self.taken_ns[label]

        def run(*args: Any, **kwargs: Any) -> Any:
            start_ns = time.perf_counter_ns()
            result = work(*args, **kwargs)
            taken.append(time.perf_counter_ns() - start_ns)
            return result

        return run

    def __enter__(self) -> Stopwatch:
        for (label, owner, name), (*_, work) in zip(STEPS, self._originals, strict=True):
            setattr(owner, name, self._timed(label, work))
        return self

    def __exit__(self, *_: object) -> None:
        for owner, name, work in self._originals:
            setattr(owner, name, work)


def _steps(handler: Any, bodies: Iterator[bytes]) -> list[dict[str, Any]]:
    """Return a row per step: the median call, by the clock; the stopwatch's own cost included."""
    whole_ns: list[int] = []
    with Stopwatch() as watch:
        for body in _take(bodies, STEPPED):
            start_ns = time.perf_counter_ns()
            handler.unary_unary(body, NoTransport())
            whole_ns.append(time.perf_counter_ns() - start_ns)
    steps_us = {label: median(taken) / 1e3 for label, taken in watch.taken_ns.items() if taken}
    steps_us["the rest"] = median(whole_ns) / 1e3 - sum(steps_us.values())
    return [
        claim(f"of that: {label}", round(us, 1), "µs by the clock")
        for label, us in steps_us.items()
    ]  # fmt: skip


def _several(handler: Any, bodies: Iterator[bytes], featurizer: Running, single_us: float) -> Any:
    """Return the cost of a call among SEVERAL that are ready at the same time."""
    taken_us: list[float] = []
    for _ in range(ROUNDS):
        time.sleep(CATCH_UP_S)
        some = _take(bodies, ROUND // SEVERAL * SEVERAL)
        groups = [some[i : i + SEVERAL] for i in range(0, len(some), SEVERAL)]
        with featurizer.paused():
            start_ns = time.process_time_ns()
            answers = [each for group in groups for each in _answer(handler, group)]
            taken_us.append((time.process_time_ns() - start_ns) / 1e3 / len(some))
        assert all(isinstance(each, bytes) for each in answers)
    value = median(taken_us)
    return claim(
        f"the same of one among {SEVERAL} calls that are ready at the same time, against alone",
        round(value, 1), "µs of CPU", baseline=round(single_us, 1),
        ratio=round(value / single_us, 2), at_most=SCORE_US_MAX,
    )  # fmt: skip


def _batches(requests: Iterator[pb.ScoreRequest], count: int) -> list[bytes]:
    return [
        pb.ScoreBatchRequest(
            transactions=[next(requests).transaction for _ in range(BATCH)]
        ).SerializeToString()
        for _ in range(count)
    ]


def _full_share(answers: Sequence[bytes]) -> float:
    results = [
        result for answer in answers for result in pb.ScoreBatchResponse.FromString(answer).results
    ]
    full = sum(result.assessment.rung == decision_pb2.RUNG_FULL for result in results)
    return full / len(results)


def _batch_row(name: str, us: float, answers: Sequence[bytes], single_us: float) -> dict[str, Any]:
    share = _full_share(answers)
    return claim(
        f"ScoreBatch of {BATCH} on one core, {name}, against Score one by one "
        f"(rung FULL {share:.2%})",
        round(1e6 / us), "transactions/s of CPU", baseline=round(1e6 / single_us),
        ratio=round(single_us / us, 2), at_least=BATCH_S_MIN, right=share > 0.99,
    )  # fmt: skip


def _over_grpc(scorer: Running, bodies: Sequence[bytes]) -> tuple[float, list[bytes]]:
    """Return the server's CPU time of a transaction, µs, and the answers."""
    with grpc.insecure_channel(f"127.0.0.1:{scorer.port}") as channel:
        call: Any = channel.unary_unary(f"/{server.SERVICE}/ScoreBatch")
        for body in bodies[:3]:
            call(body, timeout=CALL_TIMEOUT_S)
        before_s = scorer.cpu_s()
        answers = [call(body, timeout=CALL_TIMEOUT_S) for body in bodies[3:]]
        cpu_s = scorer.cpu_s() - before_s
    return 1e6 * cpu_s / (BATCH * len(answers)), answers


def _in_batches(
    handler: Any, bodies: Sequence[bytes], featurizer: Running
) -> tuple[float, list[bytes]]:
    """Return the CPU time of a batch, µs, and the answers; the first batches warm up."""
    taken_us, answers = [], []
    for i in range(0, len(bodies), BATCHES_AT_ONCE):
        time.sleep(CATCH_UP_S)
        with featurizer.paused():
            us, some = _cpu_us(handler, bodies[i : i + BATCHES_AT_ONCE])
        taken_us.append(us)
        answers += some
    return median(taken_us[1:]), answers


def _in_process(
    where: Path, requests: Iterator[pb.ScoreRequest], featurizer: Running
) -> tuple[list[dict[str, Any]], float]:
    handlers = make_handlers(where)
    one, many = handlers("Score"), handlers("ScoreBatch")
    bodies = (request.SerializeToString() for request in requests)
    gc.collect()
    gc.freeze()
    first = _one_by_one(one, bodies, featurizer)
    single_us = float(first[0]["value"])
    several = _several(handlers("several"), bodies, featurizer, single_us)
    steps = _steps(one, bodies)
    some = _batches(requests, BATCHES)
    us, answers = _in_batches(many, some, featurizer)
    return [
        *first,
        several,
        *steps,
        _batch_row("in process", us / BATCH, answers, single_us),
    ], single_us


def rows() -> list[dict[str, Any]]:
    """Return one row per claim: name, value, unit, baseline, ratio, target, met."""
    with tempfile.TemporaryDirectory() as directory:
        where = Path(directory)
        live_ms = prepare(where)
        requests = iter(live_requests(where / "world.parquet", live_ms))
        places = ["--log", f"file://{where}/log", "--store", f"lmdb://{where}/store"]
        serve = [
            "fraudsvc", "serve", *places, "--bundle", str(where / "bundle"), "--public-key",
            str(where / "key.pub"), "--address", "127.0.0.1:0", "--max-age-days", "0",
        ]  # fmt: skip
        run = ["featurizer", "run", *places]
        with started("featurizer", run, where, CLIENT_CPU) as featurizer:
            pin(SERVER_CPU)
            found, single_us = _in_process(where, requests, featurizer)
            pin(CLIENT_CPU)
            with started("serve", serve, where, SERVER_CPU) as running:
                us, answers = _over_grpc(running, _batches(requests, BATCHES))
        return [*found, _batch_row("over gRPC", us, answers, single_us)]


if __name__ == "__main__":
    print(f"seed {SEED}")
    for row in rows():
        print(row)
