"""What make check says of dependencies: weaknesses fail it, nobody to ask does not."""

from __future__ import annotations

import tomllib
from pathlib import Path

from tests.audit import verdict

ROOT = Path(__file__).parents[1]


def test_a_weakness_fails_and_says_where_it_is_mended() -> None:
    weak = {
        "name": "a", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": ["2", "3"]}]
    }  # fmt: skip
    good = {"name": "b", "version": "1", "vulns": []}
    unknown = {"name": "c", "skip_reason": "Dependency not found"}
    status, lines = verdict([weak, good, unknown], "")
    assert status == 1
    assert lines == [
        "a 1: CVE-1, mended in 2, 3", "pip-audit: 2 packages, 1 weaknesses, 1 not known"
    ]  # fmt: skip
    assert verdict([good, unknown], "")[0] == 0


def test_nobody_to_ask_is_said_and_no_failure() -> None:
    unknown = {"name": "c", "skip_reason": "Dependency not found"}
    for packages, trouble in (([], "ConnectionError"), ([unknown], "")):
        status, [line] = verdict(packages, trouble)
        assert status == 0
        assert line.startswith("pip-audit: skipped: unreachable")


def test_make_check_looks_for_insecure_code_and_dependencies() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert "check: setup lint audit" in makefile
    assert "-m bandit" in makefile
    assert "-m tests.audit" in makefile
    skips = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["bandit"]["skips"]
    text = (ROOT / "pyproject.toml").read_text()
    assert all(f'"{code}", # ' in text for code in skips)
