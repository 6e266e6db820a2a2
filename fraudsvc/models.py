"""The bundle in use: loaded, verified, warmed, and replaced by one reference when the file changes.

Beside it the canary, where there is one: a bundle that decides for some customers.

Whoever decides has taken the reference and ends on the bundle it began with. Nothing here is done
by a thread that answers calls.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from featurizer.features import SCHEMA_VERSION
from trainer.bundle import MANIFEST, Bundle, BundleError, load_bundle, read_manifest
from trainer.bundle_files import read_digested
from trainer.canary import Slice, slice_of
from trainer.shelf import Tried, read_canary

KEPT = 5  # bundles in memory, the one in use among them
_log = logging.getLogger(__name__)


def read_key(path: Path) -> bytes:
    """Return the public key in a file; nothing, with a warning, where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        _log.warning("no public key, so no bundle will be trusted: %s", error)
        return b""


class Canary(NamedTuple):
    """A bundle that decides for some customers."""

    bundle: Bundle
    customers: Slice


class BundleFile:
    """The bundle at a path that may change; whoever calls ``poll`` keeps it fresh.

    ``path`` may be a link to the directory in use. ``current`` is None until a bundle passed
    every check. One that does not pass is reported to ``on_error`` and the one in use stays.
    The last KEPT stay in memory: going back to one of them loads nothing. ``canary`` is the bundle
    that is tried beside it, None where there is none or it does not pass. ``on_load`` is told the
    version of either and where it stands, before it is used.
    """

    def __init__(
        self,
        path: Path,
        public_key: bytes,
        on_error: Callable[[BundleError], None],
        on_load: Callable[[str, Path], None] = lambda _version, _path: None,
    ) -> None:
        self._path = path
        self._public_key = public_key
        self._on_error = on_error
        self._on_load = on_load
        self._seen: tuple[int, int, int] | None = None
        self._kept: dict[str, Bundle] = {}  # by version, the one used last at the end
        self.current: Bundle | None = None
        self.loading_ns = (0, 0)  # when the load of it began and ended, since 1970
        self.canary: Canary | None = None
        self._tried: Tried | None = None
        self.poll()

    def poll(self) -> Bundle | None:
        """Look whether the bundle changed, load it if so, and return the one to use."""
        seen = self._identity()
        if seen is not None and seen != self._seen:
            self._seen = seen
            began_ns = time.time_ns()
            try:
                self._use(self._load(self._path.resolve()))  # whatever becomes of the link
                self.loading_ns = (began_ns, time.time_ns())
            except BundleError as error:
                self._on_error(error)
        self._poll_canary()
        return self.current

    def find(self, model_version: str) -> Bundle | None:
        """Return one of the last KEPT bundles, None where it is not among them."""
        return self._kept.get(model_version)

    def _poll_canary(self) -> None:
        try:
            tried = read_canary(self._path)
            if tried == self._tried:
                return
            self._tried = tried
            self.canary = None if tried is None else self._try(tried)
        except BundleError as error:
            self.canary = None
            self._on_error(error)

    def _try(self, tried: Tried) -> Canary:
        bundle = self._load(tried.path)
        if bundle.model_version != tried.bundle_id:
            raise BundleError(f"the canary is {bundle.model_version}, not {tried.bundle_id}")
        self._keep(bundle)
        return Canary(bundle, slice_of(bundle.model_version, tried.share))

    def _load(self, path: Path) -> Bundle:
        """Return the bundle at ``path``, from memory where it is one of the last.

        Loading scores the bundle's own rows by the kernels that decisions use, so nothing is left
        to compile, and every page is in memory, before the first call sees it.
        """
        manifest = read_manifest(path, self._public_key)
        known = self._kept.get(manifest["bundle_id"])
        if known is not None:
            read_digested(path, manifest["files"])  # a damaged copy is refused all the same
            return known
        bundle = load_bundle(
            path, schema_version=SCHEMA_VERSION, public_key=self._public_key, like=self.current
        )
        self._on_load(bundle.model_version, path)
        return bundle

    def _use(self, bundle: Bundle) -> None:
        self._keep(bundle)
        self.current = bundle

    def _keep(self, bundle: Bundle) -> None:
        # A new dictionary, as find may be called by another thread.
        kept = {name: each for name, each in self._kept.items() if name != bundle.model_version}
        kept[bundle.model_version] = bundle
        self._kept = dict(list(kept.items())[-KEPT:])

    def _identity(self) -> tuple[int, int, int] | None:
        try:
            status = (self._path / MANIFEST).stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino
