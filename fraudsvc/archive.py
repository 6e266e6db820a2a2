"""What has decided: every policy and every bundle that was served, kept for who asks later.

Owns where they are kept. Written once, under the version that stands in each decision, by whoever
takes it into use, and before the first decision with it. Files of bundles are kept by digest, so a
base that many bundles share takes its room once. Nothing here is ever changed or dropped by us:
what was decided can be shown as long as this and the log are kept.

    policies/p-….toml   a policy file, byte for byte
    bundles/m-…/        a bundle, its files links to those below
    files/…             by SHA-256
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from trainer.bundle import MANIFEST, SIGNATURE, BundleError
from trainer.bundle_files import MANIFEST_BYTES_MAX, parse_manifest, read_digested, read_file

_log = logging.getLogger(__name__)


class Archive:
    """Policies and bundles under ``folder``.

    What cannot be kept is told in the log and served all the same: an answer in time comes first.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def policy_path(self, version: str) -> Path:
        """Return where a policy is, or would be."""
        return self._folder / "policies" / f"{version}.toml"

    def bundle_path(self, model_version: str) -> Path:
        """Return where a bundle is, or would be."""
        return self._folder / "bundles" / model_version

    def keep_policy(self, version: str, data: bytes) -> None:
        """Keep a policy file's bytes."""
        path = self.policy_path(version)
        with _told(f"policy {version}"):
            if path.exists():
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as draft:
                draft.write(data)
                draft.flush()
                os.fsync(draft.fileno())
            Path(draft.name).replace(path)

    def keep_bundle(self, model_version: str, bundle: Path) -> None:
        """Keep the bundle in a directory, which was read before and found to be whole."""
        path = self.bundle_path(model_version)
        with _told(f"bundle {model_version}"):
            if path.exists():
                return
            manifest = parse_manifest(read_file(bundle / MANIFEST, MANIFEST_BYTES_MAX))
            if manifest["bundle_id"] != model_version:
                raise BundleError(f"{bundle} is {manifest['bundle_id']} by now")
            path.parent.mkdir(parents=True, exist_ok=True)
            work = Path(tempfile.mkdtemp(prefix=".", dir=path.parent))
            try:
                for name, entry in manifest["files"].items():
                    os.link(self._file(bundle / name, entry["sha256"]), work / name)
                for name in (MANIFEST, SIGNATURE):
                    shutil.copyfile(bundle / name, work / name)
                read_digested(work, manifest["files"])
                _take_place(work, path)
            finally:
                shutil.rmtree(work, ignore_errors=True)

    def _file(self, source: Path, digest: str) -> Path:
        """Return the one file of a digest, made of ``source`` where there was none."""
        path = self._folder / "files" / digest
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            draft = path.with_name(f".{digest}.{os.getpid()}")
            with source.open("rb") as original, draft.open("wb") as copy:
                shutil.copyfileobj(original, copy)
                copy.flush()
                os.fsync(copy.fileno())
            draft.replace(path)
        return path


def _take_place(work: Path, path: Path) -> None:
    """Give a directory its name, unless another process was faster."""
    try:
        work.rename(path)
    except OSError:
        if not path.exists():
            raise


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, BundleError) as error:
        _log.error("%s could not be archived, its decisions cannot be replayed: %s", what, error)
