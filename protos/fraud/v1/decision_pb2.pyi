import datetime

from fraud.v1 import transaction_pb2 as _transaction_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTCOME_UNSPECIFIED: _ClassVar[Outcome]
    OUTCOME_APPROVE: _ClassVar[Outcome]
    OUTCOME_REVIEW: _ClassVar[Outcome]
    OUTCOME_DECLINE: _ClassVar[Outcome]

class ReasonSource(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REASON_SOURCE_UNSPECIFIED: _ClassVar[ReasonSource]
    REASON_SOURCE_RULE: _ClassVar[ReasonSource]
    REASON_SOURCE_MODEL: _ClassVar[ReasonSource]
    REASON_SOURCE_LIST: _ClassVar[ReasonSource]
    REASON_SOURCE_FALLBACK: _ClassVar[ReasonSource]

class Rung(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RUNG_UNSPECIFIED: _ClassVar[Rung]
    RUNG_FULL: _ClassVar[Rung]
    RUNG_PARTIAL: _ClassVar[Rung]
    RUNG_RULES_ONLY: _ClassVar[Rung]

class RungCause(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RUNG_CAUSE_UNSPECIFIED: _ClassVar[RungCause]
    RUNG_CAUSE_STATE_STALE: _ClassVar[RungCause]
    RUNG_CAUSE_STATE_UNAVAILABLE: _ClassVar[RungCause]
    RUNG_CAUSE_DEADLINE: _ClassVar[RungCause]
    RUNG_CAUSE_NO_MODEL: _ClassVar[RungCause]
OUTCOME_UNSPECIFIED: Outcome
OUTCOME_APPROVE: Outcome
OUTCOME_REVIEW: Outcome
OUTCOME_DECLINE: Outcome
REASON_SOURCE_UNSPECIFIED: ReasonSource
REASON_SOURCE_RULE: ReasonSource
REASON_SOURCE_MODEL: ReasonSource
REASON_SOURCE_LIST: ReasonSource
REASON_SOURCE_FALLBACK: ReasonSource
RUNG_UNSPECIFIED: Rung
RUNG_FULL: Rung
RUNG_PARTIAL: Rung
RUNG_RULES_ONLY: Rung
RUNG_CAUSE_UNSPECIFIED: RungCause
RUNG_CAUSE_STATE_STALE: RungCause
RUNG_CAUSE_STATE_UNAVAILABLE: RungCause
RUNG_CAUSE_DEADLINE: RungCause
RUNG_CAUSE_NO_MODEL: RungCause

class Assessment(_message.Message):
    __slots__ = ("outcome", "score", "reasons", "rung", "rung_cause", "model_version", "policy_version", "schema_version", "decision_id", "trace_id", "time_used")
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    RUNG_FIELD_NUMBER: _ClassVar[int]
    RUNG_CAUSE_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    TIME_USED_FIELD_NUMBER: _ClassVar[int]
    outcome: Outcome
    score: float
    reasons: _containers.RepeatedCompositeFieldContainer[Reason]
    rung: Rung
    rung_cause: RungCause
    model_version: str
    policy_version: str
    schema_version: str
    decision_id: str
    trace_id: str
    time_used: _duration_pb2.Duration
    def __init__(self, outcome: _Optional[_Union[Outcome, str]] = ..., score: _Optional[float] = ..., reasons: _Optional[_Iterable[_Union[Reason, _Mapping]]] = ..., rung: _Optional[_Union[Rung, str]] = ..., rung_cause: _Optional[_Union[RungCause, str]] = ..., model_version: _Optional[str] = ..., policy_version: _Optional[str] = ..., schema_version: _Optional[str] = ..., decision_id: _Optional[str] = ..., trace_id: _Optional[str] = ..., time_used: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Reason(_message.Message):
    __slots__ = ("code", "source", "contribution", "value", "norm", "text")
    CODE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    NORM_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    code: str
    source: ReasonSource
    contribution: float
    value: float
    norm: float
    text: str
    def __init__(self, code: _Optional[str] = ..., source: _Optional[_Union[ReasonSource, str]] = ..., contribution: _Optional[float] = ..., value: _Optional[float] = ..., norm: _Optional[float] = ..., text: _Optional[str] = ...) -> None: ...

class Decision(_message.Message):
    __slots__ = ("assessment", "transaction", "features", "contributions", "entity_versions", "log_position", "receive_time", "logit", "traceparent", "scorer", "expert_logit", "step_ns", "shared")
    ASSESSMENT_FIELD_NUMBER: _ClassVar[int]
    TRANSACTION_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    ENTITY_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    LOG_POSITION_FIELD_NUMBER: _ClassVar[int]
    RECEIVE_TIME_FIELD_NUMBER: _ClassVar[int]
    LOGIT_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    SCORER_FIELD_NUMBER: _ClassVar[int]
    EXPERT_LOGIT_FIELD_NUMBER: _ClassVar[int]
    STEP_NS_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    assessment: Assessment
    transaction: _transaction_pb2.Transaction
    features: bytes
    contributions: bytes
    entity_versions: _containers.RepeatedScalarFieldContainer[int]
    log_position: int
    receive_time: _timestamp_pb2.Timestamp
    logit: float
    traceparent: str
    scorer: str
    expert_logit: float
    step_ns: _containers.RepeatedScalarFieldContainer[int]
    shared: Shared
    def __init__(self, assessment: _Optional[_Union[Assessment, _Mapping]] = ..., transaction: _Optional[_Union[_transaction_pb2.Transaction, _Mapping]] = ..., features: _Optional[bytes] = ..., contributions: _Optional[bytes] = ..., entity_versions: _Optional[_Iterable[int]] = ..., log_position: _Optional[int] = ..., receive_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., logit: _Optional[float] = ..., traceparent: _Optional[str] = ..., scorer: _Optional[str] = ..., expert_logit: _Optional[float] = ..., step_ns: _Optional[_Iterable[int]] = ..., shared: _Optional[_Union[Shared, _Mapping]] = ...) -> None: ...

class Shared(_message.Message):
    __slots__ = ("number", "arrive_time", "items", "items_left", "step_ns")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    ARRIVE_TIME_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    ITEMS_LEFT_FIELD_NUMBER: _ClassVar[int]
    STEP_NS_FIELD_NUMBER: _ClassVar[int]
    number: int
    arrive_time: _timestamp_pb2.Timestamp
    items: int
    items_left: int
    step_ns: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, number: _Optional[int] = ..., arrive_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., items: _Optional[int] = ..., items_left: _Optional[int] = ..., step_ns: _Optional[_Iterable[int]] = ...) -> None: ...
