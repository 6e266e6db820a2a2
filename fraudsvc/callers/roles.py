"""The table of callers: which name may do what, and how often.

Owns the roles, the form of the file, and the bucket that a rate is kept by. Must not know how a
name was proved. A clock comes in.
"""

from __future__ import annotations

import threading
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

FILE_BYTES_MAX = 1 << 20
CALLERS_MAX = 10_000
NAME_BYTES_MAX = 256
RATE_MAX = 1_000_000.0
ROLES = ("score", "report", "read", "operate")
# Which role a method wants; any other method of the port wants `operate`.
ROLE_OF = {"Score": "score", "ScoreBatch": "score", "ReportLabels": "report", "GetDecision": "read"}
OTHER = "operate"


class CallersError(ValueError):
    """The file of callers cannot be used."""


class Bucket:
    """Admits ``rate`` calls a second, and ``burst`` at once after a pause. Threads may share it."""

    def __init__(self, rate: float, burst: float, clock_s: Callable[[], float]) -> None:
        self._rate = rate
        self._burst = burst
        self._clock_s = clock_s
        self._left = burst
        self._seen_s = clock_s()
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Return whether one more call is within the rate."""
        with self._lock:
            now_s = self._clock_s()
            gained = max(now_s - self._seen_s, 0.0) * self._rate
            self._left = min(self._burst, self._left + gained)
            self._seen_s = now_s
            if self._left < 1.0:
                return False
            self._left -= 1.0
            return True


@dataclass(frozen=True, slots=True)
class Caller:
    """One row: what a name may do; ``bucket`` None for any rate."""

    name: str
    roles: frozenset[str]
    bucket: Bucket | None = None


@dataclass(frozen=True, slots=True)
class TokenRules:
    """What a token must be; ``jwks`` is the file of the keys, beside the file of callers."""

    jwks: str
    issuer: str
    audience: str
    leeway_s: int = 30


@dataclass(frozen=True, slots=True)
class Callers:
    """The file's content. ``by_name`` has names as the bytes that gRPC gives."""

    by_name: Mapping[bytes, Caller] = field(default_factory=dict)
    tokens: TokenRules | None = None


def parse_callers(data: bytes, clock_s: Callable[[], float]) -> Callers:
    """Return what the file says. Raises CallersError, which names the row at fault."""
    if len(data) > FILE_BYTES_MAX:
        raise CallersError(f"more than {FILE_BYTES_MAX} bytes")
    try:
        told = tomllib.loads(data.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CallersError(f"it is not TOML: {error}") from None
    except RecursionError:
        raise CallersError("its arrays or tables are nested too deeply") from None
    _known(told, {"callers", "tokens"}, "the file")
    rows = _table(told.get("callers", {}), "callers")
    if len(rows) > CALLERS_MAX:
        raise CallersError(f"more than {CALLERS_MAX} callers")
    found = {name.encode(): _caller(name, row, clock_s) for name, row in rows.items()}
    tokens = told.get("tokens")
    return Callers(found, None if tokens is None else _tokens(_table(tokens, "tokens")))


def _caller(name: str, value: Any, clock_s: Callable[[], float]) -> Caller:
    where = f"callers.{name!r}"
    if not 0 < len(name.encode()) <= NAME_BYTES_MAX:
        raise CallersError(f"{where}: a name has 1 to {NAME_BYTES_MAX} bytes")
    row = _table(value, where)
    _known(row, {"roles", "calls_per_second", "burst"}, where)
    roles = row.get("roles")
    if not isinstance(roles, list) or not roles or not all(role in ROLES for role in roles):
        raise CallersError(f"{where}: roles is a list of {', '.join(ROLES)}")
    if "calls_per_second" not in row:
        if "burst" in row:
            raise CallersError(f"{where}: burst wants calls_per_second")
        return Caller(name, frozenset(roles))
    rate = _number(row["calls_per_second"], f"{where}.calls_per_second")
    burst = _number(row.get("burst", max(rate, 1.0)), f"{where}.burst")
    return Caller(name, frozenset(roles), Bucket(rate, max(burst, 1.0), clock_s))


def _tokens(row: Mapping[str, Any]) -> TokenRules:
    _known(row, {"jwks", "issuer", "audience", "leeway_s"}, "tokens")
    jwks, issuer, audience = texts = [row.get(name) for name in ("jwks", "issuer", "audience")]
    if not all(isinstance(text, str) and text for text in texts):
        raise CallersError("tokens: jwks, issuer and audience are texts, and all are needed")
    leeway_s = row.get("leeway_s", 30)
    if not isinstance(leeway_s, int) or isinstance(leeway_s, bool) or not 0 <= leeway_s <= 600:
        raise CallersError("tokens.leeway_s is 0 to 600 seconds")
    return TokenRules(str(jwks), str(issuer), str(audience), leeway_s)


def _table(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise CallersError(f"{where} is a table")
    return value


def _known(row: Mapping[str, Any], names: set[str], where: str) -> None:
    if unknown := sorted(row.keys() - names):
        raise CallersError(f"{where}: unknown {', '.join(unknown)}")


def _number(value: Any, where: str) -> float:
    usable = isinstance(value, int | float) and not isinstance(value, bool)
    if not usable or not 0 < value <= RATE_MAX:
        raise CallersError(f"{where} is a number above 0, at most {RATE_MAX:.0f}")
    return float(value)
