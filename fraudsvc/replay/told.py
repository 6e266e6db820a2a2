"""What a decision on the log says beside what is decided anew, read from its bytes, many at once.

Owns where each field stands in the bytes. Parsing the messages takes 20 µs a decision, and only
one that comes out different has to be looked at field by field. What is not as our own writer
writes it is in doubt, and for who parses. Field numbers are those of fraud/v1/decision.proto;
https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from enum import IntEnum, auto
from functools import lru_cache

import numpy as np
from fraud.v1 import decision_pb2
from numba import njit
from numpy.typing import NDArray

from featurizer.records import Entity

_ENTITIES = len(Entity)
_VARINT, _FIXED64, _BYTES = 0, 1, 2  # kinds on the wire
_ANY = -1


class Told(IntEnum):
    """The columns of a row, int64. Places are counted from the decision's first byte."""

    IS_READ = 0  # 0 where the bytes are in doubt
    LOG_POSITION = auto()
    RECEIVED_MS = auto()
    RUNG = auto()
    CAUSE = auto()
    USED_NS = auto()
    OUTCOME = auto()
    BY = auto()  # model, policy and schema, fields 6 to 8 of the Assessment
    BY_END = auto()
    TRANSACTION = auto()
    TRANSACTION_END = auto()
    FEATURES = auto()
    FEATURES_END = auto()
    TRACE = auto()
    TRACE_END = auto()
    ORIGIN = auto()  # fields 9 and 10
    ORIGIN_END = auto()
    STEPS = auto()  # fields 12 and 13
    STEPS_END = auto()
    VERSIONS = auto()  # how many
    FIRST_VERSION = 20
    COLUMNS = FIRST_VERSION + _ENTITIES


class _How(IntEnum):
    """What is done with a field."""

    SKIP = 0
    NUMBER = auto()  # its value
    WORD = auto()  # its eight bytes as a number
    SPAN = auto()  # where its value begins and ends
    WHOLE = auto()  # the same of all such fields in a row, with their tags
    INSTANT_NS = auto()
    WORDS_64 = auto()  # how many, and each


_PLANS = (
    {  # of a Decision
        2: (Told.TRANSACTION, _How.SPAN),
        3: (Told.FEATURES, _How.SPAN),
        5: (Told.VERSIONS, _How.WORDS_64),
        6: (Told.LOG_POSITION, _How.WORD),
        7: (Told.RECEIVED_MS, _How.INSTANT_NS),
        9: (Told.ORIGIN, _How.WHOLE),
        10: (Told.ORIGIN, _How.WHOLE),
        12: (Told.STEPS, _How.WHOLE),
        13: (Told.STEPS, _How.WHOLE),
    },
    {  # of its Assessment
        1: (Told.OUTCOME, _How.NUMBER),
        4: (Told.RUNG, _How.NUMBER),
        5: (Told.CAUSE, _How.NUMBER),
        6: (Told.BY, _How.WHOLE),
        7: (Told.BY, _How.WHOLE),
        8: (Told.BY, _How.WHOLE),
        10: (Told.TRACE, _How.SPAN),
        11: (Told.USED_NS, _How.INSTANT_NS),
    },
)
_KINDS = np.array(  # of a field, by what is done with it
    [_ANY, _VARINT, _FIXED64, _BYTES, _BYTES, _BYTES, _BYTES], np.int64
)
_ASSESSMENT, _NUMBERS = 1, 16
_PLAN = np.zeros((len(_PLANS), _NUMBERS, 2), np.int64)
for _message, _plan in enumerate(_PLANS):
    for _number_of, _entry in _plan.items():
        _PLAN[_message, _number_of] = _entry


@njit(cache=True, nogil=True)
def _number(data, at, stop):  # type: ignore[no-untyped-def]
    """Return a varint and where it ends; past ``stop`` where it is cut."""
    value = np.int64(0)
    for i in range(10):
        if at + i >= stop:
            break
        byte = np.int64(data[at + i])
        value |= (byte & 127) << (7 * i)
        if byte < 128:
            return value, at + i + 1
    return np.int64(0), stop + 1


@njit(cache=True, nogil=True)
def _word(data, at):  # type: ignore[no-untyped-def]
    """Return eight bytes as a little-endian number."""
    bits = np.uint64(0)
    for i in range(8):
        bits |= np.uint64(data[at + i]) << np.uint64(8 * i)
    return np.int64(bits)


