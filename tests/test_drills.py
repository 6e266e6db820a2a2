"""Drills: the table, the judge, real runs, and systems broken on purpose that must be found out."""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from fraud.v1 import decision_pb2, fraud_service_pb2, fraud_service_pb2_grpc

from deploy.testing.certificates import write_set
from featurizer.features import SCHEMA_VERSION
from fraudsvc.supervisor import Change, State
from fraudsvc.up import StatusFile
from loadgen import faults
from loadgen.__main__ import main
from loadgen.certificates import SERVERS, Certificates
from loadgen.clock import Clock
from loadgen.drill_command import DrillOptions, Session, chosen
from loadgen.drill_page import page
from loadgen.drill_run import DrillRun, Result, RunSettings, due_times
from loadgen.drill_runs import add_runs, last_run
from loadgen.drills import DRILLS
from loadgen.driver import prepare
from loadgen.faults import Scene, step_clock
from loadgen.objectives import Objective, judge, load_objectives
from loadgen.rows import table_rows
from loadgen.system import MODELS, Models, Plan, System
from loadgen.timeline import Call, Fault, figures, knee, recovery_s, windows
from loadgen.world import World, WorldSettings
from tests.conftest import Trained, process
from tests.servers import need
from trainer.bundle import load_content, write_bundle
from trainer.signing import public_path

SHORT = RunSettings(stretch=0.2, seed=5, calibrate_s=1.0)
MEASURED_ELSEWHERE = {
    "lost", "knee", "wrong_status", "different", "memory_mib_per_minute", "descriptors_grown",
    "labels_failed", "fault_s", "recovery_s", "card_numbers", "controls",
    "states_different", "whole_s", "swaps_missed", "causes_unsaid", "unlike_the_log",
    "certificates_stale", "connections_failed", "strangers", "clock_steps_unseen",
    "attack_missed", "caught_share", "caught_s", "good_alerts_added",
}  # fmt: skip


# The table and the objectives.


def test_every_drill_asks_what_is_known_and_every_objective_is_asked() -> None:
    known = load_objectives()
    for name, drill in DRILLS.items():
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
        assert set(drill.asked) <= known.keys(), name
        assert any(known[asked].kind == "safety" for asked in drill.asked)
        assert all(phase.seconds > 0 and phase.load > 0 for phase in drill.phases)
    assert {asked for drill in DRILLS.values() for asked in drill.asked} == known.keys()


def test_every_objective_is_on_a_figure_that_is_measured() -> None:
    measured = figures([], None).keys() | MEASURED_ELSEWHERE
    assert {each.figure for each in load_objectives().values()} <= measured


@pytest.mark.parametrize(
    "text",
    [
        "[a]\nfigure='x'\nkind='safety'\nmeaning='m'\n",
        "[a]\nfigure='x'\nkind='safety'\nmeaning='m'\nat_least=1\nat_most=2\n",
        "[a]\nfigure='x'\nkind='other'\nmeaning='m'\nat_least=1\n",
        "[a]\nfigure='x'\nkind='speed'\nmeaning='m'\nat_least=1\nunit='s'\n",
        "[a]\nkind='speed'\nmeaning='m'\nat_least=1\n",
    ],
)
def test_objectives_that_cannot_be_meant_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "objectives.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match="objective a"):
        load_objectives(path)


@pytest.mark.parametrize(
    ("value", "least", "most"),
    [
        (0.999, True, False), (0.5, True, True), (0.1, False, True), (math.inf, True, False),
        (math.nan, False, False), (None, False, False), (0.0, False, True),
    ],
)  # fmt: skip
def test_the_judge(value: float | None, least: bool, most: bool) -> None:
    asked = [
        Objective("a", "x", "speed", "", at_least=0.5),
        Objective("b", "x", "speed", "", at_most=0.5),
    ]
    found = judge(asked, {} if value is None else {"x": value})
    assert [verdict.met for verdict in found] == [least, most]


def test_the_table_of_drills_in_the_documents_is_the_code() -> None:
    path = Path(__file__).parents[1] / "docs" / "users" / "reliability.md"
    match = re.search(r"<!-- drills -->\n(.*?)<!-- /drills -->", path.read_text(), re.DOTALL)
    assert match is not None
    rows = [
        (
            f"`{d.name}`", ", ".join(d.modes), d.what,
            ", ".join(f"`{asked}`" for asked in d.objectives), d.ends,
        )
        for d in DRILLS.values()
    ]  # fmt: skip
    lines = [("drill", "modes", "what", "objectives", "ends"), ("---",) * 5, *rows]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    assert match[1] == text, f"put this between the marks in {path.name}:\n{text}"


