"""What checks a Helm chart without a cluster: helm, kubeconform, and the schemas of the API.

X the schemas come by pip, once, in a package that is unpacked and not installed.
"""

from __future__ import annotations

import fcntl
import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

VERSION: Final = "1.37.0"
REQUIREMENT: Final = Path(__file__).with_name("kubernetes-schemas.txt")
CACHE: Final = Path.home() / ".cache" / "fraudsvc"
_DOWNLOAD_S = 120.0
_TOOL_S = 60.0


class InvalidError(ValueError):
    """A tool refused what it was given; the text is what it said."""


def tool(name: str) -> Path | None:
    """Return where `helm` or `kubeconform` is, None where it is not."""
    found = shutil.which(name)
    if found is not None:
        return Path(found)
    built = CACHE / "go" / name
    return built if built.exists() else None


def schemas() -> Path:
    """Return the folder of strict schemas, one file a kind, fetched where they are not yet.

    Raises RuntimeError with what pip said when it fails.
    """
    directory = CACHE / f"kubernetes-{VERSION}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "kubernetes.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not directory.exists():
            with tempfile.TemporaryDirectory(dir=CACHE) as work:
                unpacked = Path(work) / "schemas"
                _unpack(_download(Path(work)), unpacked)
                unpacked.rename(directory)
    return directory


def _download(folder: Path) -> Path:
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
        "--no-deps", "--require-hashes", "--requirement", str(REQUIREMENT), "--dest", str(folder),
    ]  # fmt: skip
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_DOWNLOAD_S)
    if done.returncode:
        raise RuntimeError(f"no schemas of Kubernetes: {done.stderr}")
    return next(folder.glob("*.whl"))


def _unpack(wheel: Path, directory: Path) -> None:
    """Write the strict schema of each kind with what it refers to, and nothing else.

    In the package all refer to one file of everything, which kubeconform would compile for each
    kind, a minute in all; and each has an address on the web, from which it would resolve them.
    """
    directory.mkdir()
    folder = f"kubernetes_validate/kubernetes-json-schema/v{VERSION}-local-strict/"
    with zipfile.ZipFile(wheel) as packed:
        definitions = json.loads(packed.read(f"{folder}_definitions.json"))["$defs"]
        for name in packed.namelist():
            if name.startswith(folder) and name.endswith(".json") and "/_" not in name:
                schema = json.loads(packed.read(name))
                if "kind" in schema.get("properties", {}):
                    whole = json.dumps(_standing_alone(schema, definitions))
                    (directory / name.removeprefix(folder)).write_text(whole)


def _standing_alone(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the schema with the definitions that it reaches, without its address."""
    reached: dict[str, Any] = {}
    new = [schema]
    while new:
        for name in re.findall(r'#/\$defs/([^"]+)"', json.dumps(new.pop())):
            if name not in reached:
                reached[name] = definitions[name]
                new.append(definitions[name])
    own = {name: value for name, value in schema.items() if name not in ("id", "$id")}
    text = json.dumps({**own, "$defs": reached})
    found: dict[str, Any] = json.loads(re.sub(r'"[^"]*#/\$defs/', '"#/$defs/', text))
    return found


def render(helm: Path, chart: Path, *arguments: str) -> str:
    """Return the chart's objects in YAML. Raises InvalidError with what helm said."""
    command = [
        str(helm), "template", "fraud", str(chart), "--namespace", "payments",
        "--kube-version", VERSION, *arguments,
    ]  # fmt: skip
    return _run(command, "")


def conform(kubeconform: Path, objects: str, skipped: Sequence[str] = ()) -> None:
    """Check objects strictly, but those of kinds that have no schema. Raises InvalidError."""
    place = f"{schemas()}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json"
    command = [str(kubeconform), "-strict", "-schema-location", place]
    if skipped:
        command += ["-skip", ",".join(skipped)]
    _run(command, objects)


def _run(command: Sequence[str], given: str) -> str:
    done = subprocess.run(
        command, input=given, check=False, capture_output=True, text=True, timeout=_TOOL_S
    )
    if done.returncode:
        raise InvalidError(done.stderr + done.stdout)
    return done.stdout
