"""Owns the command line of training and evaluation: arguments in, tables and exit status out.

Status 0 means done, 2 that the input was refused, with one line that says why. Must not compute.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from featurizer.history import HistoryError
from trainer.bench_report import handbook_tables
from trainer.bundle import BundleError, load_bundle, write_bundle
from trainer.calibration import CalibrationError
from trainer.evaluate import EvaluationError, evaluate
from trainer.handbook import Options, run
from trainer.live_command import add_run
from trainer.protocol import ProtocolError
from trainer.report import report_tables, utc_text
from trainer.signing import SigningError, create_key, public_path, read_key, sign
from trainer.thresholds import Costs
from trainer.train import Settings, TrainingError, train
from trainer.vectors import Vectors, VectorsError, read_vectors

_KEY_NAME = "signing.pem"
_REFUSALS = (
    BundleError,
    CalibrationError,
    EvaluationError,
    HistoryError,
    ProtocolError,
    SigningError,
    TrainingError,
    VectorsError,
)


class SettingsError(Exception):
    """An argument is out of its range."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    parsed = _parser().parse_args(arguments)
    console = Console(stderr=True)
    try:
        status: int = parsed.run(parsed, console)
    except (*_REFUSALS, SettingsError) as error:
        console.print(f"[red]error:[/red] {escape(' '.join(str(error).split()))}", soft_wrap=True)
        return 2
    return status


def _parser() -> argparse.ArgumentParser:
    defaults, costs = Settings(), Costs()
    parser = argparse.ArgumentParser(prog="python -m trainer", description="Learn and judge models")
    commands = parser.add_subparsers(required=True)

    learn = commands.add_parser("train", help="learn a model from vectors and write a bundle")
    learn.add_argument("vectors", type=Path, help="Parquet file made by the backfill")
    learn.add_argument("--out", type=Path, required=True, help="directory of the new bundle")
    learn.add_argument("--replace", action="store_true", help="replace an existing bundle")
    learn.add_argument(
        "--key", type=Path, help=f"private key in PEM, made when absent ({_KEY_NAME} beside OUT)"
    )
    _add_range(learn)
    learn.add_argument("--iterations", type=int, default=defaults.trees, help="trees at most")
    learn.add_argument("--depth", type=int, default=defaults.depth)
    learn.add_argument("--learning-rate", type=float, default=defaults.learning_rate)
    learn.add_argument("--border-count", type=int, default=defaults.borders)
    learn.add_argument("--fine-border-count", type=int, default=defaults.fine_borders)
    learn.add_argument(
        "--fine", action="append", metavar="PATTERN", help="features with the fine border count"
    )
    learn.add_argument("--holdout-share", type=float, default=defaults.holdout_share)
    learn.add_argument("--frauds-min", type=int, default=defaults.frauds_min)
    learn.add_argument("--seed", type=int, default=defaults.seed)
    learn.add_argument("--threads", type=int, default=defaults.threads, help="-1: all cores")
    learn.add_argument("--cost-false-decline", type=float, default=costs.false_decline_ref)
    learn.add_argument("--cost-missed-share", type=float, default=costs.missed_fraud_share)
    learn.add_argument("--cost-review", type=float, default=costs.review_ref)
    learn.add_argument("--review-capacity", type=float, default=costs.review_capacity_share)
    learn.set_defaults(run=_train)

    judge = commands.add_parser("evaluate", help="judge a bundle on vectors with labels")
    judge.add_argument("bundle", type=Path)
    judge.add_argument("vectors", type=Path)
    judge.add_argument(
        "--public-key", type=Path, help=f"public key in PEM ({_KEY_NAME}.pub beside BUNDLE)"
    )
    _add_range(judge)
    judge.add_argument("--json", action="store_true", help="print the report as JSON")
    judge.set_defaults(run=_evaluate)
    add_run(commands, os.environ)
    _add_bench(commands)
    return parser


def _add_bench(commands: Any) -> None:
    bench = commands.add_parser("bench", help="measure against what others published")
    benches = bench.add_subparsers(required=True)
    handbook = benches.add_parser(
        "handbook", help="protocol A2 on the Fraud Detection Handbook's simulated data"
    )
    handbook.add_argument("history", type=Path, help="Parquet; the documentation tells its making")
    handbook.add_argument(
        "--validation", action="store_true", help="the folds on which the settings are chosen"
    )
    handbook.add_argument("--json", action="store_true", help="print every fold as JSON")
    handbook.set_defaults(run=_bench_handbook)


