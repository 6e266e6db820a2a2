"""A history's rows become the scorer's records; what cannot is reported at its line."""

from __future__ import annotations

import csv
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fraud.v1 import transaction_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st

from featurizer import backfill
from featurizer.backfill import read_history
from featurizer.currencies import AMOUNT_MINOR_MAX, CURRENCIES
from featurizer.hashing import IdHasher
from featurizer.history import (
    ACCOUNT_OLDEST_MS,
    ENUM_COLUMNS,
    OPTIONAL,
    REPORTED_MAX,
    REQUIRED,
    TEXT_BYTES_MAX,
    TIME_MAX_MS,
    History,
    HistoryError,
)
from featurizer.records import NO_COORDINATE, NO_TIME_MS, RECORD
from fraudsvc import contract
from fraudsvc.contract import Checker, ContractSettings

SEED = 20261124
DAY_MS = 86_400_000
HASHER = IdHasher(bytes(range(16)))
START_MS = 1_700_000_000_000
MINIMAL = {
    "transaction_id": "t1",
    "event_time": "2024-01-01T00:00:00Z",
    "customer_id": "c1",
    "amount_minor": "100",
}

# Column: message ("" for the transaction itself) and field of the contract.
FIELDS = {
    "transaction_id": ("", "transaction_id"), "customer_id": ("", "customer_id"),
    "card_id": ("card", "token"), "bin": ("card", "bin"), "brand": ("card", "brand"),
    "funding": ("card", "funding"), "issuer_region": ("card", "issuer_region_code"),
    "merchant_id": ("merchant", "merchant_id"), "mcc": ("merchant", "category_code"),
    "region": ("merchant", "region_code"), "terminal_id": ("", "terminal_id"),
    "device_id": ("", "device_id"), "ip": ("", "ip_address"), "email": ("email", "address_hash"),
    "amount_minor": ("", "amount_minor"), "currency": ("", "currency_code"),
    "channel": ("", "channel"), "entry_mode": ("", "pos_entry_mode"),
    "card_present": ("", "card_present"), "recurring": ("", "recurring"),
    "three_ds": ("", "three_ds_result"), "avs": ("", "avs_result"), "cvv": ("", "cvv_result"),
    "authorization": ("", "authorization_result"), "billing_region": ("", "billing_region_code"),
    "shipping_region": ("", "shipping_region_code"),
}  # fmt: skip


def names_of(enum: Any) -> list[str]:
    prefix = enum.Name(0).removesuffix("UNSPECIFIED")
    return [name.removeprefix(prefix) for name, number in enum.items() if number]


def text_of(bytes_max: int) -> st.SearchStrategy[str]:
    # No digits, or a text could look like a card number, which the contract refuses.
    letters = st.characters(codec="utf-8", categories=("L", "P"))
    return st.text(letters, min_size=1, max_size=bytes_max // 4)


def placed(row: dict[str, Any]) -> dict[str, Any]:
    lat_lon = row.get("place")
    rest = {name: value for name, value in row.items() if name != "place"}
    return {**rest, "lat": lat_lon[0], "lon": lat_lon[1]} if lat_lon else rest


REGIONS = st.sampled_from(["DE", "FR", "US", "ZZ"])
OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    **{name: text_of(size) for name, size in TEXT_BYTES_MAX.items() if name not in REQUIRED},
    **{name: st.sampled_from(names_of(enum)) for name, (_, enum) in ENUM_COLUMNS.items()},
    **dict.fromkeys(("region", "issuer_region", "billing_region", "shipping_region"), REGIONS),
    "ip": st.ip_addresses().map(str),
    "bin": st.from_regex(r"[0-9]{6,8}", fullmatch=True),
    "mcc": st.from_regex(r"[0-9]{4}", fullmatch=True),
    "currency": st.sampled_from(sorted(CURRENCIES)),
    "card_present": st.booleans(),
    "recurring": st.booleans(),
    "account_created_time": st.integers(ACCOUNT_OLDEST_MS, START_MS),
    "place": st.tuples(st.floats(-90, 90), st.floats(-180, 180)),
}
ROWS = st.fixed_dictionaries(
    {
        "transaction_id": text_of(64),
        "customer_id": text_of(64),
        "event_time": st.integers(START_MS, TIME_MAX_MS),
        "amount_minor": st.integers(0, AMOUNT_MINOR_MAX),
    },
    optional=OPTIONS,
).map(placed)


