"""The commands of the command side. Only here is the environment read and are options made."""

from __future__ import annotations

import argparse
import asyncio
import getpass
import logging
import logging.handlers
import os
import queue
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from featurizer.adapters import directory_of, open_log
from featurizer.eventlog import LogError
from featurizer.id_secret import read_id_secret
from featurizer.kafka_settings import kafka_settings
from featurizer.places import store_place
from featurizer.telemetry import telemetry
from fraudsvc.callers_command import add_caller_options, caller_arguments, caller_options
from fraudsvc.calls import ScorerSettings
from fraudsvc.client.command import add_client
from fraudsvc.console.command import add_console
from fraudsvc.contract import ContractSettings
from fraudsvc.look_back import Defaults, add_commands
from fraudsvc.models_command import ACTIONS, ModelsOptions, run_models
from fraudsvc.policy import DEFAULT_POLICY, PolicyError
from fraudsvc.rekey_command import add_rekey
from fraudsvc.serve import ServeOptions, host_name, serve, serve_workers
from fraudsvc.server import ServerSettings
from fraudsvc.up import NICENESS, UpOptions, print_change, up
from trainer.bundle import BundleError

# Flag, environment variable, default, meaning; the flag wins.
PLACES = (
    ("--log", "FRAUD_LOG", "file://data/log", "URL of the event log"),
    ("--store", "FRAUD_STORE", "lmdb://data/store", "URL of the store"),
    ("--index", "FRAUD_INDEX", "lmdb://data/index", "URL of the journal's index (shared states)"),
    ("--address", "FRAUD_ADDRESS", "127.0.0.1:50051", "where to serve gRPC"),
    ("--policy", "FRAUD_POLICY", str(DEFAULT_POLICY), "policy file (TOML)"),
    ("--bundle", "FRAUD_BUNDLE", "data/bundle", "model bundle (directory, or a link to one)"),
    ("--archive", "FRAUD_ARCHIVE", "", "what has decided is kept there (`archive` beside the log)"),
    ("--public-key", "FRAUD_PUBLIC_KEY", "data/key.pub", "key that bundles are signed with"),
    ("--id-secret", "FRAUD_ID_SECRET", "", "file with the 16 bytes that ids are hashed with"),
)  # fmt: skip


def _log_through_queue(level: str) -> logging.handlers.QueueListener:
    """Let no call wait for a terminal or a disk to take a line of the log."""
    lines: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    queued = logging.handlers.QueueHandler(lines)
    logging.basicConfig(level=level, format="%(message)s", handlers=[queued])
    listener = logging.handlers.QueueListener(lines, handler)
    listener.start()
    return listener


def _contract(args: argparse.Namespace) -> ContractSettings:
    fields = os.environ.get("FRAUD_EXEMPT_FIELDS", "")
    exempt = frozenset(f.strip() for f in fields.split(",") if f.strip())
    days = args.max_age_days
    return ContractSettings(max_age_days=days if days > 0 else None, exempt_fields=exempt)


def _archive(args: argparse.Namespace) -> Path:
    beside = directory_of(args.log).parent if "log" in args else Path("data")
    return Path(args.archive or beside / "archive")


def _options(args: argparse.Namespace) -> ServeOptions:
    return ServeOptions(
        log=args.log, store=store_place(args.store), index=args.index, address=args.address,
        policy=Path(args.policy), bundle=Path(args.bundle), archive=_archive(args),
        public_key=Path(args.public_key), secret=read_id_secret(args.id_secret),
        cpus=frozenset(int(c) for c in args.cpus.split(",") if c),
        ready_file=args.ready_file, sync_interval_ms=args.sync_interval_ms,
        contract=_contract(args), poll_s=args.poll_s,
        log_bytes_max=None if args.journal_gib is None else round(args.journal_gib * (1 << 30)),
        scorer=ScorerSettings(budget_ms=args.budget_ms, name=host_name()),
        server=ServerSettings(
            threads=args.threads, calls_max=args.calls_max, wait_ms_max=args.wait_ms_max,
            reflection=args.reflection,
        ),
        callers=caller_options(args),
    )  # fmt: skip


def _serve(args: argparse.Namespace) -> int:
    caller_options(args)  # before workers are started, over and over
    if args.workers > 1:
        if args.address.endswith(":0"):
            raise ValueError("several workers share one port: --address needs its number")
        argv = [sys.executable, "-m", "fraudsvc", *sys.argv[1:]]
        return serve_workers(argv, args.workers, args.pin, print_change)
    listener = _log_through_queue(args.log_level)
    try:
        with telemetry("serve", {"FRAUD_METRICS": os.environ.get("FRAUD_METRICS", "")}) as told:
            return serve(_options(args), told.meters)
    finally:
        listener.stop()


def _up(args: argparse.Namespace) -> int:
    caller_options(args)
    extra = ["--max-age-days", str(args.max_age_days), "--budget-ms", str(args.budget_ms)]
    extra += caller_arguments(args)
    return up(
        UpOptions(
            data=args.data, address=args.address, workers=args.workers, pin=args.pin,
            policy=args.policy, serve_arguments=extra, console=args.console,
            environment=os.environ, kafka=args.kafka, store=args.store, stages=args.stages,
            niceness=args.niceness,
        )
    )  # fmt: skip


