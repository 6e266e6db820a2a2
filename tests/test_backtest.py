"""A backtest decides as live would have, counts labels as of a moment, and tells it three ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from featurizer.features import INDEX
from fraudsvc.archive import Archive
from fraudsvc.backtest.figures import (
    APPROVE,
    DECLINE,
    REVIEW,
    ROW,
    SAID,
    Cut,
    figures,
    report,
    verdicts,
)
from fraudsvc.backtest.page import write_page
from fraudsvc.backtest.report import print_report
from fraudsvc.backtest.run import Change
from fraudsvc.look_back_command import BacktestOptions, backtest
from fraudsvc.policy import DEFAULT_POLICY, PolicyError, load_policy
from fraudsvc.replay.log import Span
from tests.conftest import Host, Payments, Trained, call_now, decisions, read_all
from tests.test_replay import loaded, options_of, other
from trainer.labelled import ANALYST, CHARGEBACK, FRAUD, LEGITIMATE

__all__ = ["other"]
RULE = "amount_reference > 10000"


def backtested(host: Host, trained: Trained, **change: str) -> dict[str, Any]:
    options = options_of(host, trained)
    wanted = BacktestOptions(Change(**change), capacity=10.0)
    return backtest(Span(), options, wanted, lambda _position, _done: None)


def decided(host: Host, count: int = 150) -> Payments:
    payments, scorer = Payments(), host.scorer()
    late = host.scorer(full_ms=1e9)
    for i in range(count):
        (late if i % 30 == 29 else scorer).score(payments.one(), call_now())
    return payments


def outcomes(host: Host) -> list[int]:
    return [logged.assessment.outcome for logged in decisions(host.log).values()]


def test_nothing_changed_changes_nothing_and_nothing_is_written(
    host: Host, trained: Trained
) -> None:
    decided(host)
    before = read_all(host.log)
    found = backtested(host, trained)
    assert (found["decisions"], found["changed"], found["not_decided_again"]) == (150, 0, 0)
    assert read_all(host.log) == before


def test_a_change_decides_as_live_would_have(
    host: Host, trained: Trained, other: Path, tmp_path: Path
) -> None:
    """The same payments are sent to a second host, which decides by the change from the start."""
    payments, bundle = decided(host), loaded(other, trained)
    policy = DEFAULT_POLICY.read_bytes() + (
        f'\n[[rules]]\ncode = "WHAT_IF"\nwhen = "{RULE}"\naction = "decline"\ntext = "x"\n'.encode()
    )
    Archive(host.folder / "archive").keep_bundle(bundle.model_version, other)
    (tmp_path / "second").mkdir()
    second = Host(tmp_path / "second", bundle)
    try:
        second.policy = load_policy(policy, INDEX)
        scorer, late = second.scorer(), second.scorer(full_ms=1e9)
        for i, payment in enumerate(payments.made):
            (late if i % 30 == 29 else scorer).score(payment, call_now())
        live = outcomes(second)
    finally:
        second.close()
    found = backtested(host, trained, bundle=bundle.model_version, rule=RULE, action="decline")
    was = outcomes(host)
    assert found["changed"] == sum(a != b for a, b in zip(was, live, strict=True)) > 10
    moved = found["changes"]
    assert moved["approve"]["decline"] == sum(
        (a, b) == (APPROVE, DECLINE) for a, b in zip(was, live, strict=True)
    )
    file = tmp_path / "policy.toml"
    file.write_bytes(policy)
    as_file = backtested(host, trained, bundle=bundle.model_version, policy=str(file))
    assert as_file["changes"] == moved


def test_what_cannot_be_is_refused_and_what_is_gone_is_counted(
    host: Host, trained: Trained
) -> None:
    decided(host, 20)
    with pytest.raises(PolicyError, match="nonsense"):
        backtested(host, trained, rule="nonsense > 3")
    with pytest.raises(ValueError, match="bundle m-none is gone"):
        backtested(host, trained, bundle="m-none")
    host.policy = load_policy(DEFAULT_POLICY.read_bytes() + b"# a word\n", INDEX)
    host.scorer().score(Payments(5).one(), call_now())
    found = backtested(host, trained)
    assert found["not_decided_again"] == 1
    assert "is gone" in str(found["causes"])


def some_rows() -> NDArray[Any]:
    rows = np.zeros(6, ROW)
    rows["transaction"] = [11, 12, 13, 14, 15, 16]
    rows["amount_ref"] = [10_000, 20_000, 30_000, 40_000, 50_000, 60_000]
    rows["received_ms"] = np.arange(6) * 86_400_000 // 2
    rows["before"] = [APPROVE, APPROVE, DECLINE, REVIEW, APPROVE, DECLINE]
    rows["after"] = [DECLINE, APPROVE, APPROVE, REVIEW, REVIEW, DECLINE]
    return rows


LABELS = np.array(
    [
        (11, 1, 5, FRAUD, CHARGEBACK),
        (11, 2, 9, LEGITIMATE, ANALYST),  # weaker, whenever it comes
        (12, 3, 5, FRAUD, ANALYST),
        (13, 4, 5, LEGITIMATE, ANALYST),
        (14, 5, 50, FRAUD, CHARGEBACK),  # known only now
        (15, 6, 5, FRAUD, ANALYST),
        (15, 7, 8, LEGITIMATE, ANALYST),  # a correction
        (99, 8, 5, FRAUD, ANALYST),  # of another payment
    ],
    SAID,
)


def test_labels_count_as_of_a_moment_the_stronger_before_the_newer() -> None:
    rows = some_rows()
    then, now = verdicts(rows, LABELS, Cut(known_ms=10)), verdicts(rows, LABELS, Cut())
    assert then.tolist() == [FRAUD, FRAUD, LEGITIMATE, 0, LEGITIMATE, 0]
    assert now.tolist() == [FRAUD, FRAUD, LEGITIMATE, FRAUD, LEGITIMATE, 0]
    assert verdicts(rows, LABELS, Cut(position=4)).tolist() == [FRAUD, FRAUD, 0, 0, 0, 0]


def test_figures_are_those_counted_by_hand() -> None:
    rows = some_rows()
    known = verdicts(rows, LABELS, Cut())
    before, after = figures(rows, known, "before"), figures(rows, known, "after")
    assert (before["fraud_caught_money"], before["fraud_missed_money"]) == (400.0, 300.0)
    assert (after["fraud_caught_money"], after["fraud_missed_money"]) == (500.0, 200.0)
    assert (before["false_declines"], after["false_declines"]) == (1, 0)
    assert (before["declines_of_unknown"], after["declines_of_unknown"]) == (1, 1)
    assert (before["reviews"], after["reviews"], after["reviews_of_good"]) == (1, 2, 1)


def test_the_page_and_the_terminal_hold_what_the_report_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = report(some_rows(), LABELS, Cut(known_ms=10), 0.5)
    found |= {"change": {"rule": "<script>"}, "range": ["a", "b"], "causes": {"it is gone": 3}}
    assert found["days_over_capacity"] == {"before": 1, "after": 2}
    assert json.loads(json.dumps(found)) == found
    write_page(found, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count("Plotly.newPlot") == 3 + len(found["segments"])
    assert "rule &lt;script&gt;" in page
    assert "src=" not in page.split("<h1>")[1]
    print_report(found, 1.0)
    said = capsys.readouterr().out
    assert "3 change" in said
    assert "it is gone" in said
