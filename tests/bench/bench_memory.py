"""Owns what states and roles weigh: bytes an entity, resident memory after a million events.

Run with ``python -m tests.bench memory``. The events are two days of a world over and over, each
round later than the one before and under new ids, so that the entities stay the same and, after
half a million, have all their rings full: what grows in the second million grows with time.
Resident is memory that is the process' own (RssAnon); mapped files are left out.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import numpy as np
from fraud.v1 import fraud_service_pb2 as pb
from numpy.typing import NDArray

from featurizer.adapters import open_log, open_store
from featurizer.arena import Arena
from featurizer.eventlog import Entry, EventLog, Topic
from featurizer.features import SCHEMA_VERSION
from featurizer.records import Entity
from featurizer.state import DAY_MS, ROW_WORDS
from fraudsvc.server import SERVICE
from loadgen.replay import shift_times
from loadgen.rows import HistoryRow, read_rows, request_id
from tests.bench.bench_kernel import busy_records
from tests.bench.claims import SEED, claim, make_world, read_world, spent
from tests.bench.serving import CLIENT_CPU, SERVER_CPU, Running, started

WORLD_DAYS, ROUND_DAYS, BUNDLE_DAYS = 20, 2, 8
EVENTS = 1_000_000
APPEND_FRAMES = 2_048
BEHIND_BYTES_MAX = 64 << 20  # of the log, so that its files are still in the page cache
CATCH_UP_TIMEOUT_S = 600.0
BATCH, BATCHES = 256, 60
CALL_TIMEOUT_S = 20.0
GROWTH_MAX = 0.05
BYTES_MAX = 8 * ROW_WORDS
BUSY_EVENTS, BUSY_DAYS, BUSY_LOOKS = 20_000, 180, 100
ROUNDS, BATCH_ROUNDS = 2, 4


def _payments(path: Path, days: int) -> NDArray[np.void]:
    """Write a world and return RECORD[n], its payments in the order of their time."""
    make_world(path, days)
    records = read_world(path).records
    ordered: NDArray[np.void] = records[np.argsort(records["event_time_ms"], kind="stable")]
    return ordered


def _later(records: NDArray[np.void], number: int) -> NDArray[np.void]:
    """Return the payments of round ``number``: as much later, under ids of their own."""
    later = records.copy()
    later["event_time_ms"] += number * ROUND_DAYS * DAY_MS
    rng = np.random.default_rng([SEED, number])
    later["transaction"] = rng.integers(1, 2**62, len(later))
    later["request"] = rng.integers(1, 2**62, len(later))
    return later


def _frames(records: NDArray[np.void]) -> Iterator[list[list[Entry]]]:
    customers = records["entities"][:, Entity.CUSTOMER].tolist()
    for start in range(0, len(records), APPEND_FRAMES):
        some = records[start : start + APPEND_FRAMES]
        yield [
            [Entry(Topic.TRANSACTIONS, customers[start + i], record.tobytes())]
            for i, record in enumerate(some)
        ]


class Feed:
    """Appends rounds of payments to the log, as fast as the featurizer takes them in."""

    def __init__(self, log: EventLog, where: Path, records: NDArray[np.void]) -> None:
        self._log = log
        self._store = open_store(f"lmdb://{where}/store", schema=SCHEMA_VERSION, read_only=True)
        self._records = records
        self._round = 1

    def append(self, events: int) -> None:
        """Append about so many events and wait until they are in the store."""
        for _ in range(round(events / len(self._records))):
            for frames in _frames(_later(self._records, self._round)):
                self._wait(self._log.append(frames)[-1] - BEHIND_BYTES_MAX)
            self._round += 1
        self._wait(self._log.ends()[1])

    @property
    def later_ms(self) -> int:
        """How much later than the world's the next round's times are."""
        return self._round * ROUND_DAYS * DAY_MS

    def _wait(self, position: int) -> None:
        deadline = time.monotonic() + CATCH_UP_TIMEOUT_S
        while self._applied() < position:
            if time.monotonic() > deadline:
                raise RuntimeError(f"the featurizer did not reach {position}")
            time.sleep(0.02)

    def _applied(self) -> int:
        with contextlib.closing(self._store.snapshot()) as snapshot:
            return int(snapshot.position)


class Caller:
    """Sends the world's newest payments to a scorer in batches, each time under new ids."""

    def __init__(self, world: Path, scorer: Running) -> None:
        rows = [row for row in read_rows(world, {}) if isinstance(row, HistoryRow)]
        self._rows = rows[-BATCH * BATCHES :]
        self._scorer = scorer
        self._round = 0

    def send(self, later_ms: int) -> None:
        """Send them all, ``later_ms`` after their own time. Raises AssertionError on errors."""
        self._round += 1
        with grpc.insecure_channel(f"127.0.0.1:{self._scorer.port}") as channel:
            call: Any = channel.unary_unary(f"/{SERVICE}/ScoreBatch")
            for start in range(0, len(self._rows), BATCH):
                body = self._batch(self._rows[start : start + BATCH], later_ms)
                answer = pb.ScoreBatchResponse.FromString(call(body, timeout=CALL_TIMEOUT_S))
                assert all(result.HasField("assessment") for result in answer.results)

    def _batch(self, rows: list[HistoryRow], later_ms: int) -> bytes:
        batch = pb.ScoreBatchRequest()
        for row in rows:
            transaction = batch.transactions.add()
            transaction.CopyFrom(row.transaction)
            transaction.transaction_id = f"{self._round}-{row.transaction.transaction_id}"
            transaction.request_id = request_id(transaction.transaction_id)
            shift_times(transaction, later_ms)
        return batch.SerializeToString()