def message(row: dict[str, Any]) -> pb.Transaction:
    transaction = pb.Transaction(request_id="7b0c0f3e-7c0f-4a4e-9b3f-0123456789ab")
    transaction.currency_code = "USD"
    for column, (part, field) in FIELDS.items():
        if column in row:
            value = row[column]
            if column in ENUM_COLUMNS:
                enum = ENUM_COLUMNS[column][1]
                value = enum.Value(enum.Name(0).removesuffix("UNSPECIFIED") + value)
            setattr(getattr(transaction, part) if part else transaction, field, value)
    transaction.event_time.FromMilliseconds(row["event_time"])
    if "account_created_time" in row:
        transaction.account_created_time.FromMilliseconds(row["account_created_time"])
    if "lat" in row:
        transaction.position.latitude_degrees = row["lat"]
        transaction.position.longitude_degrees = row["lon"]
    return transaction


def checked(row: dict[str, Any]) -> Any:
    out = np.zeros(1, RECORD)
    checker = Checker(HASHER, ContractSettings(max_age_days=None))
    assert checker.check(message(row), TIME_MAX_MS, out) == []
    return out[0]


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*REQUIRED, *OPTIONAL], restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    names = [*REQUIRED, *OPTIONAL]
    pq.write_table(pa.table({n: [r.get(n) for r in rows] for n in names}), path)
    return path


def read(path: Path, **renames: str) -> History:
    return read_history(path, HASHER, renames)


def from_text(path: Path, text: str | bytes) -> History:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "history.csv"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("histories")


@given(rows=st.lists(ROWS, min_size=1, max_size=8))
def test_a_row_is_the_record_that_the_scorer_makes(
    rows: list[dict[str, Any]], folder: Path
) -> None:
    for file in (write_csv(folder / "h.csv", rows), write_parquet(folder / "h.parquet", rows)):
        history = read(file)
        assert (history.bad_rows, history.problems) == (0, [])
        assert history.ids.to_pylist() == [row["transaction_id"] for row in rows]
        assert history.customers.to_pylist() == [row["customer_id"] for row in rows]
        for row, record in zip(rows, history.records, strict=True):
            expected = checked(row)
            for name in set(RECORD.names or ()) - {"request"}:
                np.testing.assert_array_equal(record[name], expected[name], err_msg=name)


def test_every_documented_column_reaches_the_test_above() -> None:
    labels = {"is_fraud", "label_time", "label_source"}
    assert set(OPTIONAL) - labels == {*OPTIONS, "lat", "lon"} - {"place"}


def test_limits_are_those_of_the_contract() -> None:
    limits = contract._TEXTS
    for column, limit in TEXT_BYTES_MAX.items():
        path = ".".join(filter(None, ("transaction", *FIELDS[column])))
        assert limits[path] == limit, column
    assert ACCOUNT_OLDEST_MS == contract.ACCOUNT_OLDEST_MS