def _add_range(parser: argparse.ArgumentParser) -> None:
    text = "ISO date or time, UTC where no offset is given"
    parser.add_argument("--from", dest="start", type=_time_ms, metavar="T", help=text)
    parser.add_argument("--until", type=_time_ms, metavar="T", help=text + "; itself left out")


def _time_ms(text: str) -> int:
    """Return milliseconds since 1970 of an ISO date or time."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no ISO date or time") from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1_000)


def _settings(parsed: argparse.Namespace) -> Settings:
    try:
        return Settings(
            trees=parsed.iterations,
            depth=parsed.depth,
            learning_rate=parsed.learning_rate,
            borders=parsed.border_count,
            fine_borders=parsed.fine_border_count,
            fine_features=tuple(parsed.fine or Settings().fine_features),
            holdout_share=parsed.holdout_share,
            frauds_min=parsed.frauds_min,
            seed=parsed.seed,
            threads=parsed.threads,
            costs=Costs(
                false_decline_ref=parsed.cost_false_decline,
                missed_fraud_share=parsed.cost_missed_share,
                review_ref=parsed.cost_review,
                review_capacity_share=parsed.review_capacity,
            ),
        )
    except ValueError as error:
        raise SettingsError(str(error)) from error


def _train(parsed: argparse.Namespace, console: Console) -> int:
    settings = _settings(parsed)
    key: Path = parsed.key or parsed.out.parent / _KEY_NAME
    _check_output(parsed.out, key, replace=parsed.replace)
    with console.status("reading vectors"):
        vectors = read_vectors(
            parsed.vectors,
            from_ms=parsed.start,
            until_ms=parsed.until,
            known_until_ms=parsed.until,
        )
    _tell_rows(vectors, console)
    columns = (TextColumn("trees"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("trees", total=settings.trees)
        content = train(
            vectors, settings, lambda done, total: bar.update(task, completed=done, total=total)
        )
    if not key.exists():
        create_key(key)
        console.print(f"made the key {key} and {public_path(key)}", markup=False)
    bundle_id = write_bundle(parsed.out, content, key, replace=parsed.replace)
    Console().print(report_tables(content.facts["metrics"], f"{bundle_id}, on its held-out part"))
    limits = content.thresholds
    console.print(
        f"{parsed.out}: review from {limits.review:.6f}, decline from {limits.decline:.6f}"
    )
    return 0


def _check_output(out: Path, key: Path, *, replace: bool) -> None:
    """Refuse before the training what would fail after it."""
    if out.exists() and not replace:
        raise BundleError(f"{out} exists; --replace replaces it")
    for directory in (out.absolute().parent, key.absolute().parent):
        if not directory.is_dir():
            raise BundleError(f"there is no directory {directory}")
    if key.exists():
        sign(key, b"")


def _tell_rows(vectors: Vectors, console: Console) -> None:
    first, last = (utc_text(int(t)) for t in vectors.event_time_ms[[0, -1]])
    frauds = int(vectors.is_fraud.sum())
    console.print(f"{len(vectors):,} rows, {frauds:,} frauds, {first} to {last}", highlight=False)
    if vectors.left_out:
        console.print(f"left out {vectors.left_out:,} rows whose label was not known yet")
    if not vectors.label_times_known:
        console.print("no label has a time: every label is taken as known")


def _evaluate(parsed: argparse.Namespace, console: Console) -> int:
    key = parsed.public_key or public_path(parsed.bundle.absolute().parent / _KEY_NAME)
    with console.status("reading vectors"):
        vectors = read_vectors(parsed.vectors, from_ms=parsed.start, until_ms=parsed.until)
    bundle = load_bundle(
        parsed.bundle, schema_version=vectors.schema_version, public_key=read_key(key)
    )
    report = evaluate(bundle, vectors)
    if parsed.json:
        print(json.dumps(report, indent=1))
    else:
        Console().print(report_tables(report, bundle.model_version))
    return 0


def _bench_handbook(parsed: argparse.Namespace, console: Console) -> int:
    with console.status("") as status:
        report = run(parsed.history, Options(), status.update, validation=parsed.validation)
    if parsed.json:
        print(json.dumps(report, indent=1))
    else:
        Console().print(handbook_tables(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
