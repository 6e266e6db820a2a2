"""Where states are: what a store's URL says.

Owns the URL of states that are spread over partitions. Opens nothing but the file of a password.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from featurizer.features import SCHEMA_VERSION
from featurizer.redis_nodes import RedisSettings

_REDIS = ("redis", "rediss")


class StorePlace(NamedTuple):
    """A store's URL, taken apart. ``partitions`` is 0 for the one of embedded mode.

    ``inputs`` is how many partitions the events come from; ``redis`` is None for a local store.
    """

    url: str
    partitions: int
    inputs: int
    redis: RedisSettings | None = None

    @property
    def schema(self) -> str:
        """What states in it are made by: features, and how keys are spread."""
        return f"{SCHEMA_VERSION}/{self.partitions}/{self.inputs}"


def store_place(url: str) -> StorePlace:
    """Read ``lmdb://DIR``, or shared states with how many partitions of entities and events.

    Those are ``lmdb://DIR?partitions=P&inputs=I``, a replica of this host, or
    ``redis://[USER:PASSWORD@]HOST:PORT[,HOST:PORT...]/PREFIX?partitions=P&inputs=I``, to which
    the fields of RedisSettings may be added, ``ca_file`` (PEM; for ``rediss://``), and
    ``password_file``, which holds the password of the URL's USER alone. Raises ValueError, naming
    what is wrong, and OSError where that file cannot be read.
    """
    base, _, query = url.partition("?")
    given = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
    partitions, inputs = (int(given.pop(name, "0")) for name in ("partitions", "inputs"))
    if min(partitions, inputs) < 0 or (partitions == 0) != (inputs == 0):
        raise ValueError(f"the store wants ?partitions=P&inputs=I, not {query!r}")
    scheme = urlsplit(base).scheme
    if scheme in _REDIS and partitions:
        return StorePlace(base, partitions, inputs, _redis_settings(base, given))
    if scheme != "lmdb" or given:
        raise ValueError(
            "the store wants lmdb://DIR, or with ?partitions=P&inputs=I that or"
            f" redis://HOST:PORT/PREFIX, not {scheme}://...?{query}"
        )
    return StorePlace(base, partitions, inputs)


def _redis_settings(base: str, given: dict[str, str]) -> RedisSettings:
    scheme, _, rest = base.partition("://")
    place, _, prefix = rest.partition("/")
    user, at, hosts = place.rpartition("@")
    if path := given.pop("password_file", ""):
        if not user or ":" in user:
            raise ValueError("password_file wants USER@ before the host, and no password there")
        user += ":" + quote(Path(path).read_text(encoding="utf-8").rstrip("\n"), safe="")
    trusted = given.pop("ca_file", "")
    if trusted and scheme != "rediss":
        raise ValueError("ca_file wants rediss://")
    ending = f"?ssl_ca_certs={quote(trusted)}" if trusted else ""
    urls = tuple(f"{scheme}://{user}{at}{host}{ending}" for host in hosts.split(","))
    numbers: dict[str, Any] = {each.name: each.type for each in fields(RedisSettings)}
    settings: dict[str, Any] = {"prefix": unquote(prefix)} if prefix else {}
    for name, text in given.items():
        if name not in numbers or name in ("urls", "prefix"):
            raise ValueError(f"{name!r} is no setting of Redis")
        settings[name] = int(text) if numbers[name] == "int" else float(text)
    return RedisSettings(urls, **settings)
