"""The benchmark of adaptation, small: one attack, one seed, an hour of a thin stream."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.adaptation import report
from tests.adaptation.compare import Seed
from tests.adaptation.figures import harmful_seconds, reached
from tests.adaptation.run import Point
from tests.adaptation.world import Scale

TINY = Scale(
    per_minute=400, customers=4_000, past_days=4, past_rows_a_day=1_000, warm_minutes=75,
    before_minutes=20, after_minutes=40, old_share=0.01, attack_share=0.015,
)  # fmt: skip
NAMES = ["static", "T1+T2"]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return Seed(1, TINY, tmp_path_factory.mktemp("adaptation")).compare("A", NAMES)


def test_the_product_catches_what_the_base_does_not(found: dict[str, Any]) -> None:
    static, product = (found["systems"][name] for name in NAMES)
    assert static["attack_recall"] < 0.2, "the base knows the attack: there is nothing to learn"
    assert static["reached"]["recall_50"] is None
    assert static["swaps"] == []
    minutes, labels = product["reached"]["recall_at_50"]
    assert 0.0 < minutes <= TINY.after_minutes
    assert labels > 0
    assert product["attack_recall"] > static["attack_recall"] + 0.2


def test_labels_follow_from_what_a_system_alerts(found: dict[str, Any]) -> None:
    static, product = (found["systems"][name] for name in NAMES)
    assert product["attack_labels"] > static["attack_labels"] > 0
    labels = [point[1] for point in product["points"]]
    assert labels == sorted(labels)
    first_swap = min(s for s in product["swaps"] if s >= 0.0)
    known = [p for p in product["points"] if 0.0 <= p[0] < first_swap]
    assert all(point[2] < 0.2 for point in known), "caught before anything was learnt"


def test_the_report_is_made_of_what_was_run(found: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "A-1.json").write_text(json.dumps(found))
    text = report.write_report(tmp_path)
    document = json.loads((tmp_path / "adaptation.json").read_bytes())
    row = document["table"]["A"]["T1+T2"]
    assert (
        row["recall_at_50_labels"]["median"]
        == (found["systems"]["T1+T2"]["reached"]["recall_at_50"][1])
    )
    assert "| T1+T2 |" in text
    page = (tmp_path / "adaptation.html").read_text()
    assert '<script src="http' not in page
    assert "Plotly.newPlot" in page
    assert (tmp_path / "adaptation-A.png").stat().st_size > 10_000


def point(minute: float, recall: float, **more: float) -> Point:
    fields = {"old": 0.9, "old_static": 0.9, "false": 0.0, "false_static": 0.0} | more
    return Point(minute, int(minute), recall, recall, **fields)


def test_a_level_counts_once_it_is_held() -> None:
    points = [point(m, r) for m, r in ((0, 0.1), (2, 0.9), (4, 0.3), (6, 0.8), (8, 0.9), (12, 0.8))]
    assert reached(points, "recall", 0.8) == [6, 6]
    assert reached(points, "recall", 0.95) is None
    assert reached([point(0, float("nan"))], "recall", 0.5) is None


def test_harm_lasts_until_something_harmless_serves() -> None:
    points = [
        point(0, 0.0), point(1, 0.0, old=0.8), point(2, 0.0, false=0.02), point(2.5, 0.0),
        point(4, 0.0, false=0.02), point(5, 0.0, false=0.02),
    ]  # fmt: skip
    assert harmful_seconds(points) == [90.0, 60.0]
    assert harmful_seconds(points[:1]) == []
    assert np.isnan(point(0, float("nan")).recall)