# Figures.


def calls(until_s: float, latency_ms: float, status: str = "OK", from_s: float = 0) -> list[Call]:
    times = [from_s + i / 100 for i in range(round((until_s - from_s) * 100))]
    rung = "FULL" if status == "OK" else ""
    return [Call(at, round(latency_ms * 1000), status, rung, "d", "m") for at in times]


def test_figures_of_calls_in_time_late_shed_and_failed() -> None:
    made = [
        *calls(1, 10), *calls(2, 60, from_s=1), *calls(3, 1, "RESOURCE_EXHAUSTED", from_s=2),
        *calls(4, 5, "UNAVAILABLE", from_s=3),
    ]  # fmt: skip
    found = figures(made, Fault(3.5, 3.6))
    assert (found["answered"], found["shed"], found["failed"]) == (200, 100, 100)
    assert found["timed_out_share"] == 0
    late = figures(calls(1, 9_000, "DEADLINE_EXCEEDED"), None)
    assert (late["timed_out_share"], late["failed"], late["in_time_accepted"]) == (1, 0, 0)
    assert found["in_time_accepted"] == pytest.approx(1 / 3)
    assert found["in_time_answered"] == 0.5
    assert found["in_time_all"] == 0.25
    assert found["failed_outside"] == 0
    assert figures(made, Fault(-9, -8))["failed_outside"] == 100
    assert found["recovery_s"] == math.inf
    assert sum(window.sent for window in windows(made)) == len(made)


@pytest.mark.parametrize(("late_s", "expected"), [(0.0, 0.0), (1.4, 1.5), (3.0, 3.0)])
def test_recovery_begins_with_the_first_good_windows_in_a_row(
    late_s: float, expected: float
) -> None:
    ended_s = 2.0
    made = [*calls(ended_s + late_s, 900), *calls(ended_s + 8, 5, from_s=ended_s + late_s)]
    assert recovery_s(made, Fault(1.0, ended_s)) == expected
    assert recovery_s(made[: round((ended_s + late_s + 1) * 100)], Fault(1, ended_s)) == math.inf


def test_the_knee_is_below_the_first_step_that_is_late() -> None:
    made = [*calls(2, 5), *calls(3, 80, from_s=2), *calls(4, 5, from_s=3)]
    steps = [(0.0, 1.0, 0.2), (1.0, 2.0, 0.4), (2.0, 3.0, 0.6), (3.0, 4.0, 0.8)]
    assert knee(made, steps) == 0.4
    assert knee([], steps) == 0


def test_load_goes_on_until_the_fault_is_over() -> None:
    left = iter([False] * 100)
    due = list(due_times([(1, 50), (1, 200)], 7, lambda: next(left, True)))
    assert due == sorted(due)
    assert due == list(due_times([(1, 50), (1, 200)], 7, iter([False] * 100 + [True]).__next__))
    assert sum(at >= 2e9 for at in due) == 100
    assert 20 < sum(at < 1e9 for at in due) < 90


# What is kept and shown.


def test_a_run_is_compared_with_the_last_of_its_kind(tmp_path: Path) -> None:
    path = tmp_path / "kept" / "runs.jsonl"
    run = {"drill": "steady", "mode": "kafka", "quick": True, "skipped": "", "figures": {"x": 1.0}}
    add_runs(path, [run, run | {"figures": {"x": 2.0}}, run | {"drill": "ramp"}])
    add_runs(path, [run | {"quick": False}, run | {"skipped": "not root"}])
    add_runs(path, [run | {"mode": "embedded"}])
    with path.open("a") as file:
        file.write('{"drill": "stea')
    found = last_run(path, run)
    assert found is not None
    assert found["figures"] == {"x": 2.0}
    assert last_run(path, run | {"drill": "herd"}) is None


