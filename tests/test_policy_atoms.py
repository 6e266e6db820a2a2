"""Rules that are looked up give what CEL gives, for any expression and any payment."""

from __future__ import annotations

import numpy as np
import pytest
from fraud.v1 import transaction_pb2 as pb
from hypothesis import given, settings
from hypothesis import strategies as st

from fraudsvc.payment import Payment
from fraudsvc.policy.cel_rules import VARIABLES, Expressions
from fraudsvc.policy.table import RULES_MAX
from tests.conftest import accepted
from tests.test_contract import full

FEATURES = {"amount_z": 0, "count_1h": 1, "channel": 2}  # one has a variable's name
NOW_MS = 1_767_225_600_000
# Beside what is taken apart: what looks like it, and means another thing to CEL or nothing.
LOOKED_UP = (
    "recurring", "!card_present", "recurring == true", "recurring != false", "recurring in [true]",
    "amount_minor > 100", "amount_minor <= 12345", "amount_reference == 12672",
    "amount_minor in [1, 12345, 7]", "hour_utc >= 22", 'channel == "ECOMMERCE"',
    'channel != "NO_SUCH_CHANNEL"', 'funding in ["PREPAID", "DEBIT"]', 'brand == ""',
    'currency_code == "EUR"', 'currency_code != "XXX"', 'merchant_category_code == "0742"',
    'merchant_category_code in ["5732", "742"]', 'issuer_region_code == ""',
    'billing_region_code == "usa"', "billing_region_code != shipping_region_code",
    "issuer_region_code == merchant_region_code", "account_age_days < 1", "account_age_days > 30.5",
    "score < 0.5", "score >= 0.25", "amount_z > 2.0", "count_1h <= 3", "amount_z == 1.5",
    "true", "false",
)  # fmt: skip
RUN = (
    "amount_minor + 1 > 100", "100 < amount_minor", 'email_domain.endsWith(".com")',
    'email_domain == "example.com"', "amount_minor == amount_reference", "size(email_domain) > 3",
    "-5 < 3", "!(amount_minor > 100) == recurring", "true == recurring", "amount_z == 1",
    "(amount_minor > 100 ? recurring : card_present)",
    'merchant_category_code == "0000"', 'merchant_category_code != ""', "score - 0.1 < 0.4",
    'brand > "A"', "double(amount_minor) > 1.5", r'currency_code == "\u0045UR"',
)  # fmt: skip
ATOMS = st.sampled_from(LOOKED_UP)


class ByCel(Expressions):
    """The same expressions, all of them run by the library."""

    def __init__(self, sources: list[str]) -> None:
        super().__init__([f"({source}) ? true : false" for source in sources], FEATURES)
        assert self.run_by_cel == list(range(len(sources)))


def fired(
    expressions: Expressions, of: Payment, values: list[float] | None, score: float | None
) -> list[int]:
    vector = None if values is None else np.array(values, np.float32)
    looked_up = expressions.looked_up(of.record, vector, score)
    return expressions.fired(of, vector, score, looked_up)


@st.composite
def payments(draw: st.DrawFn) -> pb.Transaction:
    made = full()
    made.amount_minor = draw(st.sampled_from([0, 1, 7, 100, 101, 12_345, 10**12]))
    made.currency_code = draw(st.sampled_from(["EUR", "USD", "JPY"]))
    made.channel = draw(st.integers(0, 6))  # type: ignore[assignment]
    made.recurring, made.card_present = draw(st.booleans()), draw(st.booleans())
    made.card.funding, made.card.brand = draw(st.integers(0, 3)), draw(st.integers(0, 7))  # type: ignore[assignment]
    made.merchant.category_code = draw(st.sampled_from(["", "0742", "5732", "0000"]))
    for part, name in (
        (made.merchant, "region_code"), (made.card, "issuer_region_code"),
        (made, "billing_region_code"), (made, "shipping_region_code"),
    ):  # fmt: skip
        setattr(part, name, draw(st.sampled_from(["", "AT", "DE"])))
    if draw(st.booleans()):
        made.ClearField("account_created_time")
    return made


RULES = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        inner.map(lambda rule: f"!({rule})"),
        st.tuples(inner, st.sampled_from(["&&", "||"]), inner).map(
            lambda parts: f"({parts[0]}) {parts[1]} ({parts[2]})"
        ),
        st.tuples(ATOMS, st.sampled_from(["&&", "||"]), ATOMS).map(" ".join),
    ),
    max_leaves=6,
)
VALUES = st.one_of(
    st.none(), st.lists(st.sampled_from([0.0, 1.0, 1.5, 2.5, np.nan]), min_size=3, max_size=3)
)


@settings(max_examples=300)
@given(
    st.lists(RULES, min_size=1, max_size=5), payments(), VALUES,
    st.one_of(st.none(), st.sampled_from([0.0, 0.25, 0.5, 1.0])),
)  # fmt: skip
def test_what_is_looked_up_is_what_cel_says(
    rules: list[str], transaction: pb.Transaction, values: list[float] | None, score: float | None
) -> None:
    mine = Expressions(rules, FEATURES)
    assert mine.run_by_cel == []
    of = accepted(transaction, NOW_MS)
    assert fired(mine, of, values, score) == fired(ByCel(rules), of, values, score)


@pytest.mark.parametrize("rule", RUN)
def test_what_is_not_surely_the_same_is_left_to_cel(rule: str) -> None:
    mine = Expressions([rule], FEATURES)
    assert mine.run_by_cel == [0]
    of = accepted(full(), NOW_MS)
    assert fired(mine, of, [1.0, 2.0, 3.0], 0.3) == fired(ByCel([rule]), of, [1.0, 2.0, 3.0], 0.3)


def test_both_kinds_keep_their_order() -> None:
    mine = Expressions(["true", "amount_minor + 1 > 0", "recurring || true"], FEATURES)
    assert mine.run_by_cel == [1]
    assert not mine.in_one_table
    assert fired(mine, accepted(full(), NOW_MS), None, None) == [0, 1, 2]


def test_more_rules_than_one_table_holds() -> None:
    count = RULES_MAX * 2 + 3
    mine = Expressions([f"amount_minor >= {i}" for i in range(count)], FEATURES)
    assert not mine.in_one_table
    small = full()
    small.amount_minor = RULES_MAX + 5
    assert fired(mine, accepted(small, NOW_MS), None, None) == list(range(RULES_MAX + 6))


def test_a_rule_of_too_many_atoms_is_left_to_cel() -> None:
    long = " || ".join(f"amount_minor == {i}" for i in range(11))
    mine = Expressions([long, long.rpartition(" || ")[0]], FEATURES)
    assert mine.run_by_cel == [0]


def test_every_variable_but_free_text_can_be_looked_up() -> None:
    rules = {
        bool: "{} || true", int: "{} > 3", float: "{} > 3.0", str: '{} == "A"',
    }  # fmt: skip
    sources = [rules[variable.kind].format(name) for name, variable in VARIABLES.items()]
    mine = Expressions(sources, {})
    assert [list(VARIABLES)[i] for i in mine.run_by_cel] == ["email_domain"]
