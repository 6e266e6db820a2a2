"""Owns how the account of one decision is shown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.tree import Tree

EVENTS_MAX = 8


def print_steps(found: Mapping[str, Any], *, in_json: bool) -> None:
    """Show what a decision is made of."""
    if in_json:
        Console().print_json(json.dumps(found))
        return
    console = Console(highlight=False)
    console.print(
        f"[bold]{found['decision_id']}[/]  {found['outcome']}, rung {found['rung']}, replay: "
        f"{found['verdict']}; model {found['model_version'] or 'none'}, "
        f"policy {found['policy_version']}"
    )
    for entity in found.get("entities", ()):
        console.print(_entity(entity))
    if "model" in found:
        console.print(_model(found["model"], {f["feature"]: f for f in found["features"]}))
    console.print(_rules(found))


def _entity(entity: Mapping[str, Any]) -> Tree:
    windows = ", ".join(f"{name} {count}" for name, count in entity["windows"].items() if count)
    tree = Tree(
        f"[bold]{entity['entity']}[/] {entity['key']}  {entity['records']} records up to position "
        f"{entity['version']}"
    )
    tree.add(f"events in each window: {windows or 'none'}")
    for each in entity["events"][-EVENTS_MAX:]:
        tree.add(
            f"{each['position']}  {each['kind']}  {each['age_s']:,.1f} s before, "
            f"{each['amount']:,.2f}, in windows from {each['in_windows_from'] or '-'}"
        )
    return tree


def _model(model: Mapping[str, Any], features: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table(
        "feature", "value", "log-odds", "is", "made of",
        title=(
            f"logit {model['logit']:.6f} from an expected {model['expected_logit']:.6f}, score "
            f"{model['score']:.6f}; review from {model['review_from']:.6f}, decline from "
            f"{model['decline_from']:.6f}"
        ),
    )  # fmt: skip
    for each in model["largest"]:
        own = features[each["feature"]]
        made_of = ", ".join(f"{name} {_text(value)}" for name, value in own["made_of"].items())
        log_odds = f"{each['contribution']:+.4f}"
        table.add_row(each["feature"], _text(each["value"]), log_odds, own["is"], made_of)
    return table


def _rules(found: Mapping[str, Any]) -> Table:
    table = Table("rule", "action", "fired", "when", "values")
    for rule in found["rules"]:
        values = ", ".join(f"{name} = {value}" for name, value in rule["values"].items())
        fired = "[bold red]yes[/]" if rule["fired"] else "no"
        table.add_row(rule["code"], rule["action"], fired, rule["when"], values)
    return table


def _text(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.6g}"