def test_the_status_of_roles_is_in_a_file_and_a_full_disk_ends_nothing(tmp_path: Path) -> None:
    status = StatusFile(tmp_path / "roles.json")
    status.add(Change("serve-0", State.READY, 17, 2, None))
    expected = {"serve-0": {"state": "ready", "pid": 17, "restarts": 2}}
    assert json.loads((tmp_path / "roles.json").read_text()) == expected
    StatusFile(tmp_path / "nowhere" / "roles.json").add(Change("a", State.READY, 1, 0, None))


def test_drill_list_and_names_that_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["drill", "list"]) == 0
    shown = capsys.readouterr().out
    assert "steady" in shown
    assert chosen("all") == tuple(DRILLS)
    assert chosen("ramp, steady") == ("ramp", "steady")
    assert main(["drill", "nothing"]) == 2


# Real runs.


def run(options: DrillOptions) -> dict[str, Result]:
    said: list[object] = []
    found = {r.drill.name: r for r in Session(options, said.append, said.append).results()}
    assert said
    for result in found.values():
        print(json.dumps(result.to_json()))
    return found


def missed(result: Result, kind: str = "") -> set[str]:
    return {
        v.objective.name for v in result.verdicts if not v.met and kind in ("", v.objective.kind)
    }


def several(folder: Path, trained: Trained) -> DrillOptions:
    """Return options with bundles that differ by a fact alone, and one of another schema."""
    content = load_content(
        trained.bundle_path, schema_version=SCHEMA_VERSION, public_key=trained.public_key
    )
    bundles = tuple(folder / f"bundle-{number}" for number in range(MODELS))
    for number, path in enumerate(bundles):
        write_bundle(path, replace(content, facts={"number": number}), trained.key_path)
    other = replace(content, schema_version="s-0123456789abcdef")
    write_bundle(folder / "foreign", other, trained.key_path)
    models = Models(bundles, trained.key_path, folder / "foreign", trained.history)
    return DrillOptions((), folder, SHORT, models=models)


def test_whoever_dies_and_whatever_is_served_nothing_is_lost(
    tmp_path: Path, trained: Trained
) -> None:
    names = ("steady", "scorer-kill", "foreign-bundle", "foreign-store", "model-swaps")
    found = run(replace(several(tmp_path, trained), names=names))
    assert found.keys() == set(names)
    for result in found.values():
        assert not missed(result, "safety"), (result.title, result.figures)
        assert result.figures["read_back"] > 10
    assert found["model-swaps"].figures["model_changes"] >= found["model-swaps"].figures["swaps"]
    assert found["model-swaps"].figures["models"] == MODELS
    assert found["foreign-store"].figures["decisions"] > 10
    killed = found["scorer-kill"]
    assert killed.figures["killed"] == 1
    assert killed.figures["failed"] > 0, "it was killed under load, so some calls failed"
    assert killed.fault is not None
    text = page(list(found.values()), {"command": "a <b>"})
    assert "a &lt;b&gt;" in text
    assert "src=" not in re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)


