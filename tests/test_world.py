"""The world: same seed same rows, every kind of fraud, rates as asked, no card numbers."""

from __future__ import annotations

import datetime
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.__main__ import main
from loadgen.addresses import address_text, home_address
from loadgen.campaigns import PLANS, Mix, Schedule
from loadgen.columns import NUMBERS, SCHEMA
from loadgen.draws import Roulette, key, mix, unit
from loadgen.labels import ROUTES
from loadgen.population import DAY_MS
from loadgen.rows import HistoryRow, table_rows
from loadgen.seasons import HOUR_WEIGHTS, black_friday, day_factors
from loadgen.world import World, WorldSettings

SEED = 11
DAYS = 40
SETTINGS = WorldSettings(seed=SEED, customers=1_500, rate_per_day=3_000, fraud_rate=0.008)


@pytest.fixture(scope="module")
def history() -> pa.Table:
    print(f"seed {SEED}")
    return pa.concat_tables(World(SETTINGS).days(DAYS))


def column(table: pa.Table, name: str) -> list[object]:
    values: list[object] = table[name].to_pylist()
    return values


def of_kind(table: pa.Table, kind: str) -> pa.Table:
    return table.filter(pc.equal(table["campaign"], kind))


def test_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.parquet", "b.parquet", "c.parquet")]
    for path, seed in zip(paths, (5, 5, 6), strict=True):
        arguments = ["--days", "3", "--seed", str(seed), "--customers", "200", "--rate", "500"]
        assert main(["world", *arguments, "--out", str(path)]) == 0
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].read_bytes() != paths[2].read_bytes()


def test_a_longer_history_begins_with_the_shorter_one() -> None:
    short = pa.concat_tables(World(SETTINGS).days(2))
    long = pa.concat_tables(World(SETTINGS).days(4))
    assert long.slice(0, len(short)).equals(short)


def test_rows_are_in_event_order_with_ids_of_their_own(history: pa.Table) -> None:
    times = history["event_time"].cast(pa.int64()).to_numpy()
    assert np.all(np.diff(times) >= 0)
    start_ms = (SETTINGS.start - datetime.date(1970, 1, 1)).days * DAY_MS
    assert times[0] >= start_ms
    assert times[-1] < start_ms + DAYS * DAY_MS
    assert pc.count_distinct(history["transaction_id"]).as_py() == len(history)


def test_every_kind_of_fraud_is_there_and_marked(history: pa.Table) -> None:
    kinds = Counter(column(history, "campaign"))
    assert set(kinds) == {"", *PLANS}
    assert len(PLANS) >= 6
    marked = pc.not_equal(history["campaign"], "")
    assert pc.all(pc.equal(marked, history["is_fraud"])).as_py()


def test_rates_are_near_what_was_asked(history: pa.Table) -> None:
    assert len(history) / DAYS == pytest.approx(SETTINGS.rate_per_day, rel=0.1)
    frauds = pc.sum(history["is_fraud"]).as_py()
    assert frauds / len(history) == pytest.approx(SETTINGS.fraud_rate, rel=0.35)
    kinds = Counter(column(history, "campaign"))
    for kind, plan in PLANS.items():
        assert kinds[kind] / frauds == pytest.approx(plan.share, abs=0.10), kind


def test_labels_come_late_and_some_never(history: pa.Table) -> None:
    told = history.filter(pc.is_valid(history["label_time"]))
    delay_ms = (
        told["label_time"].cast(pa.int64()).to_numpy()
        - told["event_time"].cast(pa.int64()).to_numpy()
    )
    assert delay_ms.min() > 0
    source = np.array(column(told, "label_source"))
    fraud = told["is_fraud"].to_numpy()
    days = {name: np.median(delay_ms[fraud & (source == name)]) / DAY_MS for name in set(source)}
    print(days)
    assert 7 < days["CHARGEBACK"] < 40
    assert days["CUSTOMER"] < 3
    settled = delay_ms[~fraud & (source == "ISSUER")]
    assert settled.min() >= 7 * DAY_MS
    never = history.filter(
        pc.and_(pc.is_null(history["label_time"]), pc.invert(history["is_fraud"]))
    )
    honest = len(history) - pc.sum(history["is_fraud"]).as_py()
    assert len(never) / honest == pytest.approx(0.125, abs=0.02)
    assert never["label_source"].null_count == len(never)


