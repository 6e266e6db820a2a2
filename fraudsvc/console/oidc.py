"""Sign-in by OpenID Connect: authorization code with PKCE. The only importer of Authlib and httpx.

Owns what is asked of a provider and what of its answer is believed: issuer, signature, audience,
nonce, times. Must not know cookies. Sources: OpenID Connect Core 1.0 (3.1), RFC 7636, RFC 9207.
"""

from __future__ import annotations

import hmac
import secrets
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx
from authlib.common.errors import AuthlibBaseError
from authlib.deprecate import AuthlibDeprecationWarning
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from fraudsvc.console.access import LOOPBACK, is_name, roles_up_to
from fraudsvc.console.person import ROLES, Person

with warnings.catch_warnings():  # it would rather have httpx2, which nothing else here needs
    warnings.simplefilter("ignore", AuthlibDeprecationWarning)
    from authlib.integrations.httpx_client import OAuth2Client

TIMEOUT_S = 5.0
FRESH_S = 3_600.0  # that what a provider tells of itself is believed
KEYS_AGAIN_S = 10.0  # between two looks for a key that is not known
SKEW_S = 60  # between the provider's clock and ours
ANSWER_BYTES_MAX = 1 << 20
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA", "Ed25519")
_NAMES = ("preferred_username", "email", "sub")


class OidcError(Exception):
    """Nobody was signed in; the text is for the person."""


