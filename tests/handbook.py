"""Owns where the Fraud Detection Handbook's public data is, and what its columns are in ours.

Must not read it: whoever does skips, or says so, where it is not there.
"""

from __future__ import annotations

import os
from pathlib import Path

HANDBOOK = Path(
    os.environ.get("FRAUD_HANDBOOK", Path(__file__).parents[2] / "shared/data/handbook.parquet")
)
COLUMNS = {
    "transaction_id": "TRANSACTION_ID", "event_time": "TX_DATETIME", "customer_id": "CUSTOMER_ID",
    "terminal_id": "TERMINAL_ID", "amount_minor": "TX_AMOUNT_CENTS", "is_fraud": "TX_FRAUD",
}  # fmt: skip
LABEL_DELAY_DAYS = 7
# What backfill and replay alike are told of the file.
FILE_ARGUMENTS = (
    *(text for ours, theirs in COLUMNS.items() for text in ("--map", f"{ours}={theirs}")),
    "--label-delay-days", str(LABEL_DELAY_DAYS),
)  # fmt: skip