def test_routes_are_whole() -> None:
    for kind, routes in ROUTES.items():
        assert sum(route.share for route in routes) == pytest.approx(1), kind
        assert {route.source for route in routes} <= {"NOBODY", *NUMBERS["label_source"]}


def test_columns_and_names_are_the_contracts(history: pa.Table) -> None:
    assert history.schema == SCHEMA
    for name, numbers in NUMBERS.items():
        assert set(column(history, name)) - {None} <= set(numbers), name
    channels = set(column(history, "channel"))
    assert {"POINT_OF_SALE", "ECOMMERCE", "MOBILE_APP", "CASH_MACHINE", "TRANSFER"} <= channels
    assert len(set(column(history, "currency"))) >= 5
    assert any(column(history, "recurring"))


def test_every_row_can_be_sent(history: pa.Table) -> None:
    rows = list(table_rows(history.slice(0, 3_000)))
    assert all(isinstance(row, HistoryRow) for row in rows)


def test_no_text_can_be_taken_for_a_card_number(history: pa.Table) -> None:
    long_digits = re.compile(r"\d{13}")
    for field in SCHEMA:
        if field.type == pa.string():
            for text in set(column(history, field.name)):
                # Separators do not hide a number from a careful reader.
                bare = re.sub(r"[ .:-]", "", str(text))
                assert not long_digits.search(bare), field.name


def test_card_testing_is_a_burst_over_many_cards_at_one_shop(history: pa.Table) -> None:
    rows = of_kind(history, "CARD_TESTING")
    per_shop: dict[object, list[object]] = {}
    for shop, card in zip(column(rows, "merchant_id"), column(rows, "card_id"), strict=True):
        per_shop.setdefault(shop, []).append(card)
    bursts = [cards for cards in per_shop.values() if len(cards) >= 12]
    assert bursts
    assert all(len(set(cards)) > 0.7 * len(cards) for cards in bursts)


def test_account_takeover_comes_from_a_device_the_customer_never_had(history: pa.Table) -> None:
    honest = of_kind(history, "")
    known = set(zip(column(honest, "customer_id"), column(honest, "device_id"), strict=True))
    taken = of_kind(history, "ACCOUNT_TAKEOVER")
    used = set(zip(column(taken, "customer_id"), column(taken, "device_id"), strict=True))
    assert used
    assert used.isdisjoint(known)


def test_synthetic_identities_pay_well_before_they_vanish(history: pa.Table) -> None:
    loud = of_kind(history, "SYNTHETIC_IDENTITY")
    who = pc.unique(loud["customer_id"])
    quiet = history.filter(
        pc.and_(pc.is_in(history["customer_id"], who), pc.invert(history["is_fraud"]))
    )
    assert len(quiet) > 0
    mean = {name: pc.mean(t["amount_minor"]).as_py() for name, t in (("q", quiet), ("l", loud))}
    assert mean["l"] > mean["q"]


def test_no_single_column_gives_fraud_away(history: pa.Table) -> None:
    """A value that many payments share must never be only fraud: the world is not trivial."""
    for name in (*NUMBERS, "mcc", "currency", "region", "email_domain", "shipping_region"):
        if name == "label_source":
            continue
        groups = history.group_by(name).aggregate([("is_fraud", "mean"), ("is_fraud", "count")])
        big = groups.filter(pc.greater(groups["is_fraud_count"], 200))
        assert pc.max(big["is_fraud_mean"]).as_py() < 0.25, name


