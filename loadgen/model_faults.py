"""What a drill does to the bundle that scorers read: others, damaged ones, one of another schema.

Owns the faults of the link `bundle` and of what it leads to. Each works from outside, as those of
faults.py do. Must not know the load, nor what is asked of the figures.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import grpc
from fraud.v1 import fraud_service_pb2

from loadgen.client import score_method
from loadgen.faults import CALL_S, Figures, Scene, a_payment
from loadgen.system import UnfitError

LOOK_S: Final = 0.1
SWAP_S: Final = 30.0  # scorers look each second
FOREIGN_CAUSE: Final = "schema: the bundle is for"


def _models(scene: Scene) -> tuple[Path, list[Path]]:
    """Return the link to the one that is served, and the places of all."""
    system = scene.system
    if len(set(system.models)) < 2:
        raise UnfitError("the data folder has no two models of a drill's")
    return system.folder / "bundle", system.models


def _serve(link: Path, model: Path) -> None:
    """Let the link lead to a model, at once: what `fraudsvc models promote` does."""
    partial = link.with_name("bundle.partial")
    partial.unlink(missing_ok=True)
    partial.symlink_to(model)
    partial.replace(link)


def swap_models(scene: Scene) -> Figures:
    """Serve the models in turn, a swap for each second of the hold, each once the last answered."""
    link, models = _models(scene)
    before = link.readlink()
    swaps = max(2, round(scene.hold_s))
    missed = 0
    with scene.lasting():
        for number in range(1, swaps + 1):
            model = models[number % len(models)]
            _serve(link, model)
            missed += not _answers(scene, model.name)
        _serve(link, before)
    return {"swaps": float(swaps), "swaps_missed": float(missed)}


def _answers(scene: Scene, version: str) -> bool:
    """Wait until a model answers; return whether it did."""
    end_s = time.monotonic() + SWAP_S
    while model_that_answers(scene.channel) != version:
        if time.monotonic() > end_s or scene.stop.wait(LOOK_S):
            return False
    return True


def model_that_answers(channel: grpc.Channel) -> str:
    """Return the model of an answer that nobody keeps, nothing where there is no answer."""
    try:
        return _answer(channel).assessment.model_version
    except grpc.RpcError:
        return ""


def is_heard(channel: grpc.Channel) -> bool:
    """Return whether a call on the channel is answered, or shed."""
    try:
        _answer(channel)
    except grpc.RpcError as error:
        return error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    return True


def _answer(channel: grpc.Channel) -> fraud_service_pb2.ScoreResponse:
    request = fraud_service_pb2.ScoreRequest.FromString(a_payment())
    request.validate_only = True
    return score_method(channel)(request.SerializeToString(), timeout=CALL_S)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _foreign_schema(path: Path) -> None:
    """Name another feature schema; the signature is then wrong too, as for any who meddles."""
    path.write_bytes(path.read_bytes().replace(b'"s-', b'"s-0', 1))


# File of a bundle, and what is done to it.
DAMAGE: Final[Mapping[str, Callable[[Path], None]]] = {
    "leaf_values.npy": _flip,
    "manifest.sig": _flip,
    "manifest.json": _foreign_schema,
    "split_borders.npy": lambda path: path.unlink(),
    "base.cbm": lambda path: os.truncate(path, 0),
}


def bad_bundles(scene: Scene) -> Figures:
    """Put damaged copies of another model in place, one after another."""
    link, models = _models(scene)
    before, folder = link.readlink(), link.parent
    with scene.lasting():
        for number, (name, damage) in enumerate(DAMAGE.items()):
            broken = models[1].with_name(f"broken-{number}")
            shutil.copytree(folder / models[1], folder / broken)
            damage(folder / broken / name)
            _serve(link, broken)
            scene.stop.wait(max(scene.hold_s / len(DAMAGE), 1.2))  # scorers look each second
        _serve(link, before)
    for broken in (folder / "models").glob("broken-*"):
        shutil.rmtree(broken)
    return {"bad_bundles": float(len(DAMAGE))}


def foreign_bundle(scene: Scene) -> Figures:
    """Put a bundle of another feature schema in place, signed as it should be; wait for the cause.

    It stays for the hold, so that calls would meet it.
    """
    link, foreign = scene.system.folder / "bundle", scene.system.foreign
    if foreign is None:
        raise UnfitError("there is no bundle of another feature schema")
    before, said = link.readlink(), scene.system.said().count(FOREIGN_CAUSE)
    end_s = time.monotonic() + SWAP_S
    with scene.lasting():
        _serve(link, foreign)
        scene.stop.wait(scene.hold_s)
        while (refusals := scene.system.said().count(FOREIGN_CAUSE) - said) < 1:
            if time.monotonic() > end_s or scene.stop.wait(LOOK_S):
                break
        _serve(link, before)
    return {"refusals": float(refusals), "causes_unsaid": float(refusals < 1)}
