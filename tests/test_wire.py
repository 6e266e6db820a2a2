"""The acceptor against the checker: it takes what is ordinary, to the byte, and nothing else."""

from __future__ import annotations

import datetime
import ipaddress
import math
import random
import uuid
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from fraud.v1 import transaction_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from featurizer.currencies import CURRENCIES
from featurizer.hashing import IdHasher
from featurizer.records import RECORD
from fraudsvc import contract
from fraudsvc.contract import DAY_MS, Checker, ContractSettings
from fraudsvc.wire.reader import Acceptor
from loadgen.rows import HistoryRow, request_id, table_rows
from loadgen.world import World, WorldSettings
from tests.test_contract import BAD, NOW_MS, SECRET, Change, full

SEED = 20_251
HASHER = IdHasher(SECRET)
NO_AGE = ContractSettings(max_age_days=None)
UNTOUCHED = 0x5A


class Pair:
    """An acceptor and the checker that it must equal, under one set of settings."""

    def __init__(self, bounds: ContractSettings) -> None:
        self.acceptor = Acceptor(HASHER, bounds)
        self.checker = Checker(HASHER, bounds)

    def agree(self, data: bytes, now_ms: int = NOW_MS) -> bool:
        """Hold what ``accept`` does with the bytes against the checker; return its answer."""
        out = row()
        accepted = self.acceptor.accept(data, now_ms, out)
        if not accepted:
            assert out.tobytes() == row().tobytes()
            return False
        transaction = pb.Transaction.FromString(data)
        expected = row()
        assert not self.checker.check(transaction, now_ms, expected)
        assert out.tobytes() == expected.tobytes()
        assert transaction.SerializeToString(deterministic=True) == data
        return True


def row() -> NDArray[np.void]:
    return np.frombuffer(bytes([UNTOUCHED]) * RECORD.itemsize, RECORD).copy()


PAIR = Pair(ContractSettings())
REPLAY = Pair(NO_AGE)


def changed(change: Change) -> bytes:
    transaction = full()
    change(transaction)
    return transaction.SerializeToString()


def put(transaction: pb.Transaction, path: str, value: object) -> None:
    *parents, name = path.split(".")
    message: object = transaction
    for parent in parents:
        message = getattr(message, parent)
    setattr(message, name, value)


# What is taken and what is left


def test_a_full_and_a_small_transaction_are_taken() -> None:
    assert PAIR.agree(full().SerializeToString())
    small = pb.Transaction(
        request_id=full().request_id, transaction_id="p", customer_id="c", currency_code="JPY"
    )
    small.event_time.FromMilliseconds(NOW_MS)
    assert PAIR.agree(small.SerializeToString())


@pytest.mark.parametrize(("path", "change"), BAD)
def test_what_the_checker_refuses_is_left(path: str, change: Change) -> None:
    assert not PAIR.agree(changed(change))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("transaction_id", "é"), ("customer_id", "4111 1111-1111 1"), ("device_id", "1" * 13),
        ("ip_address", "::1.2.3.4"), ("account_created_time.seconds", -1),
    ],
)  # fmt: skip
def test_doubt_is_left_to_the_checker_though_it_is_valid(path: str, value: object) -> None:
    data = changed(lambda transaction: put(transaction, path, value))
    assert not PAIR.agree(data)
    assert not PAIR.checker.check(pb.Transaction.FromString(data), NOW_MS, row())