@pytest.mark.parametrize(
    ("column", "value", "why"),
    [
        ("amount_minor", "12.5", "whole number"),
        ("amount_minor", "1_000", "whole number"),
        ("amount_minor", "-1", "between 0"),
        ("amount_minor", str(AMOUNT_MINOR_MAX + 1), "between 0"),
        ("amount_minor", "9" * 40, "whole number"),
        ("amount_minor", "", "missing"),
        ("transaction_id", "", "missing"),
        ("customer_id", "", "missing"),
        ("event_time", "", "missing"),
        ("event_time", "now", "not a time"),
        ("event_time", "2023-02-30", "not a time"),
        ("event_time", "1969-12-31T23:59:59Z", "between 1970"),
        ("event_time", str(TIME_MAX_MS + 1), "between 1970"),
        ("currency", "XXX", "known value"),
        ("region", "Germany", "two capital letters"),
        ("billing_region", "de", "two capital letters"),
        ("mcc", "742", "four digits"),
        ("ip", "300.1.1.1", "IPv4 or IPv6"),
        ("ip", "::g", "IPv4 or IPv6"),
        ("bin", "12345", "6 to 8 digits"),
        ("customer_id", "c" * 65, "64 bytes"),
        ("customer_id", "é" * 33, "64 bytes"),
        ("device_id", "d" * 129, "128 bytes"),
        ("card_id", "a\tb", "control characters"),
        ("channel", "UNSPECIFIED", "known value"),
        ("channel", "PIGEON", "known value"),
        ("card_present", "maybe", "true nor false"),
        ("is_fraud", "2", "true nor false"),
        ("lat", "90.1", "must lie in -90 to 90"),
        ("lon", "180.1", "must lie in -180 to 180"),
        ("lat", "nan", "not a number"),
        ("account_created_time", "1899-12-31", "before 1900"),
        ("account_created_time", "2024-01-02T00:00:00.001Z", "a day after event_time"),
        ("label_time", "2023-12-31", "between event_time"),
        ("label_source", "GOSSIP", "known value"),
    ],
)
def test_a_bad_value_costs_its_row_only(column: str, value: str, why: str, path: Path) -> None:
    good = {**MINIMAL, "lat": "1", "lon": "2"}
    history = read(write_csv(path, [good, {**good, column: value}, {**good, "customer_id": "c3"}]))
    assert history.customers.to_pylist() == ["c1", "c3"]
    assert history.bad_rows == 1
    (problem,) = history.problems
    assert (problem.line, problem.column) == (3, column)
    assert why in problem.why
    assert not value or value not in problem.why


def test_csv_lines_are_those_of_an_editor(path: Path) -> None:
    history = from_text(
        path,
        b"transaction_id,event_time,customer_id,amount_minor\r\n"
        b'a,2024-01-01,"two\r\nlines",1\r\n'  # 2 and 3: a control character
        b"b,2024-01-01,c,1\r\n"
        b"\r\n"
        b"c,2024-01-01,c\r\n"  # 6
        b"d,2024-01-01,c,1,2\r\n"  # 7
        b"e,2024-01-01,\xff,1\r\n"  # 8
        b'f,2024-01-01,"c"c,1\r\n'  # 9
        b"g,2024-01-01,c,1\r\n"
        b"h,2024-01-01,c,x\r\n"  # 11
        b"i,2024-01-01,c,1",
    )
    assert history.ids.to_pylist() == ["b", "g", "i"]
    assert [p.line for p in history.problems] == [2, 6, 7, 8, 9, 11]
    assert history.bad_rows == 6
    assert "3 columns, not 4" in history.problems[1].why


def test_lines_stay_right_over_several_parts(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{**MINIMAL, "amount_minor": "x" if i % 7 == 3 else "1"} for i in range(40)]
    whole = read(write_csv(path, rows))
    monkeypatch.setattr(backfill, "READ_ROWS", 3)
    parts = read(path)
    assert [p.line for p in whole.problems] == [i + 2 for i in range(40) if i % 7 == 3]
    assert parts.problems == whole.problems
    np.testing.assert_array_equal(parts.records, whole.records)
    pq.write_table(pa.table({n: [r[n] for r in rows] for n in MINIMAL}), path.with_suffix(".pq"))
    assert [p.line for p in read(path.with_suffix(".pq")).problems] == [
        i + 1 for i in range(40) if i % 7 == 3
    ]


