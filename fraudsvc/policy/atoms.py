"""Takes a CEL expression apart into comparisons that a kernel can make, and a truth table.

CEL stays the judge. Only the atoms of an expression are read here (``amount_reference > 50000``,
``funding in ["PREPAID"]``, ``recurring``), each between brackets, ``&&``, ``||`` or an end. What
joins them is given to CEL once for every way in which the atoms can turn out, and its answers are
the rule's truth table. Where anything is left beside atoms, or an atom may mean another thing to
CEL, ``lookup_of`` returns None and the rule is one that CEL runs at each decision.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import NamedTuple

import numpy as np

from featurizer.currencies import CURRENCIES
from featurizer.records import region_number
from fraudsvc.policy.table import AGE, ATOMS_MAX, FEATURES, INTEGERS, SCORE, Atom, Lookup, Op

Value = bool | int | float | str
_TOKEN = re.compile(
    r"""\s*(?:(?P<text>"[^"\\\n]*"|'[^'\\\n]*')|(?P<real>\d+\.\d+)|(?P<whole>\d+)"""
    r"|(?P<name>[A-Za-z_]\w*)|(?P<sign>&&|\|\||[=!<>]=|[<>!()\[\],]))"
)
_BEFORE = frozenset({"", "(", "&&", "||"})
_AFTER = frozenset({"", ")", "&&", "||"})
_OPS = {"==": Op.IN, "!=": Op.NOT_IN, "<": Op.LESS, "<=": Op.AT_MOST, ">": Op.MORE,
        ">=": Op.AT_LEAST}  # fmt: skip
_NUMBERS = frozenset({"amount_minor", "amount_reference", "hour_utc"})
_TRUTHS = frozenset({"card_present", "recurring"})
_REGIONS = frozenset(name for name in INTEGERS if name.endswith("_region_code"))
_INT_MAX, _EXACT_MAX = (1 << 63) - 1, 1 << 53
_NEVER = -1  # the code of a text that no record holds


class _Token(NamedTuple):
    kind: str
    text: str


_END = _Token("", "")


class _Found(NamedTuple):
    """An atom and how many tokens it takes."""

    atom: Atom
    length: int


def _tokens(source: str) -> list[_Token] | None:
    found, at = [], 0
    source = source.strip()
    while at < len(source):
        match = _TOKEN.match(source, at)
        if match is None or match.lastgroup is None:
            return None
        found.append(_Token(match.lastgroup, match[match.lastgroup]))
        at = match.end()
    return found


class Columns:
    """Where a name's value stands and how a literal is written there.

    ``enums`` maps a variable to the names that it takes, in the order of their numbers.
    """

    def __init__(
        self, enums: Mapping[str, tuple[str, ...]], feature_index: Mapping[str, int]
    ) -> None:
        self._enums = enums
        # A variable comes before a feature of its name.
        self._places = {name: FEATURES + place for name, place in feature_index.items()}
        self._places |= {name: place for place, name in enumerate(INTEGERS)}
        self._places |= {"account_age_days": AGE, "score": SCORE}

    def place(self, name: str) -> int | None:
        """Return the column of a variable, or None where it has none."""
        return self._places.get(name)

    def code(self, name: str, literal: _Token) -> int | None:
        """Return a literal as the 64 bits to compare with, or None where that is not sure."""
        if self._places[name] >= AGE:
            return _real_bits(literal)
        if name in _NUMBERS:
            number = int(literal.text) if literal.kind == "whole" else -1
            return number if 0 <= number <= _INT_MAX else None
        if name in _TRUTHS:
            return {"true": 1, "false": 0}.get(literal.text) if literal.kind == "name" else None
        return self._text_code(name, literal.text[1:-1]) if literal.kind == "text" else None

    def _text_code(self, name: str, text: str) -> int | None:
        if name in self._enums:
            names = self._enums[name]
            return names.index(text) if text in names else _NEVER
        if name in _REGIONS:
            try:
                return region_number(text)
            except ValueError:
                return _NEVER
        if name == "currency_code":
            return CURRENCIES[text].number if text in CURRENCIES else _NEVER
        if text in ("", "0000"):  # one number in a record
            return None
        return int(text) if re.fullmatch("[0-9]{4}", text) else _NEVER

    def are_alike(self, one: str, other: str) -> bool:
        """Return whether two columns hold codes of one kind."""
        return one in _REGIONS and other in _REGIONS


