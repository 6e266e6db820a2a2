"""The policy file: its keys, what it refuses, and how a change is seen.

Owns the TOML file's format and the watch over it. Must not know what a ruling makes of it
(``ruling``) nor how a rule is compiled (``cel_rules``).
"""

from __future__ import annotations

import hashlib
import re
import time
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from fraud.v1 import decision_pb2

from fraudsvc.policy.cel_rules import ExpressionError, Expressions
from fraudsvc.policy.ruling import (
    APPROVE,
    DECLINE,
    LISTABLE,
    RANKS,
    REVIEW,
    Band,
    Listed,
    Policy,
    Step,
    Thresholds,
)

FROM_MODEL = "from_model"
POLL_INTERVAL_MS = 1000
FILE_BYTES_MAX = 16 * 1024 * 1024
DEFAULT_POLICY = Path(__file__).with_name("policy.toml")

_OUTCOMES = {"approve": APPROVE, "review": REVIEW, "decline": DECLINE}
_NEVER_MS = 2**63 - 1
_CODE = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_SOURCES = {
    "list": decision_pb2.REASON_SOURCE_LIST,
    "override": decision_pb2.REASON_SOURCE_LIST,
    "rule": decision_pb2.REASON_SOURCE_RULE,
}


class PolicyError(Exception):
    """The policy cannot be used; the text names the file's part and the cause."""


def load_policy(
    source: Path | bytes, feature_index: Mapping[str, int], name: str = "policy"
) -> Policy:
    """Read and check a policy. ``feature_index``: a feature's name to its place in the vector.

    Raises PolicyError, which names the file (``name`` where bytes are given) and the part at
    fault, and OSError for no file.
    """
    name = name if isinstance(source, bytes) else source.name
    data = source if isinstance(source, bytes) else source.read_bytes()
    try:
        return _Reader(_parse(data), feature_index).policy(hashlib.sha256(data).hexdigest())
    except PolicyError as error:
        raise PolicyError(f"{name}: {error}") from error


def _parse(data: bytes) -> dict[str, Any]:
    if len(data) > FILE_BYTES_MAX:
        raise PolicyError(f"longer than {FILE_BYTES_MAX} bytes")
    try:
        return tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PolicyError(str(error)) from error
    except RecursionError:
        raise PolicyError("its arrays or tables are nested too deeply") from None


# The keys of each kind of table: name, "?" where it may be left out, and type.
_KEYS = {
    "the file": "version:text thresholds:table fallback:table rules?:array lists?:array"
    " overrides?:array",
    "thresholds": "review:number|text decline:number|text",
    "fallback": "bands:array beyond:text",
    "band": "up_to:integer outcome:text",
    "rule": "code:text when:text action:text text:text",
    "list": "code:text action:text field:text values:array expires?:time text?:text",
    "value": "value:text expires:time",
    "override": "code:text field:text value:text until:time action?:text review?:number"
    " decline?:number text?:text",
}
_CHOICES: dict[tuple[str, str], Collection[str]] = {
    ("fallback", "beyond"): _OUTCOMES,
    ("band", "outcome"): _OUTCOMES,
    ("rule", "action"): [action for source, action in RANKS if source == "rule"],
    ("list", "action"): [action for source, action in RANKS if source == "list"],
    ("override", "action"): [action for source, action in RANKS if source == "override"],
    ("list", "field"): LISTABLE,
    ("override", "field"): LISTABLE,
}
_TYPES: dict[str, tuple[type, ...]] = {
    "text": (str,),
    "integer": (int,),
    "number": (int, float),
    "number|text": (int, float, str),
    "table": (dict,),
    "array": (list,),
    "time": (datetime,),
}


def _checked(name: str, table: object, kind: str) -> dict[str, Any]:
    """Return the table when its keys are those of _KEYS[kind], with their types and choices."""
    if not isinstance(table, dict):
        raise PolicyError(f"{name} must be a table")
    types = dict(key.split(":") for key in _KEYS[kind].split())
    known = {key.rstrip("?"): word for key, word in types.items()}
    missing = sorted(key for key in known if key in types and key not in table)
    unknown = sorted(table.keys() - known.keys())
    if missing or unknown:
        raise PolicyError(f"{name}: missing keys {missing}, unknown keys {unknown}")
    for key, value in table.items():
        if not isinstance(value, _TYPES[known[key]]) or isinstance(value, bool):
            raise PolicyError(f"{name}: {key} must be of type {known[key]}")
        choices = _CHOICES.get((kind, key))
        if choices and value not in choices:
            raise PolicyError(f"{name}: {key} must be one of {', '.join(choices)}")
    return table


def _probability(name: str, value: float | str | None) -> float | None:
    if value is None or value == FROM_MODEL:
        return None
    if isinstance(value, str) or not 0 <= value <= 1:
        raise PolicyError(f'{name} must lie between 0 and 1, or be "{FROM_MODEL}"')
    return float(value)


def _thresholds(name: str, table: Mapping[str, Any]) -> Thresholds:
    review = _probability(f"{name}: review", table.get("review"))
    decline = _probability(f"{name}: decline", table.get("decline"))
    if review is not None and decline is not None and review > decline:
        raise PolicyError(f"{name}: review must not be above decline")
    return Thresholds(review, decline)


def _end_ms(name: str, end: datetime | None) -> int:
    if end is None:
        return _NEVER_MS
    if end.tzinfo is None:
        raise PolicyError(f"{name}: a time needs its offset, such as 2026-01-01T00:00:00Z")
    return int(end.timestamp() * 1000)


