"""The files of deploy/ against the code: commands, URLs, partitions, names, and what is exposed."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
import yaml
from cyclonedx.model.bom import Bom
from fraud.v1 import fraud_service_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from deploy import health as check
from deploy import sbom
from featurizer.adapters import directory_of
from featurizer.kafka_settings import KafkaSettings, kafka_settings
from featurizer.places import StorePlace, store_place
from featurizer.topics import DAY_MS, TOPICS

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
COMPOSE = DEPLOY / "compose.yaml"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
MODEL = DEPLOY / "model.sh"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
OURS = f"fraudsvc:{PROJECT['project']['version']}"
TIMEOUT_S = 30
# Of `run` there is one: the trainer.
KINDS = {"topics": 1, "relay": 2, "split": 2, "fold": 2, "serve": 2, "run": 1}
SIZES = {"m": 1 << 20, "g": 1 << 30, "mb": 1 << 20, "gb": 1 << 30}

Service = dict[str, Any]


def services() -> dict[str, Service]:
    found: dict[str, Service] = yaml.safe_load(COMPOSE.read_text())["services"]
    return found


def of_kind(*kinds: str) -> dict[str, Service]:
    """Return the services that run one of our commands."""
    return {
        name: service
        for name, service in services().items()
        if service["image"] == OURS and service["command"][1] in kinds
    }


class Parsed(Exception):  # noqa: N818 - it is no error, but how a command is left
    """What a command would have run with."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__()
        self.options = options


Parse = Callable[[Sequence[str], dict[str, str]], argparse.Namespace]


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch) -> Parse:
    """Return what gives the options of ``MODULE ARGUMENTS...``; it fails for ones not accepted."""
    real = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, *given: Any) -> argparse.Namespace:
        raise Parsed(real(parser, *given))

    def parse_command(command: Sequence[str], environment: dict[str, str]) -> argparse.Namespace:
        module, *arguments = command
        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(Parsed) as caught:
            importlib.import_module(f"{module}.__main__").main()
        return caught.value.options

    return parse_command


class Urls(NamedTuple):
    """What the URLs of a service say."""

    kafka: KafkaSettings
    store: StorePlace


def urls(service: Service) -> Urls:
    environment = service["environment"]
    return Urls(kafka_settings(environment["FRAUD_KAFKA"]), store_place(environment["FRAUD_STORE"]))


def mounts(service: Service) -> dict[str, str]:
    """Return by target which volume stands there."""
    texts = [re.sub(r"\$\{\w+:-(\w+)\}", r"\1", each) for each in service.get("volumes", [])]
    return {text.split(":")[1]: text.split(":")[0] for text in texts}


@pytest.mark.parametrize("name", [n for n, s in services().items() if s["image"] == OURS])
def test_a_command_is_one_of_ours(name: str, parse: Parse) -> None:
    service = services()[name]
    if "entrypoint" in service:
        start, made = ("/opt/fraud/deploy/start.sh", "/opt/fraud/deploy/model.sh")
        assert service["entrypoint"] == ["sh", start, "sh", made]
        return
    options = parse(service["command"], service["environment"])
    given = {key: getattr(options, key) for key in ("kafka", "store", "log") if key in options}
    for key, value in given.items():
        assert value == service["environment"][f"FRAUD_{key.upper()}"]


def test_the_roles_are_all_there() -> None:
    counts = {kind: len(of_kind(kind)) for kind in KINDS}
    assert counts == KINDS


def test_urls_are_accepted_and_their_partitions_agree() -> None:
    seen = {urls(service) for service in services().values() if service["image"] == OURS}
    [(kafka, store)] = seen
    assert (store.partitions, store.inputs) == (kafka.entity_partitions, kafka.event_partitions)
    assert kafka.bootstrap.partition(":")[0] in services()
    assert store.redis is not None
    [server] = store.redis.urls
    assert re.fullmatch(r"redis://(\w+):6379", server)
    assert kafka.replication == 1  # there is one broker


