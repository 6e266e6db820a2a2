"""The naive oracle: every slot recomputed from raw events, with nothing shared with the kernel.

Slow on purpose. Only the table of features (which operation on which slots) and the settings are
taken from the product; what a slot means is written here a second time, in plain Python.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from featurizer import slots
from featurizer.features import FEATURES
from featurizer.fold import COUNTERPARTIES
from featurizer.records import NO_COORDINATE, NO_TIME_MS, Entity, Flag
from featurizer.slots import Acc, Own, Slot
from featurizer.state import LABELS_MAX, RING_EVENTS

NAN = math.nan
DAY = 86_400_000
HORIZON = 90 * DAY
EXPIRY = 400 * DAY
HALF_LIVES = [300_000, 3_600_000, DAY, 7 * DAY, 30 * DAY]


@dataclass
class Event:
    time: int
    amount: int
    identity: int
    first: int
    second: int
    region: int
    failed: bool
    unusual: bool
    place: tuple[int, int] | None


@dataclass
class Memory:
    """All that ever happened to one entity."""

    events: list[Event] = field(default_factory=list)  # in order of (time, arrival)
    times: list[int] = field(default_factory=list)  # of the events
    labels: dict[tuple[int, int], tuple[bool, bool, int]] = field(default_factory=dict)
    days: dict[int, list[int]] = field(default_factory=dict)
    fraud_time: int = 0
    fraud_known: int = 0
    last_time: int | None = None
    totals: list[int] = field(default_factory=lambda: [0, 0, 0, 0])


def others(record: Any, entity: int) -> tuple[int, int]:
    keys = record["entities"]
    found = []
    for side in (0, 1):
        key, substitute = (int(keys[e]) for e in COUNTERPARTIES[entity][side])
        found.append((key or substitute) & 0xFFFFFFFF)
    return found[0], found[1]


def learn(memory: Memory, entity: int, record: Any) -> None:
    """Fold a record, naively."""
    time = int(record["event_time_ms"])
    if record["kind"] == 2:
        memory.last_time = time if memory.last_time is None else memory.last_time
        _learn_label(memory, record)
        return
    if memory.last_time is not None and time - memory.last_time > EXPIRY:
        vars(memory).update(vars(Memory()))
    newest = memory.events[-1].time if memory.events else time
    if time < newest - HORIZON:
        return
    amount = min(max(int(record["amount_ref"]), 0), 2**31 - 1)
    identity = int(record["transaction"]) & 0xFFFFFFFF
    ring = memory.events[-int(RING_EVENTS[entity]) :]
    if any((e.time, e.amount, e.identity) == (time, amount, identity) for e in ring):
        return
    first, second = others(record, entity)
    flags = int(record["flags"])
    known_place = int(record["latitude_e6"]) != NO_COORDINATE
    place = (int(record["latitude_e6"]), int(record["longitude_e6"])) if known_place else None
    region = int(record["merchant_region"])
    event = Event(
        time, amount, identity, first, second, region,
        bool(flags & Flag.FAILED), bool(flags & Flag.UNUSUAL), place,
    )  # fmt: skip
    index = bisect_right(memory.times, time)
    memory.events.insert(index, event)
    memory.times.insert(index, time)
    memory.last_time = memory.times[-1]


def _learn_label(memory: Memory, record: Any) -> None:
    time, known = int(record["event_time_ms"]), int(record["known_time_ms"])
    bad = int(record["verdict"]) == 1
    odd = bool(int(record["flags"]) & Flag.UNUSUAL)
    amount = min(max(int(record["amount_ref"]), 0), 2**31 - 1)
    key = (time, int(record["transaction"]) & 0xFFF)
    before = memory.labels.get(key)
    if before is not None and before[0] == bad:
        return
    if before is not None:
        memory.totals[2 * before[0]] -= 1
        memory.totals[2 * before[0] + 1] -= amount
    memory.totals[2 * bad] += 1
    memory.totals[2 * bad + 1] += amount
    memory.labels[key] = (bad, odd, amount)
    if len(memory.labels) > LABELS_MAX:
        del memory.labels[min(memory.labels)]
    day = memory.days.setdefault(known // DAY, [0, 0, 0])
    day[bad] += 1
    day[2] += bad and odd
    if bad:
        memory.fraud_time = max(memory.fraud_time, time)
        memory.fraud_known = max(memory.fraud_known, known)


def stats(events: list[Event], amount: int) -> list[float]:
    """The sums that ring and buckets share, in the kernel's order (newest first)."""
    squares = 0.0
    for e in events:
        squares += float(e.amount) * float(e.amount)
    amounts = [e.amount for e in events]
    low, high = (min(amounts), max(amounts)) if amounts else (NAN, NAN)
    return [float(len(events)), float(sum(amounts)), squares, low, high]


