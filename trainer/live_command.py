"""Owns `python -m trainer run`: its options, its loop, its end."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featurizer.adapters import open_log
from featurizer.eventlog import LogError
from featurizer.features import FEATURES, SCHEMA_VERSION
from featurizer.metering import open_meters
from trainer.bundle import BundleError
from trainer.canary import CanarySettings
from trainer.learner import LearnerSettings
from trainer.live import LivePlaces, LiveSettings, LiveTrainer
from trainer.shelf import Shelf
from trainer.signing import read_key
from trainer.vectors import read_vectors

IDLE_S = 0.2
WAIT_S = 2.0
OLD_FRAUDS_MAX = 1_000


def add_run(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], environment: Mapping[str, str]
) -> None:
    """Add the command; its defaults are in the environment's variables."""
    env = environment.get
    live = commands.add_parser("run", help="learn from the log while it goes on, and serve it")
    live.add_argument("--log", default=env("FRAUD_LOG", "file://data/log"), help="of a host")
    live.add_argument("--bundle", type=Path, default=Path(env("FRAUD_BUNDLE", "data/bundle")))
    live.add_argument("--models", type=Path, help="all bundles; `models` beside BUNDLE")
    live.add_argument("--key", type=Path, default=Path("data/key"), help="private key in PEM")
    live.add_argument(
        "--public-key", type=Path, default=Path(env("FRAUD_PUBLIC_KEY", "data/key.pub"))
    )
    live.add_argument(
        "--old-frauds", type=Path, help="vectors whose frauds are not to be forgotten"
    )
    live.add_argument("--residual-s", type=float, default=60.0, help="between two residuals")
    live.add_argument(
        "--horizon-mib", type=int, default=1_024, help="of the log, read again at a start"
    )
    live.add_argument(
        "--canary-share", type=float, default=0.1, help="of customers, that a canary decides for"
    )
    live.add_argument("--ready-file", type=Path, help="is written once the role is up")
    live.set_defaults(run=lambda parsed, _: _run(parsed, environment))


def _run(parsed: argparse.Namespace, environment: Mapping[str, str]) -> int:
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    shelf = Shelf(parsed.models or parsed.bundle.absolute().parent / "models", parsed.bundle)
    settings = LiveSettings(
        learner=LearnerSettings(residual_every_ms=round(parsed.residual_s * 1000)),
        canary=CanarySettings(share=parsed.canary_share),
        horizon_bytes=parsed.horizon_mib << 20,
    )
    old = _old_frauds(parsed.old_frauds)
    folder = environment.get("FRAUD_METRICS", "")
    meters = open_meters(Path(folder) if folder else None, "trainer")
    log, trainer = open_log(parsed.log), None
    while not stopping:
        if trainer is None:
            trainer = _begin(log, parsed, shelf, old, settings, meters)
            if parsed.ready_file is not None:
                parsed.ready_file.write_text(str(os.getpid()))
        try:
            idle_s = WAIT_S if trainer is None else 0.0 if trainer.step() else IDLE_S
        except (BundleError, LogError) as error:  # what was learnt is in the bundle that is served
            logging.getLogger(__name__).error("beginning anew: %s", error)
            trainer, idle_s = None, WAIT_S
        time.sleep(idle_s)
    log.close()
    meters.close()
    return 0


def _begin(log, parsed, shelf, old, settings, meters) -> LiveTrainer | None:  # type: ignore[no-untyped-def]
    """Begin where there is a bundle to go on from; None where there is none yet."""
    try:
        places = LivePlaces(shelf, parsed.key, read_key(parsed.public_key), SCHEMA_VERSION)
        return LiveTrainer(
            log, places, old, settings,
            moved=lambda position: meters.put("fraud_position", "trainer", value=position),
        )  # fmt: skip
    except (BundleError, OSError) as error:
        logging.getLogger(__name__).warning("nothing to learn on top of: %s", error)
        return None


def _old_frauds(path: Path | None) -> NDArray[np.float32]:
    """Return frauds of a file of vectors, evenly over time, float32[k, n]."""
    if path is None:
        return np.zeros((0, len(FEATURES)), np.float32)
    vectors = read_vectors(path)
    there = np.flatnonzero(vectors.is_fraud)
    chosen = there[np.linspace(0, len(there) - 1, min(OLD_FRAUDS_MAX, len(there))).astype(int)]
    found: NDArray[np.float32] = np.ascontiguousarray(vectors.features[chosen])
    return found
