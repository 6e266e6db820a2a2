"""The documents against the code: tables, links, commands, and the examples, which are run."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest
from google.rpc import code_pb2  # type: ignore[import-untyped]

from featurizer import features, frames
from featurizer.state import RING_EVENTS, ROW_WORDS
from fraudsvc.calls import ScorerSettings
from fraudsvc.contract import ContractSettings
from fraudsvc.errors import REASONS
from fraudsvc.policy import file as policy_file
from fraudsvc.server import ServerSettings

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCUMENTS = [README, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
STATED_ADDRESS = "127.0.0.1:50051"
READY_TIMEOUT_S = 300  # kernels may be compiled first
COMMAND_TIMEOUT_S = 60
MAKE = shutil.which("make") or "make"
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(
    r"python -m (featurizer|trainer|fraudsvc|loadgen) ([a-z]+(?:-[a-z]+)*)([^`\n]*)"
)


def blocks(path: Path, language: str) -> list[str]:
    return [text for found, text in _FENCE.findall(path.read_text()) if found == language]


def python_blocks() -> list[tuple[Path, str]]:
    return [(path, text) for path in DOCUMENTS for text in blocks(path, "python")]


def between(name: str) -> str:
    """Return what stands between a table's two marks in the README."""
    match = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", README.read_text(), re.DOTALL)
    assert match is not None, f"README.md has no table between marks of the name {name}"
    return match[1]


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def feature_table() -> str:
    families: dict[str, list[features.Feature]] = {}
    for feature in features.FEATURES:
        families.setdefault(feature.family, []).append(feature)
    rows = [
        (
            family,
            str(len(found)),
            ", ".join(dict.fromkeys(f.entity for f in found)),
            f"`{found[0].name}`: {found[0].meaning}",
        )
        for family, found in sorted(families.items())
    ]
    total = ("all", str(len(features.FEATURES)), "", f"schema `{features.SCHEMA_VERSION}`")
    return table(("family", "features", "entities", "one of them"), [*rows, total])


def error_table() -> str:
    rows = [
        (f"`{reason}`", f"`{code_pb2.Code.Name(spec.code)}`", spec.when)
        for reason, spec in REASONS.items()
    ]
    return table(("reason", "code", "when"), rows)


@pytest.mark.parametrize(
    ("name", "expected"), [("features", feature_table), ("errors", error_table)]
)
def test_a_generated_table_is_what_the_code_says(name: str, expected: object) -> None:
    assert callable(expected)
    text = expected()
    assert between(name) == text, f"put this between the marks of {name} in README.md:\n{text}"


def test_the_settings_are_those_that_the_commands_read() -> None:
    files = [*ROOT.glob("*/__main__.py"), *ROOT.glob("*/*_command.py")]
    files += (ROOT / "fraudsvc" / "console").glob("*command.py")
    files.append(ROOT / "featurizer" / "telemetry.py")  # gets the environment from __main__
    code = "".join(path.read_text() for path in files)
    read = set(re.findall(r'"(FRAUD_[A-Z_]+)"', code))
    rows = re.findall(
        r"^\| `(FRAUD_[A-Z_]+)` \| (?:`(--[a-z-]+)`)? ?\|", between("settings"), re.MULTILINE
    )
    assert {variable for variable, _ in rows} == read
    helped = "".join(
        help_of("fraudsvc", command) for command in ("serve", "up", "stream", "console", "rekey")
    )
    assert [flag for _, flag in rows if flag and flag not in helped] == []


def test_the_limits_are_those_of_the_code() -> None:
    stated = between("limits")
    scorer, server, contract = ScorerSettings(), ServerSettings(), ContractSettings()
    assert f"{scorer.budget_ms:.0f} ms from arrival" in stated
    assert f"less than {scorer.full_ms:.0f} ms left" in stated
    assert f"| {server.calls_max} (`--calls-max`)" in stated
    assert f"| {server.score_bytes_max >> 10} KiB |" in stated
    assert f"| {server.message_bytes_max >> 20} MiB |" in stated
    assert f"| {scorer.items_max:,} |" in stated
    assert f"{contract.max_age_days} days behind" in stated
    assert f"log | {frames.MAX_APPEND_BYTES >> 20} MiB |" in stated
    assert f"entity | {ROW_WORDS * 8 >> 10} KiB |" in stated
    assert f"policy file | {policy_file.FILE_BYTES_MAX >> 20} MiB |" in stated
    exact = f"newest {RING_EVENTS.min()} to {RING_EVENTS.max()} events"
    assert exact in README.read_text()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_link_leads_somewhere(path: Path) -> None:
    text = _FENCE.sub("", path.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), f"{target} leads nowhere"
        if anchor:
            titles = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
            assert anchor in {title.lower().replace(" ", "-") for title in titles}, target


# One process for all commands of a module: what each imports is imported once.
_HELPS = """
import contextlib, io, json, runpy, sys
helps = {}
module, *commands = sys.argv[1:]
for command in commands:
    sys.argv, said = [module, command, "--help"], io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    helps[command] = said.getvalue()
print(json.dumps(helps))
"""


@cache
def helps_of(module: str) -> dict[str, str]:
    """Return what each command in the documents says of itself; "" for one that is not known."""
    named = sorted({command for each, command, _ in commands() if each == module})
    done = subprocess.run(
        [sys.executable, "-c", _HELPS, module, *named],
        check=False, cwd=ROOT, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S,
    )  # fmt: skip
    assert done.returncode == 0, f"python -m {module} --help: {done.stderr}"
    found: dict[str, str] = json.loads(done.stdout)
    return found


