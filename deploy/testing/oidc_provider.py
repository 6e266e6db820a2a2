"""A real OpenID provider for tests: npm's `oidc-provider`, on loopback, in a process of its own.

Owns its packages' cache, its settings and its process. Must not know the console. The packages come
by npm, once, at the versions and digests of the lock file, into build/oidc.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from deploy.testing.kafka import free_ports

SOURCE = Path(__file__).with_name("oidc")
MODULES = Path(__file__).parents[2] / "build" / "oidc"
CLIENT, SECRET = "console", "a-secret-of-tests"
NPM_S, START_S, STOP_S = 120.0, 30.0, 10.0
_FILES = ("package.json", "package-lock.json", "provider.mjs")


def provider_missing() -> str:
    """Return "" where a provider can be started, else what is missing."""
    missing = [name for name in ("node", "npm") if shutil.which(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else ""


def provider_folder() -> Path:
    """Return the folder of the provider, filled by npm where it is not yet.

    Several processes may call it at once. Raises RuntimeError with what npm said when it fails.
    """
    content = b"".join((SOURCE / name).read_bytes() for name in _FILES)
    digest = hashlib.sha256(content).hexdigest()
    MODULES.mkdir(parents=True, exist_ok=True)
    with (MODULES / "LOCK").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = MODULES / "STAMP"
        if not stamp.exists() or stamp.read_text() != digest:
            for name in _FILES:
                shutil.copy(SOURCE / name, MODULES / name)
            _install()
            stamp.write_text(digest)
    return MODULES


def _install() -> None:
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(
        [shutil.which("npm") or "npm", *command[1:]], check=False, cwd=MODULES, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=NPM_S,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"npm failed with {done.returncode}: {done.stdout[-2000:]}")


class OidcProvider:
    """A provider with one client; ``accounts`` has the claims of each login."""

    def __init__(
        self, directory: Path, redirect_uri: str, accounts: Mapping[str, Mapping[str, Any]]
    ) -> None:
        [port] = free_ports(1)
        self.issuer = f"http://127.0.0.1:{port}"
        self._output = directory / "provider.log"
        self._settings = directory / "provider.json"
        client = {
            "client_id": CLIENT, "client_secret": SECRET, "redirect_uris": [redirect_uri],
            "grant_types": ["authorization_code"], "response_types": ["code"],
        }  # fmt: skip
        told = {"issuer": self.issuer, "port": port, "client": client, "accounts": accounts}
        self._settings.write_text(json.dumps(told))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start it, and wait until it listens."""
        argv = [shutil.which("node") or "node", "provider.mjs", str(self._settings)]
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                argv, cwd=provider_folder(), stdout=output, stderr=output,
                env={"PATH": os.environ["PATH"], "NODE_ENV": "test"},
            )  # fmt: skip
        end_s = time.monotonic() + START_S
        while "listening" not in self._output.read_text():
            if self._process.poll() is not None or time.monotonic() > end_s:
                self.stop()
                raise RuntimeError(f"no provider: {self._output.read_text()[-2000:]}")
            time.sleep(0.02)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop it."""
        self.stop()

    def stop(self) -> None:
        """End its process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(STOP_S)
            self._process = None
