"""Every bound of the contract, the record a good transaction becomes, and its ids."""

from __future__ import annotations

import math
import struct
import threading
import uuid
from collections.abc import Callable

import numpy as np
import pytest
from fraud.v1 import label_pb2
from fraud.v1 import transaction_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from featurizer.hashing import (
    PAYLOAD_BITS,
    SPACE_REQUEST,
    SPACE_TRANSACTION,
    IdHasher,
    decision_id,
    hashes_of,
    payload_of,
    request_hash_of,
    set_pair,
    siphash,
)
from featurizer.records import (
    AUTHORIZATION_DECLINED,
    AVS_MISMATCH,
    CVV_MISMATCH,
    NO_COORDINATE,
    NO_TIME_MS,
    RECORD,
    THREE_DS_FAILED,
    Entity,
    Flag,
    coordinate_e6,
    mcc_number,
    network_of,
    region_number,
)
from fraudsvc import contract
from fraudsvc.contract import (
    DAY_MS,
    Checker,
    ContractSettings,
)
from fraudsvc.errors import Violation
from tests.test_cardnumbers import card_numbers, spaced_card_numbers

NOW_MS = 1_767_225_600_000
REQUEST_ID = "7b0c0f3e-7c0f-4a4e-9b3f-0123456789ab"
SECRET = bytes(range(16))
signed = st.integers(-(2**63), 2**63 - 1)
Change = Callable[[pb.Transaction], object]


def full() -> pb.Transaction:
    t = pb.Transaction(
        request_id=REQUEST_ID, transaction_id="payment-1", customer_id="customer-1",
        terminal_id="terminal-1", device_id="device-1", ip_address="192.0.2.7",
        amount_minor=12_345, currency_code="EUR", channel=pb.CHANNEL_ECOMMERCE,
        pos_entry_mode=pb.POS_ENTRY_MODE_ECOMMERCE, recurring=True,
        three_ds_result=pb.THREE_DS_RESULT_AUTHENTICATED, avs_result=pb.AVS_RESULT_PARTIAL,
        cvv_result=pb.CVV_RESULT_MATCH, authorization_result=pb.AUTHORIZATION_RESULT_APPROVED,
        billing_region_code="DE", shipping_region_code="AT",
        card=pb.Card(token="tok-1", bin="411111", last_four="0042", brand=pb.CARD_BRAND_VISA,  # noqa: S106 - a made-up one
                     funding=pb.CARD_FUNDING_DEBIT, issuer_region_code="DE"),
        merchant=pb.Merchant(merchant_id="shop-1", category_code="0742", region_code="FR"),
        email=pb.Email(address_hash="c0ffee", domain="example.com"),
        position=pb.Position(latitude_degrees=-33.8688197, longitude_degrees=151.2092955),
    )  # fmt: skip
    t.event_time.FromMilliseconds(NOW_MS - 1_234)
    t.account_created_time.FromMilliseconds(NOW_MS - 400 * DAY_MS)
    return t


def row() -> NDArray[np.void]:
    return np.zeros(1, RECORD)


def check(
    change: Change | None = None, settings: ContractSettings | None = None
) -> tuple[list[Violation], NDArray[np.void]]:
    t, out = full(), row()
    if change is not None:
        change(t)
    checker = Checker(IdHasher(SECRET), settings or ContractSettings())
    return list(checker.check(t, NOW_MS, out)), out


def test_the_struct_format_is_that_of_the_record() -> None:
    assert contract._ROW.size == RECORD.itemsize
    assert contract._ROW.format.startswith("<BBHHHqqqqqqqqq")


def test_a_full_transaction_fills_every_field_of_its_record() -> None:
    found, out = check()
    assert found == []
    ids = IdHasher(SECRET)
    record = out[0]
    assert record["event_time_ms"] == NOW_MS - 1_234
    assert record["known_time_ms"] == NO_TIME_MS
    assert record["account_created_ms"] == NOW_MS - 400 * DAY_MS
    assert (record["amount_minor"], record["amount_ref"], record["currency"]) == (
        12_345,
        12_672,
        978,
    )
    assert record["flags"] == Flag.RECURRING
    assert record["mcc"] == mcc_number("0742") == 742
    assert record["transaction"] == ids.one(SPACE_TRANSACTION, "payment-1")
    assert record["request"] == ids.one(SPACE_REQUEST, REQUEST_ID)
    assert record["latitude_e6"] == coordinate_e6(-33.8688197)
    assert record["longitude_e6"] == 151_209_296
    assert record["merchant_region"] == region_number("FR")
    assert record["issuer_region"] == record["billing_region"] == region_number("DE")
    assert record["shipping_region"] == region_number("AT")
    numbers = ("channel", "pos_entry_mode", "brand", "funding", "three_ds", "avs", "cvv",
               "authorization", "verdict", "label_source", "version", "kind")  # fmt: skip
    assert [int(record[name]) for name in numbers] == [2, 6, 1, 2, 1, 2, 1, 1, 0, 0, 1, 1]


