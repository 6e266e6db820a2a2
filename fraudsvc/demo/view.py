"""What the demo shows: running figures, the model's, the way to call by hand, the end.

Owns texts and tables. Must not start a process nor read a file.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.progress import Progress
from rich.table import Table

from featurizer.currencies import REFERENCE_CODE, to_reference

_CENTS = 100
# Latency's points that are shown, by their names in loadgen's figures.
_POINTS = ("p50", "p90", "p99", "p99.9", "max")
_SNIPPET = """\
import uuid

import grpc
from fraud.v1 import fraud_service_pb2, fraud_service_pb2_grpc, transaction_pb2

transaction = transaction_pb2.Transaction(
    request_id=str(uuid.uuid4()),
    transaction_id="by-hand-2",
    customer_id="{customer_id}",
    card=transaction_pb2.Card(token="{card_id}"),
    merchant=transaction_pb2.Merchant(merchant_id="{merchant_id}"),
    amount_minor={amount_minor},
    currency_code="{currency}",
)
transaction.event_time.GetCurrentTime()
request = fraud_service_pb2.ScoreRequest(transaction=transaction)
with grpc.insecure_channel("{target}") as channel:
    service = fraud_service_pb2_grpc.FraudServiceStub(channel)
    print(service.Score(request, timeout=1.0).assessment)
"""


def reference_cents(minor: Mapping[str, int]) -> int:
    """Return the sum, in cents of the reference currency, of minor units by currency."""
    return sum(to_reference(amount, code) for code, amount in minor.items())


def _counts(counts: Mapping[str, int]) -> str:
    total = max(sum(counts.values()), 1)
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return "   ".join(f"{name} {count:,} ({count / total:.1%})" for name, count in ordered) or "-"


def _fraud(count: int, minor: Mapping[str, int]) -> str:
    return f"{count:,}, {reference_cents(minor) / _CENTS:,.0f} {REFERENCE_CODE}"


def live_table(live: Mapping[str, Any]) -> Table:
    """Return loadgen's figures of the live traffic as a table of two columns."""
    points = live["latency_us"]
    honest = max(live["false_alarms"] + live["honest_approved"], 1)
    rate_per_s = live["answered"] / max(live["elapsed_s"], 1e-9)
    rows = {
        "decisions": f"{live['answered']:,} of {live['sent']:,} sent, {rate_per_s:,.0f}/s",
        "outcome": _counts(live["outcomes"]),
        "rung": _counts(live["rungs"]),
        "latency, ms": "   ".join(f"{name} {points[name] / 1000:.2f}" for name in _POINTS),
        "within 50 ms": f"{live['within_budget']:.3%}",
        "fraud caught": _fraud(live["fraud_caught"], live["fraud_caught_minor"]),
        "fraud missed": _fraud(live["fraud_missed"], live["fraud_missed_minor"]),
        "false declines": f"{live['false_declines']:,} ({live['false_declines'] / honest:.2%})",
        "false alarms": f"{live['false_alarms']:,} ({live['false_alarms'] / honest:.2%}), with"
        " the false declines",
    }
    if "labels" in live:
        rows["labels reported"] = _counts(live["labels"]["statuses"])
    table = Table(title="live traffic", title_justify="left", show_header=False)
    for name, text in rows.items():
        table.add_row(name, text)
    return table


def campaigns_table(campaigns: Mapping[str, Mapping[str, int]]) -> Table:
    """Return how many frauds of each kind of campaign were caught."""
    table = Table("campaign", "frauds", "caught", title="campaigns", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for kind, counts in campaigns.items():
        name = kind.lower().replace("_", " ")
        table.add_row(name, f"{counts['frauds']:,}", f"{counts['caught']:,}")
    return table


def live_line(live: Mapping[str, Any]) -> str:
    """Return the figures in one line, for an output that is no terminal."""
    p50, p99 = (live["latency_us"][name] / 1000 for name in ("p50", "p99"))
    return (
        f"  {live['answered']:,} decisions, {live['rate_per_s']:,.0f}/s, p50 {p50:.2f} ms,"
        f" p99 {p99:.2f} ms, fraud {live['fraud_caught']} caught {live['fraud_missed']} missed,"
        f" {live['false_declines']} false declines"
    )


def live_view(live: Mapping[str, Any], bar: Progress) -> RenderableType:
    """Return the table with the progress bar under it."""
    return Group(live_table(live), bar)


def model_line(metrics: Mapping[str, Any]) -> str:
    """Return how a model did on the part of its rows that it was not trained on."""
    return (
        f"held-out part of {metrics['rows']:,} rows, {metrics['frauds']} frauds: ROC AUC"
        f" {metrics['auc']:.3f}, average precision {metrics['average_precision']:.3f}"
    )


def ranking_line(ranking: Mapping[str, Any]) -> str:
    """Return how live scores ranked the frauds, and whether they are those of the batch."""
    same = (
        f"{ranking['differing']} of {ranking['compared']:,} live scores, by"
        f" {ranking['models']} models in turn, differ from the batch's"
    )
    if ranking["auc"] is None:
        return same
    return (
        f"ranking: ROC AUC {ranking['auc']:.3f}, average precision"
        f" {ranking['average_precision']:.3f} (by chance {ranking['prevalence']:.3f}); {same}"
    )


def grpcurl_line(target: str, example: Mapping[str, Any], request_id: str, time: str) -> str:
    """Return a command that scores one payment; ``example`` names a payer and a payee."""
    transaction = {
        "request_id": request_id,
        "transaction_id": "by-hand-1",
        "event_time": time,
        "customer_id": example["customer_id"],
        "card": {"token": example["card_id"]},
        "merchant": {"merchant_id": example["merchant_id"]},
        "amount_minor": example["amount_minor"],
        "currency_code": example["currency"],
    }
    body = shlex.quote(json.dumps({"transaction": transaction}))
    return f"grpcurl -plaintext -d {body} {target} fraud.v1.FraudService/Score"


def python_snippet(target: str, example: Mapping[str, Any]) -> str:
    """Return a program that scores one payment."""
    return _SNIPPET.format(target=target, **example)


def steps_line(seconds: Mapping[str, float]) -> str:
    """Return how long each step took."""
    each = ", ".join(f"{name} {took:.1f}" for name, took in seconds.items())
    return f"{sum(seconds.values()):.0f} s in all: {each}"
