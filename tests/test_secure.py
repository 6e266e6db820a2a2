"""deploy/secure against the code, and against a real Redis: rights, TLS, passwords in files."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import pytest
import yaml

from deploy.testing.certificates import write_certificates
from deploy.testing.redis import RedisServer
from featurizer.kafka_settings import kafka_settings
from featurizer.places import store_place
from featurizer.store import StoreError
from featurizer.store_redis import RedisStates, RedisStore
from featurizer.topics import TOPICS
from tests.redis_servers import need_redis

SECURE = Path(__file__).parents[1] / "deploy" / "secure"
OVERLAY = SECURE.parent / "compose.secure.yaml"
PHRASE = "p:a/s@s%rd"


def users() -> dict[str, list[str]]:
    lines = (SECURE / "redis.acl").read_text().splitlines()
    return {line.split()[1]: line.split()[2:] for line in lines}


def place(server: RedisServer, user: str, ca: Path, password: Path, prefix: str = "fraud"):  # type: ignore[no-untyped-def]
    return store_place(
        f"rediss://{user}@127.0.0.1:{server.tls_port}/{prefix}?partitions=1&inputs=1"
        f"&ca_file={ca}&password_file={password}&socket_timeout_ms=2000&write_timeout_ms=4000"
    )


def test_a_scorer_may_read_alone_and_nobody_beyond_the_prefix(tmp_path: Path) -> None:
    need_redis()
    files, password = write_certificates(tmp_path), tmp_path / "password"
    password.write_text(PHRASE + "\n")
    with RedisServer(tmp_path / "redis") as server:
        server.command(
            *("CONFIG", "SET", "tls-cert-file", files.server, "tls-key-file", files.server),
            *("tls-auth-clients", "no", "tls-port", server.tls_port),
        )
        for name, rights in users().items():
            if name != "default":
                mended = [f">{PHRASE}" if right[0] == ">" else right for right in rights]
                server.command("ACL", "SETUSER", name, *mended)
        writer = place(server, "featurizer", files.authority, password)
        assert writer.redis is not None
        assert PHRASE not in writer.url
        store = RedisStore(writer.redis, 0, "one")
        store.write([(1, b"x")], [], 8)
        store.write([(1, b"y")], [], 16)
        reader = place(server, "scorer", files.authority, password)
        assert reader.redis is not None
        states = RedisStates(reader.redis, 1, "one")
        assert states.read([1], [0]) == [b"y"]
        with pytest.raises(StoreError, match="permission") as caught:
            RedisStore(reader.redis, 0, "one").write([(1, b"z")], [], 24)
        assert PHRASE not in str(caught.value)
        beyond = place(server, "featurizer", files.authority, password, "other").redis
        assert beyond is not None
        with pytest.raises(StoreError, match="permission"):
            RedisStore(beyond, 0, "one")
        store.close()
        states.close()
        password.write_text("wrong")
        wrong = place(server, "featurizer", files.authority, password).redis
        assert wrong is not None
        with pytest.raises(StoreError, match="invalid username-password"):
            RedisStore(wrong, 0, "one")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("redis://h:1/p?partitions=1&inputs=1&ca_file=ca.pem", "rediss"),
        ("redis://h:1/p?partitions=1&inputs=1&password_file=x", "USER@"),
        ("redis://u:p@h:1/p?partitions=1&inputs=1&password_file=x", "no password"),
    ],
)
def test_a_url_that_says_two_things_is_refused(url: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        store_place(url)


def rights() -> list[tuple[str, set[str], str]]:
    """Return user, operations and topic of each line that gives a right on a topic."""
    text = (SECURE / "kafka-acls.sh").read_text()
    found = re.findall(r"^topic (\S+) (\S+) ([a-z-]+)$", text, re.MULTILINE)
    return [(user, set(operations.split(",")), topic) for user, operations, topic in found]


def test_each_topic_has_those_who_read_and_write_it_and_no_other() -> None:
    names = {row.name for row in TOPICS}
    assert {topic for *_, topic in rights()} == names
    for row in TOPICS:
        readers = {user for user, may, topic in rights() if topic == row.name and "Read" in may}
        stages = {"split", "fold", "stream"} & set(row.read_by.split(", "))
        assert stages <= readers, row.name
    assert not any(user == "scorer" for user, *_ in rights())
    writers = {
        user for user, may, topic in rights() if topic == "entity-updates" and "Write" in may
    }
    assert writers == {"split"}
    assert (SECURE / "kafka-acls.sh").stat().st_mode & stat.S_IXUSR


def test_the_overlay_has_urls_that_are_accepted_and_no_secret_in_it(tmp_path: Path) -> None:
    overlay = yaml.safe_load(OVERLAY.read_text())
    base = yaml.safe_load((OVERLAY.parent / "compose.yaml").read_text())
    assert overlay["services"].keys() <= base["services"].keys()
    password = tmp_path / "password"
    password.write_text("x")
    found = set()
    for name, service in overlay["services"].items():
        environment = service.get("environment", {})
        assert not [
            v for k, v in environment.items() if "PASSWORD" in k and "/run/secrets" not in v
        ]
        if "FRAUD_KAFKA" in environment:
            assert kafka_settings(environment["FRAUD_KAFKA"]).security == "SASL_SSL", name
        if "FRAUD_STORE" in environment:
            url = re.sub(
                r"password_file=[^&]+", f"password_file={password}", environment["FRAUD_STORE"]
            )
            assert store_place(url).redis is not None
            found.add(url.partition("://")[2].partition("@")[0])
    assert found == {"scorer", "featurizer"}
