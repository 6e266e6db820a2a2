import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Channel(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CHANNEL_UNSPECIFIED: _ClassVar[Channel]
    CHANNEL_POINT_OF_SALE: _ClassVar[Channel]
    CHANNEL_ECOMMERCE: _ClassVar[Channel]
    CHANNEL_MOBILE_APP: _ClassVar[Channel]
    CHANNEL_MAIL_OR_TELEPHONE: _ClassVar[Channel]
    CHANNEL_CASH_MACHINE: _ClassVar[Channel]
    CHANNEL_TRANSFER: _ClassVar[Channel]

class PosEntryMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    POS_ENTRY_MODE_UNSPECIFIED: _ClassVar[PosEntryMode]
    POS_ENTRY_MODE_CHIP: _ClassVar[PosEntryMode]
    POS_ENTRY_MODE_CONTACTLESS: _ClassVar[PosEntryMode]
    POS_ENTRY_MODE_MAGNETIC_STRIPE: _ClassVar[PosEntryMode]
    POS_ENTRY_MODE_MANUAL: _ClassVar[PosEntryMode]
    POS_ENTRY_MODE_CREDENTIAL_ON_FILE: _ClassVar[PosEntryMode]
    POS_ENTRY_MODE_ECOMMERCE: _ClassVar[PosEntryMode]

class CardBrand(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CARD_BRAND_UNSPECIFIED: _ClassVar[CardBrand]
    CARD_BRAND_VISA: _ClassVar[CardBrand]
    CARD_BRAND_MASTERCARD: _ClassVar[CardBrand]
    CARD_BRAND_AMERICAN_EXPRESS: _ClassVar[CardBrand]
    CARD_BRAND_DISCOVER: _ClassVar[CardBrand]
    CARD_BRAND_JCB: _ClassVar[CardBrand]
    CARD_BRAND_UNIONPAY: _ClassVar[CardBrand]
    CARD_BRAND_OTHER: _ClassVar[CardBrand]

class CardFunding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CARD_FUNDING_UNSPECIFIED: _ClassVar[CardFunding]
    CARD_FUNDING_CREDIT: _ClassVar[CardFunding]
    CARD_FUNDING_DEBIT: _ClassVar[CardFunding]
    CARD_FUNDING_PREPAID: _ClassVar[CardFunding]

class ThreeDsResult(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    THREE_DS_RESULT_UNSPECIFIED: _ClassVar[ThreeDsResult]
    THREE_DS_RESULT_AUTHENTICATED: _ClassVar[ThreeDsResult]
    THREE_DS_RESULT_ATTEMPTED: _ClassVar[ThreeDsResult]
    THREE_DS_RESULT_FAILED: _ClassVar[ThreeDsResult]
    THREE_DS_RESULT_UNAVAILABLE: _ClassVar[ThreeDsResult]

class AvsResult(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    AVS_RESULT_UNSPECIFIED: _ClassVar[AvsResult]
    AVS_RESULT_MATCH: _ClassVar[AvsResult]
    AVS_RESULT_PARTIAL: _ClassVar[AvsResult]
    AVS_RESULT_MISMATCH: _ClassVar[AvsResult]
    AVS_RESULT_UNAVAILABLE: _ClassVar[AvsResult]

class CvvResult(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CVV_RESULT_UNSPECIFIED: _ClassVar[CvvResult]
    CVV_RESULT_MATCH: _ClassVar[CvvResult]
    CVV_RESULT_MISMATCH: _ClassVar[CvvResult]
    CVV_RESULT_UNAVAILABLE: _ClassVar[CvvResult]

class AuthorizationResult(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    AUTHORIZATION_RESULT_UNSPECIFIED: _ClassVar[AuthorizationResult]
    AUTHORIZATION_RESULT_APPROVED: _ClassVar[AuthorizationResult]
    AUTHORIZATION_RESULT_DECLINED: _ClassVar[AuthorizationResult]
CHANNEL_UNSPECIFIED: Channel
CHANNEL_POINT_OF_SALE: Channel
CHANNEL_ECOMMERCE: Channel
CHANNEL_MOBILE_APP: Channel
CHANNEL_MAIL_OR_TELEPHONE: Channel
CHANNEL_CASH_MACHINE: Channel
CHANNEL_TRANSFER: Channel
POS_ENTRY_MODE_UNSPECIFIED: PosEntryMode
POS_ENTRY_MODE_CHIP: PosEntryMode
POS_ENTRY_MODE_CONTACTLESS: PosEntryMode
POS_ENTRY_MODE_MAGNETIC_STRIPE: PosEntryMode
POS_ENTRY_MODE_MANUAL: PosEntryMode
POS_ENTRY_MODE_CREDENTIAL_ON_FILE: PosEntryMode
POS_ENTRY_MODE_ECOMMERCE: PosEntryMode
CARD_BRAND_UNSPECIFIED: CardBrand
CARD_BRAND_VISA: CardBrand
CARD_BRAND_MASTERCARD: CardBrand
CARD_BRAND_AMERICAN_EXPRESS: CardBrand
CARD_BRAND_DISCOVER: CardBrand
CARD_BRAND_JCB: CardBrand
CARD_BRAND_UNIONPAY: CardBrand
CARD_BRAND_OTHER: CardBrand
CARD_FUNDING_UNSPECIFIED: CardFunding
CARD_FUNDING_CREDIT: CardFunding
CARD_FUNDING_DEBIT: CardFunding
CARD_FUNDING_PREPAID: CardFunding
THREE_DS_RESULT_UNSPECIFIED: ThreeDsResult
THREE_DS_RESULT_AUTHENTICATED: ThreeDsResult
THREE_DS_RESULT_ATTEMPTED: ThreeDsResult
THREE_DS_RESULT_FAILED: ThreeDsResult
THREE_DS_RESULT_UNAVAILABLE: ThreeDsResult
AVS_RESULT_UNSPECIFIED: AvsResult
AVS_RESULT_MATCH: AvsResult
AVS_RESULT_PARTIAL: AvsResult
AVS_RESULT_MISMATCH: AvsResult
AVS_RESULT_UNAVAILABLE: AvsResult
CVV_RESULT_UNSPECIFIED: CvvResult
CVV_RESULT_MATCH: CvvResult
CVV_RESULT_MISMATCH: CvvResult
CVV_RESULT_UNAVAILABLE: CvvResult
AUTHORIZATION_RESULT_UNSPECIFIED: AuthorizationResult
AUTHORIZATION_RESULT_APPROVED: AuthorizationResult
AUTHORIZATION_RESULT_DECLINED: AuthorizationResult

class Transaction(_message.Message):
    __slots__ = ("request_id", "transaction_id", "event_time", "customer_id", "account_created_time", "card", "merchant", "terminal_id", "device_id", "ip_address", "email", "amount_minor", "currency_code", "channel", "pos_entry_mode", "card_present", "recurring", "three_ds_result", "avs_result", "cvv_result", "authorization_result", "billing_region_code", "shipping_region_code", "position")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TRANSACTION_ID_FIELD_NUMBER: _ClassVar[int]
    EVENT_TIME_FIELD_NUMBER: _ClassVar[int]
    CUSTOMER_ID_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_CREATED_TIME_FIELD_NUMBER: _ClassVar[int]
    CARD_FIELD_NUMBER: _ClassVar[int]
    MERCHANT_FIELD_NUMBER: _ClassVar[int]
    TERMINAL_ID_FIELD_NUMBER: _ClassVar[int]
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    IP_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    EMAIL_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_MINOR_FIELD_NUMBER: _ClassVar[int]
    CURRENCY_CODE_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    POS_ENTRY_MODE_FIELD_NUMBER: _ClassVar[int]
    CARD_PRESENT_FIELD_NUMBER: _ClassVar[int]
    RECURRING_FIELD_NUMBER: _ClassVar[int]
    THREE_DS_RESULT_FIELD_NUMBER: _ClassVar[int]
    AVS_RESULT_FIELD_NUMBER: _ClassVar[int]
    CVV_RESULT_FIELD_NUMBER: _ClassVar[int]
    AUTHORIZATION_RESULT_FIELD_NUMBER: _ClassVar[int]
    BILLING_REGION_CODE_FIELD_NUMBER: _ClassVar[int]
    SHIPPING_REGION_CODE_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    transaction_id: str
    event_time: _timestamp_pb2.Timestamp
    customer_id: str
    account_created_time: _timestamp_pb2.Timestamp
    card: Card
    merchant: Merchant
    terminal_id: str
    device_id: str
    ip_address: str
    email: Email
    amount_minor: int
    currency_code: str
    channel: Channel
    pos_entry_mode: PosEntryMode
    card_present: bool
    recurring: bool
    three_ds_result: ThreeDsResult
    avs_result: AvsResult
    cvv_result: CvvResult
    authorization_result: AuthorizationResult
    billing_region_code: str
    shipping_region_code: str
    position: Position
    def __init__(self, request_id: _Optional[str] = ..., transaction_id: _Optional[str] = ..., event_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., customer_id: _Optional[str] = ..., account_created_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., card: _Optional[_Union[Card, _Mapping]] = ..., merchant: _Optional[_Union[Merchant, _Mapping]] = ..., terminal_id: _Optional[str] = ..., device_id: _Optional[str] = ..., ip_address: _Optional[str] = ..., email: _Optional[_Union[Email, _Mapping]] = ..., amount_minor: _Optional[int] = ..., currency_code: _Optional[str] = ..., channel: _Optional[_Union[Channel, str]] = ..., pos_entry_mode: _Optional[_Union[PosEntryMode, str]] = ..., card_present: bool = ..., recurring: bool = ..., three_ds_result: _Optional[_Union[ThreeDsResult, str]] = ..., avs_result: _Optional[_Union[AvsResult, str]] = ..., cvv_result: _Optional[_Union[CvvResult, str]] = ..., authorization_result: _Optional[_Union[AuthorizationResult, str]] = ..., billing_region_code: _Optional[str] = ..., shipping_region_code: _Optional[str] = ..., position: _Optional[_Union[Position, _Mapping]] = ...) -> None: ...

class Card(_message.Message):
    __slots__ = ("token", "bin", "last_four", "brand", "funding", "issuer_region_code")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    BIN_FIELD_NUMBER: _ClassVar[int]
    LAST_FOUR_FIELD_NUMBER: _ClassVar[int]
    BRAND_FIELD_NUMBER: _ClassVar[int]
    FUNDING_FIELD_NUMBER: _ClassVar[int]
    ISSUER_REGION_CODE_FIELD_NUMBER: _ClassVar[int]
    token: str
    bin: str
    last_four: str
    brand: CardBrand
    funding: CardFunding
    issuer_region_code: str
    def __init__(self, token: _Optional[str] = ..., bin: _Optional[str] = ..., last_four: _Optional[str] = ..., brand: _Optional[_Union[CardBrand, str]] = ..., funding: _Optional[_Union[CardFunding, str]] = ..., issuer_region_code: _Optional[str] = ...) -> None: ...

class Merchant(_message.Message):
    __slots__ = ("merchant_id", "category_code", "region_code")
    MERCHANT_ID_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_CODE_FIELD_NUMBER: _ClassVar[int]
    REGION_CODE_FIELD_NUMBER: _ClassVar[int]
    merchant_id: str
    category_code: str
    region_code: str
    def __init__(self, merchant_id: _Optional[str] = ..., category_code: _Optional[str] = ..., region_code: _Optional[str] = ...) -> None: ...

class Email(_message.Message):
    __slots__ = ("address_hash", "domain")
    ADDRESS_HASH_FIELD_NUMBER: _ClassVar[int]
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    address_hash: str
    domain: str
    def __init__(self, address_hash: _Optional[str] = ..., domain: _Optional[str] = ...) -> None: ...

class Position(_message.Message):
    __slots__ = ("latitude_degrees", "longitude_degrees")
    LATITUDE_DEGREES_FIELD_NUMBER: _ClassVar[int]
    LONGITUDE_DEGREES_FIELD_NUMBER: _ClassVar[int]
    latitude_degrees: float
    longitude_degrees: float
    def __init__(self, latitude_degrees: _Optional[float] = ..., longitude_degrees: _Optional[float] = ...) -> None: ...
