"""Updates that are written again: whatever splits do, each counts once, in its order."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurizer.cluster import schema_number
from featurizer.eventlog import LogError
from featurizer.folder import FoldLane
from featurizer.records import Kind
from featurizer.splitter import Repeats
from featurizer.store import StoreError
from featurizer.store_lmdb import LmdbStore
from featurizer.updates import KINDS, pack, take_new
from tests.checker import Found
from tests.conftest import SEED
from tests.lanes import (
    KAFKA,
    PARTITIONS,
    WRITTEN,
    Lane,
    Logs,
    kept_rows,
    raw_of,
    record_of,
    send_event,
)

HOSTS = (11, 12)


class Event(NamedTuple):
    """A record that a host sends; ``again`` is how many of its last it sends before, once more."""

    kind: Kind
    host: int
    request: int
    keys: tuple[int, ...]
    again: int


class Act(NamedTuple):
    """What happens next: to which lane, and how much of it."""

    what: str
    lane: int
    many: int


EVENTS = st.lists(
    st.builds(
        Event,
        st.sampled_from([Kind.TRANSACTION, Kind.TRANSACTION, Kind.FEEDBACK]),
        st.sampled_from(HOSTS),
        st.integers(0, 9),
        st.tuples(st.sampled_from([2, 4]), st.integers(0, 4)),
        st.sampled_from([0, 0, 0, 1, 3]),
    ),
    min_size=12,
    max_size=30,
)
ACTS = st.lists(
    st.builds(
        Act,
        st.sampled_from(["start", "take", "take", "take", "settle", "die", "die", "late"]),
        st.integers(0, 7),
        st.integers(0, 7),
    ),
    min_size=10,
    max_size=40,
)


def send_all(logs: Logs, events: Sequence[Event]) -> None:
    """Send events in order, and some of them again, as relays do."""
    sent: dict[tuple[int, Kind], list[tuple[int, Any]]] = {}
    for place, event in enumerate(events):
        own = sent.setdefault((event.host, event.kind), [])
        for position, record in own[len(own) - event.again :] if event.again else []:
            send_event(logs, event.host, position, record)
        own.append((place, record_of(event.kind, event.request, event.keys)))
        send_event(logs, event.host, *own[-1])


async def split_all(lane: Lane) -> None:
    await lane.start()
    while await lane.take(3):
        pass
    await lane.settle()


async def live(logs: Logs, acts: Sequence[Act]) -> None:
    """Let lanes begin, go on and die; at last one goes through to the end."""
    lanes = [Lane(logs)]
    await lanes[0].start()
    for act in acts:
        lane = lanes[act.lane % len(lanes)]
        if act.what == "start":  # the others go on: nobody told them
            lanes.append(Lane(logs))
            await lanes[-1].start()
        elif act.what == "take":
            await lane.take(act.many)
        elif act.what == "settle":
            await lane.settle()
        elif act.what == "die":
            lane.sender.arriving = {at for n, at in enumerate(WRITTEN) if act.many >> n & 1}
            try:
                await lane.take(3)
            except LogError:
                lanes[lanes.index(lane)] = fresh = Lane(logs)
                await fresh.start()
            lane.sender.arriving = None
        elif logs.late:
            logs.append(*logs.late.pop(act.many % len(logs.late)))
    await split_all(Lane(logs))
    while logs.late:
        logs.append(*logs.late.pop())


@settings(max_examples=400)
@given(EVENTS, ACTS)
def test_whatever_lanes_do_the_updates_are_those_of_one(
    events: list[Event], acts: list[Act]
) -> None:
    logs, undisturbed = Logs(), Logs()
    for each in (logs, undisturbed):
        send_all(each, events)
    asyncio.run(live(logs, acts))
    asyncio.run(split_all(Lane(undisturbed)))

    assert kept_rows(logs) == kept_rows(undisturbed)


@given(st.lists(st.integers(0, 5), max_size=30), st.integers(1, 5), st.data())
def test_requests_are_remembered_alike_from_wherever_one_begins(
    requests: list[int], window: int, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(requests)))
    always, later = Repeats(window), Repeats(window)
    said = [always.is_new(request, offset) for offset, request in enumerate(requests)]
    for offset in range(max(0, start - window), start):
        later.is_new(requests[offset], offset)
    naive = [
        not request or request not in requests[max(0, offset - window) : offset]
        for offset, request in enumerate(requests)
    ]

    assert said == naive
    assert [later.is_new(requests[n], n) for n in range(start, len(requests))] == said[start:]


def busy_log(rng: np.random.Generator) -> Logs:
    """Return a log on which many lanes wrote the same again."""
    logs = Logs()
    events = [
        Event(
            Kind(int(rng.choice([1, 1, 2]))),
            int(rng.choice(HOSTS)),
            int(rng.integers(1, 1 << 40)),
            (2 * int(rng.integers(1, 9)), *rng.integers(1, 20, 8).tolist()),
            int(rng.choice([0, 0, 0, 2])),
        )
        for _ in range(60)
    ]
    send_all(logs, events)
    names = ["start", "take", "take", "take", "settle", "die", "die", "late"]
    acts = [
        Act(str(rng.choice(names)), int(rng.integers(8)), int(rng.integers(8))) for _ in range(80)
    ]
    asyncio.run(live(logs, acts))
    return logs


async def fold_piece(logs: Logs, number: int, folder: Path, most: int) -> bool:
    """Fold some arrays by a lane that begins now and then ends; return whether there were any."""
    lane = FoldLane(
        number,
        KAFKA,
        PARTITIONS,
        schema_number(),
        lambda _: LmdbStore(folder, schema="one"),
        1 << 26,
    )
    [(at, offset)] = (await lane.start(logs)).items()  # type: ignore[arg-type]
    some: list[Any] = logs.records[at][offset:][:most]
    if some:
        await lane.take({at: some})
    await lane.stop()
    return bool(some)


def test_folds_that_begin_anew_have_the_states_that_a_checker_works_out(tmp_path: Path) -> None:
    print(f"SEED={SEED}")
    rng = np.random.default_rng(SEED)
    logs, expected = busy_log(rng), Found(PARTITIONS)
    expected.take(raw_of(logs))
    assert expected.repeated > 50
    for number in range(PARTITIONS):
        folder = tmp_path / str(number)
        while asyncio.run(fold_piece(logs, number, folder, int(rng.integers(1, 6)))):
            pass
        wanted = {k: b for k, b in expected.states.items() if k % PARTITIONS == number}
        wanted |= {key: row for (home, key), row in expected.progress.items() if home == number}
        assert len(wanted) > 8
        store = LmdbStore(folder, schema="one")
        snapshot = store.snapshot()
        found = snapshot.get_many(list(wanted))
        assert {key: bytes(b or b"") for key, b in zip(wanted, found, strict=True)} == wanted
        snapshot.close()
        store.close()


class Fenced:
    """A store that another process takes over after some writes."""

    def __init__(self, store: LmdbStore, writes: int) -> None:
        self._store = store
        self._left = writes
        self.snapshot, self.close = store.snapshot, store.close

    def write(self, states: Any, ids: Any, position: int) -> None:
        if not self._left:
            raise StoreError("another process took the partition over")
        self._left -= 1
        self._store.write(states, ids, position)


def test_a_fold_that_loses_its_partition_in_the_middle_has_what_it_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is written in parts, and the loop has its turn between them."""
    print(f"SEED={SEED}")
    logs, expected = busy_log(np.random.default_rng(SEED)), Found(PARTITIONS)
    expected.take(raw_of(logs))
    monkeypatch.setattr("featurizer.folder.PART_BYTES", 1)  # each array is a part
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def fold_all(writes: int) -> int:
        """Fold until the store is lost; return where the next begins."""
        made = Fenced(LmdbStore(tmp_path / "0", schema="one"), writes)
        lane = FoldLane(0, KAFKA, PARTITIONS, schema_number(), lambda _: made, 1 << 26)  # type: ignore[arg-type,return-value]
        [(at, offset)] = (await lane.start(logs)).items()  # type: ignore[arg-type]
        counting = asyncio.create_task(count_turns())
        with suppress(StoreError):
            await lane.take({at: logs.records[at][offset:]})
        counting.cancel()
        await lane.stop()
        return lane.offset

    assert asyncio.run(fold_all(5)) == 5
    assert turns >= 5
    arrays = len(logs.records[(KAFKA.topic("entity-updates"), 0)])
    assert asyncio.run(fold_all(arrays)) == arrays > 10
    store = LmdbStore(tmp_path / "0", schema="one")
    with closing(store.snapshot()) as snapshot:
        for key, blob in expected.states.items():
            if key % PARTITIONS == 0:
                assert bytes(snapshot.get_many([key])[0] or b"") == blob
    store.close()


def test_updates_of_a_source_that_nobody_knows_are_refused() -> None:
    places = np.array([[0, 11, 0]])
    record = record_of(Kind.TRANSACTION, 1, [2])
    value = pack(record, places, PARTITIONS, (7, schema_number()))[0]
    with pytest.raises(LogError, match="sources"):
        take_new(value, 0, schema_number(), np.full(KINDS, -1, np.int64))