def help_of(module: str, command: str) -> str:
    said = helps_of(module).get(command, "")
    assert said.startswith("usage:"), f"python -m {module} {command} --help: nothing"
    return said


@cache
def commands() -> list[tuple[str, str, str]]:
    """Return module, command and the rest of every command line in the documents."""
    texts = (path.read_text().replace("\\\n", " ") for path in DOCUMENTS)
    return sorted({found for text in texts for found in _COMMAND.findall(text)})


def test_every_command_is_known_with_its_flags() -> None:
    assert len(commands()) >= 10
    for module, command, rest in commands():
        known = re.findall(r"--[a-z][a-z-]*", help_of(module, command))
        used = re.findall(r"(?<!\w)--[a-z][a-z-]*", rest)
        assert set(used) <= set(known), f"python -m {module} {command}: {set(used) - set(known)}"


def test_every_make_target_is_there() -> None:
    named = {
        target
        for path in DOCUMENTS
        for target in re.findall(r"(?:^|`)make ([a-z]+)", path.read_text(), re.MULTILINE)
    }
    assert {"demo", "test"} <= named
    for target in sorted(named):
        done = subprocess.run(
            [MAKE, "--dry-run", target], check=False, cwd=ROOT, capture_output=True,
            text=True, timeout=COMMAND_TIMEOUT_S,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


def test_ci_runs_the_test_command_of_the_readme_last() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert re.search(r"^make test\b", blocks(README, "sh")[0], re.MULTILINE)
    lines = [line for line in script.read_text().splitlines() if line and line[0] != "#"]
    assert lines[-1] == "exec make test"
    assert any("make check" in line for line in lines[:-1])


@pytest.mark.parametrize("text", [text for path in DOCUMENTS for text in blocks(path, "toml")])
def test_a_policy_in_the_documents_can_be_used(text: str) -> None:
    head = policy_file.DEFAULT_POLICY.read_text()
    # Tables of one kind may stand anywhere in a file, so the example goes behind the default.
    policy = policy_file.load_policy(f"{head}\n{text}".encode(), features.INDEX)
    codes = [rule["code"] for rule in tomllib.loads(text).get("rules", [])]
    assert set(codes) <= policy.rule_errors.keys()


@pytest.mark.parametrize(("path", "text"), python_blocks())
def test_an_example_compiles(path: Path, text: str) -> None:
    assert compile(text, str(path), "exec").co_consts


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run every role as the README says, on a free port."""
    data = tmp_path_factory.mktemp("data")
    command = [
        sys.executable, "-m", "fraudsvc", "up", "--data", str(data), "--address", "127.0.0.1:0",
        "--console", "127.0.0.1:0",
    ]  # fmt: skip
    with (data / "up.log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        try:
            yield f"127.0.0.1:{_port(data / 'serve-0.ready', process, data / 'up.log')}"
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(COMMAND_TIMEOUT_S) == 0


def _port(ready: Path, process: subprocess.Popen[bytes], log: Path) -> int:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        if ready.exists() and (text := ready.read_text()):
            return int(text)
        time.sleep(0.1)
    raise AssertionError(f"the roles did not start:\n{log.read_text()}")


def run_example(text: str, address: str) -> str:
    assert STATED_ADDRESS in text
    done = subprocess.run(
        [sys.executable, "-c", text.replace(STATED_ADDRESS, address)],
        check=False, cwd=ROOT, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_examples_run_against_a_service(address: str) -> None:
    # given the README's snippet
    scored = run_example(blocks(README, "python")[0], address)
    # then it prints an outcome and why
    first, *reasons = scored.splitlines()
    assert re.fullmatch(r"OUTCOME_[A-Z]+ [0-9.]+ [0-9a-f-]{36}", first), scored
    assert reasons[0].startswith("FALLBACK_AMOUNT ")
    # and the label of the same transaction is joined to it
    examples = blocks(ROOT / "docs/users/payment-service.md", "python")
    [reporting] = [text for text in examples if "ReportLabels" in text]
    labelled = run_example(reporting, address)
    assert labelled == "LABEL_STATUS_APPLIED\n"


@pytest.mark.parametrize(
    "text",
    [
        text
        for path in DOCUMENTS
        for text in blocks(path, "sh")
        if "grpcurl" in text and "DECISION_ID" not in text
    ],
)
def test_a_grpcurl_line_is_one_of_a_shell(text: str) -> None:
    words = shlex.split(text.replace("\\\n", " "))
    assert words[0] == "grpcurl"
    assert STATED_ADDRESS in words
    service, _, method = words[-1].rpartition("/")
    assert service in {"fraud.v1.FraudService", "grpc.health.v1.Health"}
    assert method


def test_every_decision_is_in_the_index() -> None:
    folder = ROOT / "docs" / "decisions"
    index = (folder / "README.md").read_text()
    pages = sorted(path.name for path in folder.glob("[0-9]*.md"))
    assert re.findall(r"\]\((\d{4}-[a-z0-9-]+\.md)\)", index) == pages
    for number, name in enumerate(pages, 1):
        assert name.startswith(f"{number:04}-")
        text = (folder / name).read_text()
        for part in ("## Decision", "## Why", "## Rejected"):
            assert part in text, f"{name} lacks {part}"


def test_the_architecture_names_every_package() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    packages = [path.parent.name for path in ROOT.glob("*/__init__.py")]
    assert [name for name in packages if name != "tests" and f"`{name}/`" not in text] == []
