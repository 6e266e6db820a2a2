"""Rules that compare what a record holds with what is written: looked up, not run.

Owns the columns that such a rule may read and the evaluation of all of them in one kernel call.
Must not know how an expression is written (``atoms``) nor what a fired rule leads to.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from featurizer.records import NO_TIME_MS, Flag

RULES_MAX = 62  # of one kernel call, whose answer is one number
ATOMS_MAX = 10  # a truth table has two to the power of this many bits
_MASK_64 = (1 << 64) - 1
_HOUR_MS, _DAY_S = 3_600_000, 86_400

INTEGERS = (
    "amount_minor", "amount_reference", "currency_code", "channel", "pos_entry_mode",
    "card_present", "recurring", "three_ds_result", "avs_result", "cvv_result",
    "authorization_result", "brand", "funding", "merchant_category_code", "merchant_region_code",
    "issuer_region_code", "billing_region_code", "shipping_region_code", "hour_utc",
)  # fmt: skip
REGIONS = frozenset(name for name in INTEGERS if name.endswith("_region_code"))
AGE, SCORE = len(INTEGERS), len(INTEGERS) + 1
FEATURES = len(INTEGERS) + 2  # columns from here on are those of the vector


class Op(IntEnum):
    """What an atom asks of a column's value; NOT_IN and IN of one or more literals."""

    IN = 0
    NOT_IN = 1
    LESS = 2
    AT_MOST = 3
    MORE = 4
    AT_LEAST = 5
    SAME = 6  # as another column, whose number stands where the literal would
    DIFFERENT = 7


class Atom(NamedTuple):
    """A comparison of one column with literals, each as 64 bits: of an int64 or of a float64."""

    column: int
    op: Op
    literals: tuple[int, ...]


class Lookup(NamedTuple):
    """A rule as atoms and a truth table.

    Bit k of ``truth`` is the rule's value where the bits of k are the atoms' values.
    """

    atoms: tuple[Atom, ...]
    truth: int


@njit(cache=True)
def _integers(rec, out):  # type: ignore[no-untyped-def]
    """Set ``out`` int64[INTEGERS] to the record's values, in the order of INTEGERS."""
    out[0], out[1], out[2] = rec.amount_minor, rec.amount_ref, rec.currency
    out[3], out[4] = rec.channel, rec.pos_entry_mode
    out[5] = 1 if rec.flags & Flag.CARD_PRESENT else 0
    out[6] = 1 if rec.flags & Flag.RECURRING else 0
    out[7], out[8], out[9], out[10] = rec.three_ds, rec.avs, rec.cvv, rec.authorization
    out[11], out[12], out[13] = rec.brand, rec.funding, rec.mcc
    out[14], out[15] = rec.merchant_region, rec.issuer_region
    out[16], out[17] = rec.billing_region, rec.shipping_region
    out[18] = rec.event_time_ms // _HOUR_MS % 24


@njit(cache=True)
def _real(rec, vector, score, column):  # type: ignore[no-untyped-def]
    """Return the value of a column of real numbers; NaN where it is not known."""
    if column == SCORE:
        return score
    if column >= FEATURES:
        return np.float64(vector[column - FEATURES])
    if rec.account_created_ms == NO_TIME_MS:
        return np.nan
    return (rec.event_time_ms // 1000 - rec.account_created_ms // 1000) / _DAY_S


@njit(cache=True)
def _compare(op, value, literal):  # type: ignore[no-untyped-def]
    if op == Op.LESS:
        return value < literal
    if op == Op.AT_MOST:
        return value <= literal
    if op == Op.MORE:
        return value > literal
    if op == Op.AT_LEAST:
        return value >= literal
    return value == literal


@njit(cache=True)
def _holds(op, value, integers, literals, first, stop):  # type: ignore[no-untyped-def]
    """Return whether an atom of an integer column holds."""
    if op in (Op.SAME, Op.DIFFERENT):
        return (value == integers[literals[first]]) == (op == Op.SAME)
    for i in range(first, stop):
        if _compare(op, value, literals[i]):
            return op != Op.NOT_IN
    return op == Op.NOT_IN


@njit(cache=True)
def _holds_real(op, value, literals, first, stop):  # type: ignore[no-untyped-def]
    for i in range(first, stop):
        if _compare(op, value, literals[i]):
            return op != Op.NOT_IN
    return op == Op.NOT_IN


@njit(cache=True)
def fire(table, records, vector, score):  # type: ignore[no-untyped-def]
    """Return a bit for each rule of a packed ``table`` that holds.

    ``records`` RECORD[1], ``vector`` float32[n] and ``score`` float64, NaN where not known. A rule
    that reads an unknown value does not hold.
    """
    rec, reals, truth = records[0], table.view(np.float64), table.view(np.uint64)
    integers = np.empty(len(INTEGERS), np.int64)
    _integers(rec, integers)
    fired = 0
    for row in range(table[0]):
        rule = 1 + 3 * row
        place, known, bit = 0, True, 1
        for atom in range(table[rule], table[rule + 1], 4):
            column, op, first, stop = table[atom], table[atom + 1], table[atom + 2], table[atom + 3]
            if column < AGE:
                held = _holds(op, integers[column], integers, table, first, stop)
            else:
                value = _real(rec, vector, score, column)
                known &= value == value  # noqa: PLR0124 - false for NaN
                held = _holds_real(op, value, reals, first, stop)
            if held:
                place |= bit
            bit <<= 1
        word = truth[table[rule + 2] + (place >> 6)]
        if known and (word >> np.uint64(place & 63)) & np.uint64(1):
            fired |= 1 << row
    return fired


def pack(lookups: Sequence[Lookup]) -> NDArray[np.int64]:
    """Return up to RULES_MAX lookups as the one array that the kernel reads.

    Words of 8 bytes: how many rules; per rule where its atoms begin and end and where its truth
    table is; per atom column, operation, and where its literals begin and end; literals; truth.
    """
    atoms = [atom for lookup in lookups for atom in lookup.atoms]
    literals = [literal for atom in atoms for literal in atom.literals]
    first_atom = 1 + 3 * len(lookups)
    first_literal = first_atom + 4 * len(atoms)
    rules: list[int] = []
    rows: list[int] = []
    truth: list[int] = []
    for lookup in lookups:
        start = first_atom + len(rows)
        for atom in lookup.atoms:
            stop = first_literal + len(atom.literals)
            rows += (atom.column, int(atom.op), first_literal, stop)
            first_literal = stop
        at = first_atom + 4 * len(atoms) + len(literals) + len(truth)
        rules += (start, first_atom + len(rows), at)
        words = max(1, (1 << len(lookup.atoms)) >> 6)
        truth += (lookup.truth >> (64 * i) & _MASK_64 for i in range(words))
    bits = np.array(truth, np.uint64).view(np.int64)
    return np.concatenate([np.array([len(lookups), *rules, *rows, *literals], np.int64), bits])


def places(bits: int) -> list[int]:
    """Return the places of the bits that are set, ascending."""
    return [row for row in range(bits.bit_length()) if bits >> row & 1]
