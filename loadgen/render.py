"""From the world's numbers to the history's columns.

Owns how an id looks. No id holds 13 digits in a row, so none can be taken for a card number.
Must not know why a payment is made.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from loadgen import categories
from loadgen.addresses import address_text
from loadgen.columns import NUMBERS, SCHEMA, TIME
from loadgen.draws import key
from loadgen.geography import REGIONS
from loadgen.labels import KINDS
from loadgen.payments import NEVER_MS, NOWHERE, Payments
from loadgen.population import EMAIL_DOMAINS, Population

CODE_CHARACTERS = 12
_ALPHABET = np.frombuffer(b"abcdefghjkmnpqrstuvwxyz234567890", np.uint8)[:32]
_TRANSACTION, _CUSTOMER, _CARD, _MERCHANT, _TERMINAL, _EMAIL = range(40, 46)


def code_text(prefix: str, numbers: NDArray[np.uint64]) -> pa.StringArray:
    """Return string[n]: the prefix and 12 characters that spell 60 bits of each number."""
    width = len(prefix) + CODE_CHARACTERS
    shifts = np.arange(CODE_CHARACTERS, dtype=np.uint64) * np.uint64(5)
    text = np.empty((len(numbers), width), np.uint8)
    text[:, : len(prefix)] = np.frombuffer(prefix.encode(), np.uint8)
    text[:, len(prefix) :] = _ALPHABET[(numbers[:, None] >> shifts) & np.uint64(31)]
    offsets = np.arange(len(numbers) + 1, dtype=np.int32) * width
    return pa.StringArray.from_buffers(len(numbers), pa.py_buffer(offsets), pa.py_buffer(text))


def _names(column: str) -> pa.StringArray:
    """Return the column's names at their contract numbers, null at 0."""
    names: list[str | None] = [None] * (max(NUMBERS[column].values()) + 1)
    for name, number in NUMBERS[column].items():
        names[number] = name
    return pa.array(names, pa.string())


_NAMES = {column: _names(column) for column in NUMBERS}
_REGION_CODES = pa.array([region.code for region in REGIONS])
_CURRENCIES = pa.array([region.currency for region in REGIONS])
_MCC = pa.array(categories.MCC)
_CAMPAIGNS = pa.array(KINDS)
_DOMAINS = pa.array(EMAIL_DOMAINS)


def _take(
    texts: pa.StringArray, index: ArrayLike, absent: NDArray[np.bool_] | None = None
) -> pa.Array:
    """Return texts at ``index``, null where ``absent``."""
    return texts.take(pa.array(np.asarray(index, np.int64), mask=absent))


def _time(values_ms: NDArray[np.int64], absent: NDArray[np.bool_] | None = None) -> pa.Array:
    return pa.array(values_ms, pa.int64(), mask=absent).cast(TIME)


class Renderer:
    """Holds the texts of everyone's ids and writes payments as tables."""

    def __init__(self, people: Population) -> None:
        def ids(prefix: str, purpose: int, count: int) -> pa.StringArray:
            return code_text(prefix, key(people.seed, purpose, np.arange(count)))

        self._people = people
        self._customers = ids("cus_", _CUSTOMER, len(people.customers.city))
        self._emails = ids("eml_", _EMAIL, len(people.customers.city))
        self._cards = ids("tok_", _CARD, len(people.card_issuer))
        self._merchants = ids("mer_", _MERCHANT, len(people.merchants.group))
        self._terminals = ids("ter_", _TERMINAL, len(people.merchants.terminal_lat))
        self._bins = pa.array(people.issuers.bins)

    def table(self, rows: Payments, day: int) -> pa.Table:
        """Return one day's payments, in the order given, as a table of SCHEMA."""
        columns = (
            self._payer_columns(rows)
            | self._payee_columns(rows)
            | self._payment_columns(rows, day)
            | self._truth_columns(rows)
        )
        return pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA)

    def _payer_columns(self, rows: Payments) -> dict[str, pa.Array]:
        people = self._people
        issuer = people.card_issuer[rows["card"]]
        remote = rows["device"] == 0
        # A till does not know an e-mail address; a subscription does.
        nameless = remote & ~rows["recurring"]
        device = code_text("dev_", rows["device"])
        return {
            "customer_id": _take(self._customers, rows["customer"]),
            "card_id": _take(self._cards, rows["card"]),
            "bin": _take(self._bins, issuer),
            "brand": _take(_NAMES["brand"], people.issuers.brand[issuer]),
            "funding": _take(_NAMES["funding"], people.issuers.funding[issuer]),
            "issuer_region": _take(_REGION_CODES, people.issuers.region[issuer]),
            "device_id": pc.if_else(pa.array(remote), pa.scalar(None, pa.string()), device),
            "ip": address_text(rows["ip"]),
            "email": _take(self._emails, rows["customer"], nameless),
            "email_domain": _take(_DOMAINS, people.customers.domain[rows["customer"]], nameless),
            "account_created_time": _time(rows["created_ms"]),
        }

    def _payee_columns(self, rows: Payments) -> dict[str, pa.Array]:
        sellers = self._people.merchants
        region = sellers.region[rows["merchant"]]
        return {
            "merchant_id": _take(self._merchants, rows["merchant"]),
            "mcc": _take(_MCC, sellers.category[rows["merchant"]]),
            "region": _take(_REGION_CODES, region),
            "currency": _take(_CURRENCIES, region),
            "terminal_id": _take(self._terminals, rows["terminal"], rows["terminal"] < 0),
        }

    def _payment_columns(self, rows: Payments, day: int) -> dict[str, pa.Array]:
        numbers = key(self._people.seed, _TRANSACTION, day, np.arange(len(rows)))
        lat, lon = (pa.array(rows[name], from_pandas=True) for name in ("lat", "lon"))
        enums = {
            name: _take(_NAMES[name], rows[name])
            for name in ("channel", "entry_mode", "three_ds", "avs", "cvv", "authorization")
        }
        regions = {
            name: _take(_REGION_CODES, rows[name], rows[name] == NOWHERE)
            for name in ("billing_region", "shipping_region")
        }
        return (
            {
                "transaction_id": code_text("txn_", numbers[: len(rows)]),
                "event_time": _time(rows["time_ms"]),
                "amount_minor": pa.array(rows["amount_minor"]),
                "card_present": pa.array(rows["terminal"] >= 0),
                "recurring": pa.array(rows["recurring"]),
                "lat": lat,
                "lon": lon,
            }
            | enums
            | regions
        )

    def _truth_columns(self, rows: Payments) -> dict[str, pa.Array]:
        return {
            "is_fraud": pa.array(rows["campaign"] != 0),
            "label_time": _time(rows["label_ms"], rows["label_ms"] == NEVER_MS),
            "label_source": _take(_NAMES["label_source"], rows["label_source"]),
            "campaign": _take(_CAMPAIGNS, rows["campaign"]),
        }
