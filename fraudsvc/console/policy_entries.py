"""Adds an override or a list entry to a policy file, with its end and its author.

Owns the text of an entry and how the file is replaced: the new one is read as the scorer would read
it, and only then takes the old one's place, as a whole. What stood there, comments too, stays.
"""

from __future__ import annotations

import os
import re
import tempfile
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from featurizer.features import INDEX
from fraudsvc.policy import DEFAULT_POLICY, PolicyError, load_policy

_WRITING = threading.Lock()
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Entry(NamedTuple):
    """``kind`` is override or list, ``action`` one of that kind's; ``end_ms`` since 1970."""

    kind: str
    action: str
    field: str
    value: str
    end_ms: int
    author: str
    why: str


def add_entry(path: Path, entry: Entry, now_ms: int) -> str:
    """Append an entry; return the policy's new version.

    Raises PolicyError where the policy would be refused or is the package's own, OSError.
    """
    if path.resolve() == DEFAULT_POLICY.resolve():
        raise PolicyError(
            "the policy in use came with the package and is not written to: copy it, and start"
            " with --policy"
        )
    with _WRITING:
        data = path.read_bytes()
        load_policy(data, INDEX, path.name)
        changed = data.rstrip(b"\n") + b"\n\n" + text_of(entry, now_ms).encode()
        version = load_policy(changed, INDEX, path.name).version
        _replace(path, data, changed)
    return version


def text_of(entry: Entry, now_ms: int) -> str:
    """Return an entry as the policy file has it; its code says when it was made."""
    code = f"{entry.kind}_{entry.action}_{now_ms:x}".upper()
    end = datetime.fromtimestamp(entry.end_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    text = _quoted(f"{entry.author}: {entry.why}")
    head = f"[[{entry.kind}s]]\ncode = {_quoted(code)}\nfield = {_quoted(entry.field)}\n"
    action = f"action = {_quoted(entry.action)}\ntext = {text}\n"
    if entry.kind == "override":
        return f"{head}value = {_quoted(entry.value)}\nuntil = {end}\n{action}"
    return f"{head}values = [{_quoted(entry.value)}]\nexpires = {end}\n{action}"


def _quoted(text: str) -> str:
    """Return a text as a basic string of TOML."""
    safe = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", safe) + '"'


def _replace(path: Path, before: bytes, changed: bytes) -> None:
    """Put a file in another's place, where that is still what was read."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as draft:
        draft.write(changed)
        draft.flush()
        os.fsync(draft.fileno())
    new = Path(draft.name)
    try:
        new.chmod(path.stat().st_mode & 0o777)
        if path.read_bytes() != before:
            raise PolicyError("somebody changed the policy file meanwhile: try again")
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
