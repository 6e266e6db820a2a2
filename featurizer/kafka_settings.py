"""How to reach a Kafka cluster: one URL, and the bounds of every call to it.

Owns what the URL means. Must not open a connection.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

SECURITY = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
PARTITIONS_MAX = 4_096
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")


@dataclass(frozen=True, slots=True)
class KafkaSettings:
    """Where the brokers are, who we are to them, and how long anything may take.

    Topics are called ``prefix`` and a dot and their name. Files hold PEM; ``password_file`` holds
    the password alone. ``linger_ms`` is how long a batch waits for more, which a relay that makes
    its own batches does not want. A member of a group that is silent for ``session_ms`` loses its
    partitions; a transaction that is open for ``transaction_ms`` is aborted by the broker.
    ``event_partitions`` and ``entity_partitions`` are how many the topics have, and
    ``replication`` how many copies of each are made where we create one.
    """

    bootstrap: str
    prefix: str = "fraud"
    security: str = "PLAINTEXT"
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    mechanism: str = "PLAIN"
    user: str = ""
    password_file: str = ""
    request_ms: int = 10_000
    session_ms: int = 10_000
    transaction_ms: int = 15_000
    fetch_wait_ms: int = 100
    fetch_bytes_max: int = 8 << 20
    batch_bytes_max: int = 4 << 20
    linger_ms: int = 0
    event_partitions: int = 8
    entity_partitions: int = 8
    replication: int = 1

    def topic(self, name: str) -> str:
        """Return the full name of a topic."""
        return f"{self.prefix}.{name}"

    def password(self) -> str | None:
        """Read the password. Raises OSError where its file cannot be read."""
        if not self.password_file:
            return None
        return Path(self.password_file).read_text(encoding="utf-8").rstrip("\n")


def kafka_settings(url: str) -> KafkaSettings:
    """Return what ``kafka://HOST:PORT[,HOST:PORT...][/PREFIX][?setting=value&...]`` says.

    The settings are the fields of KafkaSettings. Raises ValueError, naming what is wrong.
    """
    scheme, _, rest = url.partition("://")
    place, _, query = rest.partition("?")
    bootstrap, _, prefix = place.partition("/")
    if scheme != "kafka" or not bootstrap:
        raise ValueError(f"Kafka wants a URL such as kafka://HOST:PORT/PREFIX, not {url!r}")
    for address in bootstrap.split(","):
        if not urlsplit(f"//{address}").port:
            raise ValueError(f"{address!r} is not HOST:PORT")
    given: dict[str, str | int] = {"bootstrap": bootstrap}
    if prefix:
        given["prefix"] = unquote(prefix)
    known = {each.name: each.type for each in fields(KafkaSettings)}
    for name, text in parse_qsl(query, keep_blank_values=True, strict_parsing=True):
        if name not in known or name in given:
            raise ValueError(f"{name!r} is no setting of Kafka, or is given twice")
        given[name] = int(text) if known[name] == "int" else text
    settings = KafkaSettings(**given)  # type: ignore[arg-type]  # the types are those of the fields
    _check(settings)
    return settings


def _check(settings: KafkaSettings) -> None:
    counts = (settings.event_partitions, settings.entity_partitions, settings.replication)
    if not all(1 <= count <= PARTITIONS_MAX for count in counts):
        raise ValueError(f"counts of partitions and copies lie between 1 and {PARTITIONS_MAX}")
    if settings.security not in SECURITY:
        raise ValueError(f"security is one of {', '.join(SECURITY)}, not {settings.security!r}")
    if settings.mechanism not in MECHANISMS:
        raise ValueError(f"mechanism is one of {', '.join(MECHANISMS)}")
    if settings.security.startswith("SASL") and not (settings.user and settings.password_file):
        raise ValueError("SASL wants user and password_file")
