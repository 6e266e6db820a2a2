"""Rules as expressions in CEL: what they may read, how they are compiled, and how they are run.

Owns the table of variables and is the only importer of ``cel``. Must not know what a fired rule
leads to. What a kernel can look up (``atoms``) costs 2 µs for all rules together; the rest
is run by the library, each expression as a program of its own over one context kept per thread,
so that an error in one rule leaves the others alone. Handing a text to the library costs 1 µs,
so a variable is only set when its value changed.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import cel
import numpy as np
from fraud.v1 import transaction_pb2 as pb
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from numpy.typing import NDArray

from featurizer.currencies import to_reference
from fraudsvc.payment import Payment
from fraudsvc.policy.atoms import Columns, Value, lookup_of
from fraudsvc.policy.table import RULES_MAX, Lookup, fire, pack, places

_SECONDS_A_DAY = 86_400
# What cel raises for a value that an operator does not take, a missing name, a division by zero
# and a number out of range.
_RUN_ERRORS = (TypeError, RuntimeError, ValueError, ArithmeticError)
_FUNCTIONS = frozenset(
    {"size", "contains", "startsWith", "endsWith", "matches", "int", "uint", "double", "string"}
)
_OPERATOR = re.compile(r"[^A-Za-z].*")


class ExpressionError(Exception):
    """The expression at ``index`` of the sources cannot be used; the text says why."""

    def __init__(self, index: int, cause: str) -> None:
        super().__init__(cause)
        self.index = index


class Variable(NamedTuple):
    """What a rule may read of a transaction: its type, and how to get it (None: not known).

    ``names`` are the texts of an enum, in the order of its numbers.
    """

    kind: type[Value]
    read: Callable[[pb.Transaction], Value | None]
    names: tuple[str, ...] = ()


def _enum(values: EnumTypeWrapper, read: Callable[[pb.Transaction], int]) -> Variable:
    """Return a variable that is the name of an enum number, without the enum's prefix."""
    prefix = len(values.Name(0)) - len("UNSPECIFIED")
    names = tuple(values.Name(number)[prefix:] for number in range(len(values.keys())))
    return Variable(str, lambda t: names[read(t)], names)


def _account_age_days(t: pb.Transaction) -> float | None:
    if not t.HasField("account_created_time"):
        return None
    return (t.event_time.seconds - t.account_created_time.seconds) / _SECONDS_A_DAY


