"""The page of health: rates, rungs, percentiles and lags of now, kept fresh in place.

Owns how they are shown. What they are is ``health_figures``'.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from fraudsvc.console.audit import AuditTrail
from fraudsvc.console.health_figures import PLOT_HEIGHT, PLOT_WIDTH, History, polyline
from fraudsvc.console.pages import Templates
from fraudsvc.console.sheets import Column, Sheet, exported
from fraudsvc.console.streams import Streams

COLUMNS = (
    Column("what", "What"), Column("rate", "A second", "number"), Column("p50", "p50 ms", "number"),
    Column("p95", "p95 ms", "number"), Column("p99", "p99 ms", "number"),
)  # fmt: skip
LAGS = (
    Column("consumer", "Who"), Column("lag_s", "Behind, s", "number"),
    Column("behind", "Bytes", "count"),
)  # fmt: skip
EVERY_S = 2.0


class HealthPage:
    """Shows the health of this host; ``state`` tells whether the console itself is well."""

    def __init__(
        self,
        templates: Templates,
        history: History,
        state: Callable[[], Mapping[str, Any]],
        trail: AuditTrail,
        streams: Streams,
    ) -> None:
        self._templates, self._history, self._streams = templates, history, streams
        self._state, self._trail = state, trail

    def routes(self) -> list[BaseRoute]:
        """Return the paths."""
        live = self._streams.live(self.live, EVERY_S)
        return [Route("/health", self.page), Route("/health/live", live)]

    def page(self, request: Request) -> Response:
        """Show the page, or export its times."""
        values = self._values()
        answer = exported(request, values["times"], self._trail)
        return answer or self._templates.page(request, "health.html", **values)

    def live(self, request: Request) -> Response:
        """Show what changes, to be put in its place."""
        return self._templates.page(request, "health_live.html", **self._values())

    def _values(self) -> dict[str, Any]:
        told, state = self._history.figures(), self._state()
        times = [
            {"what": each["what"], "rate": each["rate"],
             **{name: 1000 * value for name, value in
                zip(("p50", "p95", "p99"), each["percentiles"], strict=True)}}
            for each in told.get("times", ())
        ]  # fmt: skip
        lags = [
            {**each, "behind": int(each["behind"]), "lag_s": float(each["lag_s"])}
            for each in told.get("lags", ())
        ]
        rates = told.get("rates", [])
        return {
            "told": told, "state": state, "times": Sheet("health", COLUMNS, times),
            "lags": Sheet("lags", LAGS, lags), "points": polyline(rates),
            "top": max(rates, default=0.0), "width": PLOT_WIDTH, "height": PLOT_HEIGHT,
        }  # fmt: skip
