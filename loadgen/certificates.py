"""Certificates under drill: the files that the service reads, and what there is to replace them.

Owns their folder, which a command of this repository has filled. Must not know what is asked of
the service.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from loadgen.client import Identity

COMMAND: Final = "deploy.testing.certificates"
SERVERS: Final = 9


class Pair(NamedTuple):
    """A certificate and its key, as files."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Certificates:
    """A folder: `live.crt`, `live.key` and `callers.pem` are what the service is given."""

    folder: Path

    def begin(self) -> None:
        """Put the first in place."""
        self.put("live.crt", self.server(0).certificate)
        self.put("live.key", self.server(0).key)
        self.put("callers.pem", self.authority)

    @property
    def arguments(self) -> list[str]:
        """The flags by which `fraudsvc` takes them."""
        live = self.folder / "live.crt"
        return [
            "--tls-cert", str(live), "--tls-key", str(live.with_suffix(".key")),
            "--client-ca", str(self.folder / "callers.pem"),
        ]  # fmt: skip

    @property
    def authority(self) -> Path:
        """Who signs the service's certificates, and those of callers."""
        return self.folder / "authority.pem"

    @property
    def other_authority(self) -> Path:
        """Who signs those of strangers."""
        return self.folder / "other.pem"

    @property
    def caller(self) -> Identity:
        """One who may call."""
        return self._identity("caller")

    @property
    def stranger(self) -> Identity:
        """One who may not."""
        return self._identity("stranger")

    def server(self, number: int) -> Pair:
        """Return one of the service's certificates."""
        return Pair(self.folder / f"server-{number}.crt", self.folder / f"server-{number}.key")

    def put(self, name: str, content: Path | bytes) -> None:
        """Replace a file that the service reads, at once."""
        partial = self.folder / f"{name}.partial"
        partial.touch(mode=0o600)
        partial.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
        partial.replace(self.folder / name)

    def _identity(self, name: str) -> Identity:
        return Identity(self.authority, self.folder / f"{name}.crt", self.folder / f"{name}.key")
