"""The operations pages together: what each is given.

Owns the wiring. Must not know what a page shows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.routing import BaseRoute

from featurizer.eventlog import EventLog
from fraudsvc.console.audit import AuditTrail
from fraudsvc.console.health_figures import History
from fraudsvc.console.ops_drift import DriftPage
from fraudsvc.console.ops_health import HealthPage
from fraudsvc.console.ops_letters import LettersPage
from fraudsvc.console.ops_models import ModelPlaces, ModelsPage
from fraudsvc.console.ops_quality import QualityPages
from fraudsvc.console.ops_trail import TrailPage
from fraudsvc.console.ops_what_if import WhatIfOptions, WhatIfPages
from fraudsvc.console.pages import Templates
from fraudsvc.console.proposals import Proposals
from fraudsvc.console.readmodel import ReadModel
from fraudsvc.console.readmodel_operations import Operations
from fraudsvc.console.what_if_runs import Runs


@dataclass(frozen=True, slots=True)
class Around:
    """What operations pages look at and change. ``log`` can be appended to."""

    model: ReadModel
    log: EventLog
    trail: AuditTrail
    history: History
    health: Callable[[], Mapping[str, Any]]
    places: ModelPlaces
    policy: Path
    proposals: Proposals
    runs: Runs
    second_person: bool


def operation_routes(templates: Templates, around: Around) -> list[BaseRoute]:
    """Return the paths of all operations pages."""
    asked, trail = Operations(around.model), around.trail
    return [
        *HealthPage(templates, around.history, around.health, trail).routes(),
        *ModelsPage(templates, asked, trail, around.places, around.log).routes(),
        *DriftPage(templates, asked, trail).routes(),
        *QualityPages(templates, asked, trail, around.policy).routes(),
        *LettersPage(templates, asked, trail, around.log).routes(),
        *TrailPage(templates, asked, trail).routes(),
        *WhatIfPages(
            templates,
            trail,
            around.proposals,
            around.runs,
            WhatIfOptions(around.policy, around.second_person),
            lambda: time.time_ns() // 1_000_000,
        ).routes(),
    ]
