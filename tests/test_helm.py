"""The Helm chart: rendered by helm, checked by kubeconform, and held to the code and to itself."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy import health
from deploy.testing.kubernetes import InvalidError, conform, render, tool
from featurizer.adapters import directory_of
from featurizer.kafka_settings import kafka_settings
from featurizer.metering import BY_NAME
from featurizer.places import store_place
from tests.test_deploy import OURS, Parse, parse

ROOT = Path(__file__).parents[1]
CHART = ROOT / "deploy" / "helm" / "fraudsvc"
CASES = sorted(path.stem for path in (CHART / "ci").glob("*.yaml"))
# Of operators, whose schemas are the operators' own.
FOREIGN = ("Kafka", "KafkaNodePool", "RedisCluster")
OUTSIDE = "outside"
SHELL_S = 20
__all__ = ["parse"]

Object = dict[str, Any]


def needed(name: str) -> Path:
    found = tool(name)
    if found is None:
        if os.environ.get("CI"):
            pytest.fail(f"{name} is not here: .ci/run builds it")
        pytest.skip(f"{name} is not here: .ci/run builds it")
    return found


@cache
def rendered(case: str, *arguments: str) -> str:
    return render(needed("helm"), CHART, "--values", str(CHART / "ci" / f"{case}.yaml"), *arguments)


def objects(case: str, *arguments: str) -> list[Object]:
    return [each for each in yaml.load_all(rendered(case, *arguments), yaml.CSafeLoader) if each]


def of_kind(found: list[Object], kind: str) -> dict[str, Object]:
    return {each["metadata"]["name"]: each for each in found if each["kind"] == kind}


def pods(found: list[Object]) -> dict[str, Object]:
    """Return by name what each StatefulSet and Job makes."""
    kinds = of_kind(found, "StatefulSet") | of_kind(found, "Job")
    return {name: each["spec"]["template"] for name, each in kinds.items()}


def environment(container: Object) -> dict[str, str]:
    """Return a container's variables; what a Secret holds is a URL with a password here."""
    hidden = "redis://fraud:word@r1:6379/fraud?partitions=16&inputs=16"
    return {each["name"]: each.get("value", hidden) for each in container["env"]}


@pytest.mark.parametrize("case", CASES)
def test_kubernetes_would_take_every_object(case: str) -> None:
    conform(needed("kubeconform"), rendered(case), FOREIGN)


def test_what_kubernetes_does_not_know_is_found() -> None:
    wrong = rendered("small").replace("minReadySeconds", "minReadySecond")
    with pytest.raises(InvalidError, match="minReadySecond"):
        conform(needed("kubeconform"), wrong)


def test_helm_finds_nothing_to_complain_of() -> None:
    command = [str(needed("helm")), "lint", "--strict", "--kube-version", "1.37.0", str(CHART)]
    values = ["--values", str(CHART / "ci" / "small.yaml")]
    done = subprocess.run(
        [*command, *values], check=False, capture_output=True, text=True, timeout=SHELL_S
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("hosts.replica=3", "replica"),
        ("hosts.replicas=0", "replicas"),
        ("partitions.events=5000", "events"),
        ("image.digest=sha256:12", "digest"),
        ("redis.url=redis://user:password@r1:6379/fraud", "url"),
        ("kafka.bootstrap=kafka", "bootstrap"),
    ],
)
def test_a_wrong_value_is_refused(setting: str, said: str) -> None:
    with pytest.raises(InvalidError, match=said):
        rendered("small", "--set", setting)


def test_it_says_what_is_missing() -> None:
    with pytest.raises(InvalidError, match=r"kafka\.bootstrap is empty"):
        render(needed("helm"), CHART)
    with pytest.raises(InvalidError, match=r"redis\.url is empty"):
        render(needed("helm"), CHART, "--set", "kafka.bootstrap=k:9092")


@pytest.mark.parametrize("case", CASES)
def test_every_command_is_one_of_ours(case: str, parse: Parse) -> None:
    roles = set()
    for pod in pods(objects(case)).values():
        for container in pod["spec"]["containers"]:
            options = parse(container["args"], environment(container))
            roles.add(container["args"][1])
            for name in ("kafka", "store", "log"):
                if name in options:
                    assert getattr(options, name) == environment(container)[f"FRAUD_{name.upper()}"]
    assert {"serve", "relay", "console", "split", "fold", "topics"} <= roles


@pytest.mark.parametrize("case", CASES)
def test_urls_are_accepted_and_their_partitions_agree(case: str) -> None:
    seen = set()
    for pod in pods(objects(case)).values():
        for container in pod["spec"]["containers"]:
            names = environment(container)
            kafka, store = kafka_settings(names["FRAUD_KAFKA"]), store_place(names["FRAUD_STORE"])
            assert (store.partitions, store.inputs) == (
                kafka.entity_partitions, kafka.event_partitions,
            )  # fmt: skip
            seen.add((names["FRAUD_KAFKA"], names["FRAUD_STORE"]))
    assert len(seen) == 1


