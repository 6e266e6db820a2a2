"""Writes an Assessment and the Decision around it as protobuf bytes, in one kernel call.

Owns the wire form of an answer; must not know why it is what it is. The bytes are those that
serialising the parsed message deterministically gives again, which a test holds them against:
building the messages and serialising them costs 60 µs, and this 4. Field numbers are those of
fraud/v1/decision.proto; https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from fraud.v1 import decision_pb2
from numba import njit
from numpy.typing import NDArray

from featurizer.features import FEATURES, INDEX
from featurizer.hashing import PAYLOAD_BITS, payload_of
from featurizer.memory import move
from featurizer.records import Entity
from fraudsvc.wire.put import put_all, put_digits, put_double, put_instant, put_varint, put_word

REASONS_MAX = 4
# A row's figures: the logit, the probability, the part of the logit that the expert added; when
# view and model were done, and when its turn among others came, ns of the monotonic clock.
FIGURES = 6
# A row's parts: each feature's contribution, the expert's boost, each feature's share of that.
PARTS = 2 * len(FEATURES) + 1
GAP = 8  # room before an Assessment for its own head
_BILLION = 1_000_000_000


class Draft(NamedTuple):
    """A decision before it is named: what the policy said of what the model said.

    ``reasons`` are the policy's, as fields of an Assessment; ``versions`` its fields 6 to 8;
    ``model_reasons`` how many bytes the workspace's reasons are, -1 where no model was asked.
    """

    outcome: int
    rung: int
    cause: int
    reasons: bytes
    versions: bytes
    model_reasons: int


class Stamp(NamedTuple):
    """What the shell adds to a decision.

    The hash of its request; the trace id, 32 hexadecimal digits, b"" for a new one; the log's
    position; the time of receipt in ms since 1970 and the time used in ns; ``origin``, the last
    fields of a Decision (see ``origin_of``). ``named`` is false for a decision that is not kept.
    When the call arrived, was accepted and had its states, ns of the monotonic clock; 0 for
    steps that are not told. ``shared`` is the field of that name of decisions of one go, whose
    steps are counted from its arrival.
    """

    request: int
    trace_id: bytes
    log_position: int
    receive_time_ms: int
    used_ns: int
    origin: bytes
    named: bool
    arrival_ns: int = 0
    accepted_ns: int = 0
    loaded_ns: int = 0
    shared: bytes = b""


def field(tag: bytes, value: bytes) -> bytes:
    """Return a field with a length of its own: a message, a text or bytes."""
    size = len(value)
    if size < 1 << 7:
        return b"%b%c%b" % (tag, size, value)
    if size < 1 << 14:
        return b"%b%c%c%b" % (tag, size & 127 | 128, size >> 7, value)
    head = bytearray(tag)
    while size > 127:
        head.append(size & 127 | 128)
        size >>= 7
    head.append(size)
    return bytes(head) + value


@lru_cache(maxsize=256)
def versions_of(model_version: str, policy_version: str, schema_version: str) -> bytes:
    """Return an Assessment's fields 6 to 8."""
    return decision_pb2.Assessment(
        model_version=model_version, policy_version=policy_version, schema_version=schema_version
    ).SerializeToString(deterministic=True)


@lru_cache(maxsize=256)
def origin_of(traceparent: str, scorer: str) -> bytes:
    """Return a Decision's fields 9 and 10."""
    made = decision_pb2.Decision(traceparent=traceparent, scorer=scorer)
    return made.SerializeToString(deterministic=True)


@njit(cache=True)
def _put_decision_id(out, at, request, payload):  # type: ignore[no-untyped-def]
    """Write the field of the id that hashing.decision_id makes."""
    hashed = np.uint64(request)
    low = ((hashed & np.uint64(15)) << np.uint64(PAYLOAD_BITS)) | (
        np.uint64(payload) & np.uint64((1 << PAYLOAD_BITS) - 1)
    )
    low |= np.uint64(1 << 63)
    high = (hashed >> np.uint64(16)) << np.uint64(16) | np.uint64(0x8000)
    high |= (hashed >> np.uint64(4)) & np.uint64(0xFFF)
    out[at], out[at + 1] = 0x4A, 36
    at = put_digits(out, at + 2, high, 0, 8)
    for start in (8, 12):
        out[at] = 0x2D
        at = put_digits(out, at + 1, high, start, start + 4)
    out[at] = 0x2D
    at = put_digits(out, at + 1, low, 0, 4)
    out[at] = 0x2D
    return put_digits(out, at + 1, low, 4, 16)


