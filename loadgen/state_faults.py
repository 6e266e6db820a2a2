"""What a drill does to the states that scorers read, and how it knows that they are whole again.

Owns the faults of where states are kept and of what brings them there; each works from outside, as
those of faults.py do. Must not know the load, nor what is asked of the figures.
"""

from __future__ import annotations

import json
import re
import shutil
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import grpc
from fraud.v1 import decision_pb2, fraud_service_pb2, transaction_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from loadgen.client import score_method
from loadgen.faults import CALL_S, PAUSE_S, Fault, Figures, Scene, kill, stopped
from loadgen.rows import timestamp
from loadgen.system import System, UnfitError

SETTLE_S: Final = 90.0
SLOW_STOPPED_S: Final = 0.04
SLOW_RUNNING_S: Final = 0.01


def until_full(fault: Fault) -> Fault:
    """Return a fault that ends when answers rest on every state again, or have not in SETTLE_S."""

    def run(scene: Scene) -> Figures:
        inner = replace(scene)
        with scene.lasting():
            figures = fault(inner)
            full = all(_answers(scene, _now(), time.monotonic() + SETTLE_S))
        return figures | ({"whole_s": scene.ended_s - inner.ended_s} if full else {})

    return run


def slow(*roles: str) -> Fault:
    """Return a fault that lets processes run only a fifth of the time, in short turns."""

    def run(scene: Scene) -> Figures:
        pids = [scene.system.pid(role) for role in roles]
        turns = 0
        with scene.lasting():
            end_s = scene.clock() + scene.hold_s
            while scene.clock() < end_s and not scene.stop.is_set():
                with stopped(pids):
                    time.sleep(SLOW_STOPPED_S)
                time.sleep(SLOW_RUNNING_S)
                turns += 1
        return {"turns": float(turns)}

    return run


def flush(scene: Scene) -> Figures:
    """Let Redis forget every state."""
    if scene.system.servers is None:
        raise UnfitError("where Redis is, is not known here")
    with scene.lasting():
        scene.system.servers.flush_redis()
    return {}


def rebuild(scene: Scene) -> Figures:
    """Stop all, delete the store, start again: the same payments must get the same answers.

    Where the answers do not settle, no figure is taken, and what asks for it is missed.
    """
    if not scene.system.owned:
        raise UnfitError("the roles are another's, and cannot be stopped here")
    # In the past and the same for both, as the answers depend on it.
    event = _now()
    before = _settled_answers(scene, event)
    with scene.lasting():
        scene.system.stop()
        _forget(scene.system)
        scene.system.start()
    after = _settled_answers(scene, event)
    if not before or not after:
        return {}
    different = sum(a != b for a, b in zip(before, after, strict=True))
    return {"probes": float(len(before)), "different": float(different)}


def compare_states(scene: Scene) -> Figures:
    """Let the states be folded again beside the live ones, by the public command; count both."""
    with scene.lasting():
        said = scene.system.compare_states()
    states, different = (
        sum(int(count) for count in re.findall(rf"(\d+) {word}", said))
        for word in ("states", "different")
    )
    return {"states": float(states), "states_different": float(different)} if states else {}


def compare_with_log(scene: Scene) -> Figures:
    """Let every decision be made again from the log, by the public command; count the different.

    So with every state where they are shared.
    """
    said = scene.system.replay()
    different = float(said["different"] + said["cannot_be_reproduced"])
    states = compare_states(scene) if scene.system.servers is not None else {}
    unlike = different + states.get("states_different", 0.0)
    return {"decisions": float(said["decisions"]), "unlike_the_log": unlike} | states


FOREIGN_CAUSE: Final = "the store has schema"


def foreign_store(scene: Scene) -> Figures:
    """Let the store be one of another feature schema, and the featurizer find it when it starts."""
    label = scene.system.folder / "store" / "STORE"
    if not label.exists():
        raise UnfitError("there is no store of this machine's own")
    said = scene.system.said().count(FOREIGN_CAUSE)
    told = json.loads(label.read_text()) | {"schema": "s-0123456789abcdef"}
    partial = label.with_name("STORE.drill")
    partial.write_text(json.dumps(told))
    partial.replace(label)
    figures = kill("featurizer")(scene)
    refusals = scene.system.said().count(FOREIGN_CAUSE) - said
    return figures | {"refusals": float(refusals), "causes_unsaid": float(refusals < 1)}


def _forget(system: System) -> None:
    if system.servers is None:
        shutil.rmtree(system.folder / "store")
    else:
        system.servers.flush_redis()


def _now() -> Timestamp:
    return timestamp(time.time_ns() // 1_000_000 - 1_000)


def _settled_answers(scene: Scene, event: Timestamp) -> list[bytes]:
    """Return the answers to the probes once two rounds are the same; none where they never are."""
    end_s = time.monotonic() + SETTLE_S
    last: list[bytes] = []
    while time.monotonic() < end_s:
        answers = _answers(scene, event, end_s)
        if answers == last and all(answers):
            return answers
        last = answers
    return []


def _answers(scene: Scene, event: Timestamp, end_s: float) -> list[bytes]:
    method = score_method(scene.channel)
    probes = enumerate(scene.probes)
    return [_full_answer(method, probe, number, event, end_s) for number, probe in probes]


def _full_answer(
    method: Callable[..., Any], probe: bytes, number: int, event: Timestamp, end_s: float
) -> bytes:
    """Return what a probe's answer rests on, asked until it is on the full rung; else nothing."""
    made = transaction_pb2.Transaction.FromString(probe)
    made.transaction_id = f"drill_probe_{number}"
    made.event_time.CopyFrom(event)
    while time.monotonic() < end_s:
        made.request_id = str(uuid.uuid4())
        request = fraud_service_pb2.ScoreRequest(transaction=made, validate_only=True)
        try:
            response = method(request.SerializeToString(), timeout=CALL_S, wait_for_ready=True)
        except grpc.RpcError:
            time.sleep(PAUSE_S)
            continue
        found = response.assessment
        if found.rung == decision_pb2.RUNG_FULL:
            kept = decision_pb2.Assessment(
                outcome=found.outcome, score=found.score, reasons=found.reasons
            )
            return kept.SerializeToString(deterministic=True)
        time.sleep(PAUSE_S)
    return b""
