"""`python -m tests.audit`: whether a pinned dependency has a known weakness, by pip-audit.

Exit status 1 for a weakness. Where nobody answers, or knows none of the packages, it says that it
was skipped, and that is no failure: a build must not depend on somebody else's service.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ANSWER_S = 10
ALL_S = 120


def audited() -> tuple[list[dict[str, Any]], str]:
    """Return what is said of each package, or why nothing is."""
    command = [
        sys.executable, "-m", "pip_audit", "--requirement", str(ROOT / "requirements.txt"),
        "--require-hashes", "--disable-pip", "--timeout", str(ANSWER_S), "--format", "json",
        "--progress-spinner", "off",
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=ALL_S, cwd=ROOT
        )
        return json.loads(done.stdout)["dependencies"], ""
    except subprocess.TimeoutExpired:
        return [], f"no end in {ALL_S} s"
    except (ValueError, KeyError):
        return [], (done.stderr.strip().splitlines() or ["it says nothing"])[-1]


def verdict(packages: list[dict[str, Any]], trouble: str) -> tuple[int, list[str]]:
    """Return the exit status, and what to say."""
    known = [package for package in packages if "vulns" in package]
    if not known:
        return 0, [f"pip-audit: skipped: unreachable ({trouble or 'it knows no package'})"]
    weak = [(package, each) for package in known for each in package["vulns"]]
    lines = [
        f"{package['name']} {package['version']}: {each['id']}, mended in"
        f" {', '.join(each['fix_versions']) or 'no version'}"
        for package, each in weak
    ]
    unknown = len(packages) - len(known)
    lines.append(f"pip-audit: {len(known)} packages, {len(weak)} weaknesses, {unknown} not known")
    return (1 if weak else 0), lines


def main() -> int:
    """Print what was found."""
    status, lines = verdict(*audited())
    print("\n".join(lines))
    return status


if __name__ == "__main__":
    sys.exit(main())
