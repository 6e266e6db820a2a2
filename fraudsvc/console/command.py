"""Owns `console` and `trace` of the command line: their options, and what `trace` looks at."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path

from featurizer.adapters import directory_of, open_log
from featurizer.eventlog import LogError
from featurizer.former_ids import FormerIds
from featurizer.hashing import request_hash_of
from featurizer.places import store_place
from featurizer.spans import Span
from featurizer.telemetry import keep_rule
from fraudsvc.console.access_command import (
    add_access,
    add_keys,
    gate_options,
    operations_options,
)
from fraudsvc.console.desk_command import add_desk, desk_options

READ_MODEL = "sqlite:///data/readmodel.sqlite"


def add_console(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], environment: Mapping[str, str]
) -> None:
    """Add both commands; defaults are in the environment's variables."""
    env = environment.get
    console = commands.add_parser("console", help="keep decisions, traces and metrics to look at")
    trace = commands.add_parser("trace", help="print what happened in a decision, and after it")
    for each in (console, trace):
        each.add_argument("--log", default=env("FRAUD_LOG", "file://data/log"), help="of a host")
        each.add_argument("--store", default=env("FRAUD_STORE", "lmdb://data/store"))
        each.add_argument("--index", default=env("FRAUD_INDEX", "lmdb://data/index"))
        each.add_argument(
            "--read-model", default=env("FRAUD_READ_MODEL", READ_MODEL),
            help="sqlite:///FILE or postgresql+psycopg://… (FRAUD_READ_MODEL)",
        )  # fmt: skip
    console.add_argument(
        "--http", default=env("FRAUD_CONSOLE", "127.0.0.1:8080"), help="address (FRAUD_CONSOLE)"
    )
    console.add_argument(
        "--otlp", default=env("FRAUD_OTLP", "127.0.0.1:4317"),
        help='address to take spans at; "" for none (FRAUD_OTLP)',
    )  # fmt: skip
    console.add_argument("--rebuild", action="store_true", help="make it again from the log")
    console.add_argument("--decisions-max", type=int, default=1_000_000, help="that are kept")
    console.add_argument("--days", type=float, default=30.0, help="that spans are kept")
    console.add_argument("--ready-file", type=Path, help="is given the port once it is open")
    add_desk(console, environment)
    console.add_argument("--log-level", default=env("FRAUD_LOG_LEVEL", "INFO"))
    add_access(console, environment)
    add_keys(commands, environment)
    console.set_defaults(run=lambda args: _console(args, environment))
    trace.add_argument("decision", metavar="DECISION", help="its id")
    trace.set_defaults(run=_trace)


def _console(args: argparse.Namespace, environment: Mapping[str, str]) -> int:
    # Here, because no other command wants a web server.
    from fraudsvc.console.readmodel import ReadModelError  # noqa: PLC0415 - as said
    from fraudsvc.console.role import ConsoleOptions, run_console  # noqa: PLC0415 - as said

    logging.basicConfig(
        level=args.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    folder = environment.get("FRAUD_METRICS", "")
    options = ConsoleOptions(
        log=args.log, store=store_place(args.store), index=args.index, read_model=args.read_model,
        access=gate_options(args, environment),
        operations=operations_options(args),
        desk=desk_options(args),
        http=args.http, otlp=args.otlp, metrics=Path(folder) if folder else None,
        rule=keep_rule(environment), environment=environment, ready_file=args.ready_file,
        rebuild=args.rebuild, decisions_max=args.decisions_max, days=args.days,
    )  # fmt: skip
    try:
        return run_console(options)
    except ReadModelError as error:
        raise ValueError(str(error)) from error


def _trace(args: argparse.Namespace) -> int:
    from fraudsvc.console.trace_report import of_one, print_trace  # noqa: PLC0415 - as above

    spans = _kept(args) or _logged(args)
    if not spans:
        raise ValueError(f"no decision {args.decision} is kept, nor on the log")
    print_trace(_trace_of(spans, args.decision), of_one(spans, args.decision))
    return 0


def _trace_of(spans: list[Span], decision: str) -> str:
    """Return the trace of the call that made a decision."""
    return next(
        each.context.trace_id
        for each in spans
        if each.attributes.get("fraud.decision.id") == decision
    )


def _kept(args: argparse.Namespace) -> list[Span]:
    """Return the trace from the read model, nothing where it is not kept."""
    from fraudsvc.console.readmodel import ReadModel, ReadModelError  # noqa: PLC0415 - as above

    try:
        model = ReadModel(args.read_model, existing=True)
        row = model.decision(args.decision)
        return [] if row is None else model.trace(row["trace_id"])
    except ReadModelError as error:
        logging.getLogger(__name__).warning("only what the log tells: %s", error)
        return []


def _logged(args: argparse.Namespace) -> list[Span]:
    """Return the call's own spans, built now from the log; nothing where it has none."""
    from fraudsvc.console.follower import logged_at  # noqa: PLC0415 - as above
    from fraudsvc.console.role import Finder  # noqa: PLC0415 - as above
    from fraudsvc.decision_spans import spans_of_alone  # noqa: PLC0415 - as above

    request = FormerIds(directory_of(args.log)).now(request_hash_of(args.decision))
    try:
        log = open_log(args.log, read_only=True)
    except LogError:
        return []
    finder = Finder(store_place(args.store), args.index)
    frame = finder(request)
    logged = None if frame is None else logged_at(log, frame, request)
    finder.close()
    log.close()
    if logged is None or logged.decision.assessment.decision_id != args.decision:
        return []
    return spans_of_alone(logged.decision, logged.position, "asked")
