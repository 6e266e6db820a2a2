import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Verdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VERDICT_UNSPECIFIED: _ClassVar[Verdict]
    VERDICT_FRAUD: _ClassVar[Verdict]
    VERDICT_LEGITIMATE: _ClassVar[Verdict]
    VERDICT_UNCLEAR: _ClassVar[Verdict]
    VERDICT_RETRACTED: _ClassVar[Verdict]

class LabelSource(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LABEL_SOURCE_UNSPECIFIED: _ClassVar[LabelSource]
    LABEL_SOURCE_CHARGEBACK: _ClassVar[LabelSource]
    LABEL_SOURCE_ANALYST: _ClassVar[LabelSource]
    LABEL_SOURCE_CUSTOMER: _ClassVar[LabelSource]
    LABEL_SOURCE_ISSUER: _ClassVar[LabelSource]
VERDICT_UNSPECIFIED: Verdict
VERDICT_FRAUD: Verdict
VERDICT_LEGITIMATE: Verdict
VERDICT_UNCLEAR: Verdict
VERDICT_RETRACTED: Verdict
LABEL_SOURCE_UNSPECIFIED: LabelSource
LABEL_SOURCE_CHARGEBACK: LabelSource
LABEL_SOURCE_ANALYST: LabelSource
LABEL_SOURCE_CUSTOMER: LabelSource
LABEL_SOURCE_ISSUER: LabelSource

class Label(_message.Message):
    __slots__ = ("transaction_id", "verdict", "source", "label_time", "reporter", "note")
    TRANSACTION_ID_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    LABEL_TIME_FIELD_NUMBER: _ClassVar[int]
    REPORTER_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    transaction_id: str
    verdict: Verdict
    source: LabelSource
    label_time: _timestamp_pb2.Timestamp
    reporter: str
    note: str
    def __init__(self, transaction_id: _Optional[str] = ..., verdict: _Optional[_Union[Verdict, str]] = ..., source: _Optional[_Union[LabelSource, str]] = ..., label_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., reporter: _Optional[str] = ..., note: _Optional[str] = ...) -> None: ...