VALID_BOUNDS = [
    ("event_time.seconds", NOW_MS // 1000 + 299), ("event_time.nanos", 999_999_999),
    ("event_time.seconds", NOW_MS // 1000 - 89 * 86_400), ("amount_minor", 10**15),
    ("amount_minor", 0), ("amount_minor", 1), ("transaction_id", "~" * 64),
    ("device_id", " " * 128), ("email.domain", "x" * 253), ("email.address_hash", "f" * 128),
    ("customer_id", "123456789012"), ("customer_id", "12345678901x2-3"),
    ("ip_address", "0.0.0.1"), ("ip_address", "::"),
    ("ip_address", "2001:DB8::1"), ("ip_address", "255.255.255.255"), ("card.bin", "12345678"),
    ("merchant.category_code", "0000"), ("position.latitude_degrees", -90.0),
    ("position.longitude_degrees", 180.0), ("position.latitude_degrees", -0.0),
    ("position.latitude_degrees", 5e-324), ("position.latitude_degrees", 12.3456785),
    ("billing_region_code", "AA"), ("shipping_region_code", "ZZ"), ("channel", 6),
    ("account_created_time.seconds", NOW_MS // 1000 + 86_398),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value"), VALID_BOUNDS)
def test_the_bounds_themselves_are_taken(path: str, value: object) -> None:
    assert PAIR.agree(changed(lambda transaction: put(transaction, path, value)))


@pytest.mark.parametrize("offset_ms", [-1, 0, 1])
def test_the_ages_allowed_are_exact(offset_ms: int) -> None:
    oldest, newest, created = full(), full(), full()
    oldest.event_time.FromMilliseconds(NOW_MS - 90 * DAY_MS + offset_ms)
    oldest.ClearField("account_created_time")
    newest.event_time.FromMilliseconds(NOW_MS + 300_000 + offset_ms)
    created.account_created_time.FromMilliseconds(NOW_MS - 1_234 + DAY_MS + offset_ms)
    assert PAIR.agree(oldest.SerializeToString()) == (offset_ms >= 0)
    assert PAIR.agree(newest.SerializeToString()) == (offset_ms <= 0)
    assert PAIR.agree(created.SerializeToString()) == (offset_ms <= 0)


@pytest.mark.parametrize("now_ms", [-(2**63), -(2**60), 0, 2**60, 2**63 - 1])
@pytest.mark.parametrize("ahead_ms", [-(2**70), -1, 2**70])
@pytest.mark.parametrize("days", [None, -(10**12), 0, 10**12])
def test_no_clock_and_no_setting_is_too_far(now_ms: int, ahead_ms: int, days: int | None) -> None:
    pair = Pair(ContractSettings(max_ahead_ms=ahead_ms, max_age_days=days))
    for event_ms in (0, 1, NOW_MS):
        transaction = full()
        transaction.event_time.FromMilliseconds(event_ms)
        transaction.ClearField("account_created_time")
        pair.agree(transaction.SerializeToString(), now_ms)
    usual = full().SerializeToString()
    assert pair.agree(usual) == (ahead_ms >= -1 and days in {None, 10**12})


def test_settings_move_the_bounds() -> None:
    path = "transaction.device_id"
    number = changed(lambda transaction: put(transaction, "device_id", "4111111111111111"))
    assert not PAIR.agree(number)
    assert Pair(ContractSettings(exempt_fields=frozenset({path, "label.note"}))).agree(number)
    old = changed(lambda transaction: transaction.ClearField("account_created_time"))
    assert not PAIR.agree(old, NOW_MS + 91 * DAY_MS)
    assert REPLAY.agree(old, NOW_MS + 91 * DAY_MS)
    small = Pair(ContractSettings(amount_minor_max=12_344))
    assert not small.agree(full().SerializeToString())


def test_every_currency_is_exact_at_both_ends() -> None:
    for code in CURRENCIES:
        for amount_minor in (0, 1, 49, 999_999_999, 10**9, 10**15 - 1, 10**15):
            transaction = full()
            transaction.currency_code, transaction.amount_minor = code, amount_minor
            assert PAIR.agree(transaction.SerializeToString()), (code, amount_minor)


@given(st.integers(0, 10**15), st.sampled_from(sorted(CURRENCIES)))
def test_amounts_are_exact(amount_minor: int, code: str) -> None:
    transaction = full()
    transaction.amount_minor, transaction.currency_code = amount_minor, code
    assert PAIR.agree(transaction.SerializeToString())


@given(st.floats(-90, 90), st.floats(-180, 180))
def test_positions_are_exact(latitude: float, longitude: float) -> None:
    transaction = full()
    transaction.position.latitude_degrees = latitude
    transaction.position.longitude_degrees = longitude
    assert PAIR.agree(transaction.SerializeToString())


@given(st.integers(-180_000_000, 180_000_000))
def test_positions_half_way_between_two_millionths_are_exact(halves: int) -> None:
    transaction = full()
    transaction.position.latitude_degrees = halves * 0.5e-6
    assert PAIR.agree(transaction.SerializeToString())


FREE_TEXTS = [path.removeprefix("transaction.") for path in contract._TEXTS]


@given(st.sampled_from(FREE_TEXTS), st.text(st.characters(max_codepoint=0x17F), max_size=70))
def test_texts_agree_with_the_checker(path: str, text: str) -> None:
    PAIR.agree(changed(lambda transaction: put(transaction, path, text)))


@given(st.sampled_from(FREE_TEXTS), st.text("0123456789 -x", max_size=40))
def test_texts_of_digits_agree_with_the_checker(path: str, text: str) -> None:
    PAIR.agree(changed(lambda transaction: put(transaction, path, text)))


# Random transactions


Draw = Callable[[random.Random], object]
ALPHANUMERIC = "abcdefghijklmnopqrstuvwxyz0123456789_"


def code(letters: str, least: int, most: int) -> Draw:
    return lambda rng: "".join(rng.choices(letters, k=rng.randint(least, most)))


def one_to(most: int) -> Draw:
    return lambda rng: rng.randint(1, most)


def one_of(*values: object) -> Draw:
    return lambda rng: rng.choice(values)


def identity(most: int) -> Draw:
    # No run of 13 digits: a letter stands at every fifth place.
    return lambda rng: "x".join(str(code(ALPHANUMERIC, 4, 4)(rng)) for _ in range(most // 8))


LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
NOW_S = NOW_MS // 1000
USUAL: dict[str, Draw] = {
    "request_id": lambda rng: str(uuid.UUID(int=rng.getrandbits(128))),
    "transaction_id": identity(64), "customer_id": identity(64),
    "event_time.seconds": lambda rng: NOW_S - rng.randrange(80 * 86_400),
    "event_time.nanos": lambda rng: rng.randrange(10**9),
    "account_created_time.seconds": lambda rng: rng.randrange(NOW_S - 90 * 86_400),
    "account_created_time.nanos": lambda rng: rng.randrange(10**9),
    "card.token": identity(64), "card.bin": code("0123456789", 6, 8),
    "card.last_four": code("0123456789", 4, 4), "card.brand": one_to(7), "card.funding": one_to(3),
    "card.issuer_region_code": code(LETTERS, 2, 2), "merchant.merchant_id": identity(64),
    "merchant.category_code": code("0123456789", 4, 4),
    "merchant.region_code": code(LETTERS, 2, 2), "terminal_id": identity(64),
    "device_id": identity(128),
    "ip_address": lambda rng: str(
        ipaddress.ip_address(rng.getrandbits(128) if rng.random() < 0.5 else rng.getrandbits(32))
    ),
    "email.address_hash": identity(128), "email.domain": identity(240),
    "amount_minor": lambda rng: rng.randrange(10 ** rng.randint(1, 15)),
    "currency_code": one_of(*sorted(CURRENCIES)),
    "channel": one_to(6), "pos_entry_mode": one_to(6), "card_present": one_of(True),
    "recurring": one_of(True), "three_ds_result": one_to(4), "avs_result": one_to(4),
    "cvv_result": one_to(3), "authorization_result": one_to(2),
    "billing_region_code": code(LETTERS, 2, 2), "shipping_region_code": code(LETTERS, 2, 2),
    "position.latitude_degrees": lambda rng: rng.uniform(-90, 90),
    "position.longitude_degrees": lambda rng: rng.uniform(-180, 180),
}  # fmt: skip
REQUIRED = ("request_id", "transaction_id", "customer_id", "event_time.seconds", "currency_code")
ODD: dict[type, list[object]] = {
    str: ["", "x", "é", "\x7f", "a\nb", "4111111111111111", "4111 1111 1111 1111", "0" * 12,
          "12-34-56-78-90-12-3", "x" * 64, "x" * 65, "x" * 128, "x" * 254, "DE", "de", "USD", "XXX",
          "1234", "12a4", "123456", "12345678", "123456789", "1.2.3.4", "1.2.3.256", "01.2.3.4",
          "1.2.3", "::1", "1.2.3.4 ", str(uuid.UUID(int=7)), "F" * 36, "\u2028", "\uff11\uff12"],
    int: [0, -1, 2, 3, 4, 5, 6, 7, 8, 127, 128, 10**9, 10**15, 2**31 - 1, NOW_S, NOW_S + 299,
          NOW_S + 301, NOW_S - 90 * 86_400, -(2**31), 999_999_999],
    bool: [False, True],
    float: [0.0, -0.0, 90.0, -90.0, 90.00000000000001, 180.0, -180.1, math.nan, math.inf, 1e-9,
            0.5e-6, 1.5e-6, 1e300],
}  # fmt: skip


def transactions(seed: int, count: int, odd_share: float) -> Iterator[tuple[bool, pb.Transaction]]:
    """Yield transactions, full and sparse, and whether all their values are usual ones."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(count):
        transaction, usual, density = pb.Transaction(), True, rng.random()
        for path, draw in USUAL.items():
            value = draw(rng)
            if rng.random() < odd_share:
                usual, value = False, rng.choice(ODD[type(value)])
            elif path not in REQUIRED and rng.random() > density:
                continue
            try:
                put(transaction, path, value)
            except ValueError:
                usual = False  # protobuf itself refuses it for an enum or 32 bits
        yield usual, transaction


def test_usual_transactions_are_taken_full_and_sparse() -> None:
    for _, transaction in transactions(SEED, 6_000, 0.0):
        assert PAIR.agree(transaction.SerializeToString())


def test_transactions_with_odd_values_agree_with_the_checker() -> None:
    taken = left_though_valid = 0
    for usual, transaction in transactions(SEED + 1, 8_000, 0.03):
        accepted = PAIR.agree(transaction.SerializeToString())
        assert accepted or not usual
        taken += accepted and not usual
        left_though_valid += not accepted and not PAIR.checker.check(transaction, NOW_MS, row())
    print(f"{taken} odd ones taken, {left_though_valid} valid ones left")
    assert taken > 500
    assert left_though_valid < 2_000


def test_a_worlds_payments_are_taken() -> None:
    world = WorldSettings(
        seed=SEED, start=datetime.date(2025, 12, 20), customers=500, rate_per_day=1_500
    )
    print(f"seed {SEED}")
    taken = []
    for table in World(world).days(2):
        for each in table_rows(table):
            assert isinstance(each, HistoryRow)
            each.transaction.request_id = request_id(each.transaction.transaction_id)
            taken.append(PAIR.agree(each.transaction.SerializeToString(), each.event_ms))
    print(f"{np.mean(taken):.4%} of {len(taken)} taken")
    assert len(taken) > 2_000
    assert np.mean(taken) > 0.999