def test_a_url_stands_once() -> None:
    text = COMPOSE.read_text()
    environment = next(iter(of_kind("serve").values()))["environment"]
    urls_there = [value for value in environment.values() if "://" in value]
    assert len(urls_there) == 4
    assert [text.count(url) for url in urls_there] == [1, 1, 1, 1]


def test_a_host_is_a_scorer_and_a_relay_on_one_journal() -> None:
    def places(service: Service) -> tuple[str, str]:
        environment = service["environment"]
        for name in ("FRAUD_LOG", "FRAUD_INDEX"):
            assert str(directory_of(environment[name])).startswith("/data/")
        return service["hostname"], mounts(service)["/data"]

    scorers = [places(service) for service in of_kind("serve").values()]
    relays = [places(service) for service in of_kind("relay").values()]
    assert sorted(scorers) == sorted(relays)
    assert len({host for host, _ in scorers}) == len({volume for _, volume in scorers}) == 2


def test_processes_that_map_one_file_differ_in_number() -> None:
    """LMDB locks a byte at the process's number, and two containers both begin at 1."""
    for service in of_kind("relay").values():
        assert (service["pid"], service["init"]) == ("host", False)
    assert all("pid" not in service for service in of_kind("serve").values())


def test_members_of_a_group_have_names_of_their_own(parse: Parse) -> None:
    for kind in ("split", "fold"):
        found = [parse(each["command"], each["environment"]) for each in of_kind(kind).values()]
        assert len({options.instance for options in found} - {""}) == len(found) == 2


def test_images_are_pinned() -> None:
    for name, service in services().items():
        assert re.search(r":\d+\.\d+\.\d+(-\w+)?$", service["image"]), name
    pom = (DEPLOY / "testing" / "pom.xml").read_text()
    version = re.search(r"<kafka\.version>([\d.]+)<", pom)
    assert version is not None
    assert services()["kafka"]["image"] == f"apache/kafka:{version[1]}"
    # Two that build one image at a time stand in each other's way.
    assert [name for name, service in services().items() if "build" in service] == ["topics"]


def test_nothing_is_published_beyond_this_machine() -> None:
    ports = [port for service in services().values() for port in service.get("ports", [])]
    assert len(ports) == len(set(ports)) == 2
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+:50051", port) for port in ports)
    assert "network_mode: host" not in COMPOSE.read_text()


@pytest.mark.parametrize("name", services())
def test_a_service_is_confined(name: str) -> None:
    service = services()[name]
    assert service["user"] not in ("0", "root", "0:0")
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service.get("read_only", False) == (service["image"] == OURS or name == "redis")
    limits = service["deploy"]["resources"]["limits"]
    assert {"memory", "pids"} <= limits.keys()
    # The kernel would stop a scorer for the rest of a period, which is longer than its budget.
    assert ("cpus" in limits) == (name not in of_kind("serve"))
    once = service["restart"].startswith("on-failure:")
    assert once or service["restart"] == "unless-stopped"
    assert once or "healthcheck" in service
    assert once == (name in ("topics", "model"))


def test_everything_that_is_named_is_there() -> None:
    document = yaml.safe_load(COMPOSE.read_text())
    used = {volume for each in services().values() for volume in mounts(each).values()}
    assert used == document["volumes"].keys()
    for name, service in services().items():
        for other, wanted in service.get("depends_on", {}).items():
            restarts = services()[other]["restart"] == "unless-stopped"
            assert (wanted["condition"] == "service_completed_successfully") != restarts, name


def test_a_scorer_has_no_private_key() -> None:
    readers = [name for name, each in services().items() if "/keys" in mounts(each)]
    assert readers == ["model", *of_kind("run")]
    for service in of_kind("run").values():
        assert any(text.endswith(":/keys:ro") for text in service["volumes"])
    for service in of_kind("serve").values():
        assert any(text.endswith(":/model:ro") for text in service["volumes"])


