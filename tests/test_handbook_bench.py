"""The Handbook benchmark on a small made-up history: the product's vectors, all folds, tables."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from featurizer.arena import Arena
from featurizer.backfill import backfill, read_history
from featurizer.features import FEATURES
from featurizer.hashing import IdHasher
from tests.trainer_world import FAST
from trainer import handbook, protocol
from trainer.__main__ import main
from trainer.bench_report import handbook_tables
from trainer.handbook import CHOSEN, CHOSEN_NAMES, COLUMNS, Learning, Options
from trainer.metrics import DAY_MS

SEED = 20261128
FIRST, LAST = "2018-06-01", "2018-08-01"
ROWS_A_DAY = 150
FEW = Options(
    week=Learning(replace(FAST, trees=8), members=2),
    history=Learning(replace(FAST, trees=8), members=1, good_weight=2.0),
    history_share=0.5,
)


def write_history(path: Path) -> Path:
    """Write two months in which one terminal in twelve is fraudulent for a while."""
    random = np.random.default_rng(SEED)
    print(f"SEED={SEED}")
    days = int((np.datetime64(LAST) - np.datetime64(FIRST)).astype(int))
    count = days * ROWS_A_DAY
    seconds = np.sort(random.integers(0, days * 86_400, count))
    terminal = random.integers(0, 60, count)
    bad = (terminal % 12 == seconds // (30 * 86_400) % 12) & (random.random(count) < 0.6)
    columns = {
        "TRANSACTION_ID": pa.array(np.arange(count)),
        "TX_DATETIME": pa.array(np.datetime64(FIRST, "s") + seconds.astype("m8[s]")),
        "CUSTOMER_ID": pa.array(random.integers(0, 400, count).astype(str)),
        "TERMINAL_ID": pa.array(terminal.astype(str)),
        "TX_FRAUD": pa.array(bad.astype(np.int64)),
        "TX_AMOUNT_CENTS": pa.array(random.integers(100, 20_000, count)),
    }
    pq.write_table(pa.table(columns), path)
    return path


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_history(tmp_path_factory.mktemp("bench") / "handbook.parquet")


def silent(_text: str) -> None:
    """Take what the person who waits is told."""


def test_vectors_are_the_backfills_without_what_is_left_out(history: Path, tmp_path: Path) -> None:
    read = read_history(history, IdHasher(), COLUMNS, protocol.DELAY_DAYS * DAY_MS)
    rows = handbook.make_rows(read, protocol.VALIDATION_STARTS[:1], FEW, silent)
    backfill(read, tmp_path / "vectors.parquet", Arena())
    table = pq.read_table(tmp_path / "vectors.parquet")
    flat = table["features"].combine_chunks().flatten().to_numpy().reshape(-1, len(FEATURES))

    start = protocol.VALIDATION_STARTS[0]
    day = table["event_time_ms"].to_numpy() // DAY_MS
    week = (day >= start) & (day < start + protocol.TRAINING_DAYS)
    kept = (rows.day >= start) & (rows.day < start + protocol.TRAINING_DAYS)
    assert rows.features[kept].tobytes() == flat[week][:, CHOSEN].tobytes()
    assert rows.is_fraud[kept].tolist() == table["is_fraud"].to_numpy()[week].tolist()
    before = rows.day < start
    assert rows.drawn[before].all()
    assert 0 < before.sum() < (day < start).sum()
    assert not {"cents", "digits"} & set(CHOSEN_NAMES)
    assert "terminal_good_since_fraud" in CHOSEN_NAMES


def test_every_fold_is_learnt_twice_and_shown(history: Path) -> None:
    told: list[str] = []
    report: dict[str, Any] = handbook.run(history, FEW, told.append, validation=True)
    report = json.loads(json.dumps(report))
    for part in ("in_protocol", "all_history"):
        folds = report[part]["folds"]
        assert [f["train_from"] for f in folds] == [
            protocol.date_text(start) for start in protocol.VALIDATION_STARTS
        ]
        over = report[part]["over_folds"]
        for name in protocol.METRICS:
            assert over[name]["mean"] == pytest.approx(np.mean([f[name] for f in folds]))
        share = np.mean([f["frauds"] / f["rows"] for f in folds])
        assert over["average_precision"]["mean"] > 2 * share
    assert report["in_protocol"]["over_folds"] != report["all_history"]["over_folds"]
    assert report["settings"]["week"]["settings"]["trees"] == 8
    assert "learn history, fold 3" in told

    console = Console(width=160, file=io.StringIO())
    with console.capture() as captured:
        console.print(handbook_tables(report))
    shown = captured.get()
    for row in protocol.PUBLISHED:
        assert row.name in shown
    assert f"{report['in_protocol']['over_folds']['average_precision']['mean']:.3f} ±" in shown
    assert "a perfect ranker" in shown


def test_a_seed_gives_the_same_figures_again(history: Path) -> None:
    first, second = (handbook.run(history, FEW, silent, validation=True) for _ in range(2))
    assert first["in_protocol"] == second["in_protocol"]
    assert first["all_history"] == second["all_history"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, "this is not the Handbook's data"),
        ({"TX_FRAUD": None}, "no label"),
        ({"TX_AMOUNT_CENTS": -1}, "cannot be used"),
    ],
    ids=["other data", "a label is missing", "a bad amount"],
)
def test_other_files_are_refused(
    history: Path, tmp_path: Path, change: dict[str, Any], reason: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    rows = pq.read_table(history).slice(0, 3_000).to_pylist()
    rows[7] |= change
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "other.parquet")
    assert main(["bench", "handbook", str(tmp_path / "other.parquet")]) == 2
    assert reason in " ".join(capsys.readouterr().err.split())
