"""The demo's files: where they are, and what is read from them.

Owns paths, the moments at which the world is cut, and the figures that are made from files. Must
not start a process nor show anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from featurizer.features import SCHEMA_VERSION
from fraudsvc.archive import Archive
from trainer.bundle import load_bundle
from trainer.metrics import average_precision, roc_auc

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
DAYS_MAX = 80  # a scorer takes events of the last 90
_APPROVE = "APPROVE"


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What to make, and the bounds of each step.

    The world has ``days`` days, ends at the last midnight (UTC), and its last ``live_hours`` are
    sent as live traffic in ``seconds``. The model learns from what is older than the live part by
    ``settle_days``: only by then nearly every good payment is known to be good, while frauds are
    known within a day, so younger rows would show it a world of frauds. ``data`` must be new or
    empty; None makes a temporary directory. ``json`` is where the summary goes. Raises ValueError
    for numbers out of range.
    """

    data: Path | None = None
    seconds: float = 45.0
    keep: bool = False
    json: Path | None = None
    days: int = 32
    live_hours: float = 36.0
    settle_days: float = 10.0
    customers: int = 3_000
    payments_per_day: float = 4_000
    fraud_rate: float = 0.01
    seed: int = 1
    trees: int = 100
    step_timeout_s: float = 170.0

    def __post_init__(self) -> None:
        if not 1 <= self.days <= DAYS_MAX:
            raise ValueError(f"--days must be 1 to {DAYS_MAX}")
        if not (self.live_hours > 0 and self.settle_days + self.live_hours / 24 < self.days):
            raise ValueError(
                f"--days must leave room for --live-hours and {self.settle_days:g} days before them"
            )
        if not 0 < self.seconds <= 3_600:
            raise ValueError("--seconds must be above 0, at most 3600")


@dataclass(frozen=True, slots=True)
class Plan:
    """Where the files of one run are and where its time is cut; ms since 1970.

    The world ends at ``end_ms``; from ``cut_ms`` on it is live traffic.
    """

    options: DemoOptions
    directory: Path
    end_ms: int

    @property
    def start_ms(self) -> int:
        """The world's first moment."""
        return self.end_ms - self.options.days * DAY_MS

    @property
    def cut_ms(self) -> int:
        """The first moment of the live part."""
        return self.end_ms - round(self.options.live_hours * HOUR_MS)

    @property
    def world(self) -> Path:
        """The history with the truth in it."""
        return self.directory / "world.parquet"

    @property
    def vectors(self) -> Path:
        """The backfill's vectors of the whole world."""
        return self.directory / "vectors.parquet"

    @property
    def settled(self) -> Path:
        """The vectors that the model learns from."""
        return self.directory / "settled.parquet"

    @property
    def live(self) -> Path:
        """The rows of the world that the live part needs."""
        return self.directory / "live.parquet"

    @property
    def answers(self) -> Path:
        """What the scorer answered to the live part."""
        return self.directory / "answers.parquet"

    @property
    def figures(self) -> Path:
        """The last figures of the live part."""
        return self.directory / "live.json"

    @property
    def data(self) -> Path:
        """The directory of ``fraudsvc up``: log, store, bundle, keys."""
        return self.directory / "data"


def write_settled(plan: Plan) -> None:
    """Write the vectors whose labels are known when the live part begins, but for young ones."""
    until_ms = plan.cut_ms - round(plan.options.settle_days * DAY_MS)
    known = [("event_time_ms", "<", until_ms), ("label_time_ms", "<", plan.cut_ms)]
    pq.write_table(pq.read_table(plan.vectors, filters=known), plan.settled, compression="lz4")


def write_live(plan: Plan) -> None:
    """Write the rows that the live part sends, and those whose labels become known during it."""
    cut, end = (datetime.fromtimestamp(ms / 1000, UTC) for ms in (plan.cut_ms, plan.end_ms))
    sent = [("event_time", ">=", cut)]
    reported = [("label_time", ">=", cut), ("label_time", "<", end)]
    pq.write_table(pq.read_table(plan.world, filters=[sent, reported]), plan.live)


