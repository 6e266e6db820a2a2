"""The checker of the several hosts' log: each harm that is done to a log is found."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from featurizer.cluster import schema_number
from featurizer.eventlog_kafka import Message
from featurizer.records import Kind
from featurizer.updates import HEAD, unpack
from tests.checker import Found
from tests.lanes import PARTITIONS, SETTINGS, Lane, Logs, raw_of, record_of, send_event

EVENTS = 12
HOST = 11
Rows = np.ndarray


def split_log() -> Logs:
    """Return events of both kinds, split by a lane and once more by another."""
    logs = Logs()
    for position in range(EVENTS):
        kind = Kind.FEEDBACK if position % 3 == 2 else Kind.TRANSACTION
        send_event(logs, HOST, position, record_of(kind, position + 1, [2, 3 + position % 4]))

    async def split() -> None:
        for most in (2, 1):
            lane = Lane(logs, replace(SETTINGS, progress_records=1 << 30))
            await lane.start()
            while await lane.take(most):
                pass

    asyncio.run(split())
    return logs


def wrong(logs: Logs) -> list[str]:
    found = Found(PARTITIONS)
    found.take(raw_of(logs))
    left = [f"entities {mask:b} of {at} were not updated" for at, mask in found.left()]
    return [*found.wrong.lost, *found.wrong.twice, *found.wrong.different, *left]


def changed(logs: Logs, array: int, change: Callable[[Rows], None]) -> None:
    """Change the rows of an array in partition 0."""
    entry = logs.updates(0)[array]
    _, rows = unpack(entry.value or b"", schema_number())
    rows = rows.copy()
    change(rows)
    entry.value = (entry.value or b"")[: HEAD.itemsize] + rows.tobytes()


def swap(logs: Logs, one: int, other: int) -> None:
    entries = logs.updates(0)
    values = entries[one].value, entries[other].value
    entries[other].value, entries[one].value = values


def count_again(logs: Logs) -> None:
    """Write the last array anew as if it were of later records."""
    entry = logs.updates(0)[-1]
    logs.append(("lanes.entity-updates", 0), [Message(b"", entry.value or b"")])
    changed(logs, -1, lambda rows: add(rows, 100))


def add(rows: Rows, count: int) -> None:
    rows["offset"] += count


def other_flags(rows: Rows) -> None:
    rows["record"]["flags"] += 1


def other_mask(rows: Rows) -> None:
    rows["mask"] ^= 1


def cut_off(logs: Logs) -> None:
    """Lose the last array of a partition, and its repeats."""
    last = unpack(logs.updates(1)[-1].value or b"", schema_number())[1]["record"].tobytes()
    kept = [each for each in logs.updates(1) if last not in (each.value or b"")]
    logs.updates(1)[:] = kept


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    found = Found(PARTITIONS)
    found.take(raw_of(split_log()))

    assert wrong(split_log()) == []
    assert found.repeated == len(found.updates) > EVENTS
    assert len(found.progress) == 2 * PARTITIONS


@pytest.mark.parametrize(
    ("harm", "what"),
    [
        (cut_off, "were not updated"),
        (lambda logs: swap(logs, 0, 2), "was overtaken"),
        (lambda logs: changed(logs, -1, other_flags), "two forms"),
        (lambda logs: changed(logs, -1, other_mask), "two forms"),
        (lambda logs: changed(logs, 0, other_flags), "not what was sent"),
        (lambda logs: changed(logs, 0, lambda rows: add(rows, 1)), "is not of 0/"),
        (count_again, "once too often"),
        (lambda logs: logs.updates(0).pop(0), "was overtaken"),
    ],
)
def test_a_harm_is_found(harm: Callable[[Logs], object], what: str) -> None:
    logs = split_log()
    harm(logs)

    assert any(what in each for each in wrong(logs)), wrong(logs)
