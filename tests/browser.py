"""A real browser before a console, for tests; a module imports the fixtures it wants.

Owns how Chromium and a console without other roles are started, and axe-core, which is fetched
once. Must not assert what a page shows.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from featurizer.eventlog_file import FileEventLog
from fraudsvc.console.audit import AuditTrail
from fraudsvc.console.desk import Desk
from fraudsvc.console.desk_command import DeskOptions
from fraudsvc.console.desk_pages import desk_routes
from fraudsvc.console.gate import Gate, GateOptions, new_link
from fraudsvc.console.http import HttpServer
from fraudsvc.console.pages import Templates
from fraudsvc.console.person import ROLES, Person
from fraudsvc.console.readmodel import ReadModel
from fraudsvc.console.site import site
from tests.console_world import fill
from tests.servers import need

AXE = "4.11.0"
AXE_SHA256 = "39bed7d72308f6d620789c169d699bfd7e8da80f65b545821a6b2215c3e83107"
NPM_TIMEOUT_S = 120.0
THRESHOLDS = "[thresholds]\nreview = 0.12\ndecline = 0.93\n"
SHOTS = Path(__file__).parents[1] / "build" / "screenshots"
WELL = {"status": "ok", "behind_seconds": 0.0}
WIDE, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}

expect.set_options(timeout=30_000)  # a busy machine is no failure


def chromium() -> str:
    """Return the browser's path, "" where there is none."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or ""


@pytest.fixture(scope="module", name="browser")
def browser_fixture() -> Iterator[Browser]:
    """One Chromium for all tests of a module.

    Not of the session: each module that imports this has it as its own, and no two can be at once.
    """
    need("" if chromium() else "Chromium is not installed")
    with sync_playwright() as playwright:
        flags = ["--no-sandbox"] if os.getuid() == 0 else []
        found = playwright.chromium.launch(executable_path=chromium(), args=flags)
        yield found
        found.close()


@dataclass
class Console:
    """A console on a read model that a test filled."""

    port: int
    model: ReadModel
    rows: list[dict[str, Any]]
    home: Path
    log: FileEventLog
    folder: Path

    def link(self, name: str, roles: tuple[str, ...] = ROLES) -> str:
        """Return an address that lets somebody in once."""
        return new_link(self.home, Person(name, frozenset(roles)), 600)

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}"


@contextlib.contextmanager
def serving(
    folder: Path,
    options: DeskOptions,
    url: str = "",
    count: int = 120,
    health: Mapping[str, Any] = WELL,
) -> Iterator[Console]:
    """Run the console's site, without a follower, on a read model with ``count`` decisions."""
    model = ReadModel(url or f"sqlite:///{folder}/readmodel.sqlite")
    model.migrate()
    rows = fill(model, time.time_ns() // 1_000_000, count)
    log = FileEventLog(folder / "log")
    policies = folder / "archive" / "policies"
    policies.mkdir(parents=True)
    (policies / f"{rows[0]['policy_version']}.toml").write_text(THRESHOLDS)
    options = replace(options, data=folder)
    templates, trail = Templates(), AuditTrail(log.append)
    gate = Gate(
        GateOptions(home=folder / "home", tries_a_minute=1_000), "127.0.0.1:0", templates, trail
    )  # a module of tests signs in more often than a person
    desk = Desk(model, templates, trail, options, f"file://{folder}/log", health=lambda: health)
    routes = [*gate.routes(), *desk_routes(desk)]
    server = HttpServer(gate.before(site(templates, routes)), "127.0.0.1:0")
    gate.opened(server.port)
    try:
        yield Console(server.port, model, rows, folder / "home", log, folder)
    finally:
        for each in (desk, server, gate, log, model):
            each.close()


@pytest.fixture(scope="module", name="console")
def console_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    """A console whose scorer is gone."""
    with serving(tmp_path_factory.mktemp("console"), DeskOptions(scorer="127.0.0.1:1")) as made:
        yield made


def signed_in(
    browser: Browser, console: Console, name: str = "ada", **context: Any
) -> tuple[BrowserContext, Page]:
    """Return a context of somebody who is signed in, with a page at the queue."""
    made = browser.new_context(**{"viewport": WIDE, "locale": "en-GB", **context})
    made.set_default_timeout(20_000)
    page = made.new_page()
    page.goto(console.link(name))
    page.goto(f"{console.url}/queue")
    return made, page


def shot(page: Page, name: str) -> None:
    """Write what is seen to build/screenshots."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=str(SHOTS / f"{name}.png"))


def axe_source() -> str:
    """Return axe-core's script, fetched once by npm and checked by its digest."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fraudsvc"
    package = cache / f"axe-core-{AXE}.tgz"
    if not package.exists():
        npm = shutil.which("npm")
        need("" if npm else "npm is not installed")
        cache.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [str(npm), "pack", "--silent", f"axe-core@{AXE}", "--pack-destination", str(cache)],
            check=True, capture_output=True, timeout=NPM_TIMEOUT_S,
        )  # fmt: skip
    digest = hashlib.sha256(package.read_bytes()).hexdigest()
    if digest != AXE_SHA256:
        raise RuntimeError(f"{package} has the digest {digest}: not what is pinned")
    with tarfile.open(package) as archive:
        member = archive.extractfile("package/axe.min.js")
        assert member is not None
        return member.read().decode()