def count_live(plan: Plan) -> int:
    """Return how many payments the live part has."""
    times = pq.read_table(plan.vectors, columns=["event_time_ms"])["event_time_ms"]
    return int(pc.sum(pc.greater_equal(times, plan.cut_ms)).as_py() or 0)


def example(plan: Plan) -> dict[str, Any]:
    """Return the ids of the world's last honest payment, at 20 times its amount."""
    names = ["customer_id", "card_id", "merchant_id", "amount_minor", "currency"]
    rows = pq.read_table(plan.world, columns=names, filters=[("is_fraud", "=", False)])
    last: dict[str, Any] = rows.slice(len(rows) - 1).to_pylist()[0]
    return {**last, "amount_minor": 20 * last["amount_minor"]}


def _offline(plan: Plan, decided_by: Mapping[str, str]) -> dict[str, float]:
    """Return by id the score of each live payment's vector as the backfill made it.

    By the model that decided it, ``decided_by`` by id: a trainer renews it while traffic comes.
    """
    names = ["transaction_id", "features"]
    live = [("event_time_ms", ">=", plan.cut_ms)]
    rows = pq.read_table(plan.vectors, columns=names, filters=live)
    features = rows["features"].combine_chunks().flatten().to_numpy().reshape(len(rows), -1)
    ids = rows["transaction_id"].to_pylist()
    models = np.array([decided_by.get(each, "") for each in ids])
    key, archive = (plan.data / "key.pub").read_bytes(), Archive(plan.data / "archive")
    found: dict[str, float] = {}
    for version in {*decided_by.values()}:
        path = archive.bundle_path(version)
        bundle = load_bundle(path, schema_version=SCHEMA_VERSION, public_key=key)
        own = np.flatnonzero(models == version)
        scores = bundle.calibration.probabilities(bundle.model.logits(features[own]))
        found |= {ids[at]: score for at, score in zip(own.tolist(), scores.tolist(), strict=True)}
    return found


def _caught(plan: Plan, stopped: dict[str, bool]) -> dict[str, dict[str, int]]:
    """Return per kind of campaign how many live frauds there were and how many were caught."""
    rows = pq.read_table(
        plan.world, columns=["transaction_id", "campaign"], filters=[("is_fraud", "=", True)]
    ).to_pydict()
    found: dict[str, dict[str, int]] = {}
    for identity, kind in zip(rows["transaction_id"], rows["campaign"], strict=True):
        if identity in stopped:
            counts = found.setdefault(kind, {"frauds": 0, "caught": 0})
            counts["frauds"] += 1
            counts["caught"] += stopped[identity]
    return dict(sorted(found.items()))


def judge(plan: Plan) -> dict[str, Any]:
    """Return how the live scores rank the frauds, and how many differ from the backfill's.

    By each payment's own model; ``models`` says how many there were.

    ``auc`` and ``average_precision`` are None where the live part has only one outcome.
    """
    answers = pq.read_table(plan.answers).to_pydict()
    models = zip(answers["transaction_id"], answers["model_version"], strict=True)
    decided_by = {identity: model for identity, model in models if model}
    offline = _offline(plan, decided_by)
    scores: NDArray[np.float64] = np.array(answers["score"], np.float64)  # NaN for no score
    expected = np.array([offline.get(each, np.nan) for each in answers["transaction_id"]])
    stopped = [outcome != _APPROVE for outcome in answers["outcome"]]
    scored = ~np.isnan(scores)
    is_fraud = np.array(answers["is_fraud"], bool)[scored]
    both = 0 < is_fraud.sum() < len(is_fraud)
    return {
        "compared": int(scored.sum()),
        "models": len({*decided_by.values()}),
        "differing": int((scores != expected)[scored].sum()),
        "prevalence": float(is_fraud.mean()),
        "auc": roc_auc(scores[scored], is_fraud) if both else None,
        "average_precision": average_precision(scores[scored], is_fraud) if both else None,
        "campaigns": _caught(plan, dict(zip(answers["transaction_id"], stopped, strict=True))),
    }
