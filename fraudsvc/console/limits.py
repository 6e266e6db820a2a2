"""The thresholds that a score was held against: of the model's manifest, or the policy's own.

Owns where they are looked for: in the archive of what has decided. An override's thresholds are
not among them.
"""

from __future__ import annotations

import json
import tomllib
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from fraudsvc.archive import Archive
from trainer.bundle import MANIFEST

VERSIONS_MAX = 64


class Limits(NamedTuple):
    """Probabilities from which a payment is reviewed and declined; None where nobody knows."""

    review: float | None
    decline: float | None


class LimitsFinder:
    """Finds thresholds by the versions that stand in a decision."""

    def __init__(self, data: Path) -> None:
        self._archive = Archive(data / "archive")
        self._find = lru_cache(maxsize=VERSIONS_MAX)(self._read)

    def of(self, model_version: str, policy_version: str) -> Limits:
        """Return the thresholds; each is None where its file is gone."""
        return self._find(model_version, policy_version)

    def _read(self, model_version: str, policy_version: str) -> Limits:
        policy, model = self._policy(policy_version), self._model(model_version)
        pairs = ((policy.get(name), model.get(name)) for name in Limits._fields)
        return Limits(*(_first(own, models) for own, models in pairs))

    def _policy(self, version: str) -> dict[str, Any]:
        try:
            text = self._archive.policy_path(version).read_bytes()
            found: dict[str, Any] = tomllib.loads(text.decode())["thresholds"]
        except (OSError, ValueError, KeyError):
            return {}
        return found

    def _model(self, version: str) -> dict[str, Any]:
        try:
            text = (self._archive.bundle_path(version) / MANIFEST).read_bytes()
            found: dict[str, Any] = json.loads(text)["thresholds"]
        except (OSError, ValueError, KeyError):
            return {}
        return found


def _first(*values: Any) -> float | None:
    return next((float(each) for each in values if isinstance(each, int | float)), None)
