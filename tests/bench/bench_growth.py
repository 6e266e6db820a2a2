"""Owns how the fold's rate and a host's memory move with partitions and with entities.

Run with ``python -m tests.bench growth``; it also draws docs/growth.svg. Each partition has a
process of its own, on the same two cores as the broker. The entities of the second half are drawn
evenly, so that no cache helps: a real world, where few entities have most of the events, is faster.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from numpy.typing import NDArray

from deploy.testing.kafka import KafkaCluster
from featurizer.cluster import create_topics
from featurizer.records import Entity
from tests.bench import bench_cluster as cluster_bench
from tests.bench.claims import SEED, claim, make_world, read_world
from tests.bench.serving import own_memory
from tests.clusters import Cluster, stopping
from tests.conftest import Trained

PARTITIONS = (1, 2, 4, 8)
ENTITIES = (10_000, 100_000, 1_000_000, 2_000_000)
DAYS = 40
EVENTS = 400_000  # after all entities have been met
FILLED_S = 300.0
PICTURE = Path(__file__).parents[2] / "docs" / "growth.svg"
MIB = 1 << 20


class Grown(NamedTuple):
    """What a number of entities made of a fold: its rate, the store's bytes and its own."""

    entities: int
    events_s: float
    store_bytes: int
    own_bytes: int


def spread(records: NDArray[np.void], entities: int, rng: np.random.Generator) -> NDArray[np.void]:
    """Return RECORD[n] that meet each of ``entities`` once, then EVENTS at random among them."""
    each = entities // len(Entity)
    picks = np.concatenate([rng.permutation(each), rng.integers(0, each, EVENTS)])
    spread_out = records[np.arange(len(picks)) % len(records)].copy()
    spread_out["event_time_ms"] = records["event_time_ms"][-1] + np.arange(len(picks)) * 40
    for kind in Entity:
        names = rng.integers(1, 2**62, each)
        spread_out["entities"][:, kind] = names[picks]
    return spread_out


def grown(cluster: Cluster, records: NDArray[np.void], entities: int) -> Grown:
    """Fold all entities once, then measure the rate at which known ones are folded."""
    events = spread(records, entities, np.random.default_rng(SEED))
    first, second = events[:-EVENTS], events[-EVENTS:]
    asyncio.run(create_topics(cluster.kafka))
    with stopping(cluster):
        cluster.start("fold-0")
        asyncio.run(cluster_bench.send(cluster, cluster_bench.updates_of(cluster, first)))
        lasts = asyncio.run(cluster_bench.ends(cluster, "entity-updates"))
        cluster_bench.until_folded(cluster, lasts, FILLED_S)
        parts = cluster_bench.updates_of(cluster, second)
        rate = cluster_bench.backlog_rate(cluster, ["fold-0"], parts, EVENTS)
        data = next(Path(cluster.folder, "states").rglob("data.mdb"))
        used = data.stat().st_blocks * 512
        return Grown(entities, rate, used, own_memory(cluster.processes["fold-0"].popen.pid))


def draw(by_partitions: dict[int, float], by_entities: list[Grown], path: Path) -> None:
    """Write the plot."""
    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "growth"
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
    left.plot(list(by_partitions), [rate / 1000 for rate in by_partitions.values()], "o-")
    left.set(xlabel="partitions, a process each (2 cores)", ylabel="1,000 events/s folded")
    left.set_xscale("log", base=2)
    right.plot([g.entities for g in by_entities], [g.events_s / 1000 for g in by_entities], "o-")
    right.set(xlabel="entities, one partition, met evenly", xscale="log")
    for axes in (left, right):
        axes.set_ylim(bottom=0)
        axes.grid(visible=True, alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _measure(new: Callable[[int], Cluster], records: NDArray[np.void]) -> list[dict[str, Any]]:
    rates = {n: cluster_bench.fold_rate(new(n), records, n) for n in PARTITIONS}
    sizes = [grown(new(1), records, entities) for entities in ENTITIES]
    draw(rates, sizes, PICTURE)
    per_million = sizes[-1].store_bytes / sizes[-1].entities * 1e6 / MIB
    return [
        *(
            claim(f"fold with {n} partitions and processes", round(rate), "events/s",
                  baseline=round(rates[1]), ratio=round(rate / rates[1], 2))
            for n, rate in rates.items()
        ),
        *(
            claim(f"fold with {g.entities:,} entities met evenly", round(g.events_s), "events/s",
                  baseline=round(sizes[0].events_s),
                  ratio=round(g.events_s / sizes[0].events_s, 2))
            for g in sizes
        ),
        *(
            claim(f"a fold's own memory with {g.entities:,} entities",
                  round(g.own_bytes / MIB), "MiB")
            for g in sizes
        ),
        claim("store on a host, per million entities", round(per_million), "MiB"),
    ]  # fmt: skip


def rows() -> list[dict[str, Any]]:
    """Return one row per claim: name, value, unit, baseline, ratio, target, met."""
    with tempfile.TemporaryDirectory() as directory, KafkaCluster(Path(directory, "k")) as kafka:
        where = Path(directory)
        make_world(where / "world.parquet", DAYS)
        records = read_world(where / "world.parquet").records
        records = records[np.argsort(records["event_time_ms"], kind="stable")]
        nothing = Trained(where, where, where, b"", None)  # type: ignore[arg-type]  # no scorer
        made: list[Cluster] = []

        def new(partitions: int) -> Cluster:
            name = f"run{len(made)}"
            (where / name).mkdir()
            store = f"lmdb://{where / name}/states"
            made.append(
                Cluster(where / name, kafka.bootstrap, name, store, nothing, 60_000,
                        partitions=partitions)
            )  # fmt: skip
            return made[-1]

        return _measure(new, records)


if __name__ == "__main__":
    print(f"seed {SEED}")
    for row in rows():
        print(row)
