"""The history's columns: their names, Arrow types, and the names that enumerated ones may hold.

Owns the file format that `world` writes and `replay` reads. Must not know how rows come to be.
"""

from __future__ import annotations

from typing import Final

import pyarrow as pa
from fraud.v1 import label_pb2, transaction_pb2
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

TIME = pa.timestamp("ms", tz="UTC")

# Enumerated column -> the contract's enum. The column holds the value's name without its prefix.
ENUMS: Final[dict[str, EnumTypeWrapper]] = {
    "brand": transaction_pb2.CardBrand,
    "funding": transaction_pb2.CardFunding,
    "channel": transaction_pb2.Channel,
    "entry_mode": transaction_pb2.PosEntryMode,
    "three_ds": transaction_pb2.ThreeDsResult,
    "avs": transaction_pb2.AvsResult,
    "cvv": transaction_pb2.CvvResult,
    "authorization": transaction_pb2.AuthorizationResult,
    "label_source": label_pb2.LabelSource,
}


def short_names(enum: EnumTypeWrapper) -> dict[str, int]:
    """Return the enum's names without their prefix, mapped to numbers, without UNSPECIFIED."""
    prefix = enum.Name(0).removesuffix("UNSPECIFIED")
    return {name.removeprefix(prefix): number for name, number in enum.items() if number}


NUMBERS: Final[dict[str, dict[str, int]]] = {
    column: short_names(enum) for column, enum in ENUMS.items()
}

SCHEMA: Final[pa.Schema] = pa.schema(
    [
        ("transaction_id", pa.string()),
        ("event_time", TIME),
        ("customer_id", pa.string()),
        ("card_id", pa.string()),
        ("bin", pa.string()),
        ("brand", pa.string()),
        ("funding", pa.string()),
        ("issuer_region", pa.string()),
        ("merchant_id", pa.string()),
        ("mcc", pa.string()),
        ("region", pa.string()),
        ("terminal_id", pa.string()),
        ("device_id", pa.string()),
        ("ip", pa.string()),
        ("email", pa.string()),
        ("email_domain", pa.string()),
        ("amount_minor", pa.int64()),
        ("currency", pa.string()),
        ("channel", pa.string()),
        ("entry_mode", pa.string()),
        ("card_present", pa.bool_()),
        ("recurring", pa.bool_()),
        ("three_ds", pa.string()),
        ("avs", pa.string()),
        ("cvv", pa.string()),
        ("authorization", pa.string()),
        ("billing_region", pa.string()),
        ("shipping_region", pa.string()),
        ("lat", pa.float64()),
        ("lon", pa.float64()),
        ("account_created_time", TIME),
        ("is_fraud", pa.bool_()),
        ("label_time", TIME),
        ("label_source", pa.string()),
        ("campaign", pa.string()),
    ]
)
REQUIRED: Final = ("transaction_id", "event_time", "customer_id", "amount_minor")