def test_redis_is_a_cache_that_drops_nothing() -> None:
    service = services()["redis"]
    words = service["command"]
    settings = dict(zip(words[1::2], words[2::2], strict=True))
    assert settings["--maxmemory-policy"] == "noeviction"
    assert (settings["--appendonly"], settings["--save"]) == ("no", "")

    def size(text: str) -> int:
        number, unit = re.fullmatch(r"(\d+)(\w+)", text).groups()  # type: ignore[union-attr]
        return int(number) * SIZES[unit]

    memory = service["deploy"]["resources"]["limits"]["memory"]
    assert size(settings["--maxmemory"]) * 5 <= size(memory) * 4


def test_kafka_has_one_copy_of_everything() -> None:
    environment = services()["kafka"]["environment"]
    copies = {v for n, v in environment.items() if n.endswith(("REPLICATION_FACTOR", "MIN_ISR"))}
    assert copies == {1}
    assert environment["KAFKA_LOG_DIRS"] in mounts(services()["kafka"])
    bootstrap = next(iter(of_kind("relay").values()))["environment"]["FRAUD_KAFKA"]
    assert environment["KAFKA_ADVERTISED_LISTENERS"].removeprefix("PLAINTEXT") in bootstrap


def model_commands() -> list[list[str]]:
    lines = re.findall(r"^python -m (.+)$", MODEL.read_text(), re.MULTILINE)
    return [shlex.split(line) for line in lines]


def test_the_model_is_made_by_our_own_commands(parse: Parse) -> None:
    assert [command[:2] for command in model_commands()] == [
        ["loadgen", "world"], ["featurizer", "backfill"], ["trainer", "train"],
    ]  # fmt: skip
    for command in model_commands():
        parse(command, {})


def test_a_model_that_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "key.pub").touch()
    done = subprocess.run(
        ["sh", str(MODEL), str(tmp_path), str(tmp_path / "keys")],
        check=True, capture_output=True, text=True, timeout=TIMEOUT_S, env={"PATH": ""},
        executable="/bin/sh",
    )  # fmt: skip
    assert done.stdout == f"there is a model in {tmp_path}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["key.pub"]


def copied() -> list[str]:
    """Return what the Dockerfile takes from the repository."""
    lines = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    return [source for line in lines for source in line.split()]


def test_the_image_gets_what_it_copies_and_no_more() -> None:
    ignored = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] != "#"
    ]
    kept = [line[1:] for line in ignored if line.startswith("!")]
    assert ignored[0] == "*"
    assert sorted(kept) == sorted(copied())
    assert [source for source in copied() if not (ROOT / source).exists()] == []
    assert not any(fnmatch(".venv", pattern) or "data" in pattern for pattern in kept)


def test_the_image_has_every_package_and_no_developer_tool() -> None:
    packages = {name.partition(".")[0] for name in PROJECT["tool"]["setuptools"]["packages"]}
    [touched] = re.findall(r"^RUN find (.+) -name '\*\.py'", DOCKERFILE, re.MULTILINE)
    [compiled] = re.findall(r"compileall -q (.+) \\$", DOCKERFILE, re.MULTILINE)
    assert set(touched.split()) == set(compiled.split()) == packages
    text = DOCKERFILE.replace("\\\n", " ")
    [removed] = re.findall(r"pip uninstall --yes (.+)$", text, re.MULTILINE)
    wanted = PROJECT["project"]["optional-dependencies"]["dev"]
    names = {re.split(r"[^A-Za-z0-9._-]", entry)[0] for entry in wanted}
    assert set(removed.split()) == names
    assert removed.split()[-1] == "pip"