@dataclass(frozen=True, slots=True)
class OidcSettings:
    """A provider and what we are to it; ``roles`` names the provider's word for each role."""

    issuer: str
    client_id: str
    client_secret: str = field(repr=False)
    redirect_uri: str
    scope: str = "openid profile email"
    roles_claim: str = "roles"
    name_claim: str = ""
    roles: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what would send secrets in the clear."""
        for url in (self.issuer, self.redirect_uri):
            _refuse_plain(url)
        if not self.client_id:
            raise ValueError("OpenID Connect wants the client's id")


class Attempt(NamedTuple):
    """One sign-in that has begun: where to send the browser, and what must come back with it."""

    url: str
    state: str
    nonce: str
    verifier: str


class _Provider(NamedTuple):
    told: Mapping[str, Any]
    keys: KeySet
    read_s: float


class Oidc:
    """Signs people in by the provider of ``settings``. Any thread may use it."""

    def __init__(self, settings: OidcSettings, now_s: Callable[[], float] = time.time) -> None:
        self._settings, self._now_s = settings, now_s
        self._lock = threading.Lock()
        self._known: _Provider | None = None

    def begin(self) -> Attempt:
        """Begin a sign-in. Raises OidcError where the provider does not answer."""
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        endpoint = self._provider().told["authorization_endpoint"]
        with self._client() as client:
            url, _ = client.create_authorization_url(
                endpoint, state=state, code_verifier=verifier, nonce=nonce
            )
        return Attempt(url, state, nonce, verifier)

    def finish(self, attempt: Attempt, answer: Mapping[str, str]) -> Person:
        """Return who signed in, by the query that the browser came back with. Raises OidcError."""
        if not hmac.compare_digest(answer.get("state", ""), attempt.state):
            raise OidcError("the answer is not to the sign-in that this browser began")
        if answer.get("iss", self._settings.issuer) != self._settings.issuer:
            raise OidcError("the answer is from another provider")
        if "code" not in answer:
            raise OidcError(f"the provider refused: {answer.get('error', 'no code')[:100]}")
        provider = self._provider()
        try:
            with self._client() as client:
                token = client.fetch_token(
                    provider.told["token_endpoint"], code=answer["code"],
                    code_verifier=attempt.verifier, grant_type="authorization_code",
                )  # fmt: skip
                claims = self._claims(token["id_token"], attempt.nonce)
                claims = self._completed(claims, client, provider)
        except (AuthlibBaseError, httpx.HTTPError, JoseError, KeyError, ValueError) as error:
            raise OidcError(f"the provider's answer cannot be used: {_told(error)}") from error
        return self._person(claims)

    def _client(self) -> Any:
        settings = self._settings
        return OAuth2Client(
            settings.client_id, settings.client_secret or None, scope=settings.scope,
            redirect_uri=settings.redirect_uri, code_challenge_method="S256",
            timeout=TIMEOUT_S, follow_redirects=False, trust_env=False,
        )  # fmt: skip

    def _provider(self, older_than_s: float = FRESH_S) -> _Provider:
        """Return what the provider tells of itself; read again where that is older."""
        with self._lock:
            now_s = self._now_s()
            if self._known is None or abs(now_s - self._known.read_s) > older_than_s:
                self._known = self._discover(now_s)
            return self._known

    def _discover(self, now_s: float) -> _Provider:
        issuer = self._settings.issuer
        try:
            told = _get(issuer.rstrip("/") + "/.well-known/openid-configuration")
            if told["issuer"] != issuer:
                raise ValueError("it calls itself otherwise")
            for name in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
                _refuse_plain(told[name])
            keys = KeySet.import_key_set(_get(told["jwks_uri"]))
        except (httpx.HTTPError, JoseError, KeyError, TypeError, ValueError) as error:
            raise OidcError(f"the provider {issuer} does not answer: {_told(error)}") from error
        return _Provider(told, keys, now_s)

    def _claims(self, token: str, nonce: str) -> dict[str, Any]:
        """Return an ID token's claims once all of them are checked."""
        try:
            decoded = jwt.decode(token, self._provider().keys, algorithms=ALGORITHMS)
        except (JoseError, ValueError):  # a key that the provider has since a moment
            decoded = jwt.decode(token, self._provider(KEYS_AGAIN_S).keys, algorithms=ALGORITHMS)
        client = self._settings.client_id
        jwt.JWTClaimsRegistry(
            now=lambda: round(self._now_s()), leeway=SKEW_S,
            iss={"essential": True, "value": self._settings.issuer},
            aud={"essential": True, "value": client}, sub={"essential": True},
            exp={"essential": True}, iat={"essential": True},
            nonce={"essential": True, "value": nonce},
        ).validate(decoded.claims)  # fmt: skip
        claims: dict[str, Any] = decoded.claims
        many = isinstance(claims["aud"], list) and len(claims["aud"]) > 1
        if claims.get("azp", client) != client or (many and "azp" not in claims):
            raise ValueError("the token is for another client")
        return claims

    def _completed(self, claims: dict[str, Any], client: Any, provider: _Provider) -> Any:
        """Add what the provider keeps at its userinfo endpoint, where the roles are not told."""
        if _at(claims, self._settings.roles_claim) is not None:
            return claims
        endpoint = provider.told.get("userinfo_endpoint")
        if not endpoint:
            return claims
        _refuse_plain(endpoint)
        answer = client.get(endpoint)
        answer.raise_for_status()
        told = answer.json()
        if told.get("sub") != claims["sub"]:
            raise ValueError("userinfo is of somebody else")
        return {**told, **claims}

    def _person(self, claims: Mapping[str, Any]) -> Person:
        settings = self._settings
        names = (settings.name_claim,) if settings.name_claim else _NAMES
        name = next((str(claims[each]) for each in names if claims.get(each)), "")
        if not is_name(name):
            raise OidcError("the provider tells no name that can be used")
        told = _at(claims, settings.roles_claim) or ()
        words = set(told.split() if isinstance(told, str) else map(str, told))
        roles = {role for role in ROLES if settings.roles.get(role, role) in words}
        if not roles:
            raise OidcError(f"{name} has no role here: the claim {settings.roles_claim} gives none")
        return Person(name, roles_up_to(roles))


def roles_of(text: str) -> dict[str, str]:
    """Return the provider's words from ``analyst=fraud-analysts,lead=…``. Raises ValueError."""
    pairs = [each.partition("=") for each in text.split(",") if each.strip()]
    found = {role.strip(): word.strip() for role, _, word in pairs}
    if not set(found) <= set(ROLES) or not all(found.values()):
        raise ValueError(f"roles are ROLE=WORD by comma, of {', '.join(ROLES)}, not {text!r}")
    return found


def _get(url: str) -> Any:
    with httpx.Client(timeout=TIMEOUT_S, follow_redirects=False, trust_env=False) as client:
        answer = client.get(url)
    answer.raise_for_status()
    if len(answer.content) > ANSWER_BYTES_MAX:
        raise ValueError("its answer is too long")
    return answer.json()


def _refuse_plain(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOOPBACK):
        raise ValueError(f"{url!r} must be https, or on loopback")


def _at(claims: Mapping[str, Any], path: str) -> Any:
    """Return a claim, by its name or by names of objects within one another."""
    if path in claims:
        return claims[path]
    found: Any = claims
    for name in path.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _told(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__