def test_many_bad_rows_are_counted_and_some_are_told(path: Path) -> None:
    history = read(write_csv(path, [{**MINIMAL, "amount_minor": f"x{i}"} for i in range(500)]))
    assert (len(history.records), history.bad_rows) == (0, 500)
    assert [p.line for p in history.problems] == list(range(2, 2 + REPORTED_MAX))


def test_only_rows_that_break(path: Path) -> None:
    history = from_text(path, "transaction_id,event_time,customer_id,amount_minor\na\nb\n")
    assert (len(history.records), history.bad_rows) == (0, 2)


@pytest.mark.parametrize(
    ("value", "expected_ms"),
    [
        ("2024-02-29", 1_709_164_800_000),
        ("2024-02-29 12:00:00", 1_709_208_000_000),
        ("2024-02-29T12:00:00.5Z", 1_709_208_000_500),
        ("2024-02-29T12:00:00.999999+02:00", 1_709_200_800_999),
        ("1709164800000", 1_709_164_800_000),
        (pa.scalar(1_709_164_800_999_999, pa.timestamp("us")), 1_709_164_800_999),
        (pa.scalar(1_709_164_800, pa.timestamp("s")), 1_709_164_800_000),
        (pa.scalar(datetime(2024, 2, 29, tzinfo=UTC), pa.timestamp("ns", "Asia/Tokyo")),
         1_709_164_800_000),
        (pa.scalar(date(2024, 2, 29)), 1_709_164_800_000),
        (pa.scalar(1_709_164_800_000, pa.int64()), 1_709_164_800_000),
    ],
)  # fmt: skip
def test_times_in_any_form(value: Any, expected_ms: int, tmp_path: Path) -> None:
    scalar = value if isinstance(value, pa.Scalar) else pa.scalar(value)
    columns = {**{n: [v] for n, v in MINIMAL.items()}, "event_time": pa.array([scalar])}
    pq.write_table(pa.table(columns), tmp_path / "h.parquet")
    assert read(tmp_path / "h.parquet").records["event_time_ms"].tolist() == [expected_ms]


def test_a_time_before_1970_is_rounded_down(tmp_path: Path) -> None:
    opened = pa.array([-1], pa.timestamp("us"))
    columns = {**{n: [v] for n, v in MINIMAL.items()}, "account_created_time": opened}
    pq.write_table(pa.table(columns), tmp_path / "h.parquet")
    assert read(tmp_path / "h.parquet").records["account_created_ms"].tolist() == [-1]


def test_types_of_parquet(tmp_path: Path) -> None:
    columns = {
        "transaction_id": pa.array([1, 2, 3, 4], pa.int32()),
        "customer_id": pa.array(["a", "b", "a", None]).dictionary_encode(),
        "event_time": pa.array([0, 1, 2, 3], pa.uint64()),
        "amount_minor": pa.array([5.0, 5.5, float("nan"), 6.0]),
        "lat": pa.array([1, None, 2, 3], pa.int8()),
        "lon": pa.array([1.0, 1.0, float("nan"), 3.0], pa.float32()),
        "is_fraud": pa.array([1, 0, None, 1], pa.int8()),
    }
    pq.write_table(pa.table(columns), tmp_path / "h.parquet")
    history = read(tmp_path / "h.parquet")
    assert history.ids.to_pylist() == ["1"]
    assert history.records["latitude_e6"].tolist() == [1_000_000]
    assert [(p.line, p.column, p.why) for p in history.problems] == [
        (2, "amount_minor", "is not a whole number"),
        (3, "amount_minor", "is missing"),
        (4, "customer_id", "is missing"),
    ]


def test_a_lone_coordinate_is_no_place(path: Path) -> None:
    (record,) = read(write_csv(path, [{**MINIMAL, "lat": "5"}])).records
    assert record["latitude_e6"] == record["longitude_e6"] == NO_COORDINATE


