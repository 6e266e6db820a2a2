"""Writes what the image is made of as CycloneDX: sbom.py REQUIREMENTS VERSION > bom.json.

One component a pin of requirements.txt, with its digests, so that a scanner can be asked about the
image without having it. Those that only developers need are in it, and not in the image.
https://cyclonedx.org/docs/1.6/json/
"""

from __future__ import annotations

import json
import re
import sys
import uuid
from pathlib import Path
from typing import Any

SPECIFICATION = "1.6"
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", re.MULTILINE)
_DIGEST = re.compile(r"--hash=sha256:([0-9a-f]{64})")


def components(requirements: str) -> list[dict[str, Any]]:
    """Return a component for each pin, in their order.

    Raises ValueError for a pin without a digest, as then nobody knows what was installed.
    """
    found = []
    for block in re.split(r"^(?=[A-Za-z0-9])", requirements, flags=re.MULTILINE):
        pin = _PIN.match(block)
        if pin is None:
            continue
        name, version = re.sub(r"[-_.]+", "-", pin[1]).lower(), pin[2]
        digests = _DIGEST.findall(block)
        if not digests:
            raise ValueError(f"{name} has no digest")
        found.append({
            "type": "library", "bom-ref": f"pkg:pypi/{name}@{version}", "name": name,
            "version": version, "purl": f"pkg:pypi/{name}@{version}",
            # A wheel for each platform, of which one was taken: all that it may be.
            "evidence": {"occurrences": [{"location": f"sha256:{each}"} for each in digests]},
        })  # fmt: skip
    return found


def bom(requirements: str, name: str, version: str) -> dict[str, Any]:
    """Return the whole document. The same requirements give the same, its number too."""
    number = uuid.uuid5(uuid.NAMESPACE_URL, f"{name}@{version}\n{requirements}")
    return {
        "bomFormat": "CycloneDX", "specVersion": SPECIFICATION, "version": 1,
        "serialNumber": f"urn:uuid:{number}",
        "metadata": {"component": {"type": "application", "bom-ref": name, "name": name,
                                   "version": version}},
        "components": components(requirements),
    }  # fmt: skip


def main() -> int:
    """Write the document of a file of requirements."""
    text = Path(sys.argv[1]).read_text(encoding="utf-8")
    json.dump(bom(text, "fraudsvc", sys.argv[2]), sys.stdout, indent=1)
    sys.stdout.write("\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
