"""A history's rows: what becomes which field, what a bad row is, and that none is lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from fraud.v1 import transaction_pb2
from hypothesis import given
from hypothesis import strategies as st

from loadgen.rows import BadRow, HistoryRow, Span, read_rows, to_ms, to_transaction
from tests.test_loadgen import MINUTE_MS, row, write


def test_a_row_becomes_the_contracts_transaction() -> None:
    sent = to_transaction(
        row(7, 1, card_id="tok_a", brand="VISA", entry_mode="CHIP", channel="ECOMMERCE", mcc="5411")
        | {"lat": 1.5, "lon": -2.5, "card_present": True, "three_ds": None, "device_id": ""}
    )
    assert sent.currency_code == "USD"
    assert sent.card.token == "tok_a"  # noqa: S105 - a card, no password
    assert sent.card.brand == transaction_pb2.CARD_BRAND_VISA
    assert sent.merchant.category_code == "5411"
    assert sent.position.longitude_degrees == -2.5
    assert sent.card_present
    assert not sent.HasField("email")
    assert sent.request_id == ""


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"customer_id": None}, "customer_id is missing"),
        ({"amount_minor": "12.5"}, "amount_minor cannot be read"),
        ({"amount_minor": 2**70}, "a value does not fit its field"),
        ({"event_time": "yesterday"}, "event_time cannot be read"),
        ({"channel": "PIGEON"}, "channel is none of"),
        ({"lat": "inf", "lon": 1}, "lat is not finite"),
        ({"card_present": "perhaps"}, "card_present is neither"),
    ],
)
def test_bad_values_are_named_and_never_repeated(values: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        to_transaction(row(1, 1) | values)
    assert "PIGEON" not in str(caught.value)
    assert "yesterday" not in str(caught.value)


@given(st.integers(-(10**12), 10**13))
def test_times_are_read_from_numbers_and_text(time_ms: int) -> None:
    assert to_ms(time_ms) == time_ms
    assert to_ms(str(time_ms)) == time_ms


def test_times_without_a_zone_are_utc() -> None:
    assert to_ms("1970-01-01T00:01:00") == to_ms("1970-01-01 01:01:00+01:00") == MINUTE_MS


def test_a_span_takes_rows_without_reading_the_others(tmp_path: Path) -> None:
    rows = [row(n, n, currency="EUR") for n in range(10)]
    path = write(tmp_path / "h.parquet", rows)
    taken = list(read_rows(path, {}, span=Span(3 * MINUTE_MS, 6 * MINUTE_MS)))
    assert [r.line for r in taken] == [4, 5, 6]


def test_csv_lines_are_counted_and_bad_ones_told(tmp_path: Path) -> None:
    path = tmp_path / "h.csv"
    path.write_text(
        "ID,event_time,customer_id,amount_minor,is_fraud\n"
        "a,2025-01-01T00:00:00Z,c,100,0\nb,never,c,100,1\nc,2025-01-01 00:00:02Z,c,3,true\n"
    )
    good, bad, last = read_rows(path, {"transaction_id": "ID"}, label_delay_ms=5)
    assert bad == BadRow(3, "event_time cannot be read")
    assert isinstance(good, HistoryRow)
    assert isinstance(last, HistoryRow)
    assert (good.line, good.is_fraud, last.is_fraud) == (2, False, True)
    assert last.label_ms == last.event_ms + 5


def test_a_file_without_a_required_column_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "h.parquet", [{"transaction_id": "a"}])
    with pytest.raises(ValueError, match="event_time, customer_id, amount_minor"):
        read_rows(path, {})
    with pytest.raises(ValueError, match="no such column: colour"):
        read_rows(path, {"colour": "x"})