@njit(cache=True)
def _new_trace_id(state):  # type: ignore[no-untyped-def]
    """Return the next two numbers of SplitMix64 (Steele, Lea and Flood, 2014), not both 0."""
    found = np.empty(2, np.uint64)
    for i in range(2):
        state[0] += np.uint64(0x9E3779B97F4A7C15)
        x = state[0]
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        found[i] = x ^ (x >> np.uint64(31))
    return found[0], found[1] | np.uint64(1)


@njit(cache=True)
def put_step(out, at, ns):  # type: ignore[no-untyped-def]
    """Write how long after the arrival a step ended; return where that ends."""
    word = min(max(ns, 0), (1 << 32) - 1)
    for i in range(4):
        out[at + i] = (word >> (8 * i)) & 255
    return at + 4


@njit(cache=True)
def _put_end(out, at, figures, origin, known, steps):  # type: ignore[no-untyped-def]
    """Write a Decision's fields 8 to 12; ``figures`` only where they are known."""
    if known:
        at = put_double(out, at, 0x41, figures[0])
    at = put_all(out, at, origin, 0, len(origin))
    if known and figures[2] > 0.0:
        at = put_double(out, at, 0x59, figures[2])
    arrival, accepted, loaded = steps
    if arrival == 0:
        return at
    out[at], out[at + 1] = 0x62, 16 if known else 8
    at = put_step(out, put_step(out, at + 2, accepted - arrival), loaded - arrival)
    if known:
        at = put_step(out, at, np.int64(figures[3]) - arrival)
        at = put_step(out, at, np.int64(figures[4]) - arrival)
    return at


