"""The options of the analysts' desk: where commands go, and how cases are worked on.

Owns the flags of `console` that are about cases. Must not know pages.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fraudsvc.policy import DEFAULT_POLICY


@dataclass(frozen=True, slots=True)
class DeskOptions:
    """Where verdicts and overrides go, and how long things last, in minutes.

    ``data`` is the folder of ``up`` that replay and thresholds are found in.
    """

    scorer: str = "127.0.0.1:50051"
    policy: Path = DEFAULT_POLICY
    data: Path = Path("data")
    id_secret: str = ""
    review_minutes: float = 60.0
    claim_minutes: float = 15.0
    undo_minutes: float = 15.0
    capacity: int = 200

    def __post_init__(self) -> None:
        """Refuse what cannot be. Raises ValueError."""
        for name in ("review_minutes", "claim_minutes", "undo_minutes", "capacity"):
            if not getattr(self, name) > 0:
                raise ValueError(f"--{name.replace('_', '-')} must be above 0")


def add_desk(parser: argparse.ArgumentParser, environment: Mapping[str, str]) -> None:
    """Add the flags; defaults are in the environment's variables."""
    env, usual = environment.get, DeskOptions()
    parser.add_argument(
        "--scorer", default=env("FRAUD_ADDRESS", usual.scorer),
        help="gRPC address that verdicts are sent to (FRAUD_ADDRESS)",
    )  # fmt: skip
    parser.add_argument(
        "--data", type=Path, default=Path(env("FRAUD_DATA", "data")),
        help="where archive, models and keys are, for replay and thresholds (FRAUD_DATA)",
    )  # fmt: skip
    parser.add_argument(
        "--policy", type=Path, default=Path(env("FRAUD_POLICY", str(usual.policy))),
        help="the policy in use, which overrides are written to (FRAUD_POLICY)",
    )  # fmt: skip
    parser.add_argument(
        "--id-secret", default=env("FRAUD_ID_SECRET", ""),
        help="file with the 16 bytes that ids are hashed with, for replay (FRAUD_ID_SECRET)",
    )  # fmt: skip
    for name, value, what in (
        ("review-minutes", usual.review_minutes, "until a case should be decided"),
        ("claim-minutes", usual.claim_minutes, "that a claim lasts without a sign of its holder"),
        ("undo-minutes", usual.undo_minutes, "that a verdict can be undone"),
    ):
        parser.add_argument(f"--{name}", type=float, default=value, help=what)
    parser.add_argument(
        "--capacity", type=int, default=usual.capacity, help="cases that analysts decide a day"
    )


def desk_options(args: argparse.Namespace) -> DeskOptions:
    """Return the options. Raises ValueError."""
    return DeskOptions(
        scorer=args.scorer, policy=args.policy, data=args.data, id_secret=args.id_secret,
        review_minutes=args.review_minutes, claim_minutes=args.claim_minutes,
        undo_minutes=args.undo_minutes, capacity=args.capacity,
    )  # fmt: skip