@pytest.mark.parametrize("case", CASES)
def test_a_container_can_do_little(case: str) -> None:
    for pod in pods(objects(case)).values():
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        security = spec["securityContext"]
        assert (security["runAsNonRoot"], security["runAsUser"]) == (True, 10001)
        assert not spec.keys() & {"hostPID", "hostNetwork", "hostIPC"}
        mounted = {volume["name"] for volume in spec["volumes"]} | {"data"}
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {mount["name"] for mount in container["volumeMounts"]} <= mounted
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
            assert "memory" in container["resources"]["limits"]


def test_a_scorer_is_never_stopped_for_its_share_of_cpu() -> None:
    for name, pod in pods(objects(OUTSIDE)).items():
        for container in pod["spec"]["containers"]:
            if container["args"][1] in ("serve", "stream"):
                assert "cpu" not in container["resources"]["limits"], name


@pytest.mark.parametrize("case", CASES)
def test_a_host_is_three_containers_on_one_journal(case: str) -> None:
    hosts = {
        n: p for n, p in pods(objects(case)).items() if "fraud.scores" in p["metadata"]["labels"]
    }
    assert hosts
    for pod in hosts.values():
        by_name = {each["name"]: each for each in pod["spec"]["containers"]}
        assert {"scorer", "relay", "console"} <= by_name.keys()
        # LMDB tells readers apart by their process numbers.
        assert pod["spec"]["shareProcessNamespace"] is True
        for container in by_name.values():
            names = environment(container)
            for url in ("FRAUD_LOG", "FRAUD_INDEX"):
                assert str(directory_of(names[url])).startswith("/data/")
            paths = {mount["mountPath"] for mount in container["volumeMounts"]}
            assert {"/data", "/tmp", names["FRAUD_METRICS"]} <= paths  # noqa: S108 - in the pod


def test_only_the_trainer_has_the_private_key_and_may_write_models() -> None:
    for pod in pods(objects(OUTSIDE)).values():
        for container in pod["spec"]["containers"]:
            mounts = {each["mountPath"]: each for each in container["volumeMounts"]}
            trains = container["name"] == "trainer"
            assert ("/keys" in mounts) == trains
            if "/model" in mounts:
                assert mounts["/model"].get("readOnly", False) != trains


@pytest.mark.parametrize("case", CASES)
def test_nothing_secret_is_written_into_an_object(case: str) -> None:
    found = objects(case)
    assert of_kind(found, "Secret") == {}
    for pod in pods(found).values():
        for container in pod["spec"]["containers"]:
            for each in container["env"]:
                assert "password=" not in each.get("value", "")