def _add_serve(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("serve", help="run the scorer")
    for flag, variable, default, meaning in PLACES:
        parser.add_argument(
            flag, default=os.environ.get(variable, default), help=f"{meaning} ({variable})"
        )
    add_caller_options(parser, os.environ)
    parser.add_argument("--workers", type=int, default=1, help="processes that share the port")
    parser.add_argument("--pin", action="store_true", help="give each worker a core of its own")
    parser.add_argument("--cpus", default="", help="cores for this worker, such as 0,1")
    usual = ServerSettings()
    parser.add_argument("--threads", type=int, default=usual.threads, help="threads a worker")
    parser.add_argument(
        "--calls-max", type=int, default=usual.calls_max, help="calls at once; more are shed"
    )
    parser.add_argument(
        "--wait-ms-max", type=float, default=usual.wait_ms_max, help="for its turn; then shed"
    )
    parser.add_argument("--budget-ms", type=float, default=50.0, help="time within which to answer")
    parser.add_argument("--sync-interval-ms", type=int, default=50, help="between syncs to disk")
    parser.add_argument(
        "--journal-gib", type=float, help="bound of the log; then calls are refused"
    )
    parser.add_argument("--max-age-days", type=int, default=90, help="of an event; 0 for any")
    parser.add_argument("--reflection", action="store_true", help="serve gRPC reflection")
    parser.add_argument("--ready-file", type=Path, help="is given the port once it is open")
    parser.add_argument("--log-level", default=os.environ.get("FRAUD_LOG_LEVEL", "INFO"))
    parser.add_argument("--poll-s", type=float, default=1.0, help="between looks at the model")
    parser.set_defaults(run=_serve)


def _add_up(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("up", help="run every role on this machine")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("FRAUD_DATA", "data")))
    parser.add_argument("--address", default=os.environ.get("FRAUD_ADDRESS", "127.0.0.1:50051"))
    parser.add_argument("--policy", default=os.environ.get("FRAUD_POLICY", str(DEFAULT_POLICY)))
    parser.add_argument(
        "--console", default=os.environ.get("FRAUD_CONSOLE", "127.0.0.1:8080"),
        help='where the console serves HTTP; "" for none (FRAUD_CONSOLE)',
    )  # fmt: skip
    add_caller_options(parser, os.environ)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--pin", action="store_true")
    parser.add_argument("--max-age-days", type=int, default=90)
    parser.add_argument("--budget-ms", type=float, default=50.0)
    parser.add_argument("--kafka", default="", help="URL of Kafka: one of several hosts; --store")
    parser.add_argument("--store", default="", help="URL of the shared states, with --kafka")
    parser.add_argument("--stages", type=int, default=1, help="splits and folds, with --kafka")
    parser.add_argument(
        "--niceness", type=int, default=NICENESS, help="how much all but scorers give way, 0 to 19"
    )
    parser.set_defaults(run=_up)


def _demo(args: argparse.Namespace) -> int:
    # Here, because a scorer has no use for what the demo imports.
    from fraudsvc.demo.run import DemoOptions, demo  # noqa: PLC0415 - as said

    given = {name: value for name, value in vars(args).items() if name != "run"}
    return demo(DemoOptions(**given))


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("demo", help="make a world, train, start every role, score")
    parser.add_argument("--keep", action="store_true", help="leave every role up until ^C")
    values = (
        ("--data", Path, "a new directory to keep; without it, a temporary one"),
        ("--json", Path, "write the summary there"),
        ("--seconds", float, "within which the live part is sent"),
        ("--days", int, "of the world"),
        ("--live-hours", float, "the world's last hours, which are the live part"),
        ("--customers", int, "of the world"),
        ("--payments-per-day", float, "of the world"),
        ("--fraud-rate", float, "share of the world's payments"),
        ("--seed", int, "of the world"),
        ("--trees", int, "of the model"),
    )
    for flag, kind, meaning in values:
        parser.add_argument(flag, type=kind, default=argparse.SUPPRESS, help=meaning)
    parser.set_defaults(run=_demo)


def _stream(args: argparse.Namespace) -> int:
    # Here, because a scorer never speaks Kafka.
    from fraudsvc.stream import StreamSettings  # noqa: PLC0415 - as said
    from fraudsvc.stream_role import StreamOptions, run_stream  # noqa: PLC0415 - as said

    listener = _log_through_queue(args.log_level)
    logging.getLogger("aiokafka").setLevel(logging.ERROR)  # we say what its errors mean
    try:
        with telemetry("stream", os.environ) as told:
            options = StreamOptions(
                kafka=kafka_settings(args.kafka), store=store_place(args.store),
                policy=Path(args.policy), bundle=Path(args.bundle), archive=_archive(args),
                public_key=Path(args.public_key), secret=read_id_secret(args.id_secret),
                instance=args.instance, ready_file=args.ready_file, pending_max=args.pending_max,
                contract=_contract(args), stream=StreamSettings(name=host_name()), telemetry=told,
            )  # fmt: skip
            return run_stream(options)
    finally:
        listener.stop()


