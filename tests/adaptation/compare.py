"""Owns one seed: its base, and all systems on the same stream, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from featurizer.features import NAMES
from tests.adaptation.base import Base, learn_base
from tests.adaptation.figures import figures
from tests.adaptation.product import Product
from tests.adaptation.rivals import Boosted, Rivers, Warm
from tests.adaptation.run import Run
from tests.adaptation.streams import Begun, Stream
from tests.adaptation.systems import Static, System
from tests.adaptation.world import Scale

Make = Callable[[Stream, Base, Warm], System]
# In the order of the report. The oracle is the product that is told of every fraud at once.
SYSTEMS: dict[str, Make] = {
    "static": lambda s, b, _: Static(s, b),
    "T1+T2": lambda s, b, _: Product("T1+T2", s, b),
    "T1": lambda s, b, _: Product("T1", s, b, residual=False),
    "T2": lambda s, b, _: Product("T2", s, b, expert=False),
    "hourly retrain": lambda s, b, _: Boosted("hourly retrain", s, b, anew=True),
    "continuation": lambda s, b, _: Boosted("continuation", s, b, anew=False),
    "River logistic": lambda s, b, w: Rivers("River logistic", s, b, w, forest=False),
    "River forest": lambda s, b, w: Rivers("River forest", s, b, w, forest=True),
    "oracle": lambda s, b, _: Product("oracle", s, b, guarded=False),
}
AT_ONCE = "oracle"


class Seed:
    """What all streams of a seed begin with."""

    def __init__(self, seed: int, scale: Scale, folder: Path) -> None:
        self._begun = Begun(seed, scale, folder)
        self._base = learn_base(self._begun)
        self._warm = Warm(self._base, seed)

    def compare(self, attack: str, names: list[str]) -> dict[str, Any]:
        """Return the figures of the named systems, or of all, on the stream of an attack."""
        stream = self._begun.stream(attack)
        static = Static(stream, self._base)
        base_run = Run(stream, static, static).go()
        found: dict[str, Any] = {}
        for name, make in SYSTEMS.items():
            if names and name not in names:
                continue
            system = make(stream, self._base, self._warm)
            outcome = Run(stream, system, static, told_at_once=name == AT_ONCE).go()
            found[name] = figures(stream, outcome, base_run)
            found[name]["events"] = [
                [round((e.time_ms - stream.scale.onset_ms) / 60_000, 2), e.what]
                for e in getattr(system, "events", [])
            ]
        return {
            "attack": attack,
            "seed": stream.seed,
            "scale": asdict(stream.scale),
            "rows": len(stream.rows),
            "frauds": int(stream.is_fraud.sum()),
            "attacks": int(stream.is_attack.sum()),
            "unused": self._unused("ships_elsewhere"),
            "base_average_precision": self._base.content.facts["metrics"]["average_precision"],
            "systems": found,
        }

    def _unused(self, name: str) -> bool:
        """Return whether the base asks nothing of a feature."""
        return not np.isin(NAMES.index(name), self._base.content.trees.split_features)