def test_certificates_and_clocks_change_and_no_call_fails(
    tmp_path: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("" if shutil.which("cc") else "no C compiler, so no clock that can be stepped")
    names = ("certificates", "clock-step")
    both = Plan(tls=True, clock=True)  # one system is started for both
    for name in names:
        monkeypatch.setitem(DRILLS, name, replace(DRILLS[name], plan=both))
    found = run(replace(several(tmp_path, trained), names=names))
    assert found.keys() == set(names)
    for result in found.values():
        assert not result.skipped
        assert not missed(result, "safety"), (result.title, result.figures)
    assert found["certificates"].figures["rotations"] > 4
    assert found["clock-step"].figures["decisions"] > 10


def test_an_attack_that_nobody_taught_is_learnt(tmp_path: Path, trained: Trained) -> None:
    found = run(replace(several(tmp_path, trained), names=("novel-attack",)))
    assert not missed(found["novel-attack"], "safety"), found["novel-attack"].figures


# Broken on purpose.


@contextlib.contextmanager
def unshed_and_unfed(folder: Path, trained: Trained) -> Iterator[str]:
    """A scorer that never sheds, whose featurizer never runs."""
    ready = folder / "ready"
    argv = [
        "fraudsvc", "serve", "--log", f"file://{folder}/log", "--store", f"lmdb://{folder}/store",
        "--address", "127.0.0.1:0", "--bundle", str(trained.bundle_path), "--public-key",
        str(public_path(trained.key_path)), "--ready-file", str(ready), "--calls-max", "100000",
        "--wait-ms-max", "1000000",
    ]  # fmt: skip
    with process(folder / "out", *argv) as serve:
        serve.wait_for(ready)
        yield f"127.0.0.1:{ready.read_text()}"


def test_drills_find_a_server_that_never_sheds_and_states_that_nobody_makes(
    tmp_path: Path, trained: Trained
) -> None:
    with unshed_and_unfed(tmp_path, trained) as target:
        found = run(DrillOptions(("steady", "overload-5x"), tmp_path, SHORT, target=target))
    assert "fresh" in missed(found["steady"])
    assert found["steady"].figures["full_share"] == 0
    assert "sheds" in missed(found["overload-5x"])


class Forgetful(fraud_service_pb2_grpc.FraudServiceServicer):
    """It approves whatever comes, even what it must refuse, and keeps nothing."""

    def Score(  # noqa: N802
        self, _request: fraud_service_pb2.ScoreRequest, _context: grpc.ServicerContext
    ) -> fraud_service_pb2.ScoreResponse:
        assessment = decision_pb2.Assessment(
            outcome=decision_pb2.OUTCOME_APPROVE, rung=decision_pb2.RUNG_FULL, decision_id="d",
        )  # fmt: skip
        return fraud_service_pb2.ScoreResponse(assessment=assessment)

    def GetDecision(  # noqa: N802
        self, _: fraud_service_pb2.GetDecisionRequest, context: grpc.ServicerContext
    ) -> fraud_service_pb2.GetDecisionResponse:
        context.abort(grpc.StatusCode.NOT_FOUND, "it is gone")
        raise AssertionError


@contextlib.contextmanager
def forgetful(credentials: grpc.ServerCredentials | None = None) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(8))
    add = fraud_service_pb2_grpc.add_FraudServiceServicer_to_server
    add(Forgetful(), server)  # type: ignore[no-untyped-call]
    address = "127.0.0.1:0"
    if credentials is None:
        port = server.add_insecure_port(address)
    else:
        port = server.add_secure_port(address, credentials)
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(0).wait(5)


def drilled(name: str, system: System) -> set[str]:
    """Run a drill against a system and return what it missed."""
    table = next(World(WorldSettings(seed=5, customers=50)).days(1))
    made = DrillRun(DRILLS[name], system, prepare(table_rows(table)), 20.0, SHORT)
    return missed(made.run(load_objectives(), lambda _: None))


def test_a_server_that_never_looks_at_its_certificates_again_is_found_out(tmp_path: Path) -> None:
    files = Certificates(tmp_path)
    write_set(tmp_path, SERVERS)
    files.begin()
    pair = files.server(0)
    credentials = grpc.ssl_server_credentials(
        [(pair.key.read_bytes(), pair.certificate.read_bytes())], files.authority.read_bytes(),
        require_client_auth=True,
    )  # fmt: skip
    with forgetful(credentials) as target:
        found = drilled("certificates", System(None, address=target, certificates=files))
    assert {"newest_certificate", "no_strangers"} <= found


def test_a_clock_that_nobody_reads_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "CLOCK_LOOK_S", 0.2)  # that server keeps no decision
    with forgetful() as target, grpc.insecure_channel(target) as channel:
        system = System(None, address=target, clock=Clock(tmp_path))
        found = step_clock(Scene(system, channel, time.monotonic, 0.0, []))
    assert not judge([load_objectives()["clock_seen"]], found)[0].met


def statuses(path: Path) -> dict[str, Sequence[str]]:
    drills = json.loads(path.read_text())["drills"]
    return {d["drill"]: [v["name"] for v in d["verdicts"] if not v["met"]] for d in drills}


def test_a_service_that_loses_and_refuses_nothing_fails_by_its_exit_status(tmp_path: Path) -> None:
    common = ["--quick", "--seed", "5", "--home", str(tmp_path), "--json", str(tmp_path / "out")]
    with forgetful() as target:
        assert main(["drill", "poison", "--target", target, *common]) == 1
        assert {"nothing_lost", "says_why"} <= set(statuses(tmp_path / "out")["poison"])
        # and what needs the roles' processes is told apart from what failed
        skipped = run(DrillOptions(("scorer-kill",), tmp_path, SHORT, target=target))
    assert "no role serve-0" in skipped["scorer-kill"].skipped
    assert skipped["scorer-kill"].passed
