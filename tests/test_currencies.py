"""The currency table and the one formula, scalar and vectorised."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurizer.currencies import (
    AMOUNT_MINOR_MAX,
    CURRENCIES,
    PARTS,
    rates_of,
    to_reference,
    to_reference_many,
)

codes = st.sampled_from(sorted(CURRENCIES))
amounts = st.integers(0, AMOUNT_MINOR_MAX)


def test_numbers_and_exponents_are_those_of_iso_4217() -> None:
    expected = {"USD": (840, 2), "EUR": (978, 2), "JPY": (392, 0), "KWD": (414, 3), "CLP": (152, 0)}
    assert {c: (CURRENCIES[c].number, CURRENCIES[c].exponent) for c in expected} == expected


def test_numbers_are_unique_and_codes_well_formed() -> None:
    numbers = [currency.number for currency in CURRENCIES.values()]
    assert len(set(numbers)) == len(numbers) >= 150
    assert all(len(code) == 3 and code.isalpha() and code.isupper() for code in CURRENCIES)
    assert all(currency.rate_parts > 0 for currency in CURRENCIES.values())


@pytest.mark.parametrize(
    ("amount", "code", "cents"),
    [
        (12_345, "USD", 12_345),
        (100, "EUR", 103),
        (1000, "JPY", 635),
        (1000, "KWD", 324),
        (1, "JPY", 1),
    ],
)
def test_known_amounts(amount: int, code: str, cents: int) -> None:
    assert to_reference(amount, code) == cents


@given(amounts)
def test_the_reference_currency_is_itself(amount: int) -> None:
    assert to_reference(amount, "USD") == amount


@given(amounts, codes)
def test_rounds_half_up_exactly(amount: int, code: str) -> None:
    exact = Fraction(amount * CURRENCIES[code].rate_parts, PARTS)
    assert -Fraction(1, 2) < to_reference(amount, code) - exact <= Fraction(1, 2)


@given(st.lists(st.tuples(amounts, codes), max_size=50))
def test_the_vectorised_twin_gives_the_same_integers(rows: list[tuple[int, str]]) -> None:
    minor = np.array([amount for amount, _ in rows], np.int64)
    rates = rates_of(np.array([code for _, code in rows], "U3"))
    expected = [to_reference(amount, code) for amount, code in rows]
    assert to_reference_many(minor, rates).tolist() == expected


def test_the_twin_is_exact_at_its_bounds() -> None:
    everything = sorted(CURRENCIES)
    minor = np.full(len(everything), AMOUNT_MINOR_MAX, np.int64)
    expected = [to_reference(AMOUNT_MINOR_MAX, code) for code in everything]
    assert to_reference_many(minor, rates_of(np.array(everything))).tolist() == expected


@pytest.mark.parametrize("amount", [-1, AMOUNT_MINOR_MAX + 1])
def test_amounts_out_of_bounds_are_refused(amount: int) -> None:
    with pytest.raises(ValueError, match="between 0 and"):
        to_reference_many(np.array([amount], np.int64), rates_of(np.array(["USD"])))


def test_unknown_codes_are_refused() -> None:
    with pytest.raises(KeyError):
        to_reference(1, "XXX")
    with pytest.raises(KeyError):
        rates_of(np.array(["USD", "ABC"]))