class _Reader:
    """Turns one parsed file into a Policy; ``codes`` finds a code used twice."""

    def __init__(self, parsed: object, feature_index: Mapping[str, int]) -> None:
        self._file = _checked("the file", parsed, "the file")
        self._feature_index = feature_index
        self._codes: set[str] = set()

    def policy(self, digest: str) -> Policy:
        thresholds = _thresholds(
            "thresholds", _checked("thresholds", self._file["thresholds"], "thresholds")
        )
        tables = self._file.get("rules", [])
        rules = [_checked(f"rule {number}", t, "rule") for number, t in enumerate(tables, 1)]
        steps = [self._step("rule", rule, rule["action"]) for rule in rules]
        try:
            expressions = Expressions([rule["when"] for rule in rules], self._feature_index)
        except ExpressionError as error:
            raise PolicyError(f"rule {rules[error.index]['code']}: {error}") from error
        return Policy(
            f"p-{digest[:16]}", thresholds, self._bands(), steps, expressions, self._all()
        )

    def _bands(self) -> list[Band]:
        fallback = _checked("fallback", self._file["fallback"], "fallback")
        tables = [_checked("fallback: band", table, "band") for table in fallback["bands"]]
        bands = [Band(table["up_to"], _OUTCOMES[table["outcome"]]) for table in tables]
        if any(low.up_to >= high.up_to for low, high in pairwise(bands)):
            raise PolicyError("fallback: up_to must grow from band to band")
        return [*bands, Band(_NEVER_MS, _OUTCOMES[fallback["beyond"]])]

    def _step(self, source: str, table: Mapping[str, Any], action: str) -> Step:
        code = table["code"]
        if not _CODE.fullmatch(code) or code in self._codes:
            raise PolicyError(f"{source} {code}: the code is used twice or not UPPER_SNAKE_CASE")
        self._codes.add(code)
        text = table.get("text", f"{source}: {action}")
        reason = decision_pb2.Reason(code=code, source=_SOURCES[source], text=text)
        return Step(*RANKS[source, action], reason)

    def _all(self) -> dict[str, dict[str, list[Listed]]]:
        """Return field -> value -> what lists and overrides say of it."""
        listed: dict[str, dict[str, list[Listed]]] = {}
        for field, value, entry in (*self._lists(), *self._overrides()):
            if not value:
                raise PolicyError(f"{field}: an empty value would match all that lack the field")
            listed.setdefault(field, {}).setdefault(value, []).append(entry)
        return listed

    def _lists(self) -> Iterator[tuple[str, str, Listed]]:
        for number, raw in enumerate(self._file.get("lists", []), 1):
            table = _checked(f"list {number}", raw, "list")
            name, step = f"list {table['code']}", self._step("list", table, table["action"])
            end_ms = _end_ms(name, table.get("expires"))
            for item in table["values"]:
                plain = {"value": item, "expires": None}
                entry = (
                    plain if isinstance(item, str) else _checked(f"{name}: value", item, "value")
                )
                own_ms = min(end_ms, _end_ms(name, entry["expires"]))
                yield table["field"], entry["value"], Listed(own_ms, step)

    def _overrides(self) -> Iterator[tuple[str, str, Listed]]:
        for number, raw in enumerate(self._file.get("overrides", []), 1):
            table = _checked(f"override {number}", raw, "override")
            name, action = f"override {table['code']}", table.get("action")
            if (action is None) == ("review" not in table and "decline" not in table):
                raise PolicyError(f"{name}: needs either action or thresholds")
            step = self._step("override", table, action or "review")
            thresholds = _thresholds(name, table)
            end_ms = _end_ms(name, table["until"])
            yield (
                table["field"],
                table["value"],
                Listed(end_ms, step if action else None, *thresholds),
            )


class PolicyFile:
    """The policy of a file that may change; whoever calls ``poll`` keeps it fresh.

    A broken file is reported once to ``on_error`` and the policy in use stays. Raises what
    load_policy raises when the first load fails. ``clock_ms`` is a monotonic clock. ``on_load`` is
    told the version and the bytes of a policy before it is used. Bytes of which ``holds_secret``
    says so are refused unread: a policy is archived, and its errors are shown.
    """

    def __init__(
        self,
        path: Path,
        feature_index: Mapping[str, int],
        on_error: Callable[[PolicyError], None],
        clock_ms: Callable[[], float] = lambda: time.monotonic() * 1000,
        on_load: Callable[[str, bytes], None] = lambda _version, _data: None,
        holds_secret: Callable[[bytes], bool] = lambda _data: False,
    ) -> None:
        self._path, self._feature_index = path, feature_index
        self._on_error, self._clock_ms, self._on_load = on_error, clock_ms, on_load
        self._holds_secret = holds_secret
        self._seen = self._identity()
        self._next_ms = clock_ms() + POLL_INTERVAL_MS
        self.current = self._load()

    def poll(self) -> Policy:
        """Return the policy to use now; look at the file at most every POLL_INTERVAL_MS."""
        now_ms = self._clock_ms()
        if now_ms >= self._next_ms:
            self._next_ms = now_ms + POLL_INTERVAL_MS
            seen = self._identity()
            if seen != self._seen:
                self._seen = seen
                self._reload()
        return self.current

    def _load(self) -> Policy:
        data = self._path.read_bytes()
        if self._holds_secret(data):
            raise PolicyError(f"{self._path.name}: it holds what looks like a card number")
        policy = load_policy(data, self._feature_index, self._path.name)
        self._on_load(policy.version, data)
        return policy

    def _reload(self) -> None:
        try:
            self.current = self._load()
        except PolicyError as error:
            self._on_error(error)
        except OSError as error:
            self._on_error(PolicyError(f"{self._path.name}: {error.strerror}"))

    def _identity(self) -> tuple[int, int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino
