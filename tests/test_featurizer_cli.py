"""The featurizer's command line as a user meets it: text, files and exit statuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurizer.__main__ import main
from featurizer.features import FEATURES, NAMES, SCHEMA_VERSION
from featurizer.history import OPTIONAL, REQUIRED

HEAD = "transaction_id,event_time,customer_id,amount_minor,is_fraud\n"
GOOD = "a,2024-01-01T00:00:00Z,c,100,0\nb,2024-01-02T00:00:00Z,c,200,1\n"
BAD = "x,yesterday,c,100,0\n"


class Shell:
    """Runs commands and keeps what they said."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path
    ) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        self.folder = folder
        self.out = folder / "vectors.parquet"
        self.said = self.errors = ""

    def run(self, *words: str | Path) -> int:
        self._monkeypatch.setattr("sys.argv", ["featurizer", *map(str, words)])
        try:
            status = main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        self.said, self.errors = self._capsys.readouterr()
        return status

    def backfill(self, text: str, *more: str) -> int:
        history = self.folder / "history.csv"
        history.write_text(text)
        return self.run("backfill", history, self.out, *more)

    @property
    def files(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}


@pytest.fixture
def shell(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Shell:
    return Shell(monkeypatch, capsys, tmp_path)


def test_features_lists_every_row(shell: Shell) -> None:
    assert shell.run("features") == 0
    assert SCHEMA_VERSION in shell.said
    words = set(shell.said.replace("│", " ").split())
    assert set(NAMES) <= words


def test_features_as_json_is_the_catalogue(shell: Shell) -> None:
    assert shell.run("features", "--json") == 0
    rows = json.loads(shell.said)
    assert [row["name"] for row in rows] == list(NAMES)
    assert set(rows[0]) == {"name", "family", "entity", "window", "unit", "default", "meaning"}
    assert all(row["family"] and row["entity"] and row["meaning"] for row in rows)
    assert [row["window"] for row in rows] == [feature.window for feature in FEATURES]


def test_backfill_writes_vectors(shell: Shell) -> None:
    assert shell.backfill(HEAD + GOOD, "--label-delay-days", "0.5") == 0
    table = pq.read_table(shell.out)
    assert table["transaction_id"].to_pylist() == ["a", "b"]
    assert table["label_time_ms"].to_pylist() == [1_704_110_400_000, 1_704_196_800_000]
    assert f"2 vectors of {len(FEATURES)} features" in shell.errors
    assert shell.said == ""


def test_a_bad_row_is_told_and_the_rest_written(shell: Shell) -> None:
    assert shell.backfill(HEAD + BAD + GOOD) == 0
    assert "line 2: event_time is not a time" in shell.errors
    assert "1 rows cannot be used" in shell.errors
    assert "yesterday" not in shell.errors  # values are never repeated
    assert pq.read_table(shell.out).num_rows == 2


def test_strict_stops_at_a_bad_row(shell: Shell) -> None:
    shell.out.write_bytes(b"older")
    assert shell.backfill(HEAD + GOOD + BAD, "--strict") == 1
    assert "line 4: event_time" in shell.errors
    assert shell.out.read_bytes() == b"older"
    assert shell.backfill(HEAD + GOOD, "--strict") == 0


def test_labels_without_a_time_are_pointed_out(shell: Shell) -> None:
    shell.backfill(HEAD + GOOD)
    assert "--label-delay-days" in shell.errors
    shell.backfill(HEAD + GOOD, "--label-delay-days", "7")
    assert "--label-delay-days" not in shell.errors


def test_columns_by_other_names(shell: Shell) -> None:
    text = HEAD.replace("customer_id", "payer") + GOOD
    assert shell.backfill(text) == 2
    assert "--map customer_id=YOURS" in shell.errors
    assert shell.backfill(text, "--map", "customer_id=payer") == 0
    assert pq.read_table(shell.out)["customer_id"].to_pylist() == ["c", "c"]


@pytest.mark.parametrize(
    ("text", "more", "why"),
    [
        ("", (), "is empty"),
        (HEAD, (), "has no rows"),
        (HEAD + BAD, (), "no row can be used"),
        (HEAD + GOOD, ("--map", "customer_id"), "OURS=THEIRS"),
        (HEAD + GOOD, ("--map", "=x"), "OURS=THEIRS"),
        (HEAD + GOOD, ("--map", "who=customer_id"), "no column who"),
        (HEAD + GOOD, ("--map", "mcc=code"), "no column code"),
        (HEAD + GOOD, ("--map", "mcc=a", "--map", "mcc=b"), "mcc twice"),
        (HEAD + GOOD, ("--label-delay-days", "-1"), "must lie between 0"),
        (HEAD + GOOD, ("--label-delay-days", "nan"), "must lie between 0"),
        (HEAD + GOOD, ("--memory-gib", "0"), "must lie between 1"),
    ],
)
def test_what_cannot_be_used_is_one_clear_error(
    text: str, more: tuple[str, ...], why: str, shell: Shell
) -> None:
    assert shell.backfill(text, *more) == 2
    assert why in shell.errors.splitlines()[-1]
    assert "Traceback" not in shell.errors
    assert shell.files == {"history.csv"}


def test_files_that_cannot_be_used(shell: Shell) -> None:
    whole = shell.folder / "whole.parquet"
    pq.write_table(pa.table({name: ["1"] for name in REQUIRED}), whole)
    cut = shell.folder / "cut.parquet"
    cut.write_bytes(whole.read_bytes()[:-9])
    for name in ("missing.csv", "missing.parquet", "cut.parquet"):
        assert shell.run("backfill", shell.folder / name, shell.out) == 2
        assert len(shell.errors.strip().splitlines()) == 1
        assert shell.errors.startswith("error: ")
    assert shell.run("backfill", whole, shell.folder / "nowhere" / "out") == 2
    assert shell.run("backfill", whole, whole) == 2
    assert "would replace" in shell.errors
    assert shell.run("backfill", whole, shell.out) == 0
    assert shell.files == {"whole.parquet", "cut.parquet", shell.out.name}


def test_help_names_every_column(shell: Shell) -> None:
    assert shell.run("backfill", "--help") == 0
    for name in (*REQUIRED, *OPTIONAL):
        assert name in shell.said


def test_no_command_is_a_usage_error(shell: Shell) -> None:
    assert shell.run() == 2
    assert "usage: python -m featurizer" in shell.errors


def test_the_role_looks_through_what_its_batches_made_alone(tmp_path: Path) -> None:
    code = f"""
import gc
from featurizer import role

role.Worker.run = lambda *_: print(gc.get_freeze_count() > 10_000)
role.run(role.RoleOptions("file://{tmp_path}/log", "lmdb://{tmp_path}/store"))
"""
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert told == "True\n"