def test_a_mix_can_be_one_kind_from_a_day_on() -> None:
    settings = WorldSettings(
        seed=SEED,
        customers=300,
        rate_per_day=1_000,
        fraud_rate=0.02,
        mix=Mix({"ACCOUNT_TAKEOVER": 1.0}, {"ACCOUNT_TAKEOVER": 3}),
    )
    days = list(World(settings).days(6))
    frauds = [pc.sum(day["is_fraud"]).as_py() for day in days]
    assert frauds[:3] == [0, 0, 0]
    assert all(count > 0 for count in frauds[3:])
    assert set(column(pa.concat_tables(days), "campaign")) == {"", "ACCOUNT_TAKEOVER"}


def test_csv_holds_what_parquet_holds(tmp_path: Path) -> None:
    for name in ("a.csv", "a.parquet"):
        arguments = ["--days", "1", "--customers", "100", "--rate", "200", "--out"]
        assert main(["world", *arguments, str(tmp_path / name)]) == 0
    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert [name.strip('"') for name in lines[0].split(",")] == SCHEMA.names
    assert len(lines) > 100


@pytest.mark.parametrize(
    "change",
    [
        {"customers": 0},
        {"rate_per_day": 0},
        {"fraud_rate": 0.9},
        {"seed": -1},
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must"):
        WorldSettings(**change)  # type: ignore[arg-type]


def test_an_unknown_campaign_is_refused_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.parquet"
    assert main(["world", "--days", "1", "--out", str(out), "--campaign", "ROBBERY=1"]) == 2
    assert "no such campaign: ROBBERY" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_campaigns_start_evenly_and_without_memory() -> None:
    world = World(SETTINGS)
    schedule = Schedule(world.people, SETTINGS.mix, 24.0)
    for kind in PLANS:
        numbers = [n for day in range(200) for n in schedule.serials(kind, day)]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), kind
        assert len(numbers) == pytest.approx(200 * schedule.campaigns_per_day(kind), abs=1.01)


@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=50))
def test_keyed_numbers_repeat_and_never_vanish(parts: list[int]) -> None:
    keys = key(3, np.array(parts))
    assert np.array_equal(keys, key(3, np.array(parts)))
    assert keys.min() > 0
    assert np.all((unit(keys) >= 0) & (unit(keys) < 1))


def test_mix_is_split_mix_64() -> None:
    # The first output of the reference generator seeded with 0.
    assert mix(np.zeros(1, np.uint64))[0] == 0xE220A8397B1DCDAF


@given(
    st.lists(st.lists(st.floats(0.01, 100), min_size=1, max_size=6), min_size=1, max_size=5),
    st.floats(0, 1, exclude_max=True),
)
def test_a_roulette_falls_where_its_weights_say(rows: list[list[float]], chance: float) -> None:
    wheel = Roulette(
        np.concatenate(rows), np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    )
    for group, weights in enumerate(rows):
        at = int(wheel.column(np.array([group]), np.array([chance]))[0])
        edges = np.concatenate([[0], np.cumsum(weights) / sum(weights)])
        assert edges[at] - 1e-9 <= chance <= edges[at + 1] + 1e-9


def test_a_roulette_refuses_an_empty_group() -> None:
    with pytest.raises(ValueError, match="gap"):
        Roulette([1.0, 1.0], [0, 2])


@given(st.lists(st.integers(1, 2**63 - 1), min_size=1, max_size=30))
def test_addresses_read_as_addresses(keys: list[int]) -> None:
    texts = address_text(home_address(np.array(keys, np.uint64))).to_pylist()
    assert all(re.fullmatch(r"10(\.\d{1,3}){3}|2001:db8:[0-9a-f]+::[0-9a-f]+", t) for t in texts)
    assert address_text(np.zeros(1, np.uint64)).to_pylist() == [None]


def test_the_calendar_knows_its_days() -> None:
    assert black_friday(2024) == datetime.date(2024, 11, 29)
    assert black_friday(2025) == datetime.date(2025, 11, 28)
    assert day_factors(datetime.date(2025, 12, 25)).max() < 0.6
    assert day_factors(black_friday(2025)).min() > 1.5
    assert HOUR_WEIGHTS.shape[1] == 24
