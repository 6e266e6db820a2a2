"""Tokens: JSON Web Tokens of one issuer, checked once and then known by their digest.

Owns what makes a token good. A token itself is neither kept nor shown.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from typing import Any

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from fraudsvc.callers.roles import CallersError, TokenRules

# Signatures that the holder of a public key cannot make.
ALGORITHMS = ["RS256", "PS256", "ES256"]
KNOWN_MAX = 4_096
TOKEN_BYTES_MAX = 4_096


class Tokens:
    """Gives the name that a good token stands for. Threads may share it.

    Raises CallersError for keys that cannot be used.
    """

    def __init__(self, rules: TokenRules, jwks: bytes, now_s: Callable[[], float]) -> None:
        try:
            self._keys = KeySet.import_key_set(json.loads(jwks))
        except (JoseError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise CallersError(f"{rules.jwks} is no JWK set: {type(error).__name__}") from None
        if not self._keys.keys or any(key.key_type == "oct" for key in self._keys.keys):
            raise CallersError(f"{rules.jwks} must hold public keys, and no shared secret")
        self._now_s = now_s
        self._leeway_s = rules.leeway_s
        self._claims = jwt.JWTClaimsRegistry(
            now=lambda: int(now_s()), leeway=rules.leeway_s,
            iss={"essential": True, "value": rules.issuer},
            aud={"essential": True, "value": rules.audience},
            sub={"essential": True}, exp={"essential": True},
        )  # fmt: skip
        self._known: dict[bytes, tuple[bytes, float]] = {}
        self._lock = threading.Lock()

    def name_of(self, token: str) -> bytes | None:
        """Return the subject of a token, None where it is not good, or no more."""
        digest = hashlib.sha256(token.encode(errors="replace")).digest()
        known = self._known.get(digest)
        if known is None:
            known = self._verify(token)
            if known is None:
                return None
            self._keep(digest, known)
        name, until_s = known
        return name if self._now_s() < until_s else None

    def _verify(self, token: str) -> tuple[bytes, float] | None:
        if len(token) > TOKEN_BYTES_MAX:
            return None
        try:
            claims: dict[str, Any] = jwt.decode(token, self._keys, algorithms=ALGORITHMS).claims
            self._claims.validate(claims)
        except (JoseError, ValueError, TypeError, RecursionError):
            return None
        return str(claims["sub"]).encode(), float(claims["exp"]) + self._leeway_s

    def _keep(self, digest: bytes, known: tuple[bytes, float]) -> None:
        with self._lock:
            if len(self._known) >= KNOWN_MAX:
                self._known.pop(next(iter(self._known)))
            self._known[digest] = known
