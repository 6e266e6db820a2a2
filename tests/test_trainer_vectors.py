"""Reading vectors: ranges, labels as known at a time, order, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.trainer_world import DAY_MS, START_MS, make_vectors, take, write_vectors
from trainer.vectors import Vectors, VectorsError, read_vectors

VECTORS = make_vectors(rows=3_000)


def same_rows(found: Vectors, wanted: Vectors) -> bool:
    """Equal to the bit; customers only in who equals whom."""
    columns = ("features", "event_time_ms", "amount_ref", "is_fraud")
    pairs = set(zip(found.customer.tolist(), wanted.customer.tolist(), strict=True))
    people = len(set(wanted.customer.tolist()))
    return len(pairs) == people == len(set(found.customer.tolist())) and all(
        getattr(found, name).tobytes() == getattr(wanted, name).tobytes() for name in columns
    )


def test_all_rows_come_back(tmp_path: Path) -> None:
    write_vectors(tmp_path / "v", VECTORS)
    found = read_vectors(tmp_path / "v")
    assert same_rows(found, VECTORS)
    assert found.feature_names == VECTORS.feature_names
    assert (found.schema_version, found.left_out) == (VECTORS.schema_version, 0)


def test_a_range_takes_its_start_and_leaves_its_end(tmp_path: Path) -> None:
    write_vectors(tmp_path / "v", VECTORS)
    start_ms, until_ms = (int(VECTORS.event_time_ms[n]) for n in (650, 1_500))
    found = read_vectors(tmp_path / "v", from_ms=start_ms, until_ms=until_ms)
    low, high = np.searchsorted(VECTORS.event_time_ms, [start_ms, until_ms])
    assert same_rows(found, take(VECTORS, slice(low, high)))


def test_only_labels_known_by_then_count(tmp_path: Path) -> None:
    write_vectors(tmp_path / "v", VECTORS, label_delay_ms=7 * DAY_MS)
    until_ms = START_MS + 30 * DAY_MS
    found = read_vectors(tmp_path / "v", until_ms=until_ms, known_until_ms=until_ms)
    known = VECTORS.event_time_ms <= until_ms - 7 * DAY_MS
    assert same_rows(found, take(VECTORS, known))
    assert found.left_out == int((VECTORS.event_time_ms < until_ms).sum() - known.sum())
    assert found.label_times_known


def test_labels_without_times_count_at_once_and_it_is_told(tmp_path: Path) -> None:
    write_vectors(tmp_path / "v", VECTORS, label_delay_ms=None)
    until_ms = START_MS + 30 * DAY_MS
    found = read_vectors(tmp_path / "v", until_ms=until_ms, known_until_ms=until_ms)
    assert same_rows(found, take(VECTORS, VECTORS.event_time_ms < until_ms))
    assert not found.label_times_known


def test_unknown_labels_are_left_out(tmp_path: Path) -> None:
    labels = [None if n % 3 == 0 else bool(v) for n, v in enumerate(VECTORS.is_fraud)]
    write_vectors(tmp_path / "v", VECTORS, is_fraud=pa.array(labels))
    found = read_vectors(tmp_path / "v")
    assert same_rows(found, take(VECTORS, np.arange(len(VECTORS)) % 3 != 0))
    assert found.left_out == 1_000


def test_rows_out_of_order_are_sorted(tmp_path: Path) -> None:
    shuffled = np.random.default_rng(2).permutation(len(VECTORS))
    write_vectors(tmp_path / "v", take(VECTORS, shuffled))
    found = read_vectors(tmp_path / "v", from_ms=START_MS + 10 * DAY_MS)
    late = VECTORS.event_time_ms >= START_MS + 10 * DAY_MS
    order = np.argsort(found.event_time_ms, kind="stable")
    assert (order == np.arange(len(found))).all()
    assert same_rows(found, take(VECTORS, late))


def test_absent_customers_are_nobody_else(tmp_path: Path) -> None:
    names = [None if n < 3 else "same" for n in range(len(VECTORS))]
    write_vectors(tmp_path / "v", VECTORS, customer_id=pa.array(names, pa.string()))
    customer = read_vectors(tmp_path / "v").customer
    assert len(set(customer.tolist())) == 4


BAD_COLUMNS: list[tuple[dict[str, Any], str]] = [
    ({"is_fraud": None}, "column is_fraud is missing"),
    ({"features": None}, "column features is missing"),
    ({"amount_ref": pa.array([1.0] * 3_000)}, "amount_ref must be int64"),
    ({"event_time_ms": pa.array([None] * 3_000, pa.int64())}, "event_time_ms has 3000 empty"),
    ({"features": pa.array([[1.0]] * 3_000)}, "float32\\[8\\]"),
    ({"features": pa.array([[1.0] * 7] * 3_000, pa.list_(pa.float32(), 7))}, "float32\\[8\\]"),
    ({"features": pa.array([[None] * 8] * 3_000, pa.list_(pa.float32(), 8))}, "must be NaN"),
    ({"is_fraud": pa.array([None] * 3_000, pa.bool_())}, "has a known label"),
]


@pytest.mark.parametrize(("columns", "reason"), BAD_COLUMNS)
def test_other_columns_are_refused(columns: dict[str, Any], reason: str, tmp_path: Path) -> None:
    write_vectors(tmp_path / "v", VECTORS, **columns)
    with pytest.raises(VectorsError, match=reason):
        read_vectors(tmp_path / "v")


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        (None, "lacks fraud.schema_version"),
        ({b"fraud.schema_version": b"s", b"fraud.features": b"{"}, "not readable"),
        ({b"fraud.schema_version": b"s", b"fraud.features": b'["a", 1]'}, "list of names"),
        ({b"fraud.schema_version": b"s", b"fraud.features": b'["a", "a"]'}, "different names"),
        ({b"fraud.schema_version": b"s", b"fraud.features": b"[]"}, "different names"),
    ],
)
def test_other_metadata_is_refused(
    metadata: dict[bytes, bytes] | None, reason: str, tmp_path: Path
) -> None:
    write_vectors(tmp_path / "v", VECTORS)
    table = pq.read_table(tmp_path / "v").replace_schema_metadata(metadata)
    pq.write_table(table, tmp_path / "w")
    with pytest.raises(VectorsError, match=reason):
        read_vectors(tmp_path / "w")


def test_an_empty_range_says_what_the_file_holds(tmp_path: Path) -> None:
    write_vectors(tmp_path / "v", VECTORS)
    with pytest.raises(VectorsError, match="the file holds 2018-04-01"):
        read_vectors(tmp_path / "v", from_ms=START_MS + 100 * DAY_MS)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    write_vectors(tmp_path / "v", take(VECTORS, slice(0, 0)))
    with pytest.raises(VectorsError, match="the file is empty"):
        read_vectors(tmp_path / "v")


def test_what_is_no_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "v").write_bytes(b"no parquet at all")
    for name in ("v", "absent"):
        with pytest.raises(VectorsError, match="cannot read vectors"):
            read_vectors(tmp_path / name)


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    write_vectors(tmp_path / "v", replace(VECTORS))
    whole = (tmp_path / "v").read_bytes()
    (tmp_path / "w").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(VectorsError, match="cannot read vectors"):
        read_vectors(tmp_path / "w")
