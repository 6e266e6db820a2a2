"""A policy file changed by hand of a program: a threshold or a rule in its text, and the file.

Owns how little of the text is touched, comments kept, and that a reader sees the old file or the
new one. Must not know who may change it, nor why.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fraudsvc.policy.file import DEFAULT_POLICY, FROM_MODEL, PolicyError, load_policy
from trainer.bundle_files import sync_directory

_SECTION = re.compile(r"^\[", re.MULTILINE)
RULE_KEYS = ("code", "when", "action", "text")


def with_threshold(text: str, name: str, value: str) -> str:
    """Return a policy's text with a threshold (``review`` or ``decline``) of another value.

    ``value`` is a number or FROM_MODEL. Raises PolicyError.
    """
    try:
        told = f'"{FROM_MODEL}"' if value == FROM_MODEL else repr(float(value))
    except ValueError:
        raise PolicyError(f"{name} is a number, or {FROM_MODEL}, not {value!r}") from None
    parsed = _parsed(text)
    start, stop = _block(text, re.search(r"^\[thresholds\]", text, re.MULTILINE))
    line = re.compile(rf"^{name}\s*=\s*[^#\n]*?(?=\s*(?:#|$))", re.MULTILINE)
    changed, count = line.subn(f"{name} = {told}", text[start:stop])
    wanted = {
        **parsed,
        "thresholds": {**parsed["thresholds"], name: tomllib.loads(f"x={told}")["x"]},
    }
    return _checked(text[:start] + changed + text[stop:], wanted if count == 1 else None)


def with_rule(text: str, rule: Mapping[str, str]) -> str:
    """Return a policy's text with a rule in the place of that with its code, or behind them all.

    ``rule`` has RULE_KEYS. Raises PolicyError.
    """
    parsed = _parsed(text)
    plain = {key: rule[key] for key in RULE_KEYS}
    block = "[[rules]]\n" + "".join(
        f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in plain.items()
    )
    rules = list(parsed.get("rules", []))
    places = [n for n, each in enumerate(rules) if each.get("code") == plain["code"]]
    if not places:
        return _checked(text.rstrip("\n") + "\n\n" + block, {**parsed, "rules": [*rules, plain]})
    heads = [*re.finditer(r"^\[\[rules\]\]", text, re.MULTILINE)]
    start, stop = _block(text, heads[places[0]] if len(heads) == len(rules) else None)
    rules[places[0]] = plain
    return _checked(text[:start] + block + "\n" + text[stop:], {**parsed, "rules": rules})


def _parsed(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PolicyError(f"the policy in use cannot be read: {error}") from error


def _block(text: str, head: re.Match[str] | None) -> tuple[int, int]:
    """Return where a table of the file begins, and where the next one does."""
    if head is None:
        raise PolicyError("this file is written in a way that must be edited by hand")
    following = _SECTION.search(text, head.end())
    return head.start(), len(text) if following is None else following.start()


def _checked(text: str, wanted: Mapping[str, Any] | None) -> str:
    """Return the text where it says what was wanted and nothing else has changed."""
    try:
        if tomllib.loads(text) == wanted:
            return text
    except tomllib.TOMLDecodeError:
        pass
    raise PolicyError("this file is written in a way that must be edited by hand")


def replace_policy(
    path: Path, change: Callable[[str], str], feature_index: Mapping[str, int]
) -> tuple[str, str]:
    """Change a policy file as a whole; return the version before, and after.

    One at a time, also of several processes. A text that cannot be used changes nothing. Raises
    PolicyError, OSError.
    """
    if path.resolve() == DEFAULT_POLICY.resolve():
        raise PolicyError("the policy in use is the one that came with the program: copy it, and"
                          " start with --policy")  # fmt: skip
    with _locked(path):
        before = path.read_bytes()
        after = change(before.decode()).encode()
        old = load_policy(before, feature_index, path.name).version
        new = load_policy(after, feature_index, path.name).version
        mode = path.stat().st_mode & 0o777
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as draft:
            draft.write(after)
            draft.flush()
            os.fchmod(draft.fileno(), mode)
            os.fsync(draft.fileno())
        Path(draft.name).replace(path)
        sync_directory(path.parent)
    return old, new


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
