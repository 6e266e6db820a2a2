"""A kernel is compiled anew when anything it is made of changes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from featurizer import kernel_cache

KERNEL = """
from numba import njit
from featurizer.inner import inner

@njit(cache=True)
def outer():
    return inner()
"""
INNER = """
from numba import njit

@njit(cache=True)
def inner():
    return {}
"""
START = """
from pathlib import Path
from featurizer import kernel_cache

ROOT = Path(__file__).parent.parent
kernel_cache.use(ROOT / "cache", ROOT)
"""


def answer(root: Path) -> str:
    code = "from featurizer.outer import outer; print(outer())"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(root)},
    )  # fmt: skip
    return run.stdout.strip()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    package = tmp_path / "featurizer"
    package.mkdir()
    (package / "__init__.py").write_text(START)
    (package / "kernel_cache.py").write_text(Path(kernel_cache.__file__).read_text())
    (package / "outer.py").write_text(KERNEL)
    (package / "inner.py").write_text(INNER.format(1))
    return tmp_path


def test_a_change_in_a_called_kernel_is_seen(root: Path) -> None:
    assert answer(root) == "1"
    assert answer(root) == "1"

    (root / "featurizer" / "inner.py").write_text(INNER.format(2))

    assert answer(root) == "2"


def test_directories_that_nobody_uses_are_dropped(root: Path) -> None:
    base = root / "cache"
    for name, age_s in (("kernels-old", kernel_cache.KEPT_S + 60), ("kernels-new", 60)):
        (base / name).mkdir(parents=True)
        (base / name / "used").touch()
        os.utime(base / name / "used", (time.time() - age_s,) * 2)

    answer(root)

    kept = sorted(path.name for path in base.iterdir())
    assert "kernels-old" not in kept
    assert "kernels-new" in kept
    assert len(kept) == 2


def test_a_place_that_cannot_be_written_is_left_to_numba(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert kernel_cache.use(tmp_path / "file", tmp_path) is None