def test_labels_and_their_sources(path: Path) -> None:
    rows = [
        {**MINIMAL, "is_fraud": "true", "label_time": "2024-01-08", "label_source": "ANALYST"},
        {**MINIMAL, "is_fraud": "0"},
        MINIMAL,
    ]
    history = read(write_csv(path, rows))
    assert history.is_fraud.tolist() == [1, 0, -1]
    known = 1_704_672_000_000
    assert history.label_time_ms.tolist() == [known, NO_TIME_MS, NO_TIME_MS]
    assert history.label_source.tolist() == [2, 0, 0]
    assert not history.records["label_source"].any()  # a payment has no verdict yet


def test_a_delay_stands_in_for_label_times(path: Path) -> None:
    head = "transaction_id,event_time,customer_id,amount_minor,is_fraud\n"
    path.write_text(head + f"a,1000,c,1,1\nb,2000,c,1,\nc,{TIME_MAX_MS},c,1,0\n")
    history = read_history(path, HASHER, {}, DAY_MS)
    assert history.label_time_ms.tolist() == [1000 + DAY_MS, NO_TIME_MS, NO_TIME_MS]


def test_renamed_columns(path: Path) -> None:
    path.write_text("id,event_time,customer_id,who,amount_minor\nx,1,not me,me,1\n")
    history = read(path, transaction_id="id", customer_id="who")
    assert (history.ids.to_pylist(), history.customers.to_pylist()) == (["x"], ["me"])


@pytest.mark.parametrize(
    ("header", "renames", "why"),
    [
        ("transaction_id,event_time,customer_id", {}, "no column amount_minor"),
        ("a,b", {"nonsense": "a"}, "there is no column nonsense"),
        ("a,b", {"customer_id": "c"}, "the file has no column c"),
        ("a,b", {"customer_id": "a", "transaction_id": "a"}, "one column of the file twice"),
        ("transaction_id,transaction_id", {}, "two columns transaction_id"),
        ("", {}, "is empty"),
    ],
)
def test_columns_that_do_not_fit(
    header: str, renames: dict[str, str], why: str, path: Path
) -> None:
    path.write_text(header and f"{header}\n1,2,3\n" if "," in header else header)
    if header.count(",") == 1:
        path.write_text(f"{header}\n1,2\n")
    with pytest.raises(HistoryError, match=why):
        read(path, **renames)


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    good = write_parquet(tmp_path / "good.parquet", [{**MINIMAL, "event_time": 1}])
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(good.read_bytes()[:-20])
    not_text = good.read_bytes().replace(b"customer_id", b"\xe3ustomer_id")  # found by fuzzing
    (tmp_path / "not_text.parquet").write_bytes(not_text)
    write_csv(tmp_path / "no_rows.csv", [])
    write_parquet(tmp_path / "no_rows.parquet", [])
    pq.write_table(pa.table({**{n: [v] for n, v in MINIMAL.items()}, "lat": [[1]]}), good)
    for name, why in {
        "missing.csv": "cannot be read",
        "missing.parquet": "cannot be read",
        "broken.parquet": "cannot be read",
        "not_text.parquet": "cannot be read",
        "no_rows.csv": "has no rows",
        "no_rows.parquet": "has no rows",
        "good.parquet": "column lat of type list",
    }.items():
        with pytest.raises(HistoryError, match=why) as caught:
            read(tmp_path / name)
        assert "\n" not in str(caught.value), name


def test_random_bytes_never_crash_the_reader(path: Path) -> None:
    print(f"SEED={SEED}")
    rng = np.random.default_rng(SEED)
    head = b"transaction_id,event_time,customer_id,amount_minor\n"
    alphabet = np.frombuffer(b'a1,"\n\r\xff\x00 -', np.uint8)
    for _ in range(300):
        noise = rng.choice(alphabet, int(rng.integers(1, 200))).tobytes()
        try:
            history = from_text(path, head + noise + b"\na,1,c,1\n")
        except HistoryError:
            continue
        assert len(history.records) + history.bad_rows > 0