def window(memory: Memory, entity: int, time: int, span: int, amount: int) -> list[float]:
    """Exact accumulators of one window, as if nothing were ever merged."""
    ring_from = max(len(memory.events) - int(RING_EVENTS[entity]), 0)
    ring = memory.events[ring_from:]
    start, stop = bisect_right(memory.times, time - span), bisect_right(memory.times, time)
    inside = memory.events[start:stop][::-1]
    near = memory.events[max(start, ring_from) : stop]
    line = stats(inside, amount)
    for name in ("first", "second", "region"):
        newest: dict[int, Event] = {}
        for e in ring:
            newest[getattr(e, name)] = e
        seen = [e for v, e in newest.items() if v and time - span < e.time <= time]
        line.append(float(len(seen)))
    line.append(float(sum(e.failed for e in inside)))
    line.append(float(sum(e.unusual for e in inside)))
    line.append(float(sum(e.amount <= 200 for e in near)))
    line.append(float(sum(e.amount == amount for e in near)))
    return line


def _rhythm(line: dict[int, float], ring: list[Event], time: int) -> None:
    past = [e for e in ring if e.time <= time]
    for s in (Slot.SINCE_LAST, Slot.LAST_GAP, Slot.MEAN_GAP, Slot.STD_GAP, Slot.LAST_AMOUNT):
        line[s] = NAN
    if past:
        line[Slot.SINCE_LAST] = (time - past[-1].time) / 1000
        line[Slot.LAST_AMOUNT] = past[-1].amount
    gaps = [(b.time - a.time) / 1000 for a, b in pairwise(past)][::-1][:16]
    if gaps:
        line[Slot.LAST_GAP] = gaps[0]
        total = squares = 0.0
        for gap in gaps:
            total += gap
            squares += gap * gap
        mean = total / len(gaps)
        line[Slot.MEAN_GAP] = mean
        line[Slot.STD_GAP] = math.sqrt(max(squares / len(gaps) - mean * mean, 0.0))
    session: list[Event] = []
    start = time
    for e in reversed(past):
        if start - e.time > 30 * 60_000:
            break
        session.append(e)
        start = e.time
    line[Slot.SESSION_COUNT] = len(session)
    line[Slot.SESSION_SUM] = sum(e.amount for e in session)
    line[Slot.SESSION_SECONDS] = (time - start) / 1000


def _familiarity(line: dict[int, float], ring: list[Event], record: Any, entity: int) -> None:
    time = int(record["event_time_ms"])
    first, second = others(record, entity)
    for slot, name, value in (
        (Slot.FIRST_TIMES, "first", first),
        (Slot.SECOND_TIMES, "second", second),
        (Slot.REGION_TIMES, "region", int(record["merchant_region"])),
    ):
        met = [e.time for e in ring if e.time <= time and getattr(e, name) == value]
        line[slot] = len(met) if value else NAN
        line[slot + 1] = (time - met[-1]) / 1000 if value and met else NAN


