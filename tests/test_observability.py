"""Rules, dashboards and the overlay against the code: every metric, file and command exists."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from featurizer.metering import BY_NAME, METRICS
from featurizer.spans import ATTRIBUTES

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
OBSERVABILITY = DEPLOY / "observability"
DASHBOARDS = sorted((OBSERVABILITY / "dashboards").glob("*.json"))
RULES = yaml.safe_load((OBSERVABILITY / "rules.yaml").read_text())
OVERLAY = yaml.safe_load((DEPLOY / "compose.observability.yaml").read_text())
TIMEOUT_S = 60


def rules() -> list[dict[str, Any]]:
    return [rule for group in RULES["groups"] for rule in group["rules"]]


def expressions() -> list[str]:
    """Return every query that is evaluated somewhere."""
    found = [rule["expr"] for rule in rules()]
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            found += [target["expr"] for target in panel["targets"]]
    return found


def test_every_query_asks_for_metrics_and_labels_that_there_are() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    for text in expressions():
        assert set(re.findall(r"fraud:[a-z_]+:[a-z0-9_]+", text)) <= recorded, text
        for name, selector in re.findall(r"(?<![:\w])(fraud_\w+)(?:\{([^}]*)\})?", text):
            row = BY_NAME.get(name) or BY_NAME.get(re.sub(r"_(bucket|count|sum)$", "", name))
            assert row is not None, f"{name} is no metric: {text}"
            assert (row.name != name) == (row.kind == "histogram"), f"{name} is a {row.kind}"
            for label, matching, value in re.findall(r'(\w+)(=~|!=|=)"([^"]*)"', selector):
                if label == "le":
                    assert float(value) in row.buckets, f"{name} has no bucket {value}"
                    continue
                values = value.split("|") if matching == "=~" else [value]
                assert set(values) <= set(row.labels[label]), f"{label}={value} of {name}"


def test_every_metric_is_looked_at() -> None:
    text = "\n".join(expressions())
    assert [row.name for row in METRICS if row.name not in text] == []


def test_the_objective_of_50_ms_is_a_bucket() -> None:
    assert 0.05 in BY_NAME["fraud_call_seconds"].buckets


def test_every_alert_says_what_is_wrong_and_is_tested() -> None:
    alerts = {rule["alert"]: rule for rule in rules() if "alert" in rule}
    tested = yaml.safe_load((OBSERVABILITY / "rules_test.yaml").read_text())["tests"]
    quiet, bad = ({t["alertname"]: t for t in each["alert_rule_test"][::-1]} for each in tested)
    for name, rule in alerts.items():
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"]
        assert quiet[name]["exp_alerts"] == []
        assert bad[name]["exp_alerts"], f"nothing shows that {name} fires"


def test_the_rules_fire_as_they_say() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        if os.environ.get("CI"):
            raise RuntimeError("promtool is not installed")
        pytest.skip("promtool is not installed")
    for command in (["check", "rules", "rules.yaml"], ["test", "rules", "rules_test.yaml"]):
        done = subprocess.run(
            [promtool, *command], check=False, cwd=OBSERVABILITY, capture_output=True, text=True,
            timeout=TIMEOUT_S,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_panel_has_a_place_a_title_and_a_legend() -> None:
    assert len(DASHBOARDS) == 2
    for path in DASHBOARDS:
        board = json.loads(path.read_text())
        places = [tuple(panel["gridPos"].values()) for panel in board["panels"]]
        assert len(set(places)) == len(places)
        assert len({panel["id"] for panel in board["panels"]}) == len(places)
        for panel in board["panels"]:
            assert panel["title"]
            assert all(target["legendFormat"] for target in panel["targets"])


def test_the_overlay_adds_to_services_and_mounts_files_that_there_are() -> None:
    base = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    for name, service in OVERLAY["services"].items():
        if "image" not in service:
            assert name in base["services"], f"{name} is in neither file"
            continue
        assert "limits" in service["deploy"]["resources"], f"{name} has no bounds"
        assert service["cap_drop"] == ["ALL"]
        assert not service["image"].endswith(":latest")
        assert ":" in service["image"]
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), f"{name} is open to the network"
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            if source.startswith("./"):
                assert (DEPLOY / source).exists(), source
            else:
                assert source in {**base["volumes"], **OVERLAY["volumes"]}, source
    consoles = [each for name, each in OVERLAY["services"].items() if name.startswith("console")]
    ours = {each["image"] for each in base["services"].values() if "fraudsvc" in each["image"]}
    assert {each["image"] for each in consoles} == ours
    for each in consoles:
        own = {k: v for k, v in each["environment"].items() if k in base["x-environment"]}
        assert own == {k: base["x-environment"][k] for k in own}


def documented(mark: str) -> list[list[str]]:
    """Return the cells of a generated table in the guide for site reliability engineers."""
    text = (ROOT / "docs" / "users" / "reliability.md").read_text()
    match = re.search(rf"<!-- {mark} -->\n(.*?)<!-- /{mark} -->", text, re.DOTALL)
    assert match is not None, f"no table {mark}"
    rows = match[1].strip().splitlines()[2:]
    return [[cell.strip().strip("`") for cell in row.strip("|").split("|")] for row in rows]


def test_the_tables_of_metrics_and_attributes_are_those_of_the_code() -> None:
    metrics = [[r.name, r.kind, ", ".join(r.labels), r.meaning] for r in METRICS]
    assert documented("metrics") == metrics, "\n".join(
        f"| `{name}` | {kind} | {labels} | {meaning} |" for name, kind, labels, meaning in metrics
    )
    attributes = [[row.name, row.on, row.meaning] for row in ATTRIBUTES]
    assert documented("attributes") == attributes, "\n".join(
        f"| `{name}` | {on} | {meaning} |" for name, on, meaning in attributes
    )