def _add_kafka(parser: argparse.ArgumentParser) -> None:
    default = os.environ.get("FRAUD_KAFKA", "kafka://127.0.0.1:9092/fraud")
    parser.add_argument("--kafka", default=default, help="URL of Kafka (FRAUD_KAFKA)")
    parser.add_argument("--log-level", default=os.environ.get("FRAUD_LOG_LEVEL", "INFO"))


def _add_stream(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("stream", help="decide payments that come through Kafka")
    _add_kafka(parser)
    for flag, variable, default, meaning in PLACES:
        if flag not in ("--log", "--index", "--address"):
            parser.add_argument(
                flag, default=os.environ.get(variable, default), help=f"{meaning} ({variable})"
            )
    parser.add_argument("--instance", default="", help="static membership: a name of its own")
    parser.add_argument("--pending-max", type=int, default=65_536, help="records ahead of states")
    parser.add_argument("--max-age-days", type=int, default=90, help="of an event; 0 for any")
    parser.add_argument("--ready-file", type=Path, help="is written once the role is up")
    parser.set_defaults(run=_stream)


def _dead_letters(args: argparse.Namespace) -> int:
    # Here, because a scorer never speaks Kafka.
    from fraudsvc.dead_letters import DeadLetters  # noqa: PLC0415 - as said
    from fraudsvc.dead_letters_local import LocalDeadLetters  # noqa: PLC0415 - as said

    if args.log is None:
        return _handle_letters(args, DeadLetters(kafka_settings(args.kafka)), asyncio.run)
    log = open_log(args.log)
    try:
        return _handle_letters(args, LocalDeadLetters(log), lambda found: found)
    finally:
        log.close()


def _handle_letters(args: argparse.Namespace, letters: Any, wait: Callable[[Any], Any]) -> int:
    """List, show or resend; ``wait`` returns what ``letters`` gives, at once or to be awaited."""
    from fraudsvc.dead_letters_report import print_letter, print_letters  # noqa: PLC0415 - as above

    if args.action == "list":
        print_letters(wait(letters.all()))
        return 0
    for number in _numbers(args):
        letter = wait(letters.one(number))
        if args.action == "show":
            print_letter(letter, wait(letters.record(letter)).value or b"")
        else:
            offset = wait(letters.resend(letter, getpass.getuser()))
            print(f"letter {number} was sent again, as offset {offset}")
    return 0


def _numbers(args: argparse.Namespace) -> list[int]:
    if not args.numbers:
        raise ValueError(f"dead-letters {args.action} wants the numbers of letters")
    return list(args.numbers)


def _add_dead_letters(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("dead-letters", help="see what was passed over, and send it again")
    parser.add_argument("action", choices=("list", "show", "resend"))
    parser.add_argument("numbers", type=int, nargs="*", metavar="NUMBER", help="of letters")
    parser.add_argument("--log", help="of a host without Kafka, such as file://data/log")
    _add_kafka(parser)
    parser.set_defaults(run=_dead_letters)


def _models(args: argparse.Namespace) -> int:
    bundle = Path(args.bundle)
    options = ModelsOptions(
        bundle, args.models or bundle.absolute().parent / "models",
        Path(args.public_key).read_bytes(), getpass.getuser(), args.reason,
    )  # fmt: skip
    log = open_log(args.log) if args.reason or args.action == "list" else None
    try:
        run_models(args.action, args.names, options, log)
    finally:
        if log is not None:
            log.close()
    return 0


def _add_models(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("models", help="bundles by hand: look, compare, serve, pin")
    parser.add_argument("action", choices=ACTIONS)
    parser.add_argument("names", nargs="*", metavar="MODEL")
    parser.add_argument("--models", type=Path, help="all bundles; `models` beside the one in use")
    parser.add_argument("--reason", default="", help="why; a change wants one")
    for flag, variable, default, meaning in PLACES:
        if flag in ("--log", "--bundle", "--public-key"):
            parser.add_argument(
                flag, default=os.environ.get(variable, default), help=f"{meaning} ({variable})"
            )
    parser.set_defaults(run=_models)


def _add_look_back(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    policy = Path(os.environ.get("FRAUD_POLICY", str(DEFAULT_POLICY)))
    data = Path(os.environ.get("FRAUD_DATA", "data"))
    secret = os.environ.get("FRAUD_ID_SECRET", "")
    add_commands(commands, Defaults(data, policy, secret, read_id_secret))


def main() -> int:
    """Run one command; the exit status is 2 where its options cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m fraudsvc", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_serve(commands)
    _add_up(commands)
    _add_demo(commands)
    _add_stream(commands)
    _add_dead_letters(commands)
    _add_models(commands)
    add_console(commands, os.environ)
    add_client(commands, os.environ)
    _add_look_back(commands)
    add_rekey(commands, os.environ)
    args = parser.parse_args()
    # A dump of a process would hold what callers have just sent; what it starts has none either.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        if "text" in args:
            print(args.text(args))
            return 0
        return int(args.run(args))
    except (ValueError, OSError, BundleError, LogError, PolicyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
