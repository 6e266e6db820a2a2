"""Bundles by hand: look, compare, serve another, and pin one. Each change is an event on the log.

Owns what each verb means. Must not know how a bundle is judged; who changes it by hand answers for
it with a reason.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fraud.v1 import model_event_pb2

from featurizer.eventlog import Entry, EventLog, Topic
from fraudsvc.cardnumbers import looks_like_card_number
from fraudsvc.models_report import (
    Row,
    print_change,
    print_difference,
    print_manifest,
    print_models,
    print_state,
)
from trainer.bundle import BundleError, read_manifest
from trainer.shelf import Shelf

ACTIONS = ("list", "show", "diff", "promote", "rollback", "pin", "unpin", "trust")
ALARMS_SHOWN = 5
_SERVED = (model_event_pb2.MODEL_CHANGE_PROMOTED, model_event_pb2.MODEL_CHANGE_ROLLED_BACK)


@dataclass(frozen=True, slots=True)
class ModelsOptions:
    """The shelf's places, the key that bundles are signed with, and who acts, and why."""

    bundle: Path
    models: Path
    public_key: bytes
    author: str
    reason: str


def run_models(
    action: str, names: Sequence[str], options: ModelsOptions, log: EventLog | None
) -> None:
    """Do what ``action`` says; ``log`` is needed for a change. Raises BundleError, ValueError."""
    shelf = Shelf(options.models, options.bundle)
    if action == "list":
        rows = [_row(shelf, each, options) for each in shelf.ids()]
        print_models(rows, pinned=shelf.pinned)
        if log is not None:
            print_state(state_of(_events(log)))
    elif action == "show":
        print_manifest(read_manifest(shelf.path(_names(names, 1)[0]), options.public_key))
    elif action == "diff":
        before, after = (
            read_manifest(shelf.path(each), options.public_key) for each in _names(names, 2)
        )
        print_difference(before, after, differences(before, after))
    else:
        print_change(action, *change(action, names, options, log))


def change(
    action: str, names: Sequence[str], options: ModelsOptions, log: EventLog | None
) -> tuple[str, str]:
    """Promote, roll back, pin, unpin or trust; return what is served now, and what was before.

    Raises BundleError, LogError, and ValueError where there is no reason or no such action.
    """
    shelf = Shelf(options.models, options.bundle)
    if not options.reason or log is None:
        raise ValueError(f"models {action} wants a --reason and a log to put it on")
    if looks_like_card_number(options.reason):
        raise ValueError("--reason looks like a card number, and would stand on the log")
    before = shelf.served() or ""
    if action in ("promote", "rollback"):
        target = _names(names, 1)[0] if names or action == "promote" else _previous(log, before)
        read_manifest(shelf.path(target), options.public_key)  # a person cannot serve a forged one
        shelf.serve(target)
    else:
        target = before
        if action != "trust":
            shelf.pin(action == "pin")
    changes = {
        "promote": model_event_pb2.MODEL_CHANGE_PROMOTED,
        "rollback": model_event_pb2.MODEL_CHANGE_ROLLED_BACK,
        "pin": model_event_pb2.MODEL_CHANGE_PINNED,
        "unpin": model_event_pb2.MODEL_CHANGE_UNPINNED,
        "trust": model_event_pb2.MODEL_CHANGE_REPORTER_TRUSTED,
    }
    event = model_event_pb2.ModelEvent(
        change=changes[action], model_version=target, previous_version=before,
        author=options.author, reason=options.reason,
    )  # fmt: skip
    if action == "trust":  # what of theirs is in the dead letters can be sent again
        event.alarms.add(subject=_names(names, 1)[0])
    event.event_time.FromMilliseconds(time.time_ns() // 1_000_000)
    log.append([[Entry(Topic.MODELS, 0, event.SerializeToString())]])
    return target, before


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return what differs between two manifests, digests left out: name, before, after."""
    names = sorted(before.keys() | after.keys())
    pairs = [(name, before.get(name), after.get(name)) for name in names]
    return [row for row in pairs if row[1] != row[2] and row[0] not in ("bundle_id", "files")]


def _names(names: Sequence[str], count: int) -> Sequence[str]:
    if len(names) != count:
        raise ValueError(f"{count} model{'s' if count > 1 else ''} must be named")
    return names


def _previous(log: EventLog, served: str) -> str:
    """Return what was served before what is served now, from the log."""
    found = ""
    for event in _events(log):
        if event.model_version == served and event.change in _SERVED and event.previous_version:
            found = event.previous_version
    if not found:
        raise BundleError("the log tells of no model before this one: name it")
    return found


def _events(log: EventLog) -> Iterator[model_event_pb2.ModelEvent]:
    """Yield all events of models, oldest first."""
    position = log.ends()[0]
    while (batch := log.read(position, 4 << 20)).next_position != position:
        position = batch.next_position
        for i in (batch.topics == Topic.MODELS).nonzero()[0].tolist():
            yield model_event_pb2.ModelEvent.FromString(batch.value(i))


def state_of(events: Iterable[model_event_pb2.ModelEvent]) -> list[str]:
    """Return what holds now beside the bundles, each as a line: stops, distrust, newest alarms."""
    stopped: dict[str, str] = {}
    distrusted: dict[str, str] = {}
    alarms: dict[str, str] = {}
    for event in events:
        code, when = event.reason.partition(":")[0], event.event_time.ToJsonString()
        line = f"{when} {event.reason}"
        subjects = [each.subject for each in event.alarms]
        if event.change == model_event_pb2.MODEL_CHANGE_LEARNING_STOPPED:
            stopped[code] = f"learning stopped: {line}"
        elif event.change == model_event_pb2.MODEL_CHANGE_LEARNING_RESUMED:
            stopped.pop(code, None)
        elif event.change == model_event_pb2.MODEL_CHANGE_REPORTER_DISTRUSTED:
            distrusted |= dict.fromkeys(subjects, f"not trusted: {line}")
        elif event.change == model_event_pb2.MODEL_CHANGE_REPORTER_TRUSTED:
            for each in subjects:
                distrusted.pop(each, None)
        elif event.change == model_event_pb2.MODEL_CHANGE_ALARMED:
            alarms.pop(event.reason, None)
            alarms[event.reason] = f"alarm: {line}"
    return [*stopped.values(), *distrusted.values(), *list(alarms.values())[-ALARMS_SHOWN:]]


def _row(shelf: Shelf, bundle_id: str, options: ModelsOptions) -> Row:
    manifest = read_manifest(shelf.path(bundle_id), options.public_key)
    layers = ", ".join(f"{each['name']}" for each in manifest["layers"])
    limits = manifest["thresholds"]
    served = bundle_id == shelf.served()
    return Row(bundle_id, layers, limits["review"], limits["decline"], served)
