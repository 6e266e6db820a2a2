"""Admits a call: who makes it, whether they may, and whether within their rate.

Owns the files of callers and keys, read again when they change, and the order of the checks. Must
not know what a method does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from fraudsvc.callers.roles import (
    FILE_BYTES_MAX,
    OTHER,
    ROLE_OF,
    Caller,
    Callers,
    CallersError,
    parse_callers,
)
from fraudsvc.callers.tokens import Tokens
from fraudsvc.errors import ServiceError

SAN = "x509_subject_alternative_name"
COMMON_NAME = "x509_common_name"
_BEARER = "bearer "


class Context(Protocol):
    """What is asked of gRPC's context."""

    def peer_identities(self) -> Iterable[bytes] | None:
        """Return the alternative names of the connection's certificate, else its common name."""

    def auth_context(self) -> Mapping[str, Sequence[bytes]]:
        """Return all that the connection's certificate says, which takes seven times as long."""

    def invocation_metadata(self) -> Sequence[tuple[str, Any]]:
        """Return what came beside the request."""


class _Loaded(NamedTuple):
    callers: Callers
    tokens: Tokens | None
    marks: tuple[tuple[int, int, int], ...]


class Gate:
    """Checks calls against a file of callers. Threads may share it.

    Raises CallersError for a first file that cannot be used; later ones are refused by
    ``on_refused``, and the one in use stays.
    """

    def __init__(
        self,
        path: Path,
        on_refused: Callable[[CallersError], object],
        clock_s: Callable[[], float] = time.monotonic,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._on_refused = on_refused
        self._clock_s = clock_s
        self._now_s = now_s
        self._trouble = ""
        self._loaded = self._load()

    def poll(self) -> None:
        """Take the files up again where they have changed. Call it now and then."""
        try:
            if self._marks(self._loaded.callers) != self._loaded.marks:
                self._loaded = self._load()
            self._trouble = ""
        except CallersError as error:
            if str(error) != self._trouble:
                self._trouble = str(error)
                self._on_refused(error)

    def admit(self, method: str, context: Context) -> None:
        """Return where the call may go on. Raises ServiceError."""
        caller = self._caller(context)
        if ROLE_OF.get(method, OTHER) not in caller.roles:
            raise ServiceError("NOT_ALLOWED")
        if caller.bucket is not None and not caller.bucket.take():
            raise ServiceError("RATE_LIMITED")

    def _caller(self, context: Context) -> Caller:
        callers, tokens, _ = self._loaded
        if tokens is not None:
            for key, value in context.invocation_metadata():
                if key == "authorization":
                    return _by_token(callers, tokens, str(value))
        for name in context.peer_identities() or ():
            caller = callers.by_name.get(name)
            if caller is not None:
                return caller
        return _by_any_name(callers, context.auth_context())

    def _load(self) -> _Loaded:
        marks_before = self._marks(Callers())
        callers = parse_callers(_read(self._path), self._clock_s)
        if callers.tokens is None:
            return _Loaded(callers, None, marks_before)
        marks = self._marks(callers)
        jwks = _read(self._path.parent / callers.tokens.jwks)
        tokens = Tokens(callers.tokens, jwks, self._now_s)
        return _Loaded(callers, tokens, (*marks_before, *marks[1:]))

    def _marks(self, callers: Callers) -> tuple[tuple[int, int, int], ...]:
        """Return what changes when a file of these callers is written or replaced."""
        if callers.tokens is None:
            return (_mark(self._path),)
        return (_mark(self._path), _mark(self._path.parent / callers.tokens.jwks))


def _mark(path: Path) -> tuple[int, int, int]:
    try:
        told = path.stat()
    except OSError:
        return (0, 0, 0)
    return (told.st_mtime_ns, told.st_ino, told.st_size)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise CallersError(f"{path}: {error.strerror}") from None


def _by_any_name(callers: Callers, proved: Mapping[str, Sequence[bytes]]) -> Caller:
    names = (*proved.get(SAN, ()), *proved.get(COMMON_NAME, ()))
    if not names:
        raise ServiceError("UNAUTHENTICATED")
    for name in names:
        caller = callers.by_name.get(name)
        if caller is not None:
            return caller
    raise ServiceError("NOT_ALLOWED")


def _by_token(callers: Callers, tokens: Tokens, value: str) -> Caller:
    kind, token = value[: len(_BEARER)], value[len(_BEARER) :]
    name = tokens.name_of(token) if kind.lower() == _BEARER else None
    if name is None:
        raise ServiceError("UNAUTHENTICATED")
    caller = callers.by_name.get(name)
    if caller is None:
        raise ServiceError("NOT_ALLOWED")
    return caller