VARIABLES: dict[str, Variable] = {
    "amount_minor": Variable(int, lambda t: t.amount_minor),
    "amount_reference": Variable(int, lambda t: to_reference(t.amount_minor, t.currency_code)),
    "currency_code": Variable(str, lambda t: t.currency_code),
    "channel": _enum(pb.Channel, lambda t: t.channel),
    "pos_entry_mode": _enum(pb.PosEntryMode, lambda t: t.pos_entry_mode),
    "card_present": Variable(bool, lambda t: t.card_present),
    "recurring": Variable(bool, lambda t: t.recurring),
    "three_ds_result": _enum(pb.ThreeDsResult, lambda t: t.three_ds_result),
    "avs_result": _enum(pb.AvsResult, lambda t: t.avs_result),
    "cvv_result": _enum(pb.CvvResult, lambda t: t.cvv_result),
    "authorization_result": _enum(pb.AuthorizationResult, lambda t: t.authorization_result),
    "brand": _enum(pb.CardBrand, lambda t: t.card.brand),
    "funding": _enum(pb.CardFunding, lambda t: t.card.funding),
    "merchant_category_code": Variable(str, lambda t: t.merchant.category_code),
    "merchant_region_code": Variable(str, lambda t: t.merchant.region_code),
    "issuer_region_code": Variable(str, lambda t: t.card.issuer_region_code),
    "billing_region_code": Variable(str, lambda t: t.billing_region_code),
    "shipping_region_code": Variable(str, lambda t: t.shipping_region_code),
    "email_domain": Variable(str, lambda t: t.email.domain),
    "hour_utc": Variable(int, lambda t: t.event_time.seconds // 3600 % 24),
    "account_age_days": Variable(float, _account_age_days),
}
SCORE = "score"
_SAMPLES: dict[type[Value], tuple[Value, ...]] = {
    bool: (False, True, False, True),
    int: (0, 1, 23, 10**9),
    float: (0.0, 0.5, 1.0, 1e6),
    str: ("", "US", "UNSPECIFIED", "0742"),
}


class _Rule(NamedTuple):
    place: int
    execute: Callable[[cel.Context], object]
    reads: frozenset[str]


class Expressions:
    """Compiled expressions, run together; threads may share them.

    ``feature_index`` maps each feature's name to its place in the vector. Raises ExpressionError
    for bad syntax, an unknown name or a result that is no truth value.
    """

    def __init__(self, sources: Sequence[str], feature_index: Mapping[str, int]) -> None:
        rules = [_compile(index, source, feature_index) for index, source in enumerate(sources)]
        columns = Columns({n: v.names for n, v in VARIABLES.items() if v.names}, feature_index)
        lookups = {i: lookup_of(source, columns, _joined) for i, source in enumerate(sources)}
        looked_up = [i for i, lookup in lookups.items() if lookup is not None]
        self._tables = _tables(lookups, looked_up)
        self.table = self._tables[0][0]
        self._unknown = np.full(max(1, len(feature_index)), np.nan, np.float32)
        self._rules = [rule for rule in rules if lookups[rule.place] is None]
        reads = {name for rule in self._rules for name in rule.reads}
        self._variables = [(n, v.read) for n, v in VARIABLES.items() if n in reads]
        # The score, which has no place in the vector, and features.
        self._numbers = [
            (n, None if n == SCORE else feature_index[n]) for n in sorted(reads - VARIABLES.keys())
        ]
        self._local = threading.local()
        self.errors = [0] * len(sources)  # per expression, how often it failed when run

    @property
    def run_by_cel(self) -> list[int]:
        """The indexes of the expressions that no table holds."""
        return [rule.place for rule in self._rules]

    @property
    def in_one_table(self) -> bool:
        """Whether ``table`` holds all expressions."""
        return not self._rules and len(self._tables) == 1

    def looked_up(
        self, record: NDArray[np.void], features: NDArray[np.float32] | None, score: float | None
    ) -> int:
        """Return a bit for each rule of ``table`` that holds."""
        return self._fire(self.table, record, features, score)

    def in_table(self, looked_up: int) -> list[int]:
        """Return the indexes of the expressions of ``table`` that hold, by their bits."""
        return [self._tables[0][1][row] for row in places(looked_up)]

    def fired(
        self,
        payment: Payment,
        features: NDArray[np.float32] | None,
        score: float | None,
        looked_up: int,
    ) -> list[int]:
        """Return the indexes of the expressions that hold, ascending.

        ``looked_up`` are those of ``table``. One that reads a value that is not known (no vector,
        NaN, no score) does not hold, and neither does one that fails, which ``errors`` counts.
        """
        fired = self.in_table(looked_up)
        for table, rules in self._tables[1:]:
            bits = self._fire(table, payment.record, features, score)
            fired += [rules[row] for row in places(bits)]
        if self._rules:
            fired += self._run(payment.message, features, score)
            fired.sort()
        return fired

    def _fire(
        self,
        table: NDArray[np.int64],
        record: NDArray[np.void],
        features: NDArray[np.float32] | None,
        score: float | None,
    ) -> int:
        vector = self._unknown if features is None else features
        bits: int = fire(table, record, vector, math.nan if score is None else score)
        return bits

    def _run(
        self, transaction: pb.Transaction, features: NDArray[np.float32] | None, score: float | None
    ) -> list[int]:
        """Return which of the expressions that CEL runs hold."""
        local = self._own()
        unknown, changed = self._fill(local, transaction, features, score)
        held: list[bool | None] = local.held
        fired = []
        for place, execute, reads in self._rules:
            if unknown and not unknown.isdisjoint(reads):
                continue
            # An expression has no other input than what it reads.
            if held[place] is None or not changed.isdisjoint(reads):
                held[place] = None
                try:
                    held[place] = execute(local.context) is True
                except _RUN_ERRORS:
                    self.errors[place] += 1
            if held[place]:
                fired.append(place)
        return fired

    def _own(self) -> threading.local:
        """Return this thread's context, the values set in it, and which expressions held."""
        local = self._local
        if not hasattr(local, "context"):
            local.context, local.last, local.held = cel.Context(), {}, [None] * len(self.errors)
        return local

    def _fill(
        self,
        local: threading.local,
        transaction: pb.Transaction,
        features: NDArray[np.float32] | None,
        score: float | None,
    ) -> tuple[set[str], set[str]]:
        """Set what changed since this thread's last call; return the unknown and the changed."""
        context, last = local.context, local.last
        unknown, changed = set(), set()
        for name, read in self._variables:
            value = read(transaction)
            if value is None:
                unknown.add(name)
            elif last.get(name) != value:
                context.add_variable(name, value)
                last[name] = value
                changed.add(name)
        for name, place in self._numbers:
            number = score if place is None else None if features is None else features.item(place)
            if number is None or math.isnan(number):
                unknown.add(name)
            elif last.get(name) != number:
                context.add_variable(name, number)
                last[name] = number
                changed.add(name)
        return unknown, changed


def values_read(
    source: str,
    transaction: pb.Transaction,
    features: NDArray[np.float32],
    score: float | None,
    feature_index: Mapping[str, int],
) -> dict[str, Value | None]:
    """Return what an expression reads and the values it met; None for what is not known.

    ``features`` float32[n], empty where there is no vector.
    """
    found: dict[str, Value | None] = {}
    for name in sorted(cel.compile(source).variables()):
        if name in VARIABLES:
            found[name] = VARIABLES[name].read(transaction)
        elif name == SCORE:
            found[name] = score
        elif name in feature_index:
            number = features.item(feature_index[name]) if len(features) else math.nan
            found[name] = None if math.isnan(number) else number
    return found


_OWN = frozenset(VARIABLES) | {SCORE}


def _joined(source: str) -> Callable[[Mapping[str, Value]], object]:
    """Return CEL's reading of what joins the atoms of an expression."""
    execute = cel.compile(source).execute
    return lambda values: execute(cel.Context(dict(values)))


def _tables(
    lookups: Mapping[int, Lookup | None], looked_up: Sequence[int]
) -> list[tuple[NDArray[np.int64], Sequence[int]]]:
    """Return one or more tables of at most RULES_MAX lookups, and the places of their rules."""
    parts = [looked_up[i : i + RULES_MAX] for i in range(0, max(1, len(looked_up)), RULES_MAX)]
    return [(pack([found for i in part if (found := lookups[i])]), part) for part in parts]


def _compile(index: int, source: str, feature_index: Mapping[str, int]) -> _Rule:
    try:
        program = cel.compile(source)
    except ValueError as error:
        raise ExpressionError(index, f"syntax error: {error}") from error
    reads = frozenset(program.variables())
    unknown = sorted(reads - _OWN - feature_index.keys())
    unknown += sorted(
        name
        for name in program.functions()
        if name not in _FUNCTIONS and not _OPERATOR.fullmatch(name) and name not in reads
    )
    if unknown:
        raise ExpressionError(index, f"unknown name {', '.join(unknown)}")
    _try_out(index, program, reads)
    return _Rule(index, program.execute, reads)


def _try_out(index: int, program: cel.Program, reads: frozenset[str]) -> None:
    """Run the expression on samples, which finds what CEL's parser cannot: wrong types."""
    kinds = {name: VARIABLES[name].kind if name in VARIABLES else float for name in reads}
    for number in range(len(_SAMPLES[bool])):
        context = cel.Context({name: _SAMPLES[kind][number] for name, kind in kinds.items()})
        try:
            result = program.execute(context)
        except ArithmeticError:
            continue  # a sample divides by zero or leaves 64 bits; a real value need not
        except _RUN_ERRORS as error:
            raise ExpressionError(index, str(error).split(". ", maxsplit=1)[0]) from error
        if not isinstance(result, bool):
            raise ExpressionError(index, f"gives {type(result).__name__}, not true or false")