def _state_rows(records: NDArray[np.void]) -> list[dict[str, Any]]:
    """Return a row per kind of entity: the median state of the world; and one for the largest."""
    arena = Arena()
    arena.run(records.copy(), 8 * np.arange(1, len(records) + 1))
    sizes = {key: len(blob) for key, blob in arena.states()}
    found = []
    for entity in Entity:
        keys = np.unique(records["entities"][:, entity])
        each = [sizes[int(key)] for key in keys if key]
        found.append(
            claim(
                f"state of a {entity.name.lower()}, median of {len(each):,} "
                f"(largest {max(each):,})",
                median(each), "bytes", at_most=BYTES_MAX, right=max(each) <= BYTES_MAX,
            )
        )  # fmt: skip
    return [*found, claim("state of any entity, median", median(sizes.values()), "bytes"), _worst()]


def _worst() -> dict[str, Any]:
    """Return the row of the largest state that an entity came to, busy beyond any horizon."""
    records = busy_records(BUSY_EVENTS, BUSY_DAYS)
    positions, arena, most = 8 * np.arange(1, len(records) + 1), Arena(), 0
    for part in np.array_split(np.arange(len(records)), BUSY_LOOKS):
        arena.run(records[part], positions[part])
        most = max(most, *(len(blob) for _, blob in arena.states()))
    return claim(
        f"largest state of an entity with {BUSY_EVENTS:,} payments in {BUSY_DAYS} days", most,
        "bytes", at_most=BYTES_MAX,
    )  # fmt: skip


def _make_bundle(where: Path) -> None:
    """Make a bundle of few trees: what a model weighs does not change with events."""
    world, vectors, both = where / "few.parquet", where / "vectors.parquet", "0,1"
    make_world(world, BUNDLE_DAYS)
    spent(both, "featurizer", "backfill", str(world), str(vectors))
    spent(
        both, "trainer", "train", str(vectors), "--out", str(where / "bundle"), "--key",
        str(where / "key"), "--iterations", "30",
    )  # fmt: skip


def _role_rows(where: Path, records: NDArray[np.void]) -> list[dict[str, Any]]:
    _make_bundle(where)
    places = ["--log", f"file://{where}/log", "--store", f"lmdb://{where}/store"]
    serve = [
        "fraudsvc", "serve", *places, "--address", "127.0.0.1:0", "--max-age-days", "0",
        "--bundle", str(where / "bundle"), "--public-key", str(where / "key.pub"),
    ]  # fmt: skip
    with (
        contextlib.closing(open_log(f"file://{where}/log")) as log,
        started("featurizer", ["featurizer", "run", *places], where, CLIENT_CPU) as featurizer,
    ):
        feed = Feed(log, where, records)
        with started("serve", serve, where, SERVER_CPU) as scorer:
            caller = Caller(where / "world.parquet", scorer)
            resident = []
            for _ in range(ROUNDS):
                for _ in range(BATCH_ROUNDS):
                    feed.append(EVENTS // BATCH_ROUNDS)
                    caller.send(feed.later_ms - ROUND_DAYS * DAY_MS)
                resident.append((featurizer.resident_mib(), scorer.resident_mib()))
    calls = BATCH * BATCHES * BATCH_ROUNDS
    names = ("featurizer", f"scorer, which answered {calls:,} of them")
    return [
        row
        for name, (first, second) in zip(names, zip(*resident, strict=True), strict=True)
        for row in _growth(name, first, second)
    ]


def _growth(name: str, first: float, second: float) -> list[dict[str, Any]]:
    what = f"{EVENTS:,} events"
    return [
        claim(f"resident memory after {what}: {name}", round(first, 1), "MiB"),
        claim(
            f"growth with {what} more of the same entities: {name}",
            round(second / first - 1, 4), "share", baseline=round(second, 1), at_most=GROWTH_MAX,
        ),
    ]  # fmt: skip


def rows() -> list[dict[str, Any]]:
    """Return one row per claim: name, value, unit, baseline, ratio, target, met."""
    with tempfile.TemporaryDirectory() as directory:
        where = Path(directory)
        typical = _payments(where / "typical.parquet", WORLD_DAYS)
        repeated = _payments(where / "world.parquet", ROUND_DAYS)
        return [*_state_rows(typical), *_role_rows(where, repeated)]


if __name__ == "__main__":
    print(f"seed {SEED}")
    for row in rows():
        print(row)
