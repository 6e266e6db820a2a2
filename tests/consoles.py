"""A console as a process of its own on a log that a test fills. Must not assert anything.

Owns how it is started, and a plain HTTP client that keeps cookies and follows nothing by itself.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import shutil
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

from featurizer.eventlog_file import FileEventLog
from fraudsvc.console.credentials import Credentials
from fraudsvc.console.gate import new_link
from fraudsvc.console.person import ROLES, Person
from tests.conftest import START_S, Trained, process
from trainer.signing import public_path

TIMEOUT_S = 30.0
PAGE = {"accept": "text/html"}


class Answer(NamedTuple):
    """What came back; header names are lower case."""

    status: int
    headers: dict[str, str]
    text: str


class Client:
    """A browser without a page: one host, cookies, no redirects."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.cookies: dict[str, str] = {}

    def ask(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: str = ""
    ) -> Answer:
        """Ask once; keep the cookies that come back."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)
        told = {"cookie": "; ".join(f"{k}={v}" for k, v in self.cookies.items()), **PAGE}
        try:
            connection.request(method, path, body.encode(), {**told, **(headers or {})})
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        for line in answer.headers.get_all("set-cookie") or ():
            name, _, value = line.partition(";")[0].partition("=")
            self.cookies[name] = value.strip('"')
        return Answer(answer.status, {k.lower(): v for k, v in answer.headers.items()}, text)

    def get(self, path: str, **headers: str) -> Answer:
        """GET a page."""
        return self.ask("GET", path, headers)

    def csrf(self, page: str) -> str:
        """Return the token that a page's forms hold."""
        found = re.search(r'data-csrf="([^"]*)"', self.get(page).text)
        return "" if found is None else found[1]

    def post(self, path: str, page: str, **values: str) -> Answer:
        """Send a form of a page."""
        form = {"csrf": self.csrf(page), **values}
        headers = {"content-type": "application/x-www-form-urlencoded"}
        return self.ask("POST", path, headers, urlencode(form))


class Place(NamedTuple):
    """A running console and its files."""

    data: Path
    port: int

    @property
    def home(self) -> Path:
        """Where its secrets are."""
        return self.data / "console"

    def get_json(self, path: str) -> Any:
        """Ask as a machine. Raises urllib.error.HTTPError."""
        headers = {"authorization": f"Bearer {_token(self.home)}"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310 - ours
            body = answer.read()
        return json.loads(body) if "json" in answer.headers["content-type"] else body.decode()

    def link(self, name: str, role: str) -> str:
        """Return a one-time link of a person."""
        return new_link(self.home, Person(name, frozenset(ROLES[: ROLES.index(role) + 1])), 60)

    def signed_in(self, name: str = "ada", role: str = "operator") -> Client:
        """Return somebody who is signed in."""
        client = Client(self.port)
        client.get(path_of(self.link(name, role)))
        return client

    def log(self) -> FileEventLog:
        """Open its log, for reading."""
        return FileEventLog(self.data / "log", read_only=True)


class System(NamedTuple):
    """``up`` with a console and a trainer, and where it keeps its data."""

    data: Path
    port: int
    console: Place


def data_of(folder: Path, trained: Trained) -> Path:
    """Make the data folder of an ``up`` that has a model and its keys; return it."""
    data = folder / "data"
    data.mkdir()
    shutil.copytree(trained.bundle_path, data / "bundle")
    shutil.copy(trained.key_path, data / "key")
    shutil.copy(public_path(trained.key_path), data / "key.pub")
    return data


@cache
def _token(home: Path) -> str:
    return Credentials(home).new_token(Person("machine", frozenset({"viewer"})))


def path_of(url: str) -> str:
    """Return the path and query of an address."""
    return "/" + url.split("/", 3)[3]


@contextlib.contextmanager
def console(data: Path, *more: str) -> Iterator[Place]:
    """Run a console on the log in ``data``, which is made where it is missing."""
    data.mkdir(exist_ok=True)
    FileEventLog(data / "log").close()
    ready, output = data / "console.ready", data.parent / f"console-{uuid.uuid4().hex[:8]}"
    ready.unlink(missing_ok=True)
    with process(
        output, "fraudsvc", "console", "--log", f"file://{data}/log", "--store",
        f"lmdb://{data}/store", "--data", str(data), "--read-model", f"sqlite:///{data}/readmodel.sqlite",
        "--http", "127.0.0.1:0", "--otlp", "", "--ready-file", str(ready), *more,
    ) as running:  # fmt: skip
        running.wait_for(ready)
        yield Place(data, int(ready.read_text()))
        running.popen.terminate()
        running.popen.wait(START_S)  # it may compile a kernel before it looks