def _median(values: list[float]) -> float:
    values = sorted(values)
    n = len(values)
    return values[n // 2] if n % 2 else 0.5 * (values[n // 2 - 1] + values[n // 2])


def _norm(line: dict[int, float], ring: list[Event], entity: int, time: int) -> None:
    wanted = int(slots.NORM_EVENTS[entity])
    amounts = [float(e.amount) for e in reversed(ring) if e.time <= time][:wanted]
    line[Slot.NORM_COUNT] = len(amounts)
    line[Slot.MEDIAN] = _median(amounts) if amounts else NAN
    middle = line[Slot.MEDIAN]
    line[Slot.DEVIATION] = _median([abs(a - middle) for a in amounts]) if amounts else NAN


def _totals(line: dict[int, float], events: list[Event], time: int) -> None:
    line[Slot.AGE] = max(time - min(e.time for e in events), 0) / DAY if events else NAN
    line[Slot.LIFETIME] = len(events)
    line[Slot.LARGEST] = max(e.amount for e in events) if events else NAN
    reference = max([time, *(e.time for e in events[-1:])])
    for h, half_life in enumerate(HALF_LIVES):
        weights = [2.0 ** (-(reference - e.time) / half_life) for e in events]
        line[Slot.DECAYED + 2 * h] = math.fsum(weights)
        products = (w * e.amount for w, e in zip(weights, events, strict=True))
        line[Slot.DECAYED + 2 * h + 1] = math.fsum(products)


def _sphere(place: tuple[int, int]) -> tuple[float, float, float]:
    latitude, longitude = (math.radians(v / 1e6) for v in place)
    across = math.cos(latitude)
    return across * math.cos(longitude), across * math.sin(longitude), math.sin(latitude)


def _habits(line: dict[int, float], events: list[Event], record: Any) -> None:
    time = int(record["event_time_ms"])
    for s in (
        Slot.HOUR_AFFINITY,
        Slot.HOUR_CONCENTRATION,
        Slot.KM_LAST,
        Slot.KMH_LAST,
        Slot.KM_HOME,
    ):
        line[s] = NAN
    if not events:
        return
    weights = [2.0 ** (-(events[-1].time - e.time) / (30 * DAY)) for e in events]
    turn = 2 * math.pi / 1440
    angles = [(e.time // 60_000 % 1440) * turn for e in events]
    total = math.fsum(weights)
    cos = math.fsum(w * math.cos(a) for w, a in zip(weights, angles, strict=True)) / total
    sin = math.fsum(w * math.sin(a) for w, a in zip(weights, angles, strict=True)) / total
    now = (time // 60_000 % 1440) * turn
    line[Slot.HOUR_AFFINITY] = cos * math.cos(now) + sin * math.sin(now)
    line[Slot.HOUR_CONCENTRATION] = math.hypot(cos, sin)
    placed = [(w, e) for w, e in zip(weights, events, strict=True) if e.place]
    if int(record["latitude_e6"]) == NO_COORDINATE or not placed:
        return
    here = _sphere((int(record["latitude_e6"]), int(record["longitude_e6"])))
    last = placed[-1][1]
    assert last.place is not None
    points = [(w, _sphere(e.place)) for w, e in placed if e.place]
    share = math.fsum(w for w, _ in points)
    home = tuple(math.fsum(w * p[i] for w, p in points) / share for i in range(3))
    line[Slot.KM_LAST] = 6371.0 * math.dist(here, _sphere(last.place))
    line[Slot.KMH_LAST] = line[Slot.KM_LAST] / (max(time - last.time, 1000) / 3_600_000)
    line[Slot.KM_HOME] = 6371.0 * math.dist(here, home)


def _risk(line: dict[int, float], memory: Memory, time: int) -> None:
    good, good_amount, bad, bad_amount = memory.totals
    line[Slot.GOOD], line[Slot.BAD], line[Slot.LABELLED] = good, bad, good + bad
    line[Slot.GOOD_MEAN] = good_amount / good if good > 0 else NAN
    line[Slot.BAD_MEAN] = bad_amount / bad if bad > 0 else NAN
    known = memory.fraud_known
    line[Slot.SINCE_FRAUD_KNOWN] = (time - known) / DAY if known > 0 else NAN
    today = time // DAY
    for w, span in enumerate(int(d) for d in slots.RISK_DAYS):
        inside = [c for d, c in memory.days.items() if today - span < d <= today]
        line[Slot.RISK + 3 * w] = sum(c[1] for c in inside)
        line[Slot.RISK + 3 * w + 1] = sum(c[0] + c[1] for c in inside)
        line[Slot.RISK + 3 * w + 2] = sum(c[2] for c in inside)
    newest_first = sorted(memory.labels.items(), reverse=True)
    verdicts = [v[0] for _, v in newest_first]
    frauds = [(k, v) for k, v in newest_first if v[0]]
    goods = [k for k, v in newest_first if not v[0]]
    run = verdicts.index(False) if False in verdicts else len(verdicts)
    line[Slot.BAD_RUN] = run
    line[Slot.PLAIN_BAD_RUN] = sum(not v[1] for _, v in newest_first[:run])
    line[Slot.GOOD_SINCE_FRAUD] = verdicts.index(True) if True in verdicts else len(verdicts)
    line[Slot.SINCE_GOOD] = (time - goods[0][0]) / DAY if goods else NAN
    line[Slot.SINCE_FRAUD] = line[Slot.LAST_BAD_UNUSUAL] = NAN
    if frauds:
        line[Slot.SINCE_FRAUD] = (time - frauds[0][0][0]) / DAY
        line[Slot.LAST_BAD_UNUSUAL] = float(frauds[0][1][1])
    elif len(verdicts) == LABELS_MAX and memory.fraud_time > 0:
        line[Slot.SINCE_FRAUD] = (time - memory.fraud_time) / DAY


def line_of(memory: Memory, entity: int, record: Any) -> dict[int, float]:
    """Every slot of one entity's line."""
    time = int(record["event_time_ms"])
    amount = min(max(int(record["amount_ref"]), 0), 2**31 - 1)
    ring = memory.events[-int(RING_EVENTS[entity]) :]
    line: dict[int, float] = {}
    for w, span in enumerate(slots.WINDOWS.values()):
        for acc, value in enumerate(window(memory, entity, time, span, amount)):
            line[w * len(Acc) + acc] = value
    _rhythm(line, ring, time)
    _familiarity(line, ring, record, entity)
    _norm(line, ring, entity, time)
    _totals(line, memory.events, time)
    _habits(line, memory.events, record)
    _risk(line, memory, time)
    return line


def _differs(record: Any, a: str, b: str) -> float:
    return float(record[a] != record[b]) if record[a] and record[b] else NAN


def own_line(record: Any) -> dict[int, float]:
    """The record's own slots."""
    time, minor = int(record["event_time_ms"]), int(record["amount_minor"])
    flags = int(record["flags"])
    moment = np.datetime64(time, "ms").astype(object)
    text = str(minor)
    bare = text.rstrip("0")
    line: dict[int, float] = {
        Own.AMOUNT: min(max(int(record["amount_ref"]), 0), 2**31 - 1),
        Own.CENTS: minor % 100,
        Own.ROUND_10: float(minor % 1000 == 0),
        Own.ROUND_100: float(minor % 10000 == 0),
        Own.DIGITS: len(bare) - (len(text) - len(bare)) if minor else 0,
        Own.HOUR: (time // 60_000 % 1440) / 60,
        Own.WEEKDAY: moment.weekday(),
        Own.MONTH_DAY: moment.day,
        Own.CARD_PRESENT: float(bool(flags & Flag.CARD_PRESENT)),
        Own.RECURRING: float(bool(flags & Flag.RECURRING)),
        Own.FAILED: float(bool(flags & Flag.FAILED)),
        Own.FOREIGN_ISSUER: _differs(record, "issuer_region", "merchant_region"),
        Own.FOREIGN_BILLING: _differs(record, "billing_region", "issuer_region"),
        Own.SHIPS_ELSEWHERE: _differs(record, "shipping_region", "billing_region"),
        Own.ENTITIES: sum(int(k) != 0 for k in record["entities"]),
    }
    for slot in ("CHANNEL", "POS_ENTRY_MODE", "THREE_DS", "AVS", "CVV", "AUTHORIZATION", "MCC",
                 "BRAND", "FUNDING", "CURRENCY", "MERCHANT_REGION", "ISSUER_REGION"):  # fmt: skip
        code = int(record[slot.lower()])
        line[Own[slot]] = code or NAN
    opened = int(record["account_created_ms"])
    line[Own.ACCOUNT_AGE] = NAN if opened == NO_TIME_MS else (time - opened) / DAY
    return line


def _std(flat: dict[int, float], at: int) -> float:
    n = flat[at]
    if not n >= 2:
        return NAN
    mean = flat[at + 1] / n
    return math.sqrt(max(flat[at + 2] / n - mean * mean, 0.0))


def _over(a: float, b: float) -> float:
    return a / b if b > 0 else NAN


def feature(op: int, a: int, b: int, flat: dict[int, float]) -> float:
    """One operation of the table."""
    match op:
        case slots.OP_VALUE:
            return flat[a]
        case slots.OP_RATIO:
            return _over(flat[a], flat[b])
        case slots.OP_STD:
            return _std(flat, a)
        case slots.OP_ZSCORE:
            spread = _std(flat, b)
            return _over(flat[a] - flat[b + 1] / flat[b], spread) if spread > 0 else NAN
        case slots.OP_MEAN_RATIO:
            return _over(flat[a] * flat[b], flat[b + 1])
        case slots.OP_ROBUST:
            return _over(flat[a] - flat[b], flat[b + 1])
    raise AssertionError(f"an operation the oracle does not know: {op}")


def lines_of(memories: dict[int, Memory], record: Any) -> dict[int, float]:
    """All slots, flat, as the table addresses them."""
    flat: dict[int, float] = {}
    for entity in Entity:
        key = int(record["entities"][entity])
        if key == 0:
            flat.update(dict.fromkeys(range(entity * slots.SLOTS, (entity + 1) * slots.SLOTS), NAN))
            continue
        memory = memories.get(key, Memory())
        last = memory.last_time
        if last is not None and int(record["event_time_ms"]) - last > EXPIRY:
            memory = Memory()
        line = line_of(memory, entity, record)
        flat.update({entity * slots.SLOTS + s: v for s, v in line.items()})
    flat.update({slots.OWN_LINE * slots.SLOTS + s: v for s, v in own_line(record).items()})
    return flat


def vector(flat: dict[int, float]) -> list[np.float32]:
    """The feature vector."""
    return [np.float32(feature(f.op, f.a, f.b, flat)) for f in FEATURES]
