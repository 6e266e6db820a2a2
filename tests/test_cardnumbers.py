"""What looks like a card number, and what only nearly does."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fraudsvc.cardnumbers import (
    ISSUER_RANGES,
    IssuerRange,
    looks_like_card_number,
    may_hold,
    passes_luhn,
)

# Numbers that the brands publish for tests.
PUBLISHED = (
    "4111111111111111", "4222222222222", "5555555555554444", "2223003122003222",
    "378282246310005", "6011111111111117", "30569309025904", "3530111333300000",
    "6200000000000005", "6304000000000000",
)  # fmt: skip


@st.composite
def card_numbers(draw: st.DrawFn) -> str:
    row: IssuerRange = draw(st.sampled_from(ISSUER_RANGES))
    length = draw(st.sampled_from(sorted(row.lengths)))
    head = f"{draw(st.integers(row.low, row.high)):06d}"
    rest = draw(st.text("0123456789", min_size=length - 7, max_size=length - 7))
    return next(n for n in (f"{head}{rest}{check}" for check in range(10)) if passes_luhn(n))


@st.composite
def spaced_card_numbers(draw: st.DrawFn) -> str:
    digits = draw(card_numbers())
    gaps = draw(st.lists(st.sampled_from(["", "", " ", "-"]), min_size=len(digits) - 1,
                         max_size=len(digits) - 1))  # fmt: skip
    return "".join(d + gap for d, gap in zip(digits, [*gaps, ""], strict=True))


def found(text: str) -> bool:
    return may_hold(text.encode()) and looks_like_card_number(text)


@pytest.mark.parametrize("number", PUBLISHED)
def test_published_test_numbers_are_found(number: str) -> None:
    assert found(number)
    assert found(f"paid with {number}, thanks")
    assert found(f"tok_{number}")


@given(spaced_card_numbers())
def test_every_number_of_a_known_range_is_found(number: str) -> None:
    assert found(number)


@given(spaced_card_numbers(), st.text(" .,:;/_#", max_size=5), st.text(" .,:;/_#", max_size=5))
def test_found_inside_a_longer_text(number: str, before: str, after: str) -> None:
    assert found(before + number + after)


@given(card_numbers(), st.integers(1, 9))
def test_a_wrong_check_digit_passes(number: str, shift: int) -> None:
    wrong = number[:-1] + str((int(number[-1]) + shift) % 10)
    assert not found(wrong)


@given(st.text("0123456789", min_size=13, max_size=19))
def test_numbers_of_no_range_pass(digits: str) -> None:
    prefix = int(digits[:6])
    assume(not any(row.low <= prefix <= row.high for row in ISSUER_RANGES))
    assert not found(digits)


@given(card_numbers())
def test_part_of_a_longer_word_passes(number: str) -> None:
    assert not found("a" + number)
    assert not found(number + "f")


@given(st.text("0123456789", max_size=12))
def test_short_numbers_pass(digits: str) -> None:
    assert not found(digits)


def test_a_group_before_the_number_does_not_hide_it() -> None:
    assert found("12-4111 1111 1111 1111")
    assert found("4111-1111-1111-1111 7")


def test_digits_of_other_scripts_are_digits() -> None:
    assert found("".join(chr(0xFF10 + int(digit)) for digit in PUBLISHED[0]))


@given(st.uuids())
def test_uuids_pass(value: uuid.UUID) -> None:
    assert not found(str(value))


def test_a_uuid_of_digits_passes() -> None:
    assert not found("41111111-1111-4111-8111-111111111111")


@given(st.text(max_size=60))
def test_the_cheap_look_never_misses(text: str) -> None:
    assert may_hold(text.encode()) or not looks_like_card_number(text)