@njit(cache=True)
def write_decision(  # type: ignore[no-untyped-def]
    out, data, body, model, figures, reasons, versions, trace, origin, key, state, numbers
):
    """Write the Decision; return where it begins and ends, and where its Assessment does.

    ``data`` is the transaction, ``model`` the model's reasons; ``numbers`` are those of Draft and
    Stamp in the order in which ``Writer.write`` gives them.
    """
    outcome, rung, cause, model_size, request, position, received_ms, used_ns, named = numbers[:9]
    at = GAP
    out[at], out[at + 1] = 0x08, outcome
    at += 2
    if model_size >= 0:
        at = put_double(out, at, 0x11, figures[1])
    at = put_all(out, at, reasons, 0, len(reasons))
    if model_size > 0:
        at = put_all(out, at, model, 0, model_size)
    out[at], out[at + 1] = 0x20, rung
    at += 2
    if cause:
        out[at], out[at + 1] = 0x28, cause
        at += 2
    at = put_all(out, at, versions, 0, len(versions))
    if named:
        at = _put_decision_id(out, at, request, payload_of(data, key))
    out[at], out[at + 1] = 0x52, 32
    if len(trace) == 32:
        at = put_all(out, at + 2, trace, 0, 32)
    else:
        high, low = _new_trace_id(state)
        at = put_digits(out, put_digits(out, at + 2, high, 0, 16), low, 0, 16)
    assessed = put_instant(out, at, 0x5A, used_ns // _BILLION, used_ns % _BILLION)
    begin = GAP - 2 - (assessed - GAP > 127) - (assessed - GAP > 16_383)
    out[begin] = 0x0A
    put_varint(out, begin + 1, assessed - GAP)
    out[assessed] = 0x12
    at = put_varint(out, assessed + 1, len(data))
    at = put_all(out, at, data, 0, len(data))
    if model_size >= 0:
        move(out, at, body, 0, len(body))
        at += len(body)
    if position:
        at = put_word(out, at, 0x31, position)
    at = put_instant(out, at, 0x3A, received_ms // 1000, received_ms % 1000 * 1_000_000)
    return begin, _put_end(out, at, figures, origin, model_size >= 0, numbers[9:]), assessed


class Writer:
    """Memory for one Decision at a time.

    ``key`` uint64[2] is the hasher's, ``seed`` where new trace ids begin (0 to 2**64 - 1).
    """

    def __init__(self, key: NDArray[np.uint64], seed: int) -> None:
        self._out = np.zeros(1 << 16, np.uint8)
        self._key = key
        self._trace_state = np.array([seed], np.uint64)

    def memory(self, texts_bytes: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Return what ``write_decision`` calls out, key and state, for texts of so many bytes."""
        needed = texts_bytes + FIXED_BYTES
        if needed > len(self._out):
            self._out = np.zeros(2 * needed, np.uint8)
        return self._out, self._key, self._trace_state

    def write(
        self,
        draft: Draft,
        stamp: Stamp,
        transaction: bytes,
        body: NDArray[np.uint8],
        model_reasons: NDArray[np.uint8],
        figures: NDArray[np.float64],
    ) -> tuple[bytes, bytes]:
        """Return the Decision's bytes, and those of the Assessment in it.

        ``transaction`` are its bytes, the arrays the workspace's that the draft was made in.
        """
        out, key, state = self.memory(len(transaction) + len(draft.reasons) + len(stamp.origin))
        begin, end, assessed = write_decision(
            out, transaction, body, model_reasons, figures, draft.reasons, draft.versions,
            stamp.trace_id, stamp.origin, key, state,
            (
                draft.outcome, draft.rung, draft.cause, draft.model_reasons, stamp.request,
                stamp.log_position, stamp.receive_time_ms, stamp.used_ns, stamp.named,
                stamp.arrival_ns, stamp.accepted_ns, stamp.loaded_ns,
            ),
        )  # fmt: skip
        return out[begin:end].tobytes(), out[GAP:assessed].tobytes()


# A Decision's fields 3 to 5: where their values stand, and the bytes that never change.
VECTOR_BYTES, VERSIONS_BYTES = 4 * len(FEATURES), 8 * len(Entity)
_PARTS = ((b"\x1a", VECTOR_BYTES), (b"\x22", VECTOR_BYTES), (b"\x2a", VERSIONS_BYTES))
_FIELDS = [field(tag, bytes(size)) for tag, size in _PARTS]
EMPTY_BODY = b"".join(_FIELDS)
VECTOR_AT = len(_FIELDS[0]) - VECTOR_BYTES
CONTRIBUTIONS_AT = len(_FIELDS[0]) + len(_FIELDS[1]) - VECTOR_BYTES
VERSIONS_AT = len(EMPTY_BODY) - VERSIONS_BYTES


@njit(cache=True)
def write_body(vector, parts, versions, body):  # type: ignore[no-untyped-def]
    """Fill ``body`` uint8[n], which began as EMPTY_BODY."""
    logged = parts[: len(vector)].astype(np.float32)
    move(body, VECTOR_AT, vector.view(np.uint8), 0, VECTOR_BYTES)
    move(body, CONTRIBUTIONS_AT, logged.view(np.uint8), 0, VECTOR_BYTES)
    move(body, VERSIONS_AT, versions.view(np.uint8), 0, VERSIONS_BYTES)


def _reason_texts() -> list[bytes]:
    """Return, part by part, what stands before and after the numbers of its reason."""
    texts = []
    for prefix in ("", "EXPERT_"):
        for each in FEATURES:
            before = decision_pb2.Reason(
                code=prefix + each.name.upper(), source=decision_pb2.REASON_SOURCE_MODEL
            )
            after = decision_pb2.Reason(text=f"{each.entity}: {each.meaning}")
            texts += [before.SerializeToString(), after.SerializeToString()]
        if not prefix:
            texts += [b"", b""]  # the boost itself is no reason
    return texts


_REASON_TEXTS = _reason_texts()
_TEXTS = np.frombuffer(b"".join(_REASON_TEXTS), np.uint8)
_ENDS = np.cumsum([0, *map(len, _REASON_TEXTS)])
# Where in the vector the norm of each feature is, -1 for none.
_NORMS = np.array([INDEX[f.norm] if f.norm else -1 for f in FEATURES], np.int64)
REASONS_BYTES_MAX = REASONS_MAX * (3 + 3 * 9 + 2 * max(map(len, _REASON_TEXTS)))
# What a Decision has beside texts of any length.
FIXED_BYTES = len(EMPTY_BODY) + REASONS_BYTES_MAX + 512


@njit(cache=True)
def write_reasons(strongest, parts, vector, out):  # type: ignore[no-untyped-def]
    """Write a reason for each part in ``strongest`` (until -1) as fields 3 of an Assessment.

    ``out`` is uint8[REASONS_BYTES_MAX]. Returns how many bytes they are.
    """
    at = 0
    for part in strongest:
        if part < 0:
            break
        feature = part % (len(vector) + 1)
        norm = np.nan
        if _NORMS[feature] >= 0:
            norm = np.float64(vector[_NORMS[feature]])
        start = at + 3  # the usual length takes two bytes
        end = put_all(out, start, _TEXTS, _ENDS[2 * part], _ENDS[2 * part + 1])
        end = put_double(out, end, 0x19, parts[part])
        end = put_double(out, end, 0x21, np.float64(vector[feature]))
        end = put_double(out, end, 0x29, norm)
        end = put_all(out, end, _TEXTS, _ENDS[2 * part + 1], _ENDS[2 * part + 2])
        out[at] = 0x1A
        first = put_varint(out, at + 1, end - start)
        at = put_all(out, first, out, start, end) if first < start else end
    return at