def test_entities_are_the_ids_of_the_fields_named_for_them() -> None:
    _, out = check()
    texts = ("customer-1", "tok-1", "shop-1", "terminal-1", "device-1", network_of("192.0.2.7"),
             "c0ffee", "411111", "")  # fmt: skip
    ids = IdHasher(SECRET)
    expected = np.array([[ids.one(e.value, text) for e, text in zip(Entity, texts, strict=True)]])
    set_pair(expected)
    assert out["entities"].tolist() == expected.tolist()


def test_the_smallest_transaction_leaves_the_rest_unknown() -> None:
    t = pb.Transaction(
        request_id=REQUEST_ID, transaction_id="p", customer_id="c", currency_code="JPY"
    )
    t.event_time.FromMilliseconds(NOW_MS)
    out = row()
    assert not Checker(IdHasher(), ContractSettings()).check(t, NOW_MS, out)
    assert out["latitude_e6"][0] == out["longitude_e6"][0] == NO_COORDINATE
    assert out["account_created_ms"][0] == NO_TIME_MS
    assert out["entities"][0, 1:].tolist() == [0] * 8
    assert out["flags"][0] == 0


@pytest.mark.parametrize(
    "values",
    [
        {"cvv_result": pb.CVV_RESULT_MISMATCH}, {"avs_result": pb.AVS_RESULT_MISMATCH},
        {"three_ds_result": pb.THREE_DS_RESULT_FAILED},
        {"authorization_result": pb.AUTHORIZATION_RESULT_DECLINED},
    ],
)  # fmt: skip
def test_a_failed_check_sets_the_flag(values: dict[str, int]) -> None:
    def change(t: pb.Transaction) -> None:
        for name, value in values.items():
            setattr(t, name, value)

    assert check(change)[1]["flags"][0] & Flag.FAILED


def test_the_numbers_of_failed_checks_are_the_contracts() -> None:
    assert CVV_MISMATCH == pb.CVV_RESULT_MISMATCH
    assert AVS_MISMATCH == pb.AVS_RESULT_MISMATCH
    assert THREE_DS_FAILED == pb.THREE_DS_RESULT_FAILED
    assert AUTHORIZATION_DECLINED == pb.AUTHORIZATION_RESULT_DECLINED


ENUMS = (pb.Channel, pb.PosEntryMode, pb.CardBrand, pb.CardFunding, pb.ThreeDsResult,
         pb.AvsResult, pb.CvvResult, pb.AuthorizationResult)  # fmt: skip


def test_the_highest_enum_numbers_are_the_contracts() -> None:
    assert [sorted(enum.values()) for enum in ENUMS] == [
        list(range(highest + 1)) for highest in contract._ENUMS.values()
    ]


def _set(path: str, value: object) -> Change:
    def change(t: pb.Transaction) -> None:
        *parents, name = path.split(".")
        for parent in parents:
            t = getattr(t, parent)
        setattr(t, name, value)

    return change


def _clear(name: str) -> Change:
    return lambda t: t.ClearField(name)