def test_the_image_is_pinned_and_runs_as_nobody_in_particular(parse: Parse) -> None:
    sources = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert [source for source in sources if source != "base"] == ["python:3.11.14-slim-bookworm"]
    users = re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE)
    assert users == [next(iter(of_kind("serve").values()))["user"]]
    assert "NUMBA_CPU_NAME=generic" in DOCKERFILE
    [command] = re.findall(r"^CMD (\[.+\])$", DOCKERFILE, re.MULTILINE)
    parse(yaml.safe_load(command), {})
    assert f"--tag {OURS} " in DOCKERFILE


def test_the_bill_of_materials_lists_every_pin() -> None:
    text = (ROOT / "requirements.txt").read_text()
    pins = dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", text, re.MULTILINE))
    version = PROJECT["project"]["version"]
    made = sbom.bom(text, "fraudsvc", version)
    read = Bom.from_json(made)  # type: ignore[attr-defined]  # a reader of somebody else's
    assert {each.name: each.version for each in read.components} == {
        name.replace("_", "-").replace(".", "-"): pin for name, pin in pins.items()
    }
    assert all(each["evidence"]["occurrences"] for each in made["components"])
    assert made == sbom.bom(text, "fraudsvc", version)
    assert f"sbom.py requirements.txt {version} > /opt/fraud/sbom.json" in DOCKERFILE


def test_a_pin_without_a_digest_is_no_component() -> None:
    with pytest.raises(ValueError, match="numpy has no digest"):
        sbom.components("numpy==2.4.6\n")


@pytest.fixture
def port() -> Iterator[tuple[int, health.HealthServicer]]:
    """Yield the port of a server that answers for its health, and what it answers with."""
    server = grpc.server(ThreadPoolExecutor(1))
    servicer = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    number = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield number, servicer
    server.stop(None).wait()


def test_health_is_asked_for(
    port: tuple[int, health.HealthServicer], monkeypatch: pytest.MonkeyPatch
) -> None:
    number, servicer = port
    service_names = fraud_service_pb2.DESCRIPTOR.services_by_name
    assert service_names["FraudService"].full_name == check.SERVICE
    monkeypatch.setattr(sys, "argv", ["health", f"127.0.0.1:{number}"])
    assert check.main() == 1  # no such service yet
    servicer.set(check.SERVICE, health_pb2.HealthCheckResponse.SERVING)
    assert check.main() == 0
    servicer.set(check.SERVICE, health_pb2.HealthCheckResponse.NOT_SERVING)
    assert check.main() == 1
    for service in of_kind("serve").values():
        command = service["healthcheck"]["test"]
        assert command[:3] == ["CMD", "python", "/opt/fraud/deploy/health.py"]
        address = service["environment"]["FRAUD_ADDRESS"]
        assert command[3].rpartition(":")[2] == address.rpartition(":")[2]


def topic_table() -> str:
    lines = ["| topic | key | partitions | kept | read by |\n", "| --- | --- | --- | --- | --- |\n"]
    for row in TOPICS:
        days = f"{row.retention_ms // DAY_MS} days" if row.retention_ms > 0 else "for ever"
        kept = "the newest of each key" if row.compacted else days
        cells = (f"`{row.name}`", row.key, row.partitions, kept, row.read_by)
        lines.append(f"| {' | '.join(cells)} |\n")
    return "".join(lines)


def test_the_topics_of_the_documents_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    match = re.search(r"<!-- topics -->\n(.*?)<!-- /topics -->", text, re.DOTALL)
    assert match is not None, "docs/architecture.md has no table between marks of the name topics"
    expected = topic_table()
    assert match[1] == expected, f"put this between the marks of topics:\n{expected}"


def test_the_urls_of_the_documents_are_accepted() -> None:
    text = (ROOT / "docs" / "users" / "several-hosts.md").read_text()
    readers: dict[str, Callable[[str], object]] = {
        "kafka": kafka_settings, "redis": store_place, "rediss": store_place, "lmdb": store_place,
    }  # fmt: skip
    found = re.findall(r"(?<=['`])((\w+)://[^'`]+)(?=['`])", text)
    assert len(found) >= 8
    for url, scheme in found:
        readers[scheme](url)