@njit(cache=True, nogil=True)
def _field(data, at, stop):  # type: ignore[no-untyped-def]
    """Return a field's number and kind, its value or where that begins, and where it ends.

    The number is 0 for doubt; places are within ``stop`` otherwise.
    """
    tag, at = _number(data, at, stop)
    kind = tag & 7
    if kind == _VARINT:
        value, end = _number(data, at, stop)
    elif kind == _FIXED64:
        value, end = at, at + 8
    elif kind == _BYTES:
        size, value = _number(data, at, stop)
        end = value + size
        if not value <= end:
            end = stop + 1
    else:
        value, end = at, stop + 1
    if not at < end <= stop:
        return np.int64(0), kind, at, stop + 1
    return tag >> 3, kind, value, end


@njit(cache=True, nogil=True)
def _instant(data, at, stop):  # type: ignore[no-untyped-def]
    """Return seconds and nanoseconds of a Timestamp or a Duration."""
    seconds, nanos = np.int64(0), np.int64(0)
    while at < stop:
        number, _, value, at = _field(data, at, stop)
        if number == 1:
            seconds = value
        elif number == 2:
            nanos = value
    return seconds, nanos


@njit(cache=True, nogil=True)
def _words(data, at, stop, most, row):  # type: ignore[no-untyped-def]
    """Take numbers of eight bytes each; return whether there are at most ``most``."""
    row[0] = (stop - at) // 8
    if row[0] > most:
        return False
    for i in range(row[0]):
        row[1 + i] = _word(data, at + 8 * i)
    return True


@njit(cache=True, nogil=True)
def _take(data, first, field, plan, row):  # type: ignore[no-untyped-def]
    """Take a field in, by its plan; return whether it is as planned."""
    start, value, end = field
    column, how = plan
    if how == _How.NUMBER:
        row[column] = value
    elif how == _How.WORD:
        row[column] = _word(data, value)
    elif how == _How.SPAN:
        row[column], row[column + 1] = value - first, end - first
    elif how == _How.WHOLE:
        if row[column + 1] == 0:
            row[column] = start - first
        row[column + 1] = end - first
    elif how == _How.INSTANT_NS:
        seconds, nanos = _instant(data, value, end)
        row[column] = seconds * 1_000_000_000 + nanos
    elif how == _How.WORDS_64:
        return _words(data, value, end, _ENTITIES, row[column:])
    return True


@njit(cache=True, nogil=True)
def _read_part(data, at, stop, first, message, row):  # type: ignore[no-untyped-def]
    """Take in the fields of one message; return where its Assessment is, and -1 for doubt."""
    inner, inner_end = np.int64(0), np.int64(0)
    while at < stop:
        start = at
        number, kind, value, at = _field(data, at, stop)
        if not 0 < number < _NUMBERS:
            return np.int64(-1), stop
        if message != _ASSESSMENT and number == 1:
            if kind != _BYTES:
                return np.int64(-1), stop
            inner, inner_end = value, at
        plan = (_PLAN[message, number, 0], _PLAN[message, number, 1])
        if _KINDS[plan[1]] not in (_ANY, kind):
            return np.int64(-1), stop
        if not _take(data, first, (start, value, at), plan, row):
            return np.int64(-1), stop
    return inner, inner_end


@njit(cache=True, nogil=True)
def _read(data, first, stop, row):  # type: ignore[no-untyped-def]
    at, end = _read_part(data, first, stop, first, 0, row)
    if at < 0:
        return False
    at, end = _read_part(data, at, end, first, _ASSESSMENT, row)
    row[Told.RECEIVED_MS] //= 1_000_000
    return at >= 0


@njit(cache=True, nogil=True)
def _read_all(data, starts, lengths, rows):  # type: ignore[no-untyped-def]
    for i in range(len(starts)):
        rows[i] = 0
        rows[i, Told.IS_READ] = _read(data, starts[i], starts[i] + lengths[i], rows[i])


def read_told(
    data: NDArray[np.uint8], starts: NDArray[np.int64], lengths: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return int64[n, Told.COLUMNS] for the decisions that stand in ``data``."""
    rows = np.empty((len(starts), Told.COLUMNS), np.int64)
    _read_all(data, starts, lengths, rows)
    return rows


@lru_cache(maxsize=256)
def decided_by(fields: bytes) -> tuple[str, str, str]:
    """Return schema, model and policy version from those fields of an Assessment."""
    made = decision_pb2.Assessment.FromString(fields)
    return made.schema_version, made.model_version, made.policy_version
