"""The report of a bundle, and the two commands from outside."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.trainer_world import DAY_MS, FAST, SCHEMA, START_MS, make_vectors, take, write_vectors
from trainer.__main__ import main
from trainer.bundle import Bundle, load_bundle, write_bundle
from trainer.evaluate import EvaluationError, evaluate
from trainer.metrics import average_precision, roc_auc
from trainer.signing import create_key, public_path
from trainer.train import train

VECTORS = make_vectors()
QUICK = ["--iterations", "25", "--depth", "4", "--frauds-min", "10"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with vectors, a key and a bundle."""
    directory = tmp_path_factory.mktemp("home")
    write_vectors(directory / "vectors.parquet", VECTORS)
    create_key(directory / "signing.pem")
    content = train(VECTORS, FAST, lambda _done, _total: None)
    write_bundle(directory / "bundle", content, directory / "signing.pem")
    return directory


@pytest.fixture(scope="module")
def bundle(home: Path) -> Bundle:
    public_key = public_path(home / "signing.pem").read_bytes()
    return load_bundle(home / "bundle", schema_version=SCHEMA, public_key=public_key)


def test_the_report_agrees_with_itself(bundle: Bundle) -> None:
    report = evaluate(bundle, VECTORS)
    logits = bundle.model.logits(VECTORS.features)
    assert report["model_version"] == bundle.model_version
    assert report["auc"] == roc_auc(logits, VECTORS.is_fraud)
    assert report["average_precision"] == average_precision(logits, VECTORS.is_fraud)
    assert 0.0 < report["card_precision_at_100"] <= report["card_precision_at_100_ceiling"]
    recalls = list(report["recall_at_false_positive_rate"].values())
    assert recalls == sorted(recalls)
    assert list(report["recall_at_false_positive_rate"]) == ["0.001", "0.005", "0.01", "0.05"]
    assert sum(row["rows"] for row in report["reliability"]) == report["rows"] == 6_000
    assert report["expected_calibration_error"] < 0.02
    outcomes = report["outcomes"].values()
    assert sum(counts["rows"] for counts in outcomes) == 6_000
    assert sum(counts["frauds"] for counts in outcomes) == report["frauds"]
    one = bundle.calibrate(logits[0]) >= bundle.thresholds.decline
    assert one == (bundle.calibration.probabilities(logits[:1])[0] >= bundle.thresholds.decline)


def test_rows_of_another_kind_are_refused(bundle: Bundle) -> None:
    names = ("other", *VECTORS.feature_names[1:])
    with pytest.raises(EvaluationError, match="schema s-2"):
        evaluate(bundle, replace(VECTORS, schema_version="s-2"))
    with pytest.raises(EvaluationError, match="other features"):
        evaluate(bundle, replace(VECTORS, feature_names=names))
    with pytest.raises(EvaluationError, match="0 frauds in"):
        evaluate(bundle, take(VECTORS, ~VECTORS.is_fraud))


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_train_then_evaluate(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vectors, out = home / "vectors.parquet", tmp_path / "new"
    until = np.datetime64(START_MS + 45 * DAY_MS, "ms")
    status, told, progress = run(capsys, "train", vectors, "--out", out, "--until", until, *QUICK)
    assert status == 0, progress
    assert "average precision" in told
    assert "whose label was not known yet" in progress
    assert (tmp_path / "signing.pem").stat().st_mode & 0o777 == 0o600
    manifest = json.loads((out / "manifest.json").read_bytes())
    assert manifest["data"]["last_event_ms"] <= START_MS + 38 * DAY_MS

    status, told, _ = run(capsys, "evaluate", out, vectors, "--from", until, "--json")
    report = json.loads(told)
    assert status == 0
    assert report["first_event_ms"] >= START_MS + 45 * DAY_MS
    assert report["model_version"] == manifest["bundle_id"]
    status, told, _ = run(capsys, "evaluate", out, vectors, "--from", until)
    assert status == 0
    assert f"{report['auc']:.4f}" in told
    assert "Reliability" in told


def test_labels_without_times_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_vectors(tmp_path / "v", VECTORS, label_delay_ms=None)
    status, _, progress = run(capsys, "train", tmp_path / "v", "--out", tmp_path / "b", *QUICK)
    assert status == 0
    assert "every label is taken as known" in progress


REFUSED: list[tuple[list[Any], str]] = [
    (["train", "absent", "--out", "{tmp}/b"], "cannot read vectors"),
    (["train", "{home}/vectors.parquet", "--out", "{home}/bundle"], "--replace replaces it"),
    (["train", "{home}/vectors.parquet", "--out", "{tmp}/b", "--depth", 99], "depth must be"),
    (["train", "{home}/vectors.parquet", "--out", "{tmp}/b", "--cost-review", -1], "review_ref"),
    (["train", "{home}/vectors.parquet", "--out", "{tmp}/b", "--until", "2001-01-01"], "no rows"),
    (["train", "{home}/vectors.parquet", "--out", "{tmp}/b", "--until", "2018-04-09"], "frauds"),
    (["train", "{home}/vectors.parquet", "--out", "{tmp}/no/b", *QUICK], "there is no directory"),
    (
        ["train", "{home}/vectors.parquet", "--out", "{tmp}/b", "--key", "{home}/signing.pem.pub"],
        "no private key",
    ),
    (["evaluate", "{home}/absent", "{home}/vectors.parquet"], "cannot read"),
    (["evaluate", "{tmp}/b", "{home}/vectors.parquet"], "cannot read the key"),
    (["evaluate", "{home}/bundle", "{home}/bundle/base.cbm"], "cannot read vectors"),
]


@pytest.mark.parametrize(("arguments", "reason"), REFUSED, ids=[r[1] for r in REFUSED])
def test_bad_input_is_one_line_and_status_2(
    arguments: list[Any],
    reason: str,
    home: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = sorted(path.name for path in home.rglob("*"))
    filled = [str(a).format(home=home, tmp=tmp_path) for a in arguments]
    status, _, told = run(capsys, *filled)
    line = told.strip().splitlines()[-1]
    assert status == 2
    assert line.startswith("error:")
    assert reason in line
    assert sorted(path.name for path in home.rglob("*")) == before
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["yesterday", "2018-13-01"])
def test_a_time_that_is_none_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["train", "v", "--out", "b", "--from", text])
    assert stopped.value.code == 2
    assert "no ISO date or time" in capsys.readouterr().err
