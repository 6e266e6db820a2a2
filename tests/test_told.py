"""What decisions say, read from their bytes: as the parser reads them, and no broken one harms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from fraud.v1 import decision_pb2
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from featurizer.records import Entity
from fraudsvc.replay.told import Told, decided_by, read_told

WORDS = st.integers(0, (1 << 63) - 1)
NANOS = st.lists(st.integers(0, (1 << 32) - 1), max_size=5)
TEXTS = st.text(max_size=20)
OUTCOMES = st.sampled_from([decision_pb2.OUTCOME_UNSPECIFIED, decision_pb2.OUTCOME_DECLINE])
RUNGS = st.sampled_from([decision_pb2.RUNG_UNSPECIFIED, decision_pb2.RUNG_PARTIAL])
CAUSES = st.sampled_from(
    [decision_pb2.RUNG_CAUSE_UNSPECIFIED, decision_pb2.RUNG_CAUSE_STATE_UNAVAILABLE]
)


def told_of(values: Sequence[bytes]) -> NDArray[np.int64]:
    """Return what decisions say, int64[n, Told.COLUMNS]."""
    lengths = np.array([len(value) for value in values], np.int64)
    data = np.frombuffer(b"".join(values), np.uint8)
    return read_told(data, np.cumsum(lengths) - lengths, lengths)


@st.composite
def made(draw: st.DrawFn) -> decision_pb2.Decision:
    """Draw a decision with any of its fields."""
    decision = decision_pb2.Decision(
        features=draw(st.binary(max_size=40)), contributions=draw(st.binary(max_size=20)),
        log_position=draw(WORDS), traceparent=draw(TEXTS), scorer=draw(TEXTS),
        entity_versions=draw(st.lists(WORDS, max_size=len(Entity))),
        step_ns=draw(NANOS),
    )  # fmt: skip
    if draw(st.booleans()):
        decision.shared.number, decision.shared.items = draw(WORDS), draw(st.integers(0, 9_000))
        decision.shared.step_ns.extend(draw(NANOS))
    decision.transaction.transaction_id = draw(TEXTS)
    decision.receive_time.FromMilliseconds(draw(st.integers(0, 1 << 42)))
    assessment = decision.assessment
    assessment.outcome = draw(OUTCOMES)
    assessment.rung = draw(RUNGS)
    assessment.rung_cause = draw(CAUSES)
    assessment.model_version, assessment.policy_version = draw(TEXTS), draw(TEXTS)
    assessment.schema_version, assessment.trace_id = draw(TEXTS), draw(TEXTS)
    assessment.time_used.FromNanoseconds(draw(st.integers(0, 1 << 50)))
    if draw(st.booleans()):
        decision.logit = assessment.score = draw(st.floats(allow_nan=False))
    for text in draw(st.lists(TEXTS, max_size=3)):
        assessment.reasons.add(code="CODE", text=text)
    return decision


@given(st.lists(made(), min_size=1, max_size=4))
def test_what_is_read_is_what_the_parser_reads(decisions: list[decision_pb2.Decision]) -> None:
    values = [each.SerializeToString(deterministic=True) for each in decisions]

    for row, value, decision in zip(told_of(values), values, decisions, strict=True):
        assessment = decision.assessment
        assert row[Told.IS_READ] == 1
        assert row[Told.LOG_POSITION] == decision.log_position
        assert row[Told.RECEIVED_MS] == decision.receive_time.ToMilliseconds()
        assert row[Told.RUNG] == assessment.rung
        assert row[Told.CAUSE] == assessment.rung_cause
        assert row[Told.USED_NS] == assessment.time_used.ToNanoseconds()
        assert row[Told.OUTCOME] == assessment.outcome
        assert value[row[Told.TRANSACTION] : row[Told.TRANSACTION_END]] == (
            decision.transaction.SerializeToString()
        )
        assert value[row[Told.FEATURES] : row[Told.FEATURES_END]] == decision.features
        assert value[row[Told.TRACE] : row[Told.TRACE_END]] == assessment.trace_id.encode()
        origin = decision_pb2.Decision.FromString(value[row[Told.ORIGIN] : row[Told.ORIGIN_END]])
        assert (origin.traceparent, origin.scorer) == (decision.traceparent, decision.scorer)
        assert decided_by(value[row[Told.BY] : row[Told.BY_END]]) == (
            assessment.schema_version, assessment.model_version, assessment.policy_version,
        )  # fmt: skip
        timed = decision_pb2.Decision.FromString(value[row[Told.STEPS] : row[Told.STEPS_END]])
        assert (timed.step_ns, timed.shared) == (decision.step_ns, decision.shared)
        versions = row[Told.FIRST_VERSION :][: row[Told.VERSIONS]]
        assert versions.tolist() == list(decision.entity_versions)


@given(made(), st.data())
def test_a_broken_decision_is_in_doubt_or_has_its_places_within(
    decision: decision_pb2.Decision, data: st.DataObject
) -> None:
    value = bytearray(decision.SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        if value:
            value[data.draw(st.integers(0, len(value) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(value[: data.draw(st.integers(0, len(value)))])

    row = told_of([b"\xff" * 64, cut, b"\xff" * 64])[1]

    if row[Told.IS_READ]:
        for start in (
            Told.BY, Told.TRANSACTION, Told.FEATURES, Told.TRACE, Told.ORIGIN, Told.STEPS,
        ):  # fmt: skip
            assert 0 <= row[start] <= row[start + 1] <= len(cut)
        assert 0 <= row[Told.VERSIONS] <= len(Entity)


@given(st.binary(max_size=60))
def test_bytes_that_are_no_decision_are_read_without_harm(value: bytes) -> None:
    row = told_of([value])[0]
    if row[Told.IS_READ]:
        assert (row[[Told.TRANSACTION_END, Told.FEATURES_END, Told.TRACE_END]] <= len(value)).all()


def test_a_number_where_a_place_is_expected_is_in_doubt() -> None:
    """A varint must not be taken for a place in the bytes."""
    for field in (1, 2, 3, 5, 6, 7, 9, 10, 12, 13):
        value = bytes([field << 3, 0xFF, 0xFF, 0xFF, 0x7F])
        assert told_of([value])[0, Told.IS_READ] == 0
