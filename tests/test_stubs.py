"""The contract: its committed Python is what its .proto files give, and buf finds nothing in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROTOS = ROOT / "protos"
TIMEOUT_S = 60


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S
    )


def generated(root: Path) -> dict[str, bytes]:
    files = [*root.rglob("*_pb2*.py"), *root.rglob("*_pb2*.pyi")]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def test_the_committed_stubs_are_what_the_contract_gives(tmp_path: Path) -> None:
    # given what `make stubs` writes, by the same rule
    done = run("make", "stubs", f"PY={sys.executable}", f"STUBS={tmp_path}")
    assert done.returncode == 0, done.stdout + done.stderr
    fresh, kept = generated(tmp_path), generated(PROTOS)
    # then the files are the same, none too many, none missing
    assert len(fresh) >= 2 * len(list(PROTOS.rglob("*.proto")))
    assert sorted(fresh) == sorted(kept), "run `make stubs`; remove stubs without a .proto"
    assert [name for name in fresh if fresh[name] != kept[name]] == [], "run `make stubs`"


def test_buf_finds_nothing_in_the_contract() -> None:
    buf = shutil.which("buf")
    if buf is None:
        # In CI it is installed wherever Go is there to build it.
        if os.environ.get("CI") and shutil.which("go"):
            pytest.fail("buf is not installed, though Go is: see .ci/run")
        pytest.skip("buf is not installed (go install github.com/bufbuild/buf/cmd/buf@latest)")
    done = run(buf, "lint", "protos")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == ""