BAD: list[tuple[str, Change]] = [
    *((name, _clear(name)) for name in (
        "request_id", "transaction_id", "event_time", "customer_id", "currency_code")),
    *((path, _set(path, value)) for path, value in (
        ("request_id", REQUEST_ID.upper()), ("request_id", REQUEST_ID.replace("-", "")),
        ("request_id", REQUEST_ID + "\n"),
        ("transaction_id", "x" * 65), ("transaction_id", "é" * 33), ("customer_id", "x" * 65),
        ("card.token", "x" * 65), ("merchant.merchant_id", "x" * 65), ("terminal_id", "x" * 65),
        ("device_id", "x" * 129), ("email.address_hash", "x" * 129), ("email.domain", "x" * 254),
        ("customer_id", "a\nb"), ("device_id", "a\x00"), ("email.domain", "a\x85b"),
        ("amount_minor", -1), ("amount_minor", 10**15 + 1),
        ("currency_code", "XXX"), ("currency_code", "eur"),
        ("billing_region_code", "de"), ("shipping_region_code", "DEU"),
        ("card.issuer_region_code", "D1"), ("merchant.region_code", "ÄÖ"),
        ("card.bin", "12345"), ("card.bin", "123456789"), ("card.bin", "12345x"),
        ("card.bin", "\uff11\uff12\uff13\uff14\uff15\uff16"),
        ("card.last_four", "123"), ("card.last_four", "12a4"),
        ("merchant.category_code", "742"), ("merchant.category_code", "07 2"),
        ("ip_address", "192.0.2.256"), ("ip_address", "host"), ("ip_address", "1::2::3"),
        ("ip_address", "192.0.2.1\x00"),
        ("position.latitude_degrees", 90.1), ("position.latitude_degrees", math.nan),
        ("position.longitude_degrees", -180.1), ("position.longitude_degrees", math.inf),
        ("channel", 7), ("channel", -1), ("pos_entry_mode", 99), ("card.brand", 8),
        ("card.funding", 4), ("three_ds_result", 5), ("avs_result", 5), ("cvv_result", 4),
        ("authorization_result", 3),
    )),
    ("event_time", _set("event_time.seconds", NOW_MS // 1000 + 301)),
    ("event_time", _set("event_time.seconds", NOW_MS // 1000 - 91 * 86_400)),
    ("event_time", _set("event_time.seconds", 253_402_300_800)),
    ("event_time", _set("event_time.nanos", -1)),
    ("event_time", _set("event_time.nanos", 10**9)),
    ("account_created_time", _set("account_created_time.seconds", -2_208_988_801)),
    ("account_created_time", _set("account_created_time.seconds", NOW_MS // 1000 + 2 * 86_400)),
    ("account_created_time", _set("account_created_time.nanos", -5)),
]  # fmt: skip


@pytest.mark.parametrize(("path", "change"), BAD)
def test_one_bad_field_is_named_and_nothing_is_written(path: str, change: Change) -> None:
    found, out = check(change)
    assert {violation.field for violation in found} == {f"transaction.{path}"}
    assert not any(out.tobytes())


def test_all_violations_are_listed() -> None:
    def change(t: pb.Transaction) -> None:
        for _, spoil in BAD:
            spoil(t)

    found, _ = check(change)
    assert {v.field for v in found} >= {f"transaction.{path}" for path, _ in BAD} - {
        "transaction.position.longitude_degrees"  # one of a position is enough
    }


@pytest.mark.parametrize(
    "change",
    [
        _set("event_time.seconds", NOW_MS // 1000 + 299), _set("transaction_id", "é" * 32),
        _set("event_time.seconds", NOW_MS // 1000 - 89 * 86_400), _set("amount_minor", 10**15),
        _set("amount_minor", 0), _set("ip_address", "2001:db8::1"), _set("card.bin", "41111111"),
        _set("position.latitude_degrees", 90.0), _set("customer_id", "Käufer\u00a01"),
        _set("email.domain", "пример.рф"),
    ],
)  # fmt: skip
def test_the_bounds_themselves_are_good(change: Change) -> None:
    assert check(change)[0] == []


def test_the_age_check_can_be_switched_off_for_replays() -> None:
    old = _set("event_time.seconds", 1_500_000_000)
    young = _clear("account_created_time")

    def change(t: pb.Transaction) -> None:
        old(t)
        young(t)

    assert check(change)[0]
    assert check(change, ContractSettings(max_age_days=None))[0] == []


TEXT_FIELDS = [
    path.removeprefix("transaction.") for path in contract._TEXTS
] + ["request_id", "ip_address", "currency_code", "billing_region_code", "shipping_region_code",
     "card.bin", "card.last_four", "card.issuer_region_code", "merchant.category_code",
     "merchant.region_code"]  # fmt: skip


@given(spaced_card_numbers(), st.sampled_from(TEXT_FIELDS))
def test_a_card_number_in_any_text_is_refused_and_never_repeated(number: str, path: str) -> None:
    found, out = check(_set(path, number))
    assert {violation.field for violation in found} == {f"transaction.{path}"}
    assert not any(out.tobytes())
    assert number not in repr(found)


@given(card_numbers(), st.sampled_from(sorted(contract._TEXTS)))
def test_an_exempt_field_passes_and_the_error_names_the_setting(number: str, path: str) -> None:
    change = _set(path.removeprefix("transaction."), number)
    assert "FRAUD_EXEMPT_FIELDS" in check(change)[0][0].description
    assert check(change, ContractSettings(exempt_fields=frozenset({path})))[0] == []


def test_settings_refuse_unknown_fields() -> None:
    with pytest.raises(ValueError, match="FRAUD_EXEMPT_FIELDS"):
        ContractSettings(exempt_fields=frozenset({"transaction.card.pan"}))
    with pytest.raises(ValueError, match="amount_minor_max"):
        ContractSettings(amount_minor_max=2**62)


def label() -> label_pb2.Label:
    made = label_pb2.Label(
        transaction_id="p", verdict=label_pb2.VERDICT_FRAUD, source=label_pb2.LABEL_SOURCE_ANALYST
    )
    made.label_time.FromMilliseconds(NOW_MS)
    return made


LABEL_BAD: list[tuple[str, Callable[[label_pb2.Label], object]]] = [
    ("transaction_id", lambda x: x.ClearField("transaction_id")),
    ("transaction_id", lambda x: setattr(x, "transaction_id", "x" * 65)),
    ("verdict", lambda x: x.ClearField("verdict")),
    ("verdict", lambda x: setattr(x, "verdict", 5)),
    ("source", lambda x: x.ClearField("source")),
    ("source", lambda x: setattr(x, "source", 5)),
    ("label_time", lambda x: x.ClearField("label_time")),
    ("label_time", lambda x: x.label_time.FromMilliseconds(NOW_MS + 300_001)),
    ("label_time", lambda x: setattr(x.label_time, "nanos", -1)),
    ("reporter", lambda x: setattr(x, "reporter", "x" * 129)),
    ("note", lambda x: setattr(x, "note", "x" * 1025)),
    ("note", lambda x: setattr(x, "note", "card 4111 1111 1111 1111")),
    ("note", lambda x: setattr(x, "note", "two\nlines")),
]


@pytest.mark.parametrize(("path", "change"), LABEL_BAD)
def test_labels_are_checked(path: str, change: Callable[[label_pb2.Label], object]) -> None:
    made = label()
    checker = Checker(IdHasher(), ContractSettings())
    assert checker.check_label(made, NOW_MS) == []
    change(made)
    assert {v.field for v in checker.check_label(made, NOW_MS)} == {f"label.{path}"}


def payload_hash(transaction: pb.Transaction, hasher: IdHasher | None = None) -> int:
    key = (hasher or IdHasher()).key
    return int(payload_of(transaction.SerializeToString(deterministic=True), key))


def test_the_payload_hash_binds_every_field() -> None:
    t = full()
    again = pb.Transaction.FromString(t.SerializeToString())
    assert payload_hash(again) == payload_hash(t)
    hashes = {payload_hash(t)}
    for path in ("amount_minor", "channel"):
        changed = full()
        _set(path, 1)(changed)
        hashes.add(payload_hash(changed))
    hashes.add(payload_hash(t, IdHasher(b"another secret 1")))
    assert len(hashes) == 4


@given(signed, signed)
def test_decision_ids_give_their_hashes_back(request: int, payload: int) -> None:
    made = decision_id(request, payload)
    assert uuid.UUID(made).version == 8
    assert uuid.UUID(made).variant == uuid.RFC_4122
    assert request_hash_of(made) == request
    assert hashes_of(made) == (request, payload & ((1 << PAYLOAD_BITS) - 1))


@pytest.mark.parametrize(
    "text", ["", REQUEST_ID, "x" * 36, REQUEST_ID.replace("4a4e", "8a4e").upper()]
)
def test_other_ids_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a decision id"):
        request_hash_of(text)


def test_siphash_gives_the_papers_vectors() -> None:
    k0, k1 = (np.uint64(k) for k in struct.unpack("<QQ", bytes(range(16))))
    data = np.arange(15, dtype=np.uint8)
    assert siphash(data, 0, 0, k0, k1) == 0x726FDB47DD0E0E31
    assert siphash(data, 0, 15, k0, k1) == 0xA129CA6149BE45E5


@given(st.lists(st.binary(max_size=300), min_size=10, max_size=10))
def test_a_row_of_ids_equals_the_ids_one_by_one(texts: list[bytes]) -> None:
    ids = IdHasher(SECRET)
    spaces = [SPACE_TRANSACTION, SPACE_REQUEST, *range(8)]
    one_by_one = [int(ids.many(np.array([s]), [t])[0]) for s, t in zip(spaces, texts, strict=True)]
    pair = np.array([[*one_by_one[2:], 0]])
    set_pair(pair)
    assert ids.row(texts).tolist() == [*one_by_one[:2], *pair[0].tolist()]
    assert ids.many(np.array(spaces), texts).tolist() == one_by_one
    assert all((value == 0) == (text == b"") for value, text in zip(one_by_one, texts, strict=True))


def test_threads_share_a_checker() -> None:
    checker = Checker(IdHasher(SECRET), ContractSettings())
    expected = {}
    for number in range(4):
        t, out = full(), row()
        t.customer_id = f"customer-{number}"
        checker.check(t, NOW_MS, out)
        expected[number] = out.tobytes()
    wrong: list[int] = []

    def work(number: int) -> None:
        t, out = full(), row()
        t.customer_id = f"customer-{number}"
        for _ in range(500):
            checker.check(t, NOW_MS, out)
            if out.tobytes() != expected[number]:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(expected.values())) == 4
    assert wrong == []
