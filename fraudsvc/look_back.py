"""The options of what looks back at the log, `replay` and `backtest`, and what each runs.

Owns the flags. Must not read the environment: what it says comes in with ``Defaults``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from fraudsvc.backtest.report import print_json, print_report
from fraudsvc.backtest.run import Change
from fraudsvc.look_back_command import (
    BacktestOptions,
    ReplayOptions,
    backtest,
    end_of,
    is_kafka,
    replay_many,
    replay_one,
    replay_one_shared,
    span_of,
    steps_of,
)
from fraudsvc.models import read_key
from fraudsvc.replay.judges import Places
from fraudsvc.replay.report import print_summary, print_verdict, shown_progress
from fraudsvc.replay.step_report import print_steps


class Defaults(NamedTuple):
    """What the environment says, and how the file of the id secret is read."""

    data: Path
    policy: Path
    id_secret: str
    read_secret: Callable[[str], bytes]


def _options(args: argparse.Namespace) -> ReplayOptions:
    data: Path = args.data
    key = read_key(args.public_key or data / "key.pub")
    places = Places(
        args.archive or data / "archive", args.models or data / "models", data / "bundle",
        args.policy_in_use, key,
    )  # fmt: skip
    log = args.log or f"file://{data}/log"
    return ReplayOptions(log, places, args.read_secret(args.id_secret), args.processes)


def _replay(args: argparse.Namespace) -> int:
    options = _options(args)
    if args.decision:
        if args.first or args.stop:
            raise ValueError("replay takes a decision or a range, not both")
        if is_kafka(options.log):
            if args.step:
                raise ValueError("--step shows what a journal has: --log file://DIR")
            verdict = replay_one_shared(args.decision, options)
            print_verdict(verdict, in_json=args.json)
            return 0 if verdict.is_same else 1
        verdict, rebuilt = replay_one(args.decision, options)
        if args.step:
            print_steps(steps_of(verdict, rebuilt, options), in_json=args.json)
        else:
            print_verdict(verdict, in_json=args.json)
        return 0 if verdict.is_same else 1
    if args.step:
        raise ValueError("--step wants a decision")
    span = span_of(args.first, args.stop)
    start = time.monotonic()
    with shown_progress("replay", end_of(options.log)) as tell:
        summary = replay_many(span, options, tell)
    print_summary(summary, time.monotonic() - start, in_json=args.json)
    return 0 if summary.is_same else 1


def _backtest(args: argparse.Namespace) -> int:
    from fraudsvc.backtest.page import write_page  # noqa: PLC0415 - plotly loads for a second

    options = _options(args)
    change = Change(args.policy, args.bundle, args.add_rule, args.rule_action)
    wanted = BacktestOptions(change, args.review_capacity)
    span = span_of(args.first, args.stop)
    start = time.monotonic()
    with shown_progress("backtest", end_of(options.log)) as tell:
        found = backtest(span, options, wanted, tell)
    if args.html:
        write_page(found, args.html)
    if args.json:
        print_json(found)
    else:
        print_report(found, time.monotonic() - start)
    return 0


def _add_history(parser: argparse.ArgumentParser, defaults: Defaults) -> None:
    """Add what every command has that looks back."""
    parser.add_argument("--from", dest="first", default="", help="position or RFC 3339 time")
    parser.add_argument("--to", dest="stop", default="", help="position or time, without it")
    parser.add_argument(
        "--data", type=Path, default=defaults.data, help="as `up` has it (FRAUD_DATA)"
    )
    parser.add_argument("--log", default="", help="URL of the log; DATA/log")
    for name in ("archive", "models", "public-key"):
        parser.add_argument(f"--{name}", type=Path, help="instead of the one in DATA")
    parser.add_argument(
        "--policy-in-use", type=Path, default=defaults.policy, help="policy file (FRAUD_POLICY)"
    )
    parser.add_argument("--id-secret", default=defaults.id_secret, help="file (FRAUD_ID_SECRET)")
    parser.add_argument("--processes", type=int, default=0, help="0 for all cores")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(read_secret=defaults.read_secret)


def add_commands(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], defaults: Defaults
) -> None:
    """Add `replay` and `backtest`."""
    parser = commands.add_parser("replay", help="make decisions again from the log, and compare")
    parser.add_argument("decision", nargs="?", default="", help="its id; without it a range")
    parser.add_argument("--step", action="store_true", help="show what a decision is made of")
    _add_history(parser, defaults)
    parser.set_defaults(run=_replay)
    parser = commands.add_parser("backtest", help="decide a range again with a change: what if")
    parser.add_argument("--policy", default="", help="decide by this policy file")
    parser.add_argument("--bundle", default="", metavar="ID", help="decide with this model")
    parser.add_argument("--add-rule", default="", metavar="CEL", help="decide with one rule more")
    actions = ("review", "decline", "approve", "flag")
    parser.add_argument("--rule-action", choices=actions, default="review", help="of that rule")
    parser.add_argument("--review-capacity", type=float, help="reviews a day; 0.5 %% of traffic")
    parser.add_argument("--html", type=Path, help="write a page with plots there")
    _add_history(parser, defaults)
    parser.set_defaults(run=_backtest)