def _real_bits(literal: _Token) -> int | None:
    if literal.kind not in ("real", "whole") or float(literal.text) > _EXACT_MAX:
        return None
    return int(np.float64(literal.text).view(np.int64))


def _literals(tokens: list[_Token], at: int) -> Iterator[_Token]:
    """Yield the literals of a list whose first one is at ``at``; nothing where it is no list."""
    found = []
    while at + 1 < len(tokens):
        found.append(tokens[at])
        if tokens[at + 1].text == "]":
            yield from found
            return
        if tokens[at + 1].text != ",":
            return
        at += 2


def _atom_at(tokens: list[_Token], at: int, columns: Columns) -> _Found | None:
    """Return the atom whose name is the token at ``at``."""
    name = tokens[at].text
    column = columns.place(name)
    before = tokens[at - 1].text if at else ""
    rest = [*tokens[at + 1 :], _END]
    if column is None:
        return None
    if rest[0].text in _AFTER:
        alone = name in _TRUTHS and before in _BEFORE | {"!"}
        return _Found(Atom(column, Op.IN, (1,)), 1) if alone else None
    if before not in _BEFORE:
        return None
    if rest[0].text == "in" and rest[1].text == "[":
        found = list(_literals(rest, 2))
        return _compared(name, column, Op.IN, found, 2 * len(found) + 3, rest, columns)
    if rest[0].kind == "sign" and rest[0].text in _OPS:
        return _compared(name, column, _OPS[rest[0].text], rest[1:2], 3, rest, columns)
    return None


def _compared(
    name: str, column: int, op: Op, found: list[_Token], length: int, rest: list[_Token],
    columns: Columns,
) -> _Found | None:  # fmt: skip
    if not found or length > len(rest) or rest[length - 1].text not in _AFTER:
        return None
    other = found[0].text
    if found[0].kind == "name" and columns.are_alike(name, other) and op in (Op.IN, Op.NOT_IN):
        place = columns.place(other)
        same = Op.SAME if op == Op.IN else Op.DIFFERENT
        return None if place is None else _Found(Atom(column, same, (place,)), length)
    ordered = name in _NUMBERS or column >= AGE
    codes = [columns.code(name, literal) for literal in found]
    equality = op in (Op.IN, Op.NOT_IN)
    # Whether 1.0 equals 1 is for CEL to say.
    mixed = equality and column >= AGE and any(literal.kind == "whole" for literal in found)
    if None in codes or mixed or not (ordered or equality):
        return None
    return _Found(Atom(column, op, tuple(code for code in codes if code is not None)), length)


def _taken_apart(source: str, columns: Columns) -> tuple[list[Atom], str] | None:
    """Return the atoms and the expression with ``a0``, ``a1`` … in their places."""
    tokens = _tokens(source)
    if tokens is None:
        return None
    atoms: list[Atom] = []
    parts: list[str] = []
    at = 0
    while at < len(tokens):
        if tokens[at].kind == "sign" or tokens[at].text in ("true", "false"):
            parts.append(tokens[at].text)
            at += 1
            continue
        found = _atom_at(tokens, at, columns) if tokens[at].kind == "name" else None
        if found is None:
            return None
        if found.atom not in atoms:
            atoms.append(found.atom)
        parts.append(f"a{atoms.index(found.atom)}")
        at += found.length
    return (atoms, " ".join(parts)) if len(atoms) <= ATOMS_MAX else None


def lookup_of(
    source: str,
    columns: Columns,
    compiled: Callable[[str], Callable[[Mapping[str, Value]], object]],
) -> Lookup | None:
    """Return a valid expression as a lookup, or None where only CEL can run it.

    ``compiled`` is CEL: it turns an expression into a function of its variables' values, which
    raises what CEL raises.
    """
    parts = _taken_apart(source, columns)
    if parts is None:
        return None
    atoms, joined = parts
    truth, joint = 0, compiled(joined)
    for bits in product((False, True), repeat=len(atoms)):
        values: dict[str, Value] = {f"a{i}": bit for i, bit in enumerate(bits)}
        try:
            held = joint(values)
        except (TypeError, RuntimeError, ValueError, ArithmeticError):
            return None
        if not isinstance(held, bool):
            return None
        if held:
            truth |= 1 << sum(1 << i for i, bit in enumerate(bits) if bit)
    return Lookup(tuple(atoms), truth)
