"""The Go example: built from the contract, and run against a real server."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from featurizer.features import INDEX
from fraudsvc.policy import DEFAULT_POLICY, load_policy
from fraudsvc.practice import practise
from tests.conftest import Host, decisions, serving
from tests.servers import need

ROOT = Path(__file__).parents[1]
PROTOS = ROOT / "protos"
EXAMPLE = ROOT / "docs" / "examples" / "go"
BUILD_S = 240  # the first time the modules are fetched, and all of gRPC is compiled
TIMEOUT_S = 60
STUBS = "example.com/payments/fraudv1"


def run(*argv: str, cwd: Path, seconds: float = BUILD_S, path: str = "") -> None:
    environment = {**os.environ, "PATH": os.pathsep.join([path, os.environ["PATH"]])}
    done = subprocess.run(
        argv, check=False, cwd=cwd, capture_output=True, text=True, timeout=seconds,
        env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build it as payment-service.md says; what was built of the same files before is kept."""
    need("" if shutil.which("go") else "go is not installed")
    files = [*sorted(EXAMPLE.iterdir()), *sorted(PROTOS.rglob("*.proto"))]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fraudsvc"
    built = cache / f"example-{digest}" / "payments"
    if built.exists():
        return built
    folder = tmp_path_factory.mktemp("go") / "payments"
    shutil.copytree(EXAMPLE, folder)
    run("go", "build", "-o", "bin/", "google.golang.org/protobuf/cmd/protoc-gen-go", cwd=folder)
    names = [file.relative_to(PROTOS).as_posix() for file in files if file.suffix == ".proto"]
    run(
        sys.executable, "-m", "grpc_tools.protoc", "-I", str(PROTOS), "--go_out=.",
        "--go_opt=module=example.com/payments", *(f"--go_opt=M{name}={STUBS}" for name in names),
        *names, cwd=folder, path=str(folder / "bin"),
    )  # fmt: skip
    run("go", "vet", ".", cwd=folder)
    run("go", "build", "-o", "payments", ".", cwd=folder)
    built.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / "payments", built.with_suffix(".new"))
    built.with_suffix(".new").rename(built)
    return built


@pytest.mark.timeout(3 * BUILD_S)
def test_the_example_in_go_runs(program: Path, tmp_path: Path) -> None:
    practise(load_policy(DEFAULT_POLICY, INDEX))  # no first call waits for a kernel
    host = Host(tmp_path, None, now_ms=time.time_ns() // 1_000_000)
    with serving(host.scorer()) as (server, _):
        done = subprocess.run(
            [str(program), f"127.0.0.1:{server.port}"], check=False, capture_output=True,
            text=True, timeout=TIMEOUT_S,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer, reason, field = done.stdout.splitlines()
    [decided] = decisions(host.log).values()
    assert answer.split() == ["OUTCOME_APPROVE", decided.assessment.decision_id]
    assert (reason, field) == ("INVALID_TRANSACTION", "transaction.currency_code")
    host.close()