def test_journals_outlive_their_pods() -> None:
    found = of_kind(objects(OUTSIDE), "StatefulSet")["fraud-scorer"]["spec"]
    assert found["persistentVolumeClaimRetentionPolicy"] == {
        "whenDeleted": "Retain", "whenScaled": "Retain",
    }  # fmt: skip
    [claim] = found["volumeClaimTemplates"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOncePod"]
    pod = found["template"]["spec"]
    [relay] = [each for each in pod["containers"] if each["name"] == "relay"]
    command = relay["lifecycle"]["preStop"]["exec"]["command"]
    assert command[2] in relay["args"][-1]
    assert int(command[3]) < pod["terminationGracePeriodSeconds"]


def test_a_scorer_is_asked_by_the_name_of_its_service() -> None:
    pod = pods(objects(OUTSIDE))["fraud-scorer"]["spec"]
    [scorer] = [each for each in pod["containers"] if each["name"] == "scorer"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert scorer[probe]["grpc"] == {"port": 50051, "service": health.SERVICE}


@pytest.mark.parametrize("case", CASES)
def test_selectors_meet_their_pods(case: str) -> None:
    found = objects(case)
    labels = {name: pod["metadata"]["labels"] for name, pod in pods(found).items()}
    selectors = [
        each["spec"]["selector"]["matchLabels"]
        for kind in ("StatefulSet", "PodDisruptionBudget")
        for each in of_kind(found, kind).values()
    ]
    selectors += [each["spec"]["selector"] for each in of_kind(found, "Service").values()]
    selectors += [
        each["spec"]["podSelector"]["matchLabels"]
        for each in of_kind(found, "NetworkPolicy").values()
    ]
    for selector in selectors:
        assert any(selector.items() <= each.items() for each in labels.values()), selector


def test_pods_are_spread_and_a_drain_takes_one_at_a_time() -> None:
    found = objects(OUTSIDE)
    budgets = of_kind(found, "PodDisruptionBudget")
    assert budgets.keys() == {"fraud-scorer", "fraud-split", "fraud-fold", "fraud-stream"}
    assert {each["spec"]["maxUnavailable"] for each in budgets.values()} == {1}
    for pod in pods(found).values():
        zone, host = pod["spec"]["topologySpreadConstraints"]
        assert (zone["whenUnsatisfiable"], host["whenUnsatisfiable"]) == (
            "DoNotSchedule", "ScheduleAnyway",
        )  # fmt: skip


def test_scaling_looks_at_the_scorer_and_at_what_was_refused() -> None:
    found = objects(OUTSIDE)
    [scaler] = of_kind(found, "HorizontalPodAutoscaler").values()
    cpu, shed = scaler["spec"]["metrics"]
    assert cpu["containerResource"]["container"] == "scorer"
    assert shed["pods"]["metric"]["name"] == "fraud_calls_shed_per_second"
    assert "RESOURCE_EXHAUSTED" in BY_NAME["fraud_calls_total"].labels["code"]
    scaled = of_kind(found, "StatefulSet")["fraud-scorer"]
    assert "replicas" not in scaled["spec"]  # or an upgrade would undo what the scaler did
    assert scaler["spec"]["behavior"]["scaleDown"]["policies"][0]["value"] == 1


def test_only_what_is_named_comes_in() -> None:
    policies = of_kind(objects(OUTSIDE), "NetworkPolicy")
    closed = policies["fraud-default"]["spec"]
    assert "ingress" not in closed
    assert closed["policyTypes"] == ["Ingress", "Egress"]
    for rule in policies["fraud-hosts"]["spec"]["ingress"]:
        assert rule["from"], "an empty list would let everybody in"


def test_operators_make_what_the_urls_name() -> None:
    found = objects("operators")
    kafka = of_kind(found, "Kafka")["fraud"]["spec"]["kafka"]
    assert kafka["config"]["min.insync.replicas"] == 2
    assert kafka["config"]["auto.create.topics.enable"] is False
    container = next(iter(pods(found).values()))["spec"]["containers"][0]
    names = environment(container)
    assert kafka_settings(names["FRAUD_KAFKA"]).bootstrap == "fraud-kafka-bootstrap:9092"
    assert names["FRAUD_STORE"].startswith("redis://fraud-redis-leader:6379/")
    [redis] = of_kind(found, "RedisCluster").values()
    assert (
        "maxmemory-policy noeviction"
        in redis["spec"]["redisLeader"]["redisConfig"]["dynamicConfig"]
    )


def test_the_chart_runs_the_image_of_this_version() -> None:
    for pod in pods(objects("small")).values():
        assert {each["image"] for each in pod["spec"]["containers"]} == {OURS}


def drained(metrics: Path, seconds: int) -> int:
    done = subprocess.run(
        ["sh", str(ROOT / "deploy" / "drain.sh"), str(metrics), str(seconds)],
        check=False, capture_output=True, timeout=SHELL_S,
        env={**os.environ, "DRAIN_POLL_S": "0.01"},
    )  # fmt: skip
    return done.returncode


def test_a_relay_may_go_once_its_journal_is_shipped(tmp_path: Path) -> None:
    metrics = tmp_path / "relay.prom"
    assert drained(metrics, 10) == 1
    metrics.write_text("# TYPE fraud_relay_backlog_bytes gauge\nfraud_relay_backlog_bytes 120\n")
    assert drained(metrics, 10) == 1
    metrics.write_text("fraud_relay_backlog_bytes 0\n")
    assert drained(metrics, 10) == 0


def test_kernels_are_copied_where_the_root_is_read_only(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    (cache / "kernels-1").mkdir(parents=True)
    (cache / "kernels-1" / "used").touch()
    script = str(ROOT / "deploy" / "start.sh")
    names = {**os.environ, "NUMBA_CACHE_DIR": str(cache), "TMPDIR": str(tmp_path)}

    def place(user: int) -> str:
        done = subprocess.run(
            ["sh", script, "printenv", "NUMBA_CACHE_DIR"],
            check=True, capture_output=True, text=True, timeout=SHELL_S, env=names, user=user,
        )  # fmt: skip
        return done.stdout.strip()

    assert place(os.getuid()) == str(cache)
    if os.getuid():
        pytest.skip("only root can be somebody who may not write there")
    for path in (tmp_path, *tmp_path.parents):
        if path.is_relative_to("/tmp") and path != Path("/tmp"):  # noqa: S108 - pytest's own
            path.chmod(0o777)
    copy = place(65534)
    assert copy.startswith(f"{tmp_path}/kernels-")
    assert (Path(copy) / "kernels-1" / "used").exists()
