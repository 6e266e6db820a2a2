"""The options of `rekey`, and what it is given for them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from featurizer.adapters import directory_of
from featurizer.hashing import IdHasher
from featurizer.id_secret import read_id_secret
from fraudsvc.rekey import NO_HISTORY, History, rekey
from fraudsvc.rekey_report import print_rekeyed, progress


def add_rekey(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], environment: Mapping[str, str]
) -> None:
    """Add `rekey`; defaults are in the environment's variables."""
    parser = commands.add_parser(
        "rekey", help="write a log once more, with ids under another secret"
    )
    parser.add_argument(
        "--log", default=environment.get("FRAUD_LOG", "file://data/log"),
        help="URL of the log, which nobody writes to meanwhile (FRAUD_LOG)",
    )  # fmt: skip
    parser.add_argument("--new-log", required=True, metavar="URL", help="is not there yet")
    parser.add_argument(
        "--id-secret", default=environment.get("FRAUD_ID_SECRET", ""),
        help="file with the 16 bytes that its ids were hashed with (FRAUD_ID_SECRET)",
    )  # fmt: skip
    parser.add_argument(
        "--new-id-secret", default=environment.get("FRAUD_NEW_ID_SECRET", ""),
        help="file with the 16 bytes to hash them with (FRAUD_NEW_ID_SECRET)",
    )  # fmt: skip
    parser.add_argument(
        "--history", type=Path, help="file of the events that were put on the log by `backfill`"
    )
    parser.add_argument(
        "--map", action="append", default=[], metavar="OURS=THEIRS",
        help="the file calls our column OURS by the name THEIRS",
    )  # fmt: skip
    parser.add_argument(
        "--leave-out", action="store_true",
        help="do without records whose ids cannot be found again; without it nothing is written",
    )  # fmt: skip
    parser.set_defaults(run=run_rekey)


def run_rekey(args: argparse.Namespace) -> int:
    """Do what the options say. Raises ValueError, LogError, OSError."""
    if not args.new_id_secret:
        raise ValueError("--new-id-secret is required")
    secrets = [read_id_secret(path) for path in (args.id_secret, args.new_id_secret)]
    if secrets[0] == secrets[1]:
        raise ValueError("--new-id-secret holds the secret that is in use")
    old, new = map(IdHasher, secrets)
    history = NO_HISTORY
    if args.history is not None:
        history = _history(args.history, args.map, old, new)
    source, target = (directory_of(url) for url in (args.log, args.new_log))
    with progress() as tell:
        found = rekey(source, target, (old, new), history, tell, leaves_out=args.leave_out)
    print_rekeyed(found, args.new_log)
    return 0


def _history(path: Path, renames: Sequence[str], old: IdHasher, new: IdHasher) -> History:
    # Here, because a scorer has no use for what reads such files.
    from featurizer.backfill import read_history  # noqa: PLC0415 - as said
    from featurizer.history import HistoryError  # noqa: PLC0415 - as said
    from featurizer.renames import renames_of  # noqa: PLC0415 - as said

    try:
        names = renames_of(renames)
        return History(*(read_history(path, each, names).records for each in (old, new)))
    except HistoryError as error:
        raise ValueError(str(error)) from error
