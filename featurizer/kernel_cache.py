"""Where compiled kernels are kept: a directory for each state of the sources.

numba looks for changes in the file of a kernel only, not in the files of the kernels it calls or
of the constants it was compiled with; a cached ``view`` would then go on with an old ``fold``.
So the directory is named by a digest of everything that a kernel can be made of.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numba

PACKAGES = ("featurizer", "trainer", "fraudsvc")
KEPT_S = 7 * 86_400


def sources_digest(root: Path) -> str:
    """Return 16 hexadecimal digits that change with any source a kernel depends on.

    ``root`` holds the packages. In ``featurizer`` every file counts, for its constants; in the
    others the files with kernels.
    """
    digest = hashlib.sha256(numba.__version__.encode())
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            source = path.read_bytes()
            if package == PACKAGES[0] or b"njit(" in source:
                digest.update(path.relative_to(root).as_posix().encode() + b"\0" + source)
    return digest.hexdigest()[:16]


def use(base: Path, root: Path) -> Path | None:
    """Keep kernels in ``base`` under the sources' digest; return where, None where it cannot be.

    Directories of other states are dropped once nobody has used them for KEPT_S.
    """
    directory = base / f"kernels-{sources_digest(root)}"
    mark = directory / "used"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except OSError:
        return None  # read-only installation: numba finds a place of its own
    now_s = mark.stat().st_mtime
    for used in base.glob("kernels-*/used"):
        if now_s - used.stat().st_mtime > KEPT_S:
            shutil.rmtree(used.parent, ignore_errors=True)
    numba.config.CACHE_DIR = str(directory)  # type: ignore[attr-defined]
    return directory
