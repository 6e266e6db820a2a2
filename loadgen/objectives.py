"""What is asked of a run's figures, and the verdict.

Owns objectives.toml and the judge. Must not know how a figure is measured.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

OBJECTIVES_FILE: Final = Path(__file__).with_name("objectives.toml")
_KEYS = {"figure", "at_least", "at_most", "kind", "meaning"}


@dataclass(frozen=True, slots=True)
class Objective:
    """A bound on one figure; exactly one of ``at_least`` and ``at_most`` is given."""

    name: str
    figure: str
    kind: Literal["safety", "speed"]
    meaning: str
    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError(f"objective {self.name} wants either at_least or at_most")
        if self.kind not in ("safety", "speed"):
            raise ValueError(f"objective {self.name} is of no kind {self.kind!r}")

    @property
    def bound(self) -> str:
        """The bound as text."""
        return f"≥ {self.at_least:g}" if self.at_least is not None else f"≤ {self.at_most:g}"


class Verdict(NamedTuple):
    """An objective and the figure that met or missed it; a figure that was not taken misses it."""

    objective: Objective
    value: float | None
    met: bool

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as plain values."""
        return {
            "name": self.objective.name, "kind": self.objective.kind,
            "figure": self.objective.figure, "bound": self.objective.bound,
            "value": self.value if self.value is None or self.value < float("inf") else "never",
            "met": self.met,
        }  # fmt: skip


def load_objectives(path: Path = OBJECTIVES_FILE) -> dict[str, Objective]:
    """Return the objectives by name. Raises ValueError for an unknown key or a missing one."""
    found = {}
    for name, entry in tomllib.loads(path.read_text()).items():
        if unknown := set(entry) - _KEYS:
            raise ValueError(f"objective {name}: unknown {', '.join(sorted(unknown))}")
        try:
            found[name] = Objective(name=name, **entry)
        except TypeError as error:
            raise ValueError(f"objective {name}: {error}") from None
    return found


def judge(objectives: Sequence[Objective], figures: Mapping[str, float]) -> list[Verdict]:
    """Return a verdict on each objective."""
    return [Verdict(each, figures.get(each.figure), _met(each, figures)) for each in objectives]


def _met(objective: Objective, figures: Mapping[str, float]) -> bool:
    value = figures.get(objective.figure)
    if value is None or value != value:  # noqa: PLR0124 - NaN is no figure
        return False
    if objective.at_least is not None:
        return value >= objective.at_least
    return value <= (objective.at_most or 0.0)
