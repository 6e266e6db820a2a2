"""The bundle in use: loaded, verified, and replaced by one reference when the file changes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from featurizer.features import SCHEMA_VERSION
from trainer.bundle import MANIFEST, Bundle, BundleError, load_bundle

_log = logging.getLogger(__name__)


def read_key(path: Path) -> bytes:
    """Return the public key in a file; nothing, with a warning, where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        _log.warning("no public key, so no bundle will be trusted: %s", error)
        return b""


class BundleFile:
    """The bundle at a path that may change; whoever calls ``poll`` keeps it fresh.

    ``path`` may be a link to the directory in use. ``current`` is None until a bundle passed
    every check. One that does not pass is reported to ``on_error`` and the one in use stays.
    """

    def __init__(
        self, path: Path, public_key: bytes, on_error: Callable[[BundleError], None]
    ) -> None:
        self._path = path
        self._public_key = public_key
        self._on_error = on_error
        self._seen: tuple[int, int, int] | None = None
        self.current: Bundle | None = None
        self.poll()

    def poll(self) -> Bundle | None:
        """Look whether the bundle changed, load it if so, and return the one to use."""
        seen = self._identity()
        if seen is not None and seen != self._seen:
            self._seen = seen
            try:
                self.current = load_bundle(
                    self._path, schema_version=SCHEMA_VERSION, public_key=self._public_key
                )
            except BundleError as error:
                self._on_error(error)
        return self.current

    def _identity(self) -> tuple[int, int, int] | None:
        try:
            status = (self._path / MANIFEST).stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino
