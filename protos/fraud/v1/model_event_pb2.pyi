import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ModelChange(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODEL_CHANGE_UNSPECIFIED: _ClassVar[ModelChange]
    MODEL_CHANGE_PROMOTED: _ClassVar[ModelChange]
    MODEL_CHANGE_REFUSED: _ClassVar[ModelChange]
    MODEL_CHANGE_ROLLED_BACK: _ClassVar[ModelChange]
    MODEL_CHANGE_PINNED: _ClassVar[ModelChange]
    MODEL_CHANGE_UNPINNED: _ClassVar[ModelChange]
    MODEL_CHANGE_CANARY: _ClassVar[ModelChange]
    MODEL_CHANGE_LEARNING_STOPPED: _ClassVar[ModelChange]
    MODEL_CHANGE_LEARNING_RESUMED: _ClassVar[ModelChange]
    MODEL_CHANGE_ALARMED: _ClassVar[ModelChange]
    MODEL_CHANGE_REPORTER_DISTRUSTED: _ClassVar[ModelChange]
    MODEL_CHANGE_REPORTER_TRUSTED: _ClassVar[ModelChange]
    MODEL_CHANGE_MEASURED: _ClassVar[ModelChange]
    MODEL_CHANGE_LOADED: _ClassVar[ModelChange]
MODEL_CHANGE_UNSPECIFIED: ModelChange
MODEL_CHANGE_PROMOTED: ModelChange
MODEL_CHANGE_REFUSED: ModelChange
MODEL_CHANGE_ROLLED_BACK: ModelChange
MODEL_CHANGE_PINNED: ModelChange
MODEL_CHANGE_UNPINNED: ModelChange
MODEL_CHANGE_CANARY: ModelChange
MODEL_CHANGE_LEARNING_STOPPED: ModelChange
MODEL_CHANGE_LEARNING_RESUMED: ModelChange
MODEL_CHANGE_ALARMED: ModelChange
MODEL_CHANGE_REPORTER_DISTRUSTED: ModelChange
MODEL_CHANGE_REPORTER_TRUSTED: ModelChange
MODEL_CHANGE_MEASURED: ModelChange
MODEL_CHANGE_LOADED: ModelChange

class ModelEvent(_message.Message):
    __slots__ = ("change", "model_version", "previous_version", "event_time", "author", "reason", "gates", "alarms", "figures", "share", "learning")
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_VERSION_FIELD_NUMBER: _ClassVar[int]
    EVENT_TIME_FIELD_NUMBER: _ClassVar[int]
    AUTHOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    GATES_FIELD_NUMBER: _ClassVar[int]
    ALARMS_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    LEARNING_FIELD_NUMBER: _ClassVar[int]
    change: ModelChange
    model_version: str
    previous_version: str
    event_time: _timestamp_pb2.Timestamp
    author: str
    reason: str
    gates: _containers.RepeatedCompositeFieldContainer[GateResult]
    alarms: _containers.RepeatedCompositeFieldContainer[Alarm]
    figures: _containers.RepeatedCompositeFieldContainer[Figure]
    share: float
    learning: Learning
    def __init__(self, change: _Optional[_Union[ModelChange, str]] = ..., model_version: _Optional[str] = ..., previous_version: _Optional[str] = ..., event_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., author: _Optional[str] = ..., reason: _Optional[str] = ..., gates: _Optional[_Iterable[_Union[GateResult, _Mapping]]] = ..., alarms: _Optional[_Iterable[_Union[Alarm, _Mapping]]] = ..., figures: _Optional[_Iterable[_Union[Figure, _Mapping]]] = ..., share: _Optional[float] = ..., learning: _Optional[_Union[Learning, _Mapping]] = ...) -> None: ...

class Learning(_message.Message):
    __slots__ = ("start_time", "end_time", "from_position", "until_position", "layers")
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    FROM_POSITION_FIELD_NUMBER: _ClassVar[int]
    UNTIL_POSITION_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    from_position: int
    until_position: int
    layers: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., from_position: _Optional[int] = ..., until_position: _Optional[int] = ..., layers: _Optional[_Iterable[str]] = ...) -> None: ...

class GateResult(_message.Message):
    __slots__ = ("name", "value", "limit", "passed")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    PASSED_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: float
    limit: float
    passed: bool
    def __init__(self, name: _Optional[str] = ..., value: _Optional[float] = ..., limit: _Optional[float] = ..., passed: bool = ...) -> None: ...

class Alarm(_message.Message):
    __slots__ = ("code", "subject", "method", "since_time", "before", "after", "rows", "statistic", "limit")
    CODE_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    SINCE_TIME_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    STATISTIC_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    code: str
    subject: str
    method: str
    since_time: _timestamp_pb2.Timestamp
    before: float
    after: float
    rows: int
    statistic: float
    limit: float
    def __init__(self, code: _Optional[str] = ..., subject: _Optional[str] = ..., method: _Optional[str] = ..., since_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., before: _Optional[float] = ..., after: _Optional[float] = ..., rows: _Optional[int] = ..., statistic: _Optional[float] = ..., limit: _Optional[float] = ...) -> None: ...

class Figure(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: float
    def __init__(self, name: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
