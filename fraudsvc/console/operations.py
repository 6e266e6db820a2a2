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
from featurizer.kafka_settings import KafkaSettings
from fraudsvc.console.audit import AuditTrail
from fraudsvc.console.health_figures import History
from fraudsvc.console.letters import HostLetters, KafkaLetters, Letters
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
from fraudsvc.console.streams import Streams
from fraudsvc.console.what_if_runs import RunOptions, Runs


@dataclass(frozen=True, slots=True)
class OperationsOptions:
    """Where things are, and how a change of the policy goes live.

    ``home`` keeps what-ifs, ``data`` is the folder of ``up``, ``kafka`` has further dead letters.
    A backtest ends after ``what_if_seconds``; with ``second_person`` who made a change cannot take
    it live.
    """

    home: Path
    log: str
    data: Path
    policy: Path
    capacity: float
    what_if_seconds: float = 300.0
    second_person: bool = True
    kafka: KafkaSettings | None = None


@dataclass(frozen=True, slots=True)
class Around:
    """What operations pages look at and change. ``log`` can be appended to."""

    model: ReadModel
    log: EventLog
    trail: AuditTrail
    history: History
    health: Callable[[], Mapping[str, Any]]
    streams: Streams


class OperationPages:
    """All operations pages. Raises OSError, ProposalsError."""

    def __init__(self, templates: Templates, around: Around, options: OperationsOptions) -> None:
        asked, trail, log, data = Operations(around.model), around.trail, around.log, options.data
        self._proposals = Proposals(options.home / "what-ifs.sqlite")
        self._runs = Runs(
            RunOptions(
                options.log, data, options.policy, options.capacity, options.what_if_seconds
            ),
            self._proposals,
        )
        places = ModelPlaces(data / "bundle", data / "models", data / "key.pub")
        letters: dict[str, Letters] = {"host": HostLetters(asked, log)}
        if options.kafka is not None:
            letters["kafka"] = KafkaLetters(options.kafka)
        what_if = WhatIfOptions(options.policy, options.second_person)
        self._pages = (
            HealthPage(templates, around.history, around.health, trail, around.streams),
            ModelsPage(templates, asked, trail, places, log),
            DriftPage(templates, asked, trail),
            QualityPages(templates, asked, trail, options.policy),
            LettersPage(templates, trail, letters),
            TrailPage(templates, asked, trail),
            WhatIfPages(
                templates, trail, self._proposals, self._runs, what_if, around.streams, _now_ms
            ),
        )

    def routes(self) -> list[BaseRoute]:
        """Return the paths."""
        return [route for page in self._pages for route in page.routes()]

    def close(self) -> None:
        """End a backtest that runs, and let go of the files."""
        self._runs.close()
        self._proposals.close()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
