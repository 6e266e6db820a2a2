"""What differs between a decision on the log and the same one made again, field by field.

Owns the names of what differs and what that points to. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from fraud.v1 import decision_pb2
from google.protobuf.message import Message

from featurizer.features import NAMES
from featurizer.records import Entity

DIFFERENCES_MAX = 512  # of one decision; a whole other vector has as many


class Difference(NamedTuple):
    """A field with the value that was logged and the one that was made; ``bits`` that differ."""

    field: str
    logged: str
    made: str
    bits: int


OTHER_STATES = "the log does not give the states that were decided on"
OF_SEVERAL_HOSTS = "its states were shared by several hosts: replay with --log kafka://..."
_OTHER_FEATURES = "another kernel: it makes other features of the same states"
_OTHER_MARKS = "another kernel: the marks on the record differ"
STATE_CAUSES = (OTHER_STATES, _OTHER_FEATURES, _OTHER_MARKS)
# What the first field that differs, in the order in which things are made, points to.
_CAUSES = (
    ("decision_id", "another id secret"),
    ("entity_versions", OTHER_STATES),
    ("record", _OTHER_MARKS),
    ("features", _OTHER_FEATURES),
    ("contributions", "another evaluation of the model: vector and bundle are the same"),
    ("logit", "another evaluation of the model: vector and bundle are the same"),
    ("expert_logit", "another evaluation of the model: vector and bundle are the same"),
    ("score", "another calibration: logit and bundle are the same"),
    ("reasons", "another reading of the policy: score and policy are the same"),
    ("outcome", "another reading of the policy: score and policy are the same"),
)
_OTHER = "another form of the decision: all that was decided is the same"


def cause_of(found: Sequence[Difference]) -> str:
    """Return what the differences point to."""
    fields = {each.field.partition(".")[0].partition("[")[0] for each in found}
    return next((cause for name, cause in _CAUSES if name in fields), _OTHER)


def differences(
    logged: decision_pb2.Decision, made: decision_pb2.Decision
) -> tuple[Difference, ...]:
    """Return what differs, with names of features and entities."""
    found: list[Difference] = []
    for name in ("features", "contributions"):
        found += _packed(name, getattr(logged, name), getattr(made, name))
    pairs = zip(Entity, logged.entity_versions, made.entity_versions, strict=False)
    found += [
        Difference(f"entity_versions.{entity.name.lower()}", str(a), str(b), (a ^ b).bit_count())
        for entity, a, b in pairs
        if a != b
    ]
    found += _fields("", _without_arrays(logged), _without_arrays(made))
    return tuple(found[:DIFFERENCES_MAX])


def _without_arrays(decision: decision_pb2.Decision) -> decision_pb2.Decision:
    rest = decision_pb2.Decision()
    rest.CopyFrom(decision)
    for name in ("features", "contributions", "entity_versions"):
        rest.ClearField(name)
    return rest


def _packed(name: str, logged: bytes, made: bytes) -> Iterator[Difference]:
    if len(logged) != len(made):
        yield Difference(name, f"{len(logged)} bytes", f"{len(made)} bytes", 0)
        return
    before, after = np.frombuffer(logged, "<u4"), np.frombuffer(made, "<u4")
    for place in np.flatnonzero(before != after).tolist():
        words = int(before[place]), int(after[place])
        values = [float(each.view(np.float32)[place]) for each in (before, after)]
        feature = NAMES[place] if place < len(NAMES) else str(place)
        yield Difference(
            f"{name}.{feature}", repr(values[0]), repr(values[1]), (words[0] ^ words[1]).bit_count()
        )


def _fields(prefix: str, logged: Any, made: Any) -> Iterator[Difference]:
    """Yield the fields of two messages of one type that differ."""
    for field in logged.DESCRIPTOR.fields:
        before, after = getattr(logged, field.name), getattr(made, field.name)
        name = f"{prefix}{field.name}"
        if isinstance(before, Message):
            yield from _fields("" if name == "assessment" else f"{name}.", before, after)
        elif field.is_repeated:
            yield from _repeated(name, list(before), list(after))
        elif before != after or (
            field.has_presence and logged.HasField(field.name) != made.HasField(field.name)
        ):
            yield Difference(name, _text(field, before), _text(field, after), _bits(before, after))


def _repeated(name: str, before: list[Any], after: list[Any]) -> Iterator[Difference]:
    for place in range(max(len(before), len(after))):
        old, new = (each[place] if place < len(each) else None for each in (before, after))
        if old is not None and new is not None and isinstance(old, Message):
            yield from _fields(f"{name}[{place}].", old, new)
        elif old != new:
            yield Difference(f"{name}[{place}]", _short(old), _short(new), 0)


def _short(value: Any) -> str:
    return "none" if value is None else str(value).replace("\n", " ").strip()


def _text(field: Any, value: Any) -> str:
    if field.enum_type is not None:
        return str(field.enum_type.values_by_number[value].name)
    return repr(value)


def _bits(before: Any, after: Any) -> int:
    """Return how many bits of a number differ; 0 for what is no number."""
    if isinstance(before, float):
        words = np.array([before, after]).view(np.uint64).tolist()
        return int(words[0] ^ words[1]).bit_count()
    if isinstance(before, int) and not isinstance(before, bool):
        return int(before ^ after).bit_count()
    return 0
