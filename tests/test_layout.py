"""The layout: who may import whom, how large a thing may be, and what is not to be written.

Every failure names the place and what to do instead.
"""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

from tests.layout_tables import (
    BROAD,
    CLIENTS,
    ENVIRONMENT_FILES,
    FILE_LINES_MAX,
    FUNCTION_LINES_MAX,
    FUNCTION_LINES_MEDIAN_MAX,
    IMPURE_MODULES,
    LONG_FILES,
    LONG_FUNCTIONS,
    MATERIAL,
    OURS,
    PACKAGES,
    PURE,
    TEST_FILE_LINES_MAX,
    TRAINING_ONLY,
    WALL_CLOCK_FILES,
)

ROOT = Path(__file__).parents[1]

# Clocks come in through the constructor; the linter bans datetime's only without a zone.
WALL_CLOCK = re.compile(r"\b(time\.time\(|datetime\.now\(|\.utcnow\(|date\.today\()")
ADDRESSES = re.compile(  # in parts, so that this file does not hold what it bans
    "|".join(
        [
            "(?<!emit-)index" + "-url",
            "find" + "-links",
            "trusted" + "-host",
            "files" + r"\.python" + "hosted",
            "pypi" + r"\.(org|python)",
            "arti" + "factory",
            r"/simple/" + r"[a-z]",
        ]
    ),
    re.IGNORECASE,
)
UNFINISHED = re.compile(r"\b(TO" + "DO|FIX" + "ME|HA" + r"CK)\b")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def sources() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def own_tests() -> list[Path]:
    return sorted((ROOT / "tests").rglob("*.py"))


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and full module name of every import, wherever in the file it stands."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{relative(path)}:{node.lineno}: import by full name"
            yield node.lineno, node.module or ""


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Yield a function's name and how many lines it spans."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def committed() -> list[Path]:
    """Return the files that git keeps or would keep; all files where there is no repository."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=30)
    except (OSError, subprocess.CalledProcessError):
        names = [relative(path) for path in ROOT.rglob("*") if ".venv" not in path.parts]
    else:
        names = done.stdout.decode().split("\0")
    return [path for name in sorted(set(names)) if name and (path := ROOT / name).is_file()]


def none_of(faults: list[str], instead: str) -> None:
    assert not faults, "\n".join([*faults, f"Instead: {instead}"])


def test_a_package_imports_only_what_stands_to_its_left() -> None:
    none_of(
        [
            f"{relative(path)}:{line}: imports {name}"
            for path in sources()
            for line, name in imported(path)
            if (package := name.partition(".")[0]) in OURS
            and package != path.relative_to(ROOT).parts[0]
            and package not in PACKAGES[path.relative_to(ROOT).parts[0]]
        ],
        "the order is fraud ← featurizer ← trainer ← fraudsvc, and loadgen on fraud alone; move"
        " what both need to the left, or hand it in as an argument.",
    )


def test_a_third_party_client_is_imported_only_where_the_table_says() -> None:
    known = sys.stdlib_module_names | OURS | MATERIAL
    none_of(
        [
            f"{relative(path)}:{line}: imports {name}"
            for path in sources()
            for line, name in imported(path)
            if (module := name.partition(".")[0]) not in known
            and not any(fnmatch(relative(path), file) for file in CLIENTS.get(module, ()))
        ],
        "call the file that CLIENTS names for it; for a new dependency add a row to CLIENTS here,"
        " a pin to pyproject.toml and a line to docs/decisions.",
    )


def test_every_row_of_the_client_table_is_used() -> None:
    found = {name.partition(".")[0] for path in sources() for _, name in imported(path)}
    none_of(sorted(CLIENTS.keys() - found), "take the row out of CLIENTS and the pin with it.")


def test_the_scorer_starts_without_what_training_needs() -> None:
    """CatBoost brings pandas and matplotlib: half a second and 100 MB in every worker."""
    code = (
        "import sys, fraudsvc.serve; print([m for m in ('catboost', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]", (
        f"fraudsvc.serve loads {done.stdout}: import {TRAINING_ONLY} only where a model is learnt."
    )


def test_pure_modules_import_nothing_that_varies() -> None:
    none_of(
        [
            f"{name}:{line}: imports {module}"
            for name in PURE
            for line, module in imported(ROOT / name)
            if module.partition(".")[0] in IMPURE_MODULES
        ],
        "take time, chance and files as arguments; the shell around it owns them.",
    )


def test_the_time_of_day_is_read_only_where_a_table_says() -> None:
    none_of(
        [
            f"{relative(path)}:{number}: {line.strip()}"
            for path in sources()
            if relative(path) not in WALL_CLOCK_FILES
            for number, line in enumerate(path.read_text().splitlines(), 1)
            if WALL_CLOCK.search(line)
        ],
        "take a clock as an argument (`now_ms: Callable[[], int]`), as Clocks in"
        " fraudsvc/scorer.py; integer milliseconds come from time.time_ns().",
    )


def test_no_package_is_named_for_nothing() -> None:
    banned = {"common", "utils", "util", "helpers", "misc", "shared", "core", "base"}
    none_of(
        [relative(path) for path in sources() if banned & {path.stem, *path.parent.parts[-1:]}],
        "name a file for what it owns.",
    )


@pytest.mark.parametrize(
    ("files", "limit"), [(sources, FILE_LINES_MAX), (own_tests, TEST_FILE_LINES_MAX)]
)
def test_no_file_is_too_long(files: object, limit: int) -> None:
    assert callable(files)
    counts = {relative(path): len(path.read_text().splitlines()) for path in files()}
    none_of(
        [
            f"{name}: {n} lines"
            for name, n in counts.items()
            if n > limit and name not in LONG_FILES
        ],
        f"split it by what its parts own; {limit} lines at most, exceptions in LONG_FILES.",
    )


def test_functions_are_short() -> None:
    lengths = {
        f"{relative(path)}::{name}": lines for path in sources() for name, lines in functions(path)
    }
    none_of(
        [
            f"{name}: {lines} lines"
            for name, lines in lengths.items()
            if lines > FUNCTION_LINES_MAX and name not in LONG_FUNCTIONS
        ],
        f"{FUNCTION_LINES_MAX} lines at most: give its parts names, exceptions in LONG_FUNCTIONS.",
    )
    assert statistics.median(lengths.values()) <= FUNCTION_LINES_MEDIAN_MAX


def test_exceptions_from_the_limits_are_still_needed() -> None:
    gone = [
        name
        for name in (*LONG_FILES, *LONG_FUNCTIONS)
        if not (ROOT / name.partition("::")[0]).exists()
    ]
    none_of(gone, "take the row out of the table.")


def test_no_pickle() -> None:
    banned = {"pickle", "cPickle", "shelve", "marshal", "dill", "joblib", "cloudpickle"}
    none_of(
        [
            f"{relative(path)}:{line}: imports {name}"
            for path in (*sources(), *own_tests())
            for line, name in imported(path)
            if name.partition(".")[0] in banned
        ],
        "keep arrays as .npy with allow_pickle=False, facts as JSON, records as protobuf.",
    )


def is_broad(caught: ast.expr | None) -> bool:
    if isinstance(caught, ast.Tuple):
        return any(is_broad(each) for each in caught.elts)
    return caught is None or (isinstance(caught, ast.Name) and caught.id in BROAD)


def test_a_broad_except_raises_again_or_has_its_reason_on_the_line() -> None:
    reason = re.compile(r"noqa: BLE001 - \S+")
    none_of(
        [
            f"{relative(path)}:{node.lineno}"
            for path in sources()
            for node in ast.walk(tree_of(path))
            if isinstance(node, ast.ExceptHandler)
            and is_broad(node.type)
            and not isinstance(node.body[-1], ast.Raise)
            and not reason.search(path.read_text().splitlines()[node.lineno - 1])
        ],
        "name the exceptions; or say why on the line, after `# noqa: BLE001 - `.",
    )


def test_only_commands_print() -> None:
    allowed = ("__main__.py", "demo*.py")
    none_of(
        [
            f"{relative(path)}:{node.lineno}"
            for path in sources()
            if not any(fnmatch(path.name, name) for name in allowed)
            for node in ast.walk(tree_of(path))
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "print"
        ],
        "return a value, call back, or log; __main__ prints.",
    )


def test_only_commands_read_the_environment() -> None:
    none_of(
        [
            f"{relative(path)}:{node.lineno}"
            for path in sources()
            if path.name != "__main__.py" and relative(path) not in ENVIRONMENT_FILES
            for node in ast.walk(tree_of(path))
            if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
        ],
        "take the setting as an argument; __main__ reads the environment and builds the adapters.",
    )


def test_every_file_says_what_it_owns() -> None:
    none_of(
        [relative(path) for path in sources() if not ast.get_docstring(tree_of(path))],
        "begin the file with a docstring: what it owns, what it must not know.",
    )


def test_nothing_is_left_for_later() -> None:
    none_of(
        [
            f"{relative(path)}:{number}: {line.strip()}"
            for path in committed()
            if path.suffix in {".py", ".proto", ".toml", ".md", ".yaml", ""}
            and path.name not in {"requirements.txt", "LICENSE"}
            for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
            if UNFINISHED.search(line)
        ],
        "do it, or open an issue.",
    )


def test_no_file_names_a_package_index() -> None:
    none_of(
        [
            f"{relative(path)}:{number}: {match[0]}"
            for path in committed()
            if path.suffix not in {".parquet", ".npy", ".png"}
            for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
            if (match := ADDRESSES.search(line))
        ],
        "leave the choice of an index to whoever installs; `make requirements` writes none.",
    )


def pins() -> dict[str, str]:
    text = (ROOT / "requirements.txt").read_text()
    return dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", text, re.MULTILINE))


def test_every_dependency_is_pinned_with_its_digests() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {re.split(r"[^A-Za-z0-9._-]", entry)[0].lower() for entry in wanted}
    none_of(sorted(names - pins().keys()), "run `make requirements`.")
    blocks = re.split(r"^(?=[a-z0-9])", (ROOT / "requirements.txt").read_text(), flags=re.MULTILINE)
    none_of([b.split("=")[0] for b in blocks if b and "--hash=sha256:" not in b], "the same.")
