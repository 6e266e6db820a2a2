"""The page of models: what happened to them, what differs between two, and another one served.

Owns what of an event is shown. What a change does is ``models_command``'s; who may is ``access``'.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from fraud.v1 import model_event_pb2
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from featurizer.eventlog import EventLog
from fraudsvc.console.audit import AuditTrail
from fraudsvc.console.forms import Form, posted
from fraudsvc.console.pages import Templates, see
from fraudsvc.console.person import OPERATOR
from fraudsvc.console.readmodel import Row
from fraudsvc.console.readmodel_operations import Operations
from fraudsvc.console.sheets import Column, Sheet, exported
from fraudsvc.models import read_key
from fraudsvc.models_command import ModelsOptions, change, differences, state_of
from trainer.bundle import BundleError, read_manifest
from trainer.shelf import Shelf

COLUMNS = (
    Column("event_time_ms", "When", "time"), Column("change", "What"),
    Column("model_version", "Model"), Column("previous_version", "Before it"),
    Column("author", "By"), Column("reason", "Why"), Column("gates", "Gates"),
    Column("figures", "Figures"),
)  # fmt: skip
SHELF = (
    Column("bundle_id", "Model"), Column("layers", "Layers"),
    Column("review", "Review from", "number"), Column("decline", "Decline from", "number"),
    Column("served", "Served"),
)  # fmt: skip
DIFFERENCES = (Column("name", "What"), Column("before", "Before"), Column("after", "After"))
ACTIONS = {"promote": "serve another", "rollback": "roll back", "pin": "pin", "unpin": "unpin"}
SHELF_MAX = 200
_SERVED = (model_event_pb2.MODEL_CHANGE_PROMOTED, model_event_pb2.MODEL_CHANGE_ROLLED_BACK)


class ModelPlaces(NamedTuple):
    """Where bundles stand and the key that they are signed with."""

    bundle: Path
    models: Path
    public_key: Path


def change_name(number: int) -> str:
    """Return a change's name, such as ``rolled back``."""
    name = model_event_pb2.ModelChange.Name(number)
    return name.removeprefix("MODEL_CHANGE_").lower().replace("_", " ")


def event_of(row: Row) -> model_event_pb2.ModelEvent:
    """Return the event of a row of the read model."""
    return model_event_pb2.ModelEvent.FromString(row["body"])


def _event_row(row: Row) -> dict[str, Any]:
    event = event_of(row)
    gates = [
        f"{g.name} {g.value:.4g} of {g.limit:.4g} {'passed' if g.passed else 'FAILED'}"
        for g in event.gates
    ]
    return {
        "event_time_ms": row["event_time_ms"], "change": change_name(event.change),
        "model_version": event.model_version, "previous_version": event.previous_version,
        "author": event.author, "reason": event.reason, "gates": "; ".join(gates),
        "figures": "; ".join(f"{each.name} {each.value:.4g}" for each in event.figures),
    }  # fmt: skip


class ModelsPage:
    """Shows models, and changes which one is served, by the log that ``log`` appends to."""

    def __init__(
        self,
        templates: Templates,
        operations: Operations,
        trail: AuditTrail,
        places: ModelPlaces,
        log: EventLog,
    ) -> None:
        self._templates, self._operations, self._trail = templates, operations, trail
        self._places, self._log = places, log
        self._shelf = Shelf(places.models, places.bundle)

    def routes(self) -> list[BaseRoute]:
        """Return the paths."""
        return [
            Route("/models", self.page),
            posted("/models/change", self._change),
        ]

    def page(self, request: Request) -> Response:
        """Show the shelf, the timeline, and what differs between two."""
        events = self._operations.model_events()
        sheet = Sheet("models", COLUMNS, [_event_row(row) for row in events])
        answer = exported(request, sheet, self._trail)
        if answer is not None:
            return answer
        asked, trouble, rows = request.query_params, "", []
        try:
            rows = self._shelf_rows()
        except (BundleError, OSError) as error:
            trouble = str(error)
        compared = asked.get("before", ""), asked.get("after", "")
        served = self._shelf.served() or ""
        return self._templates.page(
            request, "models.html", timeline=sheet, trouble=trouble, compared=compared,
            shelf=Sheet("shelf", SHELF, rows), ids=[row["bundle_id"] for row in rows],
            served=served, previous=_previous(events, served), pinned=self._shelf.pinned,
            differences=self._differences(*compared), actions=ACTIONS,
            may=request.state.person.may(OPERATOR),
            state=state_of(event_of(row) for row in reversed(events)),
        )  # fmt: skip

    def _change(self, request: Request, form: Form) -> Response:
        """Serve another model, pin or unpin, with a reason."""
        action, reason = form("action"), form("reason")
        target = form("model")
        ids, served = self._shelf.ids(), self._shelf.served() or ""
        names = [target] if action in ("promote", "rollback") else []
        if action not in ACTIONS or not reason or (names and target not in ids):
            what = "A change wants a reason, and a model that stands on the shelf."
            return self._templates.message(request, 400, "Not done", what, ("/models", "Back"))
        person, places = request.state.person, self._places
        try:
            options = ModelsOptions(
                places.bundle, places.models, read_key(places.public_key), person.name, reason
            )
            if names:
                read_manifest(self._shelf.path(target), options.public_key)
            new = target if names else served
            self._trail.audit(person, f"{action} model", new, served, new, reason)
            change(action, names, options, self._log)
        except (BundleError, OSError, ValueError) as error:
            what = f"The models refuse this: {error}. What is served has not changed."
            return self._templates.message(request, 409, "Not done", what, ("/models", "Back"))
        return see("/models")

    def _shelf_rows(self) -> list[dict[str, Any]]:
        key, served = read_key(self._places.public_key), self._shelf.served()
        rows = []
        for bundle_id in self._shelf.ids()[-SHELF_MAX:]:
            manifest = read_manifest(self._shelf.path(bundle_id), key)
            rows.append(
                {
                    "bundle_id": bundle_id, "served": "served" if bundle_id == served else "",
                    "layers": ", ".join(str(each["name"]) for each in manifest["layers"]),
                    "review": manifest["thresholds"]["review"],
                    "decline": manifest["thresholds"]["decline"],
                }
            )  # fmt: skip
        return rows[::-1]

    def _differences(self, before: str, after: str) -> Sheet | None:
        """Return what differs between two of the shelf, None where two are not named."""
        ids = self._shelf.ids()
        if before not in ids or after not in ids:
            return None
        try:
            key = read_key(self._places.public_key)
            told = [read_manifest(self._shelf.path(each), key) for each in (before, after)]
        except (BundleError, OSError):
            return None
        rows = [
            {"name": name, "before": _json(old), "after": _json(new)}
            for name, old, new in differences(*told)
        ]
        return Sheet("differences", DIFFERENCES, rows)


def _previous(events: list[Row], served: str) -> str:
    """Return what was served before what is served now."""
    for event in map(event_of, events):
        if event.model_version == served and event.change in _SERVED and event.previous_version:
            return str(event.previous_version)
    return ""


def _json(value: Any) -> str:
    return "" if value is None else json.dumps(value)
