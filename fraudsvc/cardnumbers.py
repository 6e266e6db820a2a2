"""Finds texts that look like a card number (PAN), so that none is kept, logged or echoed.

Owns the issuer ranges and what counts as "looks like". Must not know a message or a field; gives
yes or no, never the digits. A card number is 13 to 19 digits, with at most one space or dash
between two, not part of a longer word, of a known range and length, with a right check digit.
"""

from __future__ import annotations

import re
from typing import NamedTuple

DIGITS_MIN = 13
DIGITS_MAX = 19
_PREFIX_DIGITS = 6


class IssuerRange(NamedTuple):
    """Numbers of one brand: first six digits from ``low`` to ``high``, and the lengths issued."""

    brand: str
    low: int
    high: int
    lengths: frozenset[int]


def _range(brand: str, low: str, high: str, *lengths: int) -> IssuerRange:
    padded = (low.ljust(_PREFIX_DIGITS, "0"), high.ljust(_PREFIX_DIGITS, "9"))
    return IssuerRange(brand, int(padded[0]), int(padded[1]), frozenset(lengths))


# ISO/IEC 7812 prefixes as the brands publish them. Where ranges overlap either may match.
ISSUER_RANGES = (
    _range("Visa", "4", "4", 13, 16, 18, 19),
    _range("Mastercard", "51", "55", 16),
    _range("Mastercard", "2221", "2720", 16),
    _range("American Express", "34", "34", 15),
    _range("American Express", "37", "37", 15),
    _range("Diners Club", "300", "305", 14, 16, 17, 18, 19),
    _range("Diners Club", "3095", "3095", 14, 16, 17, 18, 19),
    _range("Diners Club", "36", "36", 14, 15, 16, 17, 18, 19),
    _range("Diners Club", "38", "39", 14, 16, 17, 18, 19),
    _range("JCB", "3528", "3589", 16, 17, 18, 19),
    _range("Discover", "6011", "6011", 16, 17, 18, 19),
    _range("Discover", "644", "659", 16, 17, 18, 19),
    _range("UnionPay", "62", "62", 14, 15, 16, 17, 18, 19),
    _range("UnionPay", "81", "81", 16, 17, 18, 19),
    _range("Maestro", "50", "50", 13, 14, 15, 16, 17, 18, 19),
    _range("Maestro", "56", "58", 13, 14, 15, 16, 17, 18, 19),
    _range("Maestro", "6", "6", 13, 14, 15, 16, 17, 18, 19),
    _range("Mir", "2200", "2204", 16, 17, 18, 19),
    _range("Troy", "9792", "9792", 16),
    _range("Verve", "5060", "5061", 16, 18, 19),
    _range("RuPay", "60", "60", 16),
    _range("UATP", "1", "1", 15),
)

_BY_FIRST_DIGIT = tuple(
    tuple(row for row in ISSUER_RANGES if row.low // 100_000 == digit) for digit in range(10)
)

# Maps digits to "0", leaves out what may stand between them; 13 zeros then mean a closer look.
_SHAPES = bytes(0x30 if 0x30 <= byte <= 0x39 else 0x78 for byte in range(256))
_BETWEEN = b" -"
_RUN = b"0" * DIGITS_MIN
# Letters or digits beside the run make it part of a longer word, such as a hash in hexadecimal.
_RUNS = re.compile(r"(?<![^\W_])\d(?:[ -]?\d){12,}(?![^\W_])")
# One random UUID in 25,000 holds such digits between its dashes; its own shape is none of a card's.
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_DOUBLED = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)  # twice a digit, its digits added


def may_hold(data: bytes) -> bool:
    """Return False when no part of the UTF-8 text ``data`` can be a card number; cheap.

    True also for texts beyond ASCII, whose digits only the closer look knows.
    """
    return _RUN in data.translate(_SHAPES, _BETWEEN) or not data.isascii()


def looks_like_card_number(text: str) -> bool:
    """Return whether ``text`` is or contains what looks like a card number."""
    if _UUID.fullmatch(text):
        return False
    return any(_groups_hold(run.group()) for run in _RUNS.finditer(text))


def holds_card_number(data: bytes) -> bool:
    """Return whether a file's bytes contain what looks like a card number."""
    return may_hold(data) and looks_like_card_number(data.decode(errors="replace"))


def _groups_hold(run: str) -> bool:
    """Look at every stretch of whole groups: "12-4111 1111 1111 1111" holds one after the 12."""
    groups = run.replace("-", " ").split(" ")
    for first in range(len(groups)):
        digits = ""
        for group in groups[first:]:
            digits += group
            if len(digits) > DIGITS_MAX:
                break
            if len(digits) >= DIGITS_MIN and _is_card_number(digits):
                return True
    return False


def _is_card_number(digits: str) -> bool:
    prefix, length = int(digits[:_PREFIX_DIGITS]), len(digits)
    for row in _BY_FIRST_DIGIT[prefix // 100_000]:
        if row.low <= prefix <= row.high and length in row.lengths:
            return passes_luhn(digits)
    return False


def passes_luhn(digits: str) -> bool:
    """Return whether the check digit is right (ISO/IEC 7812-1 annex B)."""
    single, doubled = digits[-1::-2], digits[-2::-2]
    return (sum(map(int, single)) + sum(_DOUBLED[int(digit)] for digit in doubled)) % 10 == 0
